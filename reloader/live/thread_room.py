"""Room for new thread-local variables: the agent's reserve, which every thread has.

Its distance from the thread pointer is the same in all threads. Which units of it are taken
stands in the control region, so the process itself is the book: a later daemon needs no other,
and what an attempt took that was never finished is found by comparing with what is live.

Room is given back when no live object has the variable any more and no superseded memory is
left, since superseded code may still use it. Unlike for arena memory there is no search for
pointers: an address of a thread-local variable that outlives the variable is not seen.
"""

from collections.abc import Sequence
from typing import Final

import numpy as np

from reloader.errors.thread_local import ThreadRoomError
from reloader.ids import I64, U64, Bool
from stubs.layout import THREAD_UNIT

GREATEST_ALIGN: Final = 64  # of the reserve itself


class ThreadRoom:
    """The reserve of one process."""

    def __init__(self, offset: int, size: int, taken: U64) -> None:
        """Take the reserve's signed offset from the thread pointer, its bytes, and its bits."""
        self.offset, self.size = offset, size
        self._words = taken

    def taken(self) -> Bool:
        """Return (units,) which units are taken."""
        bits = np.unpackbits(self._words.view(np.uint8), bitorder="little")
        return bits[: self.size // THREAD_UNIT].astype(np.bool_)

    def used(self) -> int:
        """Return how many bytes are taken."""
        return int(self.taken().sum()) * THREAD_UNIT

    def take(self, sizes: Sequence[int], aligns: Sequence[int]) -> I64:
        """Return (k,) the offset from the thread pointer of room for each variable.

        Raises:
            ThreadRoomError: They do not fit all; nothing is taken.
        """
        taken = self.taken()
        found: list[int] = []
        for size, align in zip(sizes, aligns, strict=True):
            at = _first_fit(taken, size, align)
            if at < 0 or align > GREATEST_ALIGN:
                free = int((~self.taken()).sum()) * THREAD_UNIT
                raise ThreadRoomError(sum(sizes), max(aligns), free, self.size)
            taken[_units(at, size)] = True
            found.append(self.offset + at)
        self._store(taken)
        return np.array(found, np.int64)

    def keep(self, ranges: Sequence[tuple[int, int]]) -> None:
        """Free everything but some (offset from the thread pointer, size)."""
        taken = np.zeros(self.size // THREAD_UNIT, np.bool_)
        for offset, size in ranges:
            if self.holds(offset):
                taken[_units(offset - self.offset, size)] = True
        self._store(taken & self.taken())

    def holds(self, offset: int) -> bool:
        """Return whether an offset from the thread pointer lies in the reserve."""
        return self.offset <= offset < self.offset + self.size

    def is_free(self, offset: int) -> bool:
        """Return whether a unit of the reserve is nobody's; the offset may be unsigned."""
        at = offset - (1 << 64) if offset >> 63 else offset
        if not self.holds(at):
            return False
        return not self.taken()[(at - self.offset) // THREAD_UNIT]

    def _store(self, taken: Bool) -> None:
        bits = np.zeros(64 * len(self._words), np.bool_)
        bits[: len(taken)] = taken
        self._words[:] = np.packbits(bits, bitorder="little").view(np.uint64)


def _units(at: int, size: int) -> slice:
    return slice(at // THREAD_UNIT, -(-(at + max(size, 1)) // THREAD_UNIT))


def _first_fit(taken: Bool, size: int, align: int) -> int:
    """Return the first aligned place in the reserve with enough free units, -1: none."""
    step = max(align, THREAD_UNIT)
    for at in range(0, len(taken) * THREAD_UNIT, step):
        room = taken[_units(at, size)]
        if at + size <= len(taken) * THREAD_UNIT and not room.any():
            return at
    return -1
