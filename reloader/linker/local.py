"""LocalArena: addresses from a given one on, with nothing behind them but our own memory."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from reloader.arch.base import Architecture
from reloader.elf.object import ObjectFile
from reloader.ids import I64, NO_ADDR, NO_ROW, U8, Addr, Region
from reloader.link.graph import LinkGraph
from reloader.link.layout import body_addr
from reloader.link.passes.build_tables import WANTS_SLOT
from reloader.live.target import Allocation

PAGE: Final = 4096
STB_LOCAL: Final = 0
_SLOT: Final = 8  # bytes


@dataclass(slots=True)
class LocalArena:
    """Hands out pages in a row; stubs and slots where they are asked for."""

    base: int
    limit: int  # no block lies at or beyond it
    arch: Architecture
    slots: list[int] = field(default_factory=list[int])  # where each stub leads
    stub_base: int = 0
    slot_base: int = 0
    next_addr: int = 0  # 0: nothing is taken yet
    thread_size: int = 0  # bytes of thread-local variables so far

    def allocate(self, region: int, size: int) -> Allocation:
        """Take the next pages."""
        addr = self.next_addr or self.base
        size = max(1, -(-size // PAGE)) * PAGE
        self.next_addr = addr + size
        return Allocation(region, Addr(addr), size)

    def take_thread_room(self, sizes: Sequence[int], aligns: Sequence[int]) -> I64:
        """Return an offset from the thread pointer for each size: downwards, as a linker's."""
        offsets: list[int] = []
        for size, align in zip(sizes, aligns, strict=True):
            self.thread_size = -(-(self.thread_size + size) // align) * align
            offsets.append(-self.thread_size)
        return np.array(offsets, np.int64)

    def span(self) -> tuple[int, int]:
        """Return the first address and one past the last that blocks can have."""
        return self.base, self.limit

    def stub_addr(self, slot: int) -> int:
        """Return the address of the jump that goes through a slot."""
        return self.stub_base + slot * self.arch.stub_size

    def slot_addr(self, slot: int) -> int:
        """Return the address of a slot."""
        return self.slot_base + slot * _SLOT

    def assign_slots(self, graph: LinkGraph) -> None:
        """Give a slot and a stub to every symbol that wants one: one a name."""
        symbols = graph.symbols
        rows = np.flatnonzero(symbols.slot == WANTS_SLOT).tolist()
        if not rows:
            return
        slot_of_name: dict[tuple[bytes, int], int] = {}
        for row in rows:
            local = symbols.binding[row] == STB_LOCAL
            key = (symbols.name[row], row if local else NO_ROW)
            slot = slot_of_name.setdefault(key, len(slot_of_name))
            symbols.slot[row] = slot
            if slot == len(self.slots):
                addr = int(symbols.addr[row])
                self.slots.append(0 if addr == NO_ADDR else addr)
        count = len(self.slots)
        self.stub_base = self.allocate(Region.CODE, count * self.arch.stub_size).addr
        self.slot_base = self.allocate(Region.RODATA, count * _SLOT).addr
        for row in rows:
            symbols.entry[row] = self.stub_addr(int(symbols.slot[row]))
            if int(symbols.addr[row]) == NO_ADDR:
                symbols.addr[row] = symbols.entry[row]

    def pages(self, graph: LinkGraph) -> list[tuple[int, U8]]:
        """Return (address, bytes) of the stubs and of the slots, of a placed graph."""
        count = len(self.slots)
        if not count:
            return []
        slots = np.array(self.slots, np.uint64)
        body = body_addr(graph)
        own = np.flatnonzero((graph.symbols.slot >= 0) & (body != np.uint64(NO_ADDR)))
        slots[graph.symbols.slot[own]] = body[own]
        number = np.arange(count, dtype=np.uint64)
        stubs = np.zeros((count, self.arch.stub_size), np.uint8)
        stub_addr = np.uint64(self.stub_base) + number * np.uint64(self.arch.stub_size)
        slot_addr = np.uint64(self.slot_base) + number * np.uint64(_SLOT)
        self.arch.write_stubs(stubs, stub_addr, slot_addr)
        return [(self.stub_base, stubs.reshape(-1)), (self.slot_base, slots.view(np.uint8))]


def room_for(objects: list[ObjectFile]) -> int:
    """Return a number of bytes that the objects' blocks, tables and stubs stay below."""
    total = PAGE * 8
    for file in objects:
        size = file.sections["sh_size"].astype(np.int64)
        align = np.maximum(file.sections["sh_addralign"], 1).astype(np.int64)
        loaded = (file.sections["sh_flags"] & 2) != 0
        total += int((size + align)[loaded].sum()) + 32 * len(file.symbols) + 4 * PAGE
    return total
