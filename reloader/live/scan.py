"""The conservative scan: every word of the target that may be a pointer into some ranges.

What is looked at: all pages that the process has of its own (private memory it wrote, whatever
its protection now; relocated read-only data is there too), and shared memory it may write.
Pages never touched hold nothing, and unwritten pages of a file cannot hold an address that we
chose. Words are aligned: compilers align pointers, and a packed one is a documented blind spot,
as are addresses that only the kernel holds. glibc keeps some pointers (setjmp, atexit) xored
with a guard and rotated; those are recognised as well.

Below the stack pointer of a thread are the remains of calls that have returned. They are left
out where it is certain that the memory is that thread's stack (`frames.dead_stacks`).
"""

import ctypes
import os
import struct
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from fcntl import ioctl
from typing import Final, Self

import numpy as np
from numpy.typing import NDArray

from reloader.errors.live import TargetGoneError
from reloader.ids import I64, U64
from reloader.live.frames import FS_BASE, Span
from reloader.live.target import Mapping

PAGE: Final = 4096
_BATCH: Final = 512 << 10  # bytes a system call; the arrays of one batch stay in the L2 cache
_VECTORS: Final = 1024  # IOV_MAX
_USER_END: Final = 0x7FFF_FFFF_F000
_SHARED_WHOLE: Final = 64 << 20  # a larger shared mapping is looked at where it was touched
_GUARD_OFFSET: Final = 0x30  # tcbhead_t.pointer_guard
_GUARD_ROTATION: Final = 17  # PTR_MANGLE: xor, then rol $2*8+1
_MASK64: Final = (1 << 64) - 1

# linux/fs.h, since 6.7
_PAGEMAP_SCAN: Final = 0xC0606610
_IS_FILE, _IS_PRESENT, _IS_SWAPPED, _IS_ZERO = 1 << 2, 1 << 3, 1 << 4, 1 << 5
_REGIONS: Final = 4096
# bits of a pagemap entry
_PRESENT, _SWAPPED, _FILE = 1 << 63, 1 << 62, 1 << 61

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
    complete: bool = True  # False: the deadline passed before the end


