"""The arena seen from outside: which pages are taken, and windows over their bytes.

Four facts decide the design. The memfd is mapped whole in the target, so an allocation is only
a row in our books and needs no call inside. A page of the file that is written here shows in
the target's private mapping until the target has its own copy. Memory goes back to the system
by punching holes in the file. And a hole reads as zeros, which execute as `add %al,(%rax)`: so
freshly freed code keeps traps for a while, and code is filled with traps before anyone gets it.
"""

import mmap
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from reloader.arch.base import Architecture
from reloader.errors.live import ArenaFullError, ArenaRangeError
from reloader.ids import REGION_NAMES, U8, U64, Addr, Bool, Region, SlotId
from reloader.live import ptrace
from reloader.live.target import Allocation
from stubs import layout

FREE: Final = 0  # a hole: no memory behind it
TAKEN: Final = 1
TRAPPED: Final = 2  # free, but still full of traps
TRAP: Final = 0xCC
_MANY: Final = 8  # allocations from which on it pays to take them as neighbours
TRAPPED_PAGES: Final = 64  # so much freed code keeps its traps instead of going back at once


@dataclass(frozen=True, slots=True)
class Window:
    """One region: where it is in the target and in the file."""

    addr: int
    size: int
    file_offset: int


class Pages:
    """Which pages of one region are taken; first fit."""

    def __init__(self, window: Window, reserved: int) -> None:
        """Start with all pages free but the first `reserved` bytes."""
        self.window = window
        self.state = np.zeros(window.size // layout.PAGE, np.uint8)
        self.state[: reserved // layout.PAGE] = TAKEN
        self.high = reserved // layout.PAGE  # nothing was ever taken from here on

    def runs(self) -> tuple[np.ndarray[tuple[int], np.dtype[np.int64]], ...]:
        """Return start and end of every run of free pages below `high`, in pages."""
        edges = np.diff(
            np.concatenate(([1], self.state[: self.high] == TAKEN, [1])).astype(np.int8)
        )
        return np.flatnonzero(edges == -1), np.flatnonzero(edges == 1)

    def take(self, count: int, name: str) -> int:
        """Return the first page of a free run and mark it taken."""
        first = self.quickly(count)
        if first < 0 and self.state[self.high - 1] == TAKEN:
            first = self.high  # no run goes on into the untouched pages
        if 0 <= first <= len(self.state) - count:
            self.mark(first, count, TAKEN)
            return first
        starts, ends = self.runs()
        if starts.size and ends[-1] == self.high:  # the last run goes on into untouched pages
            ends[-1] = len(self.state)
        elif self.high < len(self.state):
            starts = np.append(starts, self.high)
            ends = np.append(ends, len(self.state))
        fits = np.flatnonzero(ends - starts >= count)
        if not fits.size:
            largest = int((ends - starts).max(initial=0))
            raise ArenaFullError(
                name,
                count * layout.PAGE,
                largest * layout.PAGE,
                int((ends - starts).sum()) * layout.PAGE,
                self.window.size,
            )
        first = int(starts[fits[0]])
        self.mark(first, count, TAKEN)
        return first

    def quickly(self, count: int) -> int:
        """Return the first page of a free run below `high` that is long enough, or -1."""
        if count > self.high:  # a hostile object may ask for any size
            return -1
        taken = (self.state[: self.high] == TAKEN).tobytes()
        return taken.find(bytes(count))

    def mark(self, first: int, count: int, state: int) -> None:
        """Set the state of pages."""
        self.state[first : first + count] = state
        self.high = max(self.high, first + count)


class MappedArena:
    """The arena over a shared mapping of its file; implements `live.target.Arena`."""

    page_size = layout.PAGE

    def __init__(self, content: U8, windows: list[Window], fd: int = -1) -> None:
        """Take the file's bytes, the five regions in `stubs.layout` order, and the descriptor.

        Without a descriptor (a fake) zeros are written where a hole would be punched.
        """
        self.content, self.windows, self.fd = content, windows, fd
        slots = windows[layout.SLOTS]
        self.slots: U64 = self._bytes(slots, 0, layout.SLOT_COUNT * 8).view(np.uint64)
        stub_bytes = layout.SLOT_COUNT * layout.STUB_SIZE
        self._pages = [
            Pages(windows[region], stub_bytes if region == layout.CODE else 0)
            for region in (layout.CODE, layout.RODATA, layout.DATA)
        ]

    def allocate(self, region: int, size: int) -> Allocation:
        """Take fresh pages no thread can reach yet: zeros, or traps in the code region.

        Raises:
            ArenaFullError: No run of pages is long enough.
        """
        count = max(1, -(-size // layout.PAGE))
        pages = self._pages[region]
        first = pages.take(count, REGION_NAMES[region])
        window = pages.window
        if region == Region.CODE:
            self._bytes(window, first * layout.PAGE, count * layout.PAGE)[:] = TRAP
        addr = Addr(window.addr + first * layout.PAGE)
        return Allocation(region, addr, count * layout.PAGE)

    def allocate_all(self, wanted: Sequence[tuple[int, int]]) -> list[Allocation]:
        """Take memory as `allocate` does for several (region, size), all of it or none.

        Raises:
            ArenaFullError: No run of pages is long enough for one of them; none is taken.
        """
        if len(wanted) < _MANY:
            return self._one_by_one(wanted)
        regions, sizes = np.array(wanted, np.int64).T
        counts = np.maximum(1, -(-sizes // layout.PAGE))
        addrs = np.zeros(len(wanted), np.int64)
        blocks: list[Allocation] = []
        for region in np.unique(regions).tolist():
            rows = np.flatnonzero(regions == region)
            total = int(counts[rows].sum()) * layout.PAGE
            try:  # neighbours, so that they are filled and written together
                blocks.append(self.allocate(region, total))
            except ArenaFullError:
                for block in blocks:
                    self.free(block)
                return self._one_by_one(wanted)
            before = np.cumsum(counts[rows]) - counts[rows]
            addrs[rows] = blocks[-1].addr + before * layout.PAGE
        columns: list[list[int]] = [c.tolist() for c in (regions, addrs, counts * layout.PAGE)]
        return list(map(Allocation, columns[0], map(Addr, columns[1]), columns[2]))

    def _one_by_one(self, wanted: Sequence[tuple[int, int]]) -> list[Allocation]:
        taken: list[Allocation] = []
        try:
            for region, size in wanted:
                taken.append(self.allocate(region, size))
        except ArenaFullError:
            for allocation in taken:
                self.free(allocation)
            raise
        return taken

    def free(self, allocation: Allocation) -> None:
        """Give pages back that nothing can reach."""
        pages, first, count = self._locate(allocation)
        if (pages.state[first : first + count] != TAKEN).any():
            raise ArenaRangeError(allocation.addr, allocation.size)
        if allocation.region != Region.CODE:
            self._punch(pages, first, count)
            return
        self._bytes(pages.window, first * layout.PAGE, allocation.size)[:] = TRAP
        pages.mark(first, count, TRAPPED)
        trapped = np.flatnonzero(pages.state[: pages.high] == TRAPPED)
        if len(trapped) > TRAPPED_PAGES:
            self._punch_all(pages, trapped)

    def reserve(self, allocation: Allocation) -> None:
        """Mark a known allocation as taken: a later daemon rebuilds its books with this."""
        pages, first, count = self._locate(allocation)
        pages.mark(first, count, TAKEN)

    def strays(self) -> list[Allocation]:
        """Return the free memory that has something in it: a daemon was killed over it."""
        found: list[Allocation] = []
        for region, pages in enumerate(self._pages):
            window = pages.window
            for start, end in self._extents(window.file_offset, window.size):
                free = pages.state[start:end] != TAKEN
                edges = np.flatnonzero(np.diff(np.concatenate(([False], free, [False]))))
                for first, last in (edges.reshape(-1, 2) + start).tolist():
                    addr = Addr(window.addr + first * layout.PAGE)
                    found.append(Allocation(region, addr, (last - first) * layout.PAGE))
        return found

    def _extents(self, offset: int, size: int) -> Iterator[tuple[int, int]]:
        """Yield (first, end) of the pages that a part of the file has."""
        at, end = offset, offset + size
        while self.fd >= 0 and at < end:
            try:
                first = os.lseek(self.fd, at, os.SEEK_DATA)
            except OSError:  # only a hole is left
                return
            if first >= end:
                return
            at = min(os.lseek(self.fd, first, os.SEEK_HOLE), end)
            yield (first - offset) // layout.PAGE, -(-(at - offset) // layout.PAGE)

    def view(self, addr: Addr | int, size: int) -> U8:
        """Return a writable window over arena bytes; what is stored there the target sees."""
        for window in self.windows:
            if window.addr <= addr and addr + size <= window.addr + window.size:
                return self._bytes(window, addr - window.addr, size)
        raise ArenaRangeError(addr, size)

    def stub_addr(self, slot: SlotId) -> Addr:
        """Return the address of the jump that goes through a slot."""
        return Addr(self.windows[layout.CODE].addr + slot * layout.STUB_SIZE)

    def slot_addr(self, slot: SlotId) -> Addr:
        """Return the address of a slot in the target."""
        return Addr(self.windows[layout.SLOTS].addr + slot * 8)

    def write_stubs(self, arch: Architecture, first: int, end: int) -> None:
        """Write the jumps of slots [first, end); the rest of a page begun holds traps."""
        if end <= first:
            return
        if end > layout.SLOT_COUNT:
            left = (layout.SLOT_COUNT - first) * layout.STUB_SIZE
            wanted = (end - first) * layout.STUB_SIZE
            region = "stub"
            raise ArenaFullError(
                region, wanted, left, left, layout.SLOT_COUNT * layout.STUB_SIZE
            )
        window = self.windows[layout.CODE]
        start, stop = first * layout.STUB_SIZE, end * layout.STUB_SIZE
        page_end = -(-stop // layout.PAGE) * layout.PAGE
        self._bytes(window, stop, page_end - stop)[:] = TRAP
        if start % layout.PAGE == 0 or first <= layout.SLOT_FIRST:
            page_start = start // layout.PAGE * layout.PAGE
            self._bytes(window, page_start, start - page_start)[:] = TRAP
        rows = np.arange(first, end, dtype=np.uint64)
        stubs = self._bytes(window, start, stop - start).reshape(-1, layout.STUB_SIZE)
        slots = np.uint64(self.windows[layout.SLOTS].addr) + rows * np.uint64(8)
        arch.write_stubs(stubs, np.uint64(window.addr) + rows * np.uint64(16), slots)

    def span(self) -> tuple[Addr, Addr]:
        """Return the first address of the arena and the one past its last."""
        start = min(window.addr for window in self.windows)
        return Addr(start), Addr(max(window.addr + window.size for window in self.windows))

    def used(self, region: int) -> int:
        """Return how many bytes of a region are allocated, the stub table aside."""
        pages = self._pages[region]
        reserved = layout.SLOT_COUNT * layout.STUB_SIZE if region == Region.CODE else 0
        return int((pages.state == TAKEN).sum()) * layout.PAGE - reserved

    def taken(self, region: int) -> Bool:
        """Return (pages,) whether each page of a region is allocated."""
        return self._pages[region].state == TAKEN

    def _bytes(self, window: Window, offset: int, size: int) -> U8:
        start = window.file_offset + offset
        return self.content[start : start + size]

    def _locate(self, allocation: Allocation) -> tuple[Pages, int, int]:
        pages = self._pages[allocation.region]
        offset = allocation.addr - pages.window.addr
        outside = offset < 0 or offset + allocation.size > pages.window.size
        if outside or offset % layout.PAGE or allocation.size % layout.PAGE:
            raise ArenaRangeError(allocation.addr, allocation.size)
        return pages, offset // layout.PAGE, allocation.size // layout.PAGE

    def _punch(self, pages: Pages, first: int, count: int) -> None:
        start, size = first * layout.PAGE, count * layout.PAGE
        if self.fd >= 0:
            ptrace.punch_hole(self.fd, pages.window.file_offset + start, size)
        else:
            self._bytes(pages.window, start, size)[:] = 0
        pages.mark(first, count, FREE)

    def _punch_all(
        self, pages: Pages, rows: np.ndarray[tuple[int], np.dtype[np.int64]]
    ) -> None:
        """Punch runs of consecutive pages."""
        breaks = np.flatnonzero(np.diff(rows) != 1) + 1
        for run in np.split(rows, breaks):
            self._punch(pages, int(run[0]), len(run))


def map_file(fd: int, size: int) -> U8:
    """Map the whole memfd shared and return its bytes; sparse, so only touched pages cost."""
    return np.frombuffer(mmap.mmap(fd, size, mmap.MAP_SHARED), np.uint8)
