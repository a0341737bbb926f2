"""Past: what the program was after its last generations, and where every version's code is.

The first is what a rollback flips back to without linking anything: the memory of the last few
generations is not given back. The second says where threads may still stand.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

from reloader.ids import I32, NO_ADDR, NO_ROW, U64, Generation
from reloader.live.objects import LiveObject

Key = tuple[str, str]  # (path, member)
Write = tuple[int, bytes, bytes]  # address in the executable's code, bytes before, bytes now


@dataclass(frozen=True, slots=True, eq=False)
class Moment:
    """What a program was after one generation."""

    objects: dict[Key, LiveObject]
    slots: U64  # as many as there were
    jumps: dict[int, list[Write]]  # into the executable, by slot


@dataclass(frozen=True, slots=True, eq=False)
class Made:
    """(f,) columns: the functions that one generation made code of."""

    generation: Generation
    slot: I32
    addr: U64
    size: U64


@dataclass(slots=True)
class Past:
    """What is known of a program's earlier generations, as far as this daemon made them."""

    keep: int = 0  # moments that can be returned to
    moments: dict[int, Moment] = field(default_factory=dict[int, Moment])  # oldest first
    made: list[Made] = field(default_factory=list[Made])

    def remember(self, generation: int, moment: Moment) -> None:
        """Take note of what a program was until now; a return makes no new moment."""
        self.moments.pop(generation, None)
        self.moments[generation] = moment
        newest: dict[int, None] = {}
        for other in reversed(self.moments.values()):
            newest[id(other)] = None
        kept = set(list(newest)[: self.keep])
        self.moments = {at: row for at, row in self.moments.items() if id(row) in kept}

    def add(self, made: Made, held: Iterable[int]) -> None:
        """Take note of new code.

        Args:
            made: By the newest generation.
            held: Generations of which memory is held: of others nobody can stand in the code.
        """
        known = set(held)
        self.made = [row for row in self.made if int(row.generation) in known] + [made]

    def bodies(self, slots: I32) -> tuple[I32, U64, U64]:
        """Return slot, address and size of every version of some functions' code of ours."""
        slot = np.concatenate([np.empty(0, np.int32), *(row.slot for row in self.made)])
        addr = np.concatenate([np.empty(0, np.uint64), *(row.addr for row in self.made)])
        size = np.concatenate([np.empty(0, np.uint64), *(row.size for row in self.made)])
        rows = np.isin(slot, slots)
        return slot[rows], addr[rows], size[rows]

    def generations(self) -> set[int]:
        """Return whose code `bodies` knows."""
        return {int(row.generation) for row in self.made}

    def others(self, now: dict[Key, LiveObject]) -> list[tuple[Moment, LiveObject]]:
        """Return the object versions that can be returned to, without those that are live."""
        return [
            (moment, live)
            for moment in self.moments.values()
            for key, live in moment.objects.items()
            if now.get(key) is not live
        ]

    def roots(self, now: dict[Key, LiveObject]) -> U64:
        """Return every address that a return needs, besides those of what is live."""
        parts: list[U64] = [np.empty(0, np.uint64)]
        for moment, live in self.others(now):
            own = live.symbol_slot[live.symbol_slot != NO_ROW]
            led_to = moment.slots[own[own < len(moment.slots)]]
            parts += [live.section_addr, live.data.addr, led_to]
        roots = np.concatenate(parts)
        return roots[(roots != np.uint64(NO_ADDR)) & (roots != 0)]

    def slots(self, now: dict[Key, LiveObject]) -> set[int]:
        """Return the slots of the functions of these versions."""
        found = (live.symbol_slot.tolist() for _, live in self.others(now))
        return {slot for row in found for slot in row if slot != NO_ROW}
