"""The ledger: every piece of arena that we hold, whose it is, and what else it needs.

An allocation is needed while a live object, a slot or the unwind directory refers to an address
in it, or while another needed allocation does: code kept from generation 3 still reads the
constants that came with generation 3. What is needed is therefore found by marking, as a
garbage collector does, over a graph of allocations that has one row a reload, object and
region, not one a block.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

from reloader.ids import I32, NO_ROW, U64, Generation
from reloader.live.target import Allocation


@dataclass(slots=True)
class Held:
    """One allocation that is ours."""

    allocation: Allocation
    generation: Generation
    object: tuple[
        str, str
    ]  # (path, member) it was made for; ("", "") for the whole transaction
    unwind_addr: int = 0  # the .eh_frame_hdr that describes this code, 0: none
    references: set[int] = field(
        default_factory=set[int]
    )  # start addresses of allocations it needs
    superseded: bool = (
        False  # nothing of ours refers to it; waits for the proof that nobody does
    )


@dataclass(slots=True)
class Ledger:
    """All held allocations, by start address."""

    rows: dict[int, Held] = field(default_factory=dict[int, Held])
    # sorted starts, and starts and ends as columns; made anew after a change
    _index: tuple[list[int], U64, U64] | None = None

    def add(self, held: Iterable[Held]) -> None:
        """Take note of new allocations."""
        self._index = None
        for row in held:
            self.rows[int(row.allocation.addr)] = row

    def remove(self, allocations: Iterable[Allocation]) -> None:
        """Forget allocations: they were given back to the arena."""
        self._index = None
        for allocation in allocations:
            self.rows.pop(int(allocation.addr), None)

    def index(self) -> tuple[list[int], U64, U64]:
        """Return the sorted starts, and (a,) start and end of each allocation."""
        if self._index is None:
            starts = sorted(self.rows)
            begin = np.array(starts, np.uint64)
            sizes = [self.rows[start].allocation.size for start in starts]
            self._index = starts, begin, begin + np.array(sizes, np.uint64)
        return self._index

    def find(self, addrs: U64) -> tuple[list[int], I32]:
        """Return the sorted starts, and (a,) the row that holds each address or NO_ROW."""
        starts, begin, end = self.index()
        if not starts:
            return starts, np.full(len(addrs), NO_ROW, np.int32)
        row = begin.searchsorted(addrs, side="right").astype(np.int32) - 1
        row[(row >= 0) & (addrs >= end[row])] = NO_ROW
        return starts, row

    def starts_of(self, addrs: U64) -> U64:
        """Return (a,) the start of the allocation that holds each address, or 0."""
        starts, begin, end = self.index()
        if not starts:
            return np.zeros(len(addrs), np.uint64)
        row = begin.searchsorted(addrs, side="right") - 1  # below all: the last, too far up
        return begin[row] * ((addrs >= begin[row]) & (addrs < end[row]))

    def holding(self, addrs: U64) -> set[int]:
        """Return the start addresses of the allocations that hold any of the addresses."""
        starts, row = self.find(addrs)
        return {starts[i] for i in set(row[row >= 0].tolist())}

    def supersede(self, roots: U64) -> list[Held]:
        """Mark what the roots reach and return what became superseded just now.

        Args:
            roots: (r,) every address that a live object, a slot or the directory names.
        """
        needed = self.reached(roots)
        fresh = [
            row for at, row in self.rows.items() if at not in needed and not row.superseded
        ]
        for row in fresh:
            row.superseded = True
        return fresh

    def revive(self, roots: U64) -> None:
        """Let what the roots reach be needed again: an earlier generation is live once more."""
        for at in self.reached(roots):
            self.rows[at].superseded = False

    def reached(self, roots: U64) -> set[int]:
        """Return the start addresses of what some addresses lead to, directly or not."""
        needed: set[int] = set()
        frontier = self.holding(roots)
        while frontier:
            needed |= frontier
            frontier = set[int]().union(*(self.rows[start].references for start in frontier))
            frontier = {start for start in frontier if start in self.rows} - needed
        return needed

    def unwind_entries(self) -> list[tuple[int, int, int]]:
        """Return (start, end, .eh_frame_hdr address) of all code with unwind tables, sorted."""
        return sorted(
            (
                int(row.allocation.addr),
                int(row.allocation.addr) + row.allocation.size,
                row.unwind_addr,
            )
            for row in self.rows.values()
            if row.unwind_addr
        )
