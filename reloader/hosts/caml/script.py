"""A script for the agent: what one transaction does to the OCaml runtime, word by word.

Its operations are executed in order at one safe point (stubs/agent/ocaml_load.c), and undone
together if one raises.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

import numpy as np

from reloader.hosts.caml.unit_object import UnitPlace
from reloader.ids import U64

REGISTER: Final = 1
INIT: Final = 2
KEEP: Final = 3
SWAP: Final = 4
PAIR: Final = 5
CALL: Final = 6
DEPTH: Final = 4  # modules inside modules that a place may go through


class Place(NamedTuple):
    """A field of a module block, or of a module in it, and so on."""

    block: int
    chain: tuple[int, ...]  # the index at each depth


Move = tuple[Place, Place]  # a place in what was live, and in what is new


@dataclass(slots=True)
class Script:
    """Operations in their order."""

    words: list[int] = field(default_factory=list[int])
    owner: dict[int, str] = field(default_factory=dict[int, str])  # of words: unit or function
    pairs: int = 0

    def register(self, unit: str, place: UnitPlace) -> None:
        """Tell the runtime of a unit; neighbours in the script are registered together."""
        self._begin(
            unit, REGISTER, place.frametable, place.gc_roots, place.data_begin,
            place.data_end, place.code_begin, place.code_end,
        )  # fmt: skip

    def initialise(self, unit: str, entry: int) -> None:
        """Run a unit's initialiser."""
        self._begin(unit, INIT, entry)

    def keep(self, unit: str, moves: Sequence[Move]) -> None:
        """Store old values in new places, and lead the new unit's pointers to them."""
        self._moves(unit, KEEP, moves)

    def swap(self, unit: str, moves: Sequence[Move]) -> None:
        """Store new values in old places."""
        self._moves(unit, SWAP, moves)

    def pair(self, unit: str, moves: Sequence[Move]) -> None:
        """Ask for the code of the functions in places; before a swap of the same places."""
        self._moves(unit, PAIR, moves)
        self.pairs += len(moves)

    def call(self, function: str, place: Place) -> None:
        """Call a function with unit."""
        self._begin(function, CALL, *words_of([place]))

    def calls(self) -> int:
        """Return how many times OCaml code is called."""
        return sum(self.words[at] in {INIT, CALL} for at in self.owner)

    def array(self) -> U64:
        """Return the words as the agent reads them."""
        return np.array(self.words, np.uint64)

    def _begin(self, owner: str, *words: int) -> None:
        self.owner[len(self.words)] = owner
        self.words += words

    def _moves(self, unit: str, op: int, moves: Sequence[Move]) -> None:
        self._begin(unit, op, len(moves))
        self.words += words_of([place for move in moves for place in move])


def words_of(places: Sequence[Place]) -> list[int]:
    """Return places as the agent reads them.

    Raises:
        ValueError: One is deeper than the agent goes.
    """
    blocks, chains = [place.block for place in places], [place.chain for place in places]
    depths = [len(chain) for chain in chains]
    if not all(0 < depth <= DEPTH for depth in depths):
        msg = f"a place goes through 1 to {DEPTH} blocks, not {max(depths)}"
        raise ValueError(msg)
    rows = np.zeros((len(places), 2 + DEPTH), np.uint64)
    rows[:, 0], rows[:, 1] = blocks, depths
    for depth in range(max(depths, default=0)):
        rows[:, 2 + depth] = [chain[depth] if depth < len(chain) else 0 for chain in chains]
    return rows.reshape(-1).tolist()
