"""Which pieces of memory a unit's code and data are in."""

from collections.abc import Iterable, Sequence

import numpy as np

from reloader.hosts.caml.unit_object import UnitPlace
from reloader.live.target import Allocation


def inside(memory: Allocation, addrs: Iterable[int]) -> bool:
    """Return whether any address is in a piece of memory."""
    start, end = int(memory.addr), int(memory.addr) + memory.size
    return any(start <= at < end for at in addrs)


def parts_of(memory: Sequence[Allocation], place: UnitPlace) -> list[int]:
    """Return the pieces of memory that a unit's code and its data are in, 0 for none."""
    starts = np.array([int(part.addr) for part in memory], np.uint64)
    ends = starts + np.array([part.size for part in memory], np.uint64)
    both = np.array([place.code_begin, place.data_begin], np.uint64)[:, None]
    within = (starts <= both) & (both < ends)
    return [int(starts[row].max(initial=0)) for row in within]
