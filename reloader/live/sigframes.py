"""Program counters hidden in signal frames.

A thread inside a signal handler will return into whatever it was interrupted in. The kernel put
that program counter on the stack: a return address that points at the C library's
`__restore_rt`, followed by a ucontext (x86-64 kernel ABI, `struct rt_sigframe`). So: find the
restorers once by their bytes, then look for their addresses on the stacks.
"""

from collections.abc import Callable, Sequence
from typing import Final

import numpy as np

from reloader.ids import U8, U64
from reloader.live import ptrace
from reloader.live.target import Mapping

Read = Callable[[int, int], U8]

RESTORER: Final = bytes.fromhex("48c7c00f0000000f05")  # mov $SYS_rt_sigreturn,%rax; syscall
RIP_OFFSET: Final = 22  # words from the restorer's address to uc_mcontext.gregs[REG_RIP]
RSP_OFFSET: Final = 21
STACK_LIMIT: Final = 8 << 20  # how much of one stack is looked at
MAX_DEPTH: Final = 8  # signal frames that switch stacks, one inside the other


def find_restorers(maps: Sequence[Mapping], read: Read) -> U64:
    """Return the addresses of every signal restorer in executable file mappings."""
    found: list[int] = []
    for row in maps:
        if "x" not in row.protection or not row.name.startswith("/") or "memfd" in row.name:
            continue
        text = read(row.start, row.end - row.start).tobytes()
        at = text.find(RESTORER)
        while at >= 0:
            found.append(row.start + at)
            at = text.find(RESTORER, at + 1)
    return np.array(sorted(found), np.uint64)


Spaces = tuple[U64, U64]  # first addresses, and the ones behind the last


def writable(maps: Sequence[Mapping]) -> Spaces:
    """Return where stacks can be; made before a stop, it costs as much as reading 60 stacks."""
    rows = [row for row in maps if row.protection.startswith("rw")]
    starts = np.array([row.start for row in rows], np.uint64)
    return starts, np.array([row.end for row in rows], np.uint64)


def stack_ranges(spaces: Spaces, stack_pointers: U64) -> Spaces:
    """Return start and end of the part of each stack that is in use; empty where unknown."""
    starts, ends = spaces
    aligned = stack_pointers & ~np.uint64(7)
    row = np.searchsorted(starts, aligned, side="right").astype(np.int64) - 1
    known = (row >= 0) & (aligned < ends[np.maximum(row, 0)])
    last = np.where(known, ends[np.maximum(row, 0)], aligned)
    return aligned, np.minimum(last, aligned + np.uint64(STACK_LIMIT))


def _scan(pid: int, starts: U64, ends: U64, restorers: U64) -> tuple[U64, U64]:
    """Return the interrupted rip and rsp of every signal frame in the ranges.

    All stacks are read by one call: a call for each of 64 threads doubles the pause.
    """
    sizes = ends - starts
    space = np.empty(int(sizes.sum()), np.uint8)
    done = ptrace.read_ranges(pid, np.stack([starts, sizes], axis=1), space)
    if done < len(space) and len(starts) > 1:  # a mapping went away: the others one by one
        rows = range(len(starts))
        parts = [_scan(pid, starts[i : i + 1], ends[i : i + 1], restorers) for i in rows]
        counters, pointers = zip(*parts, strict=True)
        return np.concatenate(counters), np.concatenate(pointers)
    words = space[: done & ~7].view(np.uint64)
    hits = np.flatnonzero(words == restorers[0])
    for other in restorers[1:].tolist():
        hits = np.append(hits, np.flatnonzero(words == np.uint64(other)))
    behind = np.minimum(np.cumsum(sizes), np.uint64(done)).astype(np.int64) // 8
    hits = hits[hits + RIP_OFFSET < behind[behind.searchsorted(hits, side="right")]]
    return words[hits + RIP_OFFSET], words[hits + RSP_OFFSET]


def interrupted_counters(pid: int, spaces: Spaces, stack_pointers: U64, restorers: U64) -> U64:
    """Return (p,) the program counter of every signal frame on the given stacks.

    A handler on an alternate stack left another stack behind: its pointer is in the frame, so
    that one is looked at too.
    """
    if not restorers.size:
        return np.empty(0, np.uint64)
    found: list[U64] = []
    seen: set[int] = set()
    for _ in range(MAX_DEPTH):
        starts, ends = stack_ranges(spaces, stack_pointers)
        fresh = [i for i, start in enumerate(starts.tolist()) if start not in seen]
        seen.update(starts.tolist())
        used = [i for i in fresh if ends[i] > starts[i]]
        counters, stack_pointers = _scan(pid, starts[used], ends[used], restorers)
        if not counters.size:
            break
        found.append(counters)
    return np.concatenate(found) if found else np.empty(0, np.uint64)
