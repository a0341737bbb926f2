"""Registry: the versions of units that the OCaml runtime knows, until it has forgotten them.

The collector walks over what is registered, so its memory must not be given back before. Only
the runtime can tell that nothing of its own reaches a unit (stubs/agent/ocaml_mark.c).
"""

from collections.abc import Iterable, Sequence
from typing import Final

import numpy as np

from reloader.errors.ocaml import BusyRuntimeError
from reloader.hosts.caml.runtime import HOLDERS, UNKNOWN, Runtime
from reloader.hosts.caml.unit_object import UnitPlace
from reloader.live.host import Hold
from reloader.live.ledger import Ledger
from reloader.live.target import Allocation

BUDGET_US: Final = 5_000  # of a pause in which the runtime looks for what holds old units
MUCH: Final = 64 << 20  # bytes that wait, for which a longer pause is worth it

UNASKED: Final = "the program has not come to a point where its runtime can be asked"


class Registry:
    """What one program's runtime knows of our units."""

    def __init__(self, places: dict[int, UnitPlace]) -> None:
        """Begin with what an earlier daemon registered, by the start of the code."""
        self.places = places
        self._forgotten: set[int] = set()  # where code and data of others were

    def add(self, places: Iterable[UnitPlace]) -> None:
        """Take note that the runtime knows versions of units."""
        for place in places:
            self.places[place.code_begin] = place
            self._forgotten -= {place.code_begin, place.data_begin}

    def holds(self, memory: Allocation) -> bool:
        """Return whether the runtime still knows a unit in some memory."""
        return any(
            inside(memory, (place.code_begin, place.data_begin))
            for place in self.places.values()
        )

    def forgotten(self, memory: Allocation) -> bool:
        """Return whether the runtime has proven that nothing of its own reaches memory."""
        return inside(memory, self._forgotten)

    def waiting(self, superseded: Sequence[Allocation]) -> list[UnitPlace]:
        """Return the old units that the runtime knows."""
        places = self.places.values()
        return [place for place in places if 0 not in parts_of(superseded, place)]

    def held_back(self, superseded: Sequence[Allocation], why: str) -> list[Hold]:
        """Return that all old units are held, for one reason."""
        return [Hold(place.code_begin, 0, why) for place in self.waiting(superseded)]

    def let_go(
        self, runtime: Runtime, ledger: Ledger, superseded: Sequence[Allocation]
    ) -> list[Hold]:
        """Let the runtime forget units that nothing reaches; return what holds the others.

        Args:
            runtime: Who is asked.
            ledger: What refers to what in memory of ours.
            superseded: Where old units may be.

        Raises:
            ReloaderError: The agent failed.
        """
        waiting = self.waiting(superseded)
        if not waiting:
            return []
        holds: list[Hold] = []
        begins = [place.code_begin for place in waiting]
        much = sum(part.size for part in superseded) > MUCH
        try:
            uses = used_by_code(ledger, waiting)
            answers = runtime.retire(begins, uses, budget_us=0 if much else BUDGET_US)
        except BusyRuntimeError:
            return [Hold(begin, 0, UNASKED) for begin in begins]
        for place, found in zip(waiting, answers, strict=True):
            if found.gone or found.kind == UNKNOWN:
                del self.places[place.code_begin]
                self._forgotten |= {place.code_begin, place.data_begin}
            else:
                text = f"{HOLDERS[found.kind]} at {found.holder:#x}"
                holds.append(Hold(place.code_begin, found.holder, text))
        return holds


def inside(memory: Allocation, addrs: Iterable[int]) -> bool:
    """Return whether any address is in a piece of memory."""
    start, end = int(memory.addr), int(memory.addr) + memory.size
    return any(start <= at < end for at in addrs)


def used_by_code(ledger: Ledger, places: Sequence[UnitPlace]) -> list[tuple[int, int]]:
    """Return rows of units: the first one's code calls the second one, or reads its data.

    Without -opaque it does so directly, and no value that a collector could see says so.
    """
    both = [np.array([row.code_begin, row.data_begin], np.uint64) for row in places]
    owner = {part: row for row, addrs in enumerate(both) for part in ledger.holding(addrs)}
    return [
        (user, used)
        for user, addrs in enumerate(both)
        for used in {owner[part] for part in ledger.reached(addrs) if part in owner} - {user}
    ]


def parts_of(memory: Sequence[Allocation], place: UnitPlace) -> list[int]:
    """Return the pieces of memory that a unit's code and its data are in, 0 for none."""
    starts = np.array([int(part.addr) for part in memory], np.uint64)
    ends = starts + np.array([part.size for part in memory], np.uint64)
    both = np.array([place.code_begin, place.data_begin], np.uint64)[:, None]
    within = (starts <= both) & (both < ends)
    return [int(starts[row].max(initial=0)) for row in within]
