"""Who stands where: the stacks of stopped threads, seen from outside as words.

A word on a stack that points behind a call instruction of a function is taken as a return
address. That can name a function that has returned already (its old word was not overwritten),
and never misses one that has not, whatever its unwind tables say.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from reloader.ids import I64, U64, Addr
from reloader.live import decode
from reloader.live.target import Mapping, Target

Span = tuple[int, int]  # first address, address behind the last
Symboliser = Callable[[int], str]  # the variable at an address, or ""

# words of user_regs_struct (sys/user.h)
ORIG_RAX: Final = 15
RIP: Final = 16
RSP: Final = 19
FS_BASE: Final = 21
REGISTERS: Final = [
    "r15", "r14", "r13", "r12", "rbp", "rbx", "r11", "r10", "r9", "r8", "rax", "rcx", "rdx",
    "rsi", "rdi", "orig_rax", "rip", "cs", "eflags", "rsp", "ss", "fs_base", "gs_base", "ds",
    "es", "fs", "gs",
]  # fmt: skip
_NAMED: Final = 64  # holders that are described in one report
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


def possible_stacks(mappings: list[Mapping]) -> list[Span]:
    """Return the mappings that may be a thread's stack: named so, or above a guard."""
    pairs = pairwise(mappings)
    found = [(int(m.start), int(m.end)) for below, m in pairs if _is_guarded(below, m)]
    return sorted(
        {*found, *((int(m.start), int(m.end)) for m in mappings if m.name == "[stack]")}
    )


def _is_guarded(below: Mapping, mapping: Mapping) -> bool:
    return (
        below.end == mapping.start
        and below.protection.startswith("---")
        and mapping.protection.startswith("rw-p")
        and not mapping.name
    )


def dead_stacks(mappings: list[Mapping], registers: NDArray[np.uint64]) -> list[Span]:
    """Return the parts of stacks below the stack pointers of stopped threads, in address order.

    Certain are the main stack under a stack pointer in it, and memory above a guard that also
    holds, above the stack pointer, the thread's own control block: what pthread_create makes. A
    fiber's stack has none and counts whole.
    """
    found: list[Span] = []
    for words in registers:
        rsp, fs_base = int(words[RSP]), int(words[FS_BASE])
        at = mapping_at(mappings, rsp)
        if at is None:
            continue
        mapping = mappings[at]
        thread = (
            at > 0 and _is_guarded(mappings[at - 1], mapping) and rsp < fs_base < mapping.end
        )
        end = (rsp - RED_ZONE) & ~7
        if (thread or mapping.name == "[stack]") and end > mapping.start:
            found.append((int(mapping.start), end))
    return sorted(found)


@dataclass(frozen=True, slots=True)
class Holder:
    """One word that still points into old code or its data."""

    # thread, register, stack, global, heap, memory, slot, signal, debugger, breakpoint
    kind: str
    where: str  # for people
    addr: int  # of the word; 0 for a register
    value: int
    tid: int = 0
    symbol: str = ""  # the variable or function, where known


def name_word(
    mappings: list[Mapping], stacks: dict[int, int], addr: int, value: int, symbol: str = ""
) -> Holder:
    """Say what a word in memory belongs to.

    Args:
        mappings: Of the process.
        stacks: Start of the mapping that each thread's stack pointer is in -> thread.
        addr: Of the word.
        value: What it holds.
        symbol: The variable at that address, if somebody knows.
    """
    at = mapping_at(mappings, addr)
    if at is None:
        return Holder("memory", f"memory at {addr:#x}, unmapped meanwhile", addr, value)
    mapping = mappings[at]
    tid = stacks.get(int(mapping.start), 0)
    if tid:
        return Holder("stack", f"stack of thread {tid} at {addr:#x}", addr, value, tid, symbol)
    if mapping.name == "[heap]":
        return Holder("heap", f"heap at {addr:#x}", addr, value, 0, symbol)
    if symbol or mapping.name.startswith("/"):
        inside = symbol or f"{mapping.name} {mapping.protection} at {addr:#x}"
        return Holder("global", inside, addr, value, 0, symbol)
    where = f"memory at {addr:#x} ({mapping.name or 'mapped by the program'})"
    return Holder("memory", where, addr, value, 0, symbol)


def describe(  # noqa: PLR0913, PLR0917  two columns of words, and what names them
    target: Target,
    addr: U64,
    value: U64,
    registers: list[tuple[int, str, int]],
    stacks: dict[int, int],
    symbolise: Symboliser | None = None,
) -> list[Holder]:
    """Return the first few holders behind words and (thread, register, value) rows."""
    mappings = target.maps()
    found: list[Holder] = []
    for tid, name, word in registers[:_NAMED]:
        runs = name == "rip"
        text = f"thread {thread_name(target.pid, tid)} ({tid})"
        text += " runs it" if runs else f" has it in {name}"
        found.append(Holder("thread" if runs else "register", text, 0, word, tid))
    for at, word in zip(addr[:_NAMED].tolist(), value[:_NAMED].tolist(), strict=True):
        symbol = symbolise(at) if symbolise is not None else ""
        found.append(name_word(mappings, stacks, at, word, symbol))
    return found
