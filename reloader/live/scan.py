"""The conservative scan: every word of the target that may be a pointer into some ranges.

Words are aligned: compilers align pointers, and a packed one is a documented blind spot, as are
addresses that only the kernel holds (in pipes, or signal handlers). glibc keeps some pointers
(setjmp, atexit) xored with a guard and rotated; those are recognised as well.

Reading and searching are two steps, so that a stop need only last for the reading (`Copy`).

Below the stack pointer of a thread are the remains of calls that have returned. They are left
out where it is certain that the memory is that thread's stack (`frames.dead_stacks`).
"""

import ctypes
import os
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final, Self

import numpy as np
from numpy.typing import NDArray

from reloader.errors.live import TargetGoneError
from reloader.ids import I64, U8, U64
from reloader.live.frames import FS_BASE, Span
from reloader.live.pagemap import PAGE, Pagemap

_BATCH: Final = 512 << 10  # bytes a system call; the arrays of one batch stay in the L2 cache
_VECTORS: Final = 1024  # IOV_MAX
_GUARD_OFFSET: Final = 0x30  # tcbhead_t.pointer_guard
_GUARD_ROTATION: Final = 17  # PTR_MANGLE: xor, then rol $2*8+1
_MASK64: Final = (1 << 64) - 1

_libc = ctypes.CDLL(None, use_errno=True)
_readv = _libc.process_vm_readv
_readv.restype = ctypes.c_ssize_t
_readv.argtypes = [ctypes.c_int, *(ctypes.c_void_p, ctypes.c_ulong) * 2, ctypes.c_ulong]


def _rotated(value: int) -> int:
    return ((value << _GUARD_ROTATION) | (value >> (64 - _GUARD_ROTATION))) & _MASK64


@dataclass(frozen=True, slots=True, eq=False)
class Ranges:
    """(r,) columns: the address ranges that are searched for, sorted and disjoint."""

    start: U64
    end: U64
    owner: I64  # what a range belongs to; the caller's numbering
    guard: int | None = None  # glibc's pointer guard in the target, once known

    @classmethod
    def of(cls, spans: Sequence[tuple[int, int, int]], guard: int | None = None) -> Self:
        """Return ranges from (first, behind the last, owner)."""
        table = np.array(sorted(spans), np.uint64).reshape(-1, 3)
        return cls(table[:, 0], table[:, 1], table[:, 2].astype(np.int64), guard)

    def row(self, words: U64) -> I64:
        """Return (w,) the range that each word points into, -1 for none."""
        row = np.searchsorted(self.start, words, side="right") - 1
        inside = (row >= 0) & (words < self.end[np.maximum(row, 0)])
        return np.where(inside, row, -1)

    def plain(self, words: U64) -> U64:
        """Return words as pointers: as they are, else with glibc's mangling undone."""
        if self.guard is None:
            return words
        turned = (words >> np.uint64(_GUARD_ROTATION)) | (
            words << np.uint64(64 - _GUARD_ROTATION)
        )
        return np.where(self.row(words) >= 0, words, turned ^ np.uint64(self.guard))


