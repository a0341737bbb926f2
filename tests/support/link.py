"""Linking in tests: objects from source text, and an arena of made-up addresses."""

import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from reloader.arch.x86_64 import X86_64
from reloader.elf.object import UNDEFINED, ObjectFile
from reloader.elf.read import read_object
from reloader.ids import NO_ADDR, NO_ROW, Addr, Generation, Region
from reloader.link.graph import LinkGraph
from reloader.link.layout import fresh_blocks, one_by_one
from reloader.link.passes.bind_data import bind_data
from reloader.link.passes.build_tables import WANTS_SLOT
from reloader.link.passes.match_old import match_old
from reloader.link.passes.resolve import Definitions
from reloader.link.pipeline import Linked, Setting, link_graph, mark_first_load, read_graph
from reloader.live.objects import DataMap, LiveObject
from reloader.live.target import Allocation

ARCH = X86_64()
LOW = 0x1000_0000  # where non-PIC code can be
FAR = 0x5000_0000_0000  # out of reach of anything that is linked at 4 MiB
PAGE = 4096


def compile_object(folder: Path, name: str, text: str, *flags: str) -> ObjectFile:
    """Compile or assemble `name` (`hud.c`, `hud.s`) and read the object; its path is short."""
    source = folder / name
    source.write_text(text)
    target = source.with_suffix(".o")
    command = ["gcc", "-c", *flags, str(source), "-o", str(target)]
    subprocess.run(command, check=True)
    return read_object(str(target), target.read_bytes())


@dataclass
class Names:
    """A SymbolSource over a dictionary: name -> address; types and slots beside."""

    addrs: dict[bytes, int] = field(default_factory=dict[bytes, int])
    types: dict[bytes, int] = field(default_factory=dict[bytes, int])
    slots: dict[bytes, int] = field(default_factory=dict[bytes, int])

    def find(self, names: Sequence[bytes]) -> Definitions:
        """Return what each name means."""
        return Definitions(
            found=np.array([name in self.addrs for name in names], np.bool_),
            addr=np.array([self.addrs.get(n, NO_ADDR) & NO_ADDR for n in names], np.uint64),
            slot=np.array([self.slots.get(n, NO_ROW) for n in names], np.int32),
            type=np.array([self.types.get(n, 0) for n in names], np.uint8),
            size=np.zeros(len(names), np.uint64),
        )

    def nearest(self, name: bytes) -> list[bytes]:
        """Return names that begin alike."""
        return [known for known in self.addrs if known[:3] == name[:3]]


@dataclass
class FakeArena:
    """Addresses handed out in a row a region; the code region begins with the stubs."""

    base: int = LOW
    used: dict[int, int] = field(default_factory=dict[int, int])
    slots: list[int] = field(default_factory=list[int])  # what each slot's function was before
    room: int = 1 << 24  # bytes of a region

    def start(self, region: int) -> int:
        """Return the first address of a region."""
        return self.base + int(region) * self.room

    def stub_addr(self, slot: int) -> int:
        """Return the address of a stub."""
        return self.start(Region.CODE) + 16 * slot

    def slot_addr(self, slot: int) -> int:
        """Return the address of a slot."""
        return self.start(Region.TLS) + 8 * slot

    def span(self) -> tuple[int, int]:
        """Return the arena's range."""
        return self.base, self.base + 4 * self.room

    def allocate(self, region: int, size: int) -> Allocation:
        """Take pages."""
        at = self.used.get(region, PAGE * 4 if region == Region.CODE else 0)
        size = -(-size // PAGE) * PAGE
        self.used[region] = at + size
        return Allocation(region, Addr(self.start(region) + at), size)

    def assign_slots(self, graph: LinkGraph) -> None:
        """Do what the live side does: slots for all that want one, and their entries."""
        symbols = graph.symbols
        for row in np.flatnonzero(symbols.slot == WANTS_SLOT).tolist():
            symbols.slot[row] = len(self.slots)
            addr = int(symbols.addr[row])
            self.slots.append(0 if addr == NO_ADDR else addr)
        for row in np.flatnonzero(symbols.slot >= 0).tolist():
            symbols.entry[row] = self.stub_addr(int(symbols.slot[row]))
            if int(symbols.addr[row]) == NO_ADDR:
                symbols.addr[row] = symbols.entry[row]


def link_setting(
    arena: FakeArena, live: Sequence[LiveObject | None], names: Names, *, relax: bool = True
) -> Setting:
    """Return a Setting over the fakes."""
    return Setting(
        ARCH, live, names, arena.span(), arena.assign_slots, one_by_one(arena.allocate),
        relax=relax,
    )  # fmt: skip


def link_first(
    objects: Sequence[ObjectFile],
    names: Names | None = None,
    arena: FakeArena | None = None,
    *,
    relax: bool = True,
) -> Linked:
    """Link objects that are new to the process."""
    graph = read_graph(objects, [None] * len(objects), ARCH)
    mark_first_load(graph)
    setting = link_setting(
        arena or FakeArena(), [None] * len(objects), names or Names(), relax=relax
    )
    return link_graph(graph, setting)


def live_after(linked: Linked, row: int = 0) -> LiveObject:
    """Return an object as it is once a first load is live."""
    graph = linked.graph
    file, blocks, symbols = graph.objects[row], graph.blocks, graph.symbols
    block = graph.block_of_section[row]
    addr = np.where(block >= 0, blocks.addr[np.maximum(block, 0)], np.uint64(NO_ADDR))
    region = np.where(block >= 0, blocks.region[np.maximum(block, 0)], Region.NONE)
    data = np.flatnonzero((region == Region.DATA) & (addr != np.uint64(NO_ADDR)))
    own = slice(int(graph.first_symbol[row]), int(graph.first_symbol[row + 1]))
    return LiveObject(
        file=file,
        generation=Generation(1),
        section_addr=addr.astype(np.uint64),
        symbol_addr=np.where(
            file.symbol_sections == UNDEFINED, np.uint64(NO_ADDR), symbols.addr[own]
        ),
        symbol_slot=symbols.slot[own].copy(),
        data=DataMap(
            section=data.astype(np.int32),
            offset=np.zeros(len(data), np.uint64),
            size=file.sections["sh_size"][data].astype(np.uint64),
            addr=addr[data].astype(np.uint64),
        ),
    )


def link_next(
    before: Linked, objects: Sequence[ObjectFile], names: Names, arena: FakeArena
) -> Linked:
    """Link the next version of a first load."""
    live = [live_after(before, row) for row in range(len(objects))]
    graph = read_graph(objects, live, ARCH)
    bind_data(graph, live, ARCH)
    match_old(graph, live, ARCH.kinds)
    return link_graph(graph, link_setting(arena, live, names))


def placed_names(linked: Linked) -> set[str]:
    """Return the sections that were placed."""
    graph = linked.graph
    rows = np.flatnonzero(fresh_blocks(graph) & (graph.blocks.section >= 0)).tolist()
    return {
        graph.objects[int(graph.blocks.object[row])]
        .section_names[int(graph.blocks.section[row])]
        .decode()
        for row in rows
    }


def symbol_row(graph: LinkGraph, name: bytes) -> int:
    """Return the first symbol of a name that is defined in a block, else the first at all."""
    rows = [row for row, known in enumerate(graph.symbols.name) if known == name]
    inside = [row for row in rows if graph.symbols.block[row] != NO_ROW]
    return (inside or rows)[0]
