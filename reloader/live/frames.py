"""Who stands where: the stacks of stopped threads, seen from outside as words.

A word on a stack that points behind a call instruction of a function is taken as a return
address. That can name a function that has returned already (its old word was not overwritten),
and never misses one that has not, whatever its unwind tables say.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from reloader.ids import I64, U64, Addr
from reloader.live import decode
from reloader.live.target import Mapping, Target

# words of user_regs_struct (sys/user.h)
RIP: Final = 16
RSP: Final = 19
FS_BASE: Final = 21
RED_ZONE: Final = (
    128  # bytes below the stack pointer that a leaf function may use (psABI 3.2.2)
)
_LONGEST_STACK: Final = 8 << 20  # bytes of one stack that are looked at
_BEFORE: Final = 7  # bytes of the longest call


@dataclass(frozen=True, slots=True)
class Active:
    """A function that some thread is going to return into, or runs."""

    name: str
    function: int  # row of what was asked
    tid: int
    thread: str
    running: bool  # the thread's program counter itself is inside


def thread_name(pid: int, tid: int) -> str:
    """Return a thread's name, `?` once it has ended."""
    try:
        return Path(f"/proc/{pid}/task/{tid}/comm").read_text(errors="replace").rstrip("\n")
    except OSError:
        return "?"


def mapping_at(mappings: list[Mapping], addr: int) -> int | None:
    """Return the index of the mapping that holds an address."""
    starts = np.array([mapping.start for mapping in mappings], np.uint64)
    at = int(np.searchsorted(starts, np.uint64(addr), side="right")) - 1
    return at if at >= 0 and addr < mappings[at].end else None


def stack_words(target: Target, mappings: list[Mapping], rsp: int) -> U64:
    """Return the words between a stack pointer and the end of its mapping."""
    at = mapping_at(mappings, rsp)
    start = rsp & ~7
    if at is None or "r" not in mappings[at].protection:
        return np.empty(0, np.uint64)
    size = min(mappings[at].end - start, _LONGEST_STACK)
    return target.read(Addr(start), size).view(np.uint64)


@dataclass(frozen=True, slots=True, eq=False)
class CodeRanges:
    """(f,) columns: the functions that are asked about."""

    addr: U64
    size: U64
    names: list[bytes]


def active_functions(
    target: Target, tids: list[int], registers: NDArray[np.uint64], functions: CodeRanges
) -> list[Active]:
    """Return which functions are on the stack of some thread: they finish in old code.

    Works on the registers of a stop that is over, too: what stays on a stack for long is above
    the stack pointer of then.
    """
    order = np.argsort(functions.addr)
    addr, size = functions.addr[order], functions.size[order]
    found: list[Active] = []
    mappings = target.maps()
    for tid, words in zip(tids, registers, strict=True):
        thread = thread_name(target.pid, tid)
        returns = stack_words(target, mappings, int(words[RSP]))
        here = _rows(words[RIP : RIP + 1], addr, size)
        rows = _rows(returns, addr, size)
        inside = np.flatnonzero(rows >= 0)
        for row in dict.fromkeys(
            [int(here[0]), *_returning(target, returns[inside], rows[inside])]
        ):
            if row >= 0:
                function = int(order[row])
                name = functions.names[function].decode("utf-8", "replace")
                found.append(Active(name, function, tid, thread, row == int(here[0])))
    return found


def _rows(words: U64, addr: U64, size: U64) -> I64:
    """Return (w,) the function that each word points into, -1 for none."""
    if not len(addr):
        return np.full(len(words), -1, np.int64)
    row = np.searchsorted(addr, words, side="right") - 1
    inside = (row >= 0) & (words - addr[row] <= size[row])  # a last call returns to the end
    return np.where(inside, row, -1)


def _returning(target: Target, words: U64, rows: I64) -> list[int]:
    """Return the functions, innermost first, for the words that stand behind a call."""
    result: dict[int, None] = {}
    seen: dict[int, bool] = {}
    for word, row in zip(words.tolist(), rows.tolist(), strict=True):
        if row in result:
            continue
        if word not in seen:
            before = target.read(Addr(word - _BEFORE), _BEFORE).tobytes()
            seen[word] = decode.follows_call(before)
        if seen[word]:
            result[row] = None
    return list(result)
