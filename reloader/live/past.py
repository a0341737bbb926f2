"""Past: what each generation changed, newest last.

It answers two questions: where every version of a function is that some thread may still be
inside of, and what flips back to an earlier generation without linking anything. For the second
the last few steps keep the objects they replaced, and the memory of those is not given back.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

import numpy as np

from reloader.ids import I32, NO_ADDR, NO_ROW, U64, Generation
from reloader.live.objects import LiveObject

Key = tuple[str, str]  # (path, member)
Write = tuple[int, bytes, bytes]  # address in the executable's code, bytes before, bytes now


@dataclass(frozen=True, slots=True, eq=False)
class Step:
    """One generation: (f,) columns of the slots it flipped, and what it replaced."""

    generation: Generation
    slot: I32
    old: U64  # 0: the slot was new
    new: U64
    size: U64  # bytes of the new body
    before: dict[Key, LiveObject | None]  # what its objects were; None: not loaded
    # jumps that it took out of the executable's code again, by slot
    restored: dict[int, list[Write]] = field(default_factory=dict[int, list[Write]])
    flips_back: bool = True  # slots and objects are all that it changed


@dataclass(slots=True)
class Past:
    """The steps of one program that this daemon made."""

    keep: int = 0  # steps that can be flipped back
    steps: list[Step] = field(default_factory=list[Step])

    def add(self, step: Step, held: Iterable[int]) -> None:
        """Take note of a step.

        Args:
            step: The newest.
            held: Generations of which memory is held: of others nobody can stand in the code.
        """
        self.steps.append(step)
        known = set(held)
        first = len(self.steps) - self.keep
        self.steps = [
            old if at >= first else replace(old, before={}, restored={}, flips_back=False)
            for at, old in enumerate(self.steps)
            if at >= first or old.generation in known
        ]

    def kept(self) -> list[Step]:
        """Return the steps that can be flipped back, newest first, without a gap."""
        found: list[Step] = []
        for step in self.steps[::-1]:
            if not step.flips_back:
                break
            found.append(step)
        return found

    def bodies(self, slots: I32) -> tuple[I32, U64, U64]:
        """Return slot, address and size of every version of some functions' code of ours."""
        slot = np.concatenate([np.empty(0, np.int32), *(step.slot for step in self.steps)])
        addr = np.concatenate([np.empty(0, np.uint64), *(step.new for step in self.steps)])
        size = np.concatenate([np.empty(0, np.uint64), *(step.size for step in self.steps)])
        rows = np.isin(slot, slots) & (size > 0)  # a return makes no new bodies
        return slot[rows], addr[rows], size[rows]

    def generations(self) -> set[int]:
        """Return whose code `bodies` knows."""
        return {int(step.generation) for step in self.steps}

    def roots(self, slots: U64) -> U64:
        """Return every address that flipping back needs.

        Args:
            slots: The slot table as it is.
        """
        parts: list[U64] = [np.empty(0, np.uint64)]
        for step in self.kept():
            parts.append(step.old)
            for live in filter(None, step.before.values()):
                own = live.symbol_slot[live.symbol_slot != NO_ROW]
                parts += [live.section_addr, live.data.addr, slots[own]]
        roots = np.concatenate(parts)
        return roots[(roots != np.uint64(NO_ADDR)) & (roots != 0)]

    def slots(self) -> set[int]:
        """Return the slots of the functions that flipping back needs."""
        lives = [live for step in self.kept() for live in step.before.values() if live]
        return {slot for live in lives for slot in live.symbol_slot.tolist() if slot != NO_ROW}