class Memory:
    """The pages of one process and the words in them, read without its help."""

    def __init__(self, pid: int) -> None:
        """Open what the kernel shows of the process; close it with the `with` statement."""
        self.pid = pid
        try:
            self.pagemap = os.open(f"/proc/{pid}/pagemap", os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError as error:
            raise TargetGoneError(pid, "looking for pointers to old code") from error
        self.mem = os.open(f"/proc/{pid}/mem", os.O_RDONLY | os.O_CLOEXEC)
        self.buffer = np.empty(_BATCH, np.uint8)
        self.can_scan_pagemap = True

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the descriptors."""
        os.close(self.pagemap)
        os.close(self.mem)

    def own_pages(self, mappings: list[Mapping]) -> list[Span]:
        """Return where the process has pages of its own, private and not a file's."""
        if self.can_scan_pagemap:
            try:
                unlike = _IS_FILE | _IS_ZERO
                return self._regions(0, _USER_END, unlike, _IS_PRESENT | _IS_SWAPPED)
            except OSError:  # ENOTTY before Linux 6.7
                self.can_scan_pagemap = False
        private = [m for m in mappings if m.protection[3] == "p" and m.end <= _USER_END]
        return [span for m in private for span in self.pages(m.start, m.end, own=True)]

    def _regions(self, start: int, end: int, unlike: int, anyof: int) -> list[Span]:
        """Return address ranges whose pages have none of `unlike` and one of `anyof`."""
        room = np.empty((_REGIONS, 3), np.uint64)
        spans: list[Span] = []
        while start < end:
            request = bytearray(
                struct.pack(
                    "12Q", 96, 0, start, end, 0, room.ctypes.data, _REGIONS, 0,
                    unlike, unlike, anyof, anyof,
                )
            )  # fmt: skip
            count = ioctl(self.pagemap, _PAGEMAP_SCAN, request)
            spans += [(int(first), int(last)) for first, last in room[:count, :2].tolist()]
            start = int(struct.unpack_from("Q", request, 32)[0]) if count == _REGIONS else end
        return spans

    def pages(self, start: int, end: int, *, own: bool) -> list[Span]:
        """Return the populated pages of a range; with `own` only those not a file's."""
        spans: list[Span] = []
        for first in range(start, end, PAGE << 16):
            last = min(end, first + (PAGE << 16))
            data = os.pread(self.pagemap, (last - first) // PAGE * 8, first // PAGE * 8)
            entries = np.frombuffer(data, np.uint64)
            there = (entries & np.uint64(_PRESENT | _SWAPPED)) != 0
            if own:
                there &= (entries & np.uint64(_FILE)) == 0
            edges = np.flatnonzero(np.diff(there, prepend=False, append=False))
            spans += [
                (first + int(a) * PAGE, first + int(b) * PAGE)
                for a, b in edges.reshape(-1, 2).tolist()
            ]
        return spans

    def areas(self, mappings: list[Mapping]) -> list[Span]:
        """Return everything that may hold a pointer, in address order."""
        spans = self.own_pages(mappings)
        for mapping in mappings:
            if _is_shared_memory(mapping):
                whole = mapping.end - mapping.start <= _SHARED_WHOLE
                part = (int(mapping.start), int(mapping.end))
                spans += [part] if whole else self.pages(*part, own=False)
        return sorted(spans)

    def scan(self, areas: Iterable[Span], ranges: Ranges, deadline: float = np.inf) -> Hits:
        """Look at every aligned word of some areas.

        Args:
            areas: Where to look; what is unmapped meanwhile is left out.
            ranges: What to look for; at least one.
            deadline: `time.perf_counter()` at which to give up.
        """
        begun, sieve, result = time.perf_counter(), Sieve(ranges), Hits()
        addrs: list[U64] = []
        values: list[U64] = []
        for batch in _batches(areas):
            if time.perf_counter() > deadline:
                result.complete = False
                break
            for part, words in self._words(batch):
                found = sieve.passing(words)
                result.scanned_size += words.nbytes
                if len(found):
                    addrs.append(_addresses(part, found))
                    values.append(words[found])
        if addrs:
            addr, value = np.concatenate(addrs), ranges.plain(np.concatenate(values))
            row = ranges.row(value)
            hit = row >= 0
            result.addr, result.value, result.row = addr[hit], value[hit], row[hit]
        result.seconds = time.perf_counter() - begun
        return result

    def _words(self, batch: NDArray[np.uint64]) -> Iterable[tuple[NDArray[np.uint64], U64]]:
        """Read (n, 2) address and size rows; yield each readable part with its words."""
        while len(batch):
            local = np.array([self.buffer.ctypes.data, _BATCH], np.uint64)
            done = _readv(self.pid, local.ctypes.data, 1, batch.ctypes.data, len(batch), 0)
            if done < 0 and ctypes.get_errno() == 3:  # ESRCH
                raise TargetGoneError(self.pid, "looking for pointers to old code")
            got, batch = _divided(batch, max(done, 0))
            if len(got):
                yield got, self.buffer[: int(got[:, 1].sum())].view(np.uint64)
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


def _is_shared_memory(mapping: Mapping) -> bool:
    """Return whether a mapping is shared, writable memory, and not a device or ours."""
    if mapping.protection[1] != "w" or mapping.protection[3] != "s":
        return False
    device = mapping.name.startswith("/dev/") and not mapping.name.startswith(
        ("/dev/shm/", "/dev/zero")  # noqa: S108  what shared memory is called in maps
    )
    return not device and not mapping.name.startswith("/memfd:reloader")


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


def without(areas: Iterable[Span], holes: Sequence[Span]) -> list[Span]:
    """Return areas with some ranges cut out; both in address order."""
    result: list[Span] = []
    for area in areas:
        start, end = area
        for first, last in holes:
            if last <= start or first >= end:
                continue
            if first > start:
                result.append((start, first))
            start = max(start, last)
        if start < end:
            result.append((start, end))
    return result


def pointer_guard_addr(registers: NDArray[np.uint64]) -> int | None:
    """Return where glibc keeps the guard that it mangles pointers with."""
    bases = registers[:, FS_BASE]
    used = bases[bases != 0]
    return int(used[0]) + _GUARD_OFFSET if len(used) else None
