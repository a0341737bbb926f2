"""The slot table's other half: which function each slot belongs to.

The slots themselves live in the target (`agent/agent.h`): one pointer a function, through which
the function's stub jumps. This side keeps who owns a slot. A function keeps its slot for the
life of the process, whatever happens to its code, so a stub's address can be handed out as the
function's address once and for all.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

RESERVED: Final = (
    16  # the first slots are the agent's own; slot 0 points at the unwind directory
)
UNWIND_SLOT: Final = 0
NO_SLOT: Final = -1


class SlotKey(NamedTuple):
    """What identifies a function over all its versions."""

    path: str  # of the object for a local function, "" for a global one
    member: str  # archive member, "" for a plain object or a global function
    name: bytes


class SlotTableFullError(Exception):
    """More functions than the arena has slots for."""

    def __init__(self, wanted: int, capacity: int) -> None:
        super().__init__(
            f"{wanted} functions need a stub and there is room for {capacity}. Nothing was "
            "changed. Watch fewer objects, or restart the program to begin with an empty table."
        )


@dataclass(slots=True)
class SlotTable:
    """(n,) columns by slot number; rows below RESERVED are not functions."""

    capacity: int
    keys: list[SlotKey | None] = field(default_factory=lambda: [None] * RESERVED)
    original: list[int] = field(
        default_factory=lambda: [0] * RESERVED
    )  # first target: address or 0
    rows: dict[SlotKey, int] = field(default_factory=dict[SlotKey, int])

    def find(self, keys: Sequence[SlotKey]) -> NDArray[np.int32]:
        """Return (k,) the slot of each key, or NO_SLOT."""
        return np.array([self.rows.get(key, NO_SLOT) for key in keys], np.int32)

    def take(self, keys: Sequence[SlotKey], original: Sequence[int]) -> NDArray[np.int32]:
        """Return (k,) the slot of each key, new ones for keys without.

        Args:
            keys: Functions; a key may occur twice.
            original: (k,) the address each has in the executable or a library, 0 for none.

        Raises:
            SlotTableFullError: There are too few slots; the table is unchanged.
        """
        rows, fresh = self.rows, dict[SlotKey, int]()
        for key, address in zip(keys, original, strict=True):
            if key not in rows:
                fresh.setdefault(key, address)
        first, wanted = len(self.keys), len(self.keys) + len(fresh)
        if wanted > self.capacity:
            raise SlotTableFullError(wanted, self.capacity)
        self.keys.extend(fresh)
        self.original.extend(fresh.values())
        rows.update(zip(fresh, range(first, wanted), strict=True))
        return np.fromiter(map(rows.__getitem__, keys), np.int32, len(keys))

    def set(self, slot: int, key: SlotKey, original: int) -> None:
        """Give a slot to a function; also how a new daemon refills the table from the state."""
        while len(self.keys) <= slot:
            self.keys.append(None)
            self.original.append(0)
        self.keys[slot] = key
        self.original[slot] = original
        self.rows[key] = slot

    def truncate(self, count: int) -> None:
        """Forget the slots from `count` on: the reload that took them failed."""
        for key in self.keys[count:]:
            if key is not None:
                del self.rows[key]
        del self.keys[count:]
        del self.original[count:]

    def __len__(self) -> int:
        """Return the number of slots in use, reserved ones included."""
        return len(self.keys)

    def functions(self) -> Iterator[tuple[int, SlotKey, int]]:
        """Yield (slot, key, original address) of every function."""
        for slot, key in enumerate(self.keys):
            if key is not None:
                yield slot, key, self.original[slot]
