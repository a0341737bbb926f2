"""Bodies: every place where some functions' code is, or was and a thread may still be in it.

A function of the executable keeps its first body there for ever; each reload that changed it
made another one in the arena, which stays until it is proven out of use.
"""

from collections.abc import Container
from dataclasses import dataclass

import numpy as np

from reloader.ids import I32, I64, NO_ADDR, NO_ROW, U64, Region
from reloader.live.program import Key, Program


@dataclass(frozen=True, slots=True, eq=False)
class Bodies:
    """(b,) columns, sorted by address."""

    addr: U64
    size: U64
    slot: I32  # NO_ROW: old code of which only the object is known
    names: dict[int, str]  # of the slots

    def find(self, words: U64, *, ends: bool) -> I64:
        """Return (w,) the body that each word points into, -1 for none.

        Args:
            words: Program counters, or words of stacks.
            ends: The address behind a body counts: a last call returns there.
        """
        if not len(self.addr):
            return np.full(len(words), -1, np.int64)
        row = np.searchsorted(self.addr, words, side="right") - 1
        distance = words - self.addr[np.maximum(row, 0)]
        size = self.size[np.maximum(row, 0)]
        inside = (row >= 0) & ((distance <= size) if ends else (distance < size))
        return np.where(inside, row, -1).astype(np.int64)

    def name(self, row: int) -> str:
        """Return the function that a body is of."""
        return self.names.get(int(self.slot[row]), "an earlier version of this object")


def bodies_of(program: Program, slots: I32, objects: Container[Key]) -> Bodies:
    """Return every body of some functions.

    Args:
        program: The process.
        slots: The functions'.
        objects: Those they are of. Superseded code of them that an earlier daemon made counts
            whole: which functions are where in it is not known any more.
    """
    slot, addr, size = program.past.bodies(slots)
    now_slot, now_addr, now_size = _current(program, slots)
    first_slot, first_addr, first_size = _original(program, slots)
    unknown = _unknown(program, objects)
    slot = np.concatenate([slot, now_slot, first_slot, np.full(len(unknown), NO_ROW, np.int32)])
    addr = np.concatenate([addr, now_addr, first_addr, unknown[:, 0]])
    size = np.concatenate([size, now_size, first_size, unknown[:, 1]])
    _, order = np.unique(addr, return_index=True)
    owners = program.slot_owners()
    names = {number: owners.get(number, "?") for number in slots.tolist()}
    return Bodies(addr[order], size[order], slot[order], names)


def _current(program: Program, slots: I32) -> tuple[I32, U64, U64]:
    """Return where functions are now that live objects define in the arena."""
    parts: list[tuple[I32, U64]] = [(np.empty(0, np.int32), np.empty(0, np.uint64))]
    for live in program.objects.values():
        rows = np.flatnonzero(np.isin(live.symbol_slot, slots))
        parts.append((live.symbol_slot[rows], live.file.symbols["st_size"][rows]))
    slot = np.concatenate([part[0] for part in parts])
    size = np.concatenate([part[1] for part in parts]).astype(np.uint64)
    addr = program.target.arena.slots[slot]
    _, held = program.ledger.find(addr)
    ours = held != NO_ROW
    return slot[ours], addr[ours], size[ours]


def _original(program: Program, slots: I32) -> tuple[I32, U64, U64]:
    """Return the bodies in the executable; what stands before a jump of ours is not inside."""
    numbers: list[int] = slots.tolist()
    wanted = {int(program.table.original[slot]): slot for slot in numbers}
    wanted.pop(0, None)
    found: dict[int, tuple[int, int]] = {}  # address -> slot, size
    addrs = np.array(sorted(wanted), np.uint64)
    for placement in program.baseline.placements:
        rows = np.flatnonzero(
            np.isin(placement.symbol_addr, addrs)
            & (placement.symbol_addr != np.uint64(NO_ADDR))
        )
        sizes = placement.file.symbols["st_size"][rows].tolist()
        for addr, size in zip(placement.symbol_addr[rows].tolist(), sizes, strict=True):
            slot = wanted[addr]
            found[addr] = slot, max(size, found.get(addr, (0, 0))[1])
    rows_out: list[tuple[int, int, int]] = []
    for addr, (slot, size) in found.items():
        jumps = [
            at + len(new)
            for at, _, new in program.redirects.get(slot, [])
            if addr <= at < addr + size
        ]
        first = max(jumps, default=addr)
        if first < addr + size:
            rows_out.append((slot, first, addr + size - first))
    columns = np.array(rows_out, np.uint64).reshape(-1, 3)
    return columns[:, 0].astype(np.int32), columns[:, 1], columns[:, 2]


def _unknown(program: Program, objects: Container[Key]) -> U64:
    """Return (u, 2) start and size of superseded code that no step of ours describes."""
    known = program.past.generations()
    rows = [
        (int(row.allocation.addr), row.allocation.size)
        for row in program.ledger.rows.values()
        if row.superseded
        and row.allocation.region == Region.CODE
        and int(row.generation) not in known
        and row.object in objects
    ]
    return np.array(rows, np.uint64).reshape(-1, 2)
