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


Home = tuple[str, str]  # SlotKey.path, SlotKey.member


@dataclass(slots=True)
class SlotTable:
    """(n,) columns by slot number; rows below RESERVED are not functions."""

    capacity: int
    homes: list[Home | None] = field(default_factory=lambda: [None] * RESERVED)
    names: list[bytes] = field(default_factory=lambda: [b""] * RESERVED)
    original: list[int] = field(
        default_factory=lambda: [0] * RESERVED
    )  # first target: address or 0
    # the slot of each name, by home: a large object's functions have one home or two
    rows: dict[Home, dict[bytes, int]] = field(default_factory=dict[Home, dict[bytes, int]])

    def slot_of(self, key: SlotKey) -> int | None:
        """Return a function's slot, None if it has none."""
        return self.rows.get(key[:2], {}).get(key.name)

    def take(self, keys: Sequence[SlotKey], original: Sequence[int]) -> NDArray[np.int32]:
        """Return (k,) the slot of each key, new ones for keys without.

        Args:
            keys: Functions; a key may occur twice.
            original: (k,) the address each has in the executable or a library, 0 for none.

        Raises:
            SlotTableFullError: There are too few slots; the table is unchanged.
        """
        fresh: dict[SlotKey, int] = {}
        for key, address in zip(keys, original, strict=True):
            if self.slot_of(key) is None:
                fresh.setdefault(key, address)
        self._require(len(fresh))
        for key, address in fresh.items():
            self.set(len(self), key, address)
        return np.array([self.slot_of(key) for key in keys], np.int32)

    def take_names(
        self, home: Home, names: list[bytes], original: list[int]
    ) -> NDArray[np.int32]:
        """Return (k,) the slot of each name of one home; otherwise as `take`."""
        own = self.rows.get(home, {})
        fresh = dict.fromkeys(name for name in names if name not in own) if own else None
        fresh = dict.fromkeys(names) if fresh is None else fresh
        self._require(len(fresh))
        first = len(self)
        if len(fresh) == len(names):  # mostly: an object's first load
            self.original.extend(original)
        else:
            before = dict(zip(reversed(names), reversed(original), strict=True))
            self.original.extend(map(before.__getitem__, fresh))
        self.names.extend(fresh)
        self.homes.extend([home] * len(fresh))
        own.update(zip(fresh, range(first, len(self)), strict=True))
        self.rows[home] = own
        if len(fresh) == len(names):
            return np.arange(first, len(self), dtype=np.int32)
        return np.fromiter(map(own.__getitem__, names), np.int32, len(names))

    def _require(self, count: int) -> None:
        wanted = len(self) + count
        if wanted > self.capacity:
            raise SlotTableFullError(wanted, self.capacity)

    def set(self, slot: int, key: SlotKey, original: int) -> None:
        """Give a slot to a function; also how a new daemon refills the table from the state."""
        missing = slot + 1 - len(self)
        self.homes.extend([None] * missing)
        self.names.extend([b""] * missing)
        self.original.extend([0] * missing)
        self.homes[slot], self.names[slot] = key[:2], key.name
        self.original[slot] = original
        self.rows.setdefault(key[:2], {})[key.name] = slot

    def truncate(self, count: int) -> None:
        """Forget the slots from `count` on: the reload that took them failed."""
        for home, name in zip(self.homes[count:], self.names[count:], strict=True):
            if home is not None:
                del self.rows[home][name]
        del self.homes[count:]
        del self.names[count:]
        del self.original[count:]

    def originals(self, slots: NDArray[np.int32]) -> NDArray[np.uint64]:
        """Return (k,) the first target of some slots."""
        rows: list[int] = slots.tolist()
        return np.array([self.original[slot] for slot in rows], np.uint64)

    def __len__(self) -> int:
        """Return the number of slots in use, reserved ones included."""
        return len(self.names)

    def functions(self, first: int = 0) -> Iterator[tuple[int, SlotKey, int]]:
        """Yield (slot, key, original address) of every function from a slot on."""
        columns = self.homes[first:], self.names[first:], self.original[first:]
        for slot, (home, name, original) in enumerate(zip(*columns, strict=True), first):
            if home is not None:
                yield slot, SlotKey(*home, name), original
