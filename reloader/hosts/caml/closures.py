"""Closures in the live program: which code a module's function runs.

Layout of a closure (runtime/caml/mlvalues.h): code pointer, closure information (arity in the
top eight bits, then where the environment begins), and for arities other than 0 and 1 the code
of a full application; the first pointer is then `caml_curryN` or `caml_tuplifyN`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from reloader.ids import U8, Addr

Read = Callable[[Addr, int], U8]  # bytes of the target
WORD: Final = 8
CLOSURE, INFIX = 247, 249  # tags
_SIZE_SHIFT: Final = 10


@dataclass(frozen=True, slots=True)
class Closure:
    """One function value without environment."""

    code: int  # what a full application runs
    arity: int  # negative: takes a tuple
    pointer: int  # address of the word that holds `code`


def words(read: Read, addr: int, count: int) -> list[int]:
    """Return some words of the target."""
    return read(Addr(addr), count * WORD).view("<u8").tolist()


def value_at(read: Read, block: int, chain: Sequence[int]) -> int:
    """Return a field of a module block, or of a module in it, and so on; 0: no such block."""
    value = block
    for index in chain:
        if value & 1 or not value:
            return 0
        value = words(read, value + index * WORD, 1)[0]
    return value


def closure_at(read: Read, value: int) -> Closure | None:
    """Return what a value is if it is a closed function, else None.

    Code that needs an environment cannot be replaced without the value that holds it.
    """
    if value & 1 or not value:
        return None
    header, code, info, full = words(read, value - WORD, 4)
    outer, tag = value, header & 0xFF
    if tag == INFIX:  # several functions in one block: the block's header is before
        outer = value - (header >> _SIZE_SHIFT) * WORD
        header = words(read, outer - WORD, 1)[0]
    elif tag != CLOSURE:
        return None
    arity = (info >> 56) - (256 if info >> 63 else 0)
    outer_info = info if outer == value else words(read, outer + WORD, 1)[0]
    environment = (outer_info & ((1 << 56) - 1)) >> 1
    if environment < header >> _SIZE_SHIFT:
        return None
    if arity in {0, 1}:
        return Closure(code, arity, value)
    return Closure(full, arity, value + 2 * WORD)