class Sieve:
    """Two comparisons that hardly any word passes unless it points between all the ranges."""

    def __init__(self, ranges: Ranges) -> None:
        """Take the smallest interval around the ranges, and its common high bits."""
        low, high = int(ranges.start.min()), int(ranges.end.max())
        self.low, self.size = np.uint64(low), np.uint64(high - low)
        common = _MASK64 & ~((1 << (low ^ (high - 1)).bit_length()) - 1)
        guard = ranges.guard
        self.mask = None if guard is None else np.uint64(_rotated(common))
        self.value = np.uint64(_rotated((low ^ (guard or 0)) & common))
        self.words = np.empty(_BATCH // 8, np.uint64)
        self.hits = np.empty(_BATCH // 8, np.bool_)
        self.mangled = np.empty(_BATCH // 8, np.bool_)

    def passing(self, words: U64) -> I64:
        """Return the indices of the words that may be pointers into the ranges."""
        room, hits = self.words[: len(words)], self.hits[: len(words)]
        np.subtract(words, self.low, out=room)
        np.less(room, self.size, out=hits)
        if self.mask is not None:
            np.bitwise_and(words, self.mask, out=room)
            mangled = self.mangled[: len(words)]
            np.equal(room, self.value, out=mangled)
            np.logical_or(hits, mangled, out=hits)
        return np.flatnonzero(hits)


@dataclass(slots=True)
class Hits:
    """What a scan found."""

    addr: U64 = field(default_factory=lambda: np.empty(0, np.uint64))  # where the word is
    value: U64 = field(default_factory=lambda: np.empty(0, np.uint64))  # the pointer it holds
    row: I64 = field(default_factory=lambda: np.empty(0, np.int64))  # row of Ranges
    scanned_size: int = 0  # bytes
    seconds: float = 0.0

    def outside(self, spans: Sequence[Span]) -> "Hits":
        """Return the words that lie in none of some ranges (in address order)."""
        return self.only(self.apart(spans)) if spans else self

    def apart(self, spans: Sequence[Span]) -> NDArray[np.bool_]:
        """Return which words lie in none of some ranges (in address order)."""
        table = np.array(spans, np.uint64).reshape(-1, 2)
        if not len(table):
            return np.ones(len(self.addr), np.bool_)
        row = np.searchsorted(table[:, 0], self.addr, side="right") - 1
        return (row < 0) | (self.addr >= table[np.maximum(row, 0), 1])

    def only(self, kept: NDArray[np.bool_]) -> "Hits":
        """Return the words that a mask over them keeps."""
        rows = self.addr[kept], self.value[kept], self.row[kept]
        return Hits(*rows, self.scanned_size, self.seconds)

    def replaced(self, spans: Sequence[Span], now: "Hits") -> "Hits":
        """Return the words after some ranges (in address order) were looked at again."""
        old = self.outside(spans)
        return Hits(
            np.concatenate([old.addr, now.addr]),
            np.concatenate([old.value, now.value]),
            np.concatenate([old.row, now.row]),
            now.scanned_size,
            now.seconds,
        )


Words = tuple[NDArray[np.uint64], U64]  # (n, 2) rows of address and size, and what they hold


@dataclass(slots=True)
class Copy:
    """Memory as it was at one moment."""

    parts: list[Words]
    size: int  # bytes
    complete: bool  # False: the deadline passed, or the room was full, before the end


class Memory:
    """The words of one process, read without its help."""

    def __init__(self, pid: int) -> None:
        """Open what the kernel shows of the process; close it with the `with` statement."""
        self.pid = pid
        self.pagemap = Pagemap(pid)
        self.mem = os.open(f"/proc/{pid}/mem", os.O_RDONLY | os.O_CLOEXEC)
        self.buffer = np.empty(_BATCH, np.uint8)

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the descriptors."""
        self.pagemap.close()
        os.close(self.mem)

    def scan(self, areas: Iterable[Span], ranges: Ranges) -> Hits:
        """Look at every aligned word of some areas; what is unmapped meanwhile is left out."""
        batches = _batches(areas)
        return search(
            (words for rows in batches for words in self._words(rows, self.buffer)), ranges
        )

    def copy(self, areas: Iterable[Span], room: U8, deadline: float) -> Copy:
        """Copy areas, to be searched later.

        Args:
            areas: What to copy; what is unmapped meanwhile is left out.
            room: Where to; written before, so that it costs no page faults now.
            deadline: `time.perf_counter()` at which to give up.
        """
        result = Copy([], 0, complete=True)
        for batch in _batches(areas):
            size = int(batch[:, 1].sum())
            free = room[result.size : result.size + size]
            if len(free) < size or time.perf_counter() > deadline:
                result.complete = False
                break
            result.parts += self._words(batch, free)
            result.size += size
        return result

    def _words(self, batch: NDArray[np.uint64], room: U8) -> Iterable[Words]:
        """Read (n, 2) address and size rows; yield each readable part with its words."""
        while len(batch):
            local = np.array([room.ctypes.data, len(room)], np.uint64)
            done = _readv(self.pid, local.ctypes.data, 1, batch.ctypes.data, len(batch), 0)
            if done < 0 and ctypes.get_errno() == 3:  # ESRCH
                raise TargetGoneError(self.pid, "looking for pointers to old code")
            got, batch = _divided(batch, max(done, 0))
            if len(got):
                size = int(got[:, 1].sum())
                yield got, room[:size].view(np.uint64)
                room = room[size:] if len(batch) else room
            if len(batch):  # the first page of what is left may not be read in this way
                page, batch = _divided(batch, min(PAGE, int(batch[0, 1])))
                # /proc/PID/mem reads whatever the protection says, PROT_NONE too
                words = self._forced(int(page[0, 0]), int(page[0, 1]))
                if len(words):
                    yield page, words

    def _forced(self, addr: int, size: int) -> U64:
        try:
            data = os.pread(self.mem, size, addr)
        except OSError:  # EIO: not mapped any more, or nothing behind the mapping
            return np.empty(0, np.uint64)
        return np.frombuffer(data[: len(data) & ~7], np.uint64)


def search(parts: Iterable[Words], ranges: Ranges) -> Hits:
    """Return every word that points into the ranges, of which there is at least one."""
    begun, sieve, result = time.perf_counter(), Sieve(ranges), Hits()
    addrs: list[U64] = []
    values: list[U64] = []
    for part, every in parts:
        result.scanned_size += every.nbytes
        for first in range(0, len(every), _BATCH // 8):
            words = every[first : first + _BATCH // 8]
            found = sieve.passing(words)
            if len(found):
                addrs.append(_addresses(part, found + first))
                values.append(words[found])
    if addrs:
        addr, value = np.concatenate(addrs), ranges.plain(np.concatenate(values))
        row = ranges.row(value)
        hit = row >= 0
        result.addr, result.value, result.row = addr[hit], value[hit], row[hit]
    result.seconds = time.perf_counter() - begun
    return result


def _batches(areas: Iterable[Span]) -> Iterable[NDArray[np.uint64]]:
    """Divide areas into (n, 2) rows of address and size that one system call can read."""
    rows: list[Span] = []
    room = _BATCH
    for start, end in areas:
        at = start
        while at < end:
            size = min(end - at, room)
            rows.append((at, size))
            at, room = at + size, room - size
            if not room or len(rows) == _VECTORS:
                yield np.array(rows, np.uint64)
                rows, room = [], _BATCH
    if rows:
        yield np.array(rows, np.uint64)


def _divided(
    batch: NDArray[np.uint64], size: int
) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """Return the rows of the first `size` bytes and those of the rest."""
    ends = np.cumsum(batch[:, 1])
    whole = int(np.searchsorted(ends, np.uint64(size), side="right"))
    head, tail = batch[:whole].copy(), batch[whole:].copy()
    inside = size - (int(ends[whole - 1]) if whole else 0)
    if inside:
        head = np.concatenate([head, np.array([[tail[0, 0], inside]], np.uint64)])
        tail[0] += np.array([inside, -inside]).astype(np.uint64)
    return head, tail


def _addresses(part: NDArray[np.uint64], index: I64) -> U64:
    """Return the addresses of words by their index in what a part's rows hold."""
    ends = np.cumsum(part[:, 1])
    offset = index.astype(np.uint64) * np.uint64(8)
    row = np.searchsorted(ends, offset, side="right")
    return part[row, 0] + offset - (ends[row] - part[row, 1])


def pointer_guard_addr(registers: NDArray[np.uint64]) -> int | None:
    """Return where glibc keeps the guard that it mangles pointers with."""
    bases = registers[:, FS_BASE]
    used = bases[bases != 0]
    return int(used[0]) + _GUARD_OFFSET if len(used) else None
