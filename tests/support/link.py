"""Linking in tests: objects from source text, an arena of made-up addresses, a real ld, a child that runs."""

import struct
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from reloader.arch.x86_64 import X86_64
from reloader.elf.dtypes import EHDR, SHDR, SYM
from reloader.elf.object import UNDEFINED, ObjectFile
from reloader.elf.read import read_object
from reloader.ids import NO_ADDR, NO_ROW, U8, Addr, Generation, Region
from reloader.link.graph import LinkGraph
from reloader.link.layout import Placed, body_addr, fresh_blocks, image
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
_PAGE = 4096


def compile_object(folder: Path, name: str, text: str, *flags: str) -> ObjectFile:
    """Compile or assemble `name` (`hud.c`, `hud.s`) and read the object; its path is short."""
    source = folder / name
    source.write_text(text)
    target = source.with_suffix(".o")
    subprocess.run(["gcc", "-c", *flags, str(source), "-o", str(target)], check=True)
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
    used: dict[Region, int] = field(default_factory=dict[Region, int])
    slots: list[int] = field(default_factory=list[int])  # what each slot's function was before
    room: int = 1 << 24  # bytes of a region

    def start(self, region: Region) -> int:
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

    def allocate(self, region: Region, size: int) -> Allocation:
        """Take pages."""
        at = self.used.get(region, _PAGE * 4 if region == Region.CODE else 0)
        size = -(-size // _PAGE) * _PAGE
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
        ARCH, live, names, arena.span(), arena.assign_slots, arena.allocate, relax=relax
    )


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


# --- GNU ld ------------------------------------------------------------------------------------


def ld_sections(path: Path) -> dict[int, bytes]:
    """Return address -> bytes of every loaded section of a linked file."""
    data = np.frombuffer(path.read_bytes(), np.uint8)
    header = data[: EHDR.itemsize].view(EHDR)[0]
    first, count = int(header["e_shoff"]), int(header["e_shnum"])
    rows = data[first : first + count * SHDR.itemsize].view(SHDR)
    loaded = rows[((rows["sh_flags"] & 2) != 0) & (rows["sh_type"] != 8)]
    return {
        int(row["sh_addr"]): data[
            int(row["sh_offset"]) : int(row["sh_offset"]) + int(row["sh_size"])
        ].tobytes()
        for row in loaded
    }


def ld_symbols(path: Path) -> dict[bytes, int]:
    """Return the value of every named symbol of a linked file."""
    data = np.frombuffer(path.read_bytes(), np.uint8)
    header = data[: EHDR.itemsize].view(EHDR)[0]
    first, count = int(header["e_shoff"]), int(header["e_shnum"])
    rows = data[first : first + count * SHDR.itemsize].view(SHDR)
    table = rows[rows["sh_type"] == 2][0]
    names = rows[int(table["sh_link"])]
    strings = data[int(names["sh_offset"]) :][: int(names["sh_size"])].tobytes()
    start = int(table["sh_offset"])
    symbols = data[start : start + int(table["sh_size"])].view(SYM)
    return {
        strings[int(s["st_name"]) :].split(b"\0", 1)[0]: int(s["st_value"]) for s in symbols
    }


# --- a child that runs what was linked ---------------------------------------------------------

HOST = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <link.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unwind.h>

static uint64_t code_first, code_end, header;
int host_calls;
__thread int host_thread = 40;
__thread int host_other = 2;
static __thread char padding[24] __attribute__((aligned(32), used)) = {1};

int host_add(int a, int b) { host_calls++; return a + b; }

/* libgcc asks this; the real agent answers in the same way. */
int _dl_find_object(void *pc, struct dl_find_object *out)
{
    static int (*next)(void *, struct dl_find_object *);
    uint64_t at = (uint64_t)pc;
    if (at >= code_first && at < code_end) {
        out->dlfo_flags = 0;
        out->dlfo_map_start = (void *)code_first;
        out->dlfo_map_end = (void *)code_end;
        out->dlfo_link_map = NULL;
        out->dlfo_eh_frame = (void *)header;
        return 0;
    }
    if (!next)
        next = (int (*)(void *, struct dl_find_object *))dlsym(RTLD_NEXT, "_dl_find_object");
    return next(pc, out);
}

static int seen_code, seen_main;
int main(int, char **);
static _Unwind_Reason_Code frame(struct _Unwind_Context *context, void *unused)
{
    (void)unused;
    uint64_t at = _Unwind_GetIP(context);
    seen_code += at >= code_first && at < code_end;
    seen_main += _Unwind_GetRegionStart(context) == (uint64_t)main;
    return _URC_NO_REASON;
}
int host_walk(void)
{
    seen_code = seen_main = 0;
    _Unwind_Backtrace(frame, NULL);
    return seen_code * 10 + seen_main;
}

int main(int argc, char **argv)
{
    FILE *in = fopen(argv[1], "rb");
    uint64_t head[6], part[3];
    if (argc < 2 || !in || fread(head, 8, 6, in) != 6)
        return 9;
    code_first = head[2];
    code_end = head[3];
    header = head[4];
    for (uint64_t i = 0; i < head[0]; i++) {
        if (fread(part, 8, 3, in) != 3)
            return 8;
        void *at = mmap((void *)part[0], part[1], PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
        if (at != (void *)part[0] || fread(at, 1, part[1], in) != part[1])
            return 7;
        if (mprotect(at, part[1], (int)part[2]))
            return 6;
    }
    printf("%d\n", ((int (*)(int))head[1])((int)head[5]));
    return 0;
}
"""


def build_host(folder: Path) -> Path:
    """Compile the program that maps linked memory at its addresses and calls into it."""
    source, target = folder / "host.c", folder / "host"
    source.write_text(HOST)
    flags = ["-O1", "-no-pie", "-fno-pie", "-Wall", "-Wextra", "-Werror"]
    subprocess.run(["gcc", *flags, str(source), "-o", str(target)], check=True)
    return target


def host_names(host: Path) -> Names:
    """Return the host's functions and variables; thread-local ones as offsets."""
    values = ld_symbols(host)
    wanted = (b"host_add", b"host_calls", b"host_walk")
    names = Names({name: values[name] for name in wanted})
    names.types = {b"host_add": 2, b"host_walk": 2, b"host_calls": 1}
    listing = subprocess.run(
        ["readelf", "-lW", str(host)], check=True, capture_output=True, text=True
    ).stdout
    row = next(line for line in listing.splitlines() if line.split()[:1] == ["TLS"]).split()
    size, align = int(row[5], 16), int(row[-1], 16)
    for name in (b"host_thread", b"host_other"):
        names.addrs[name] = values[name] - -(-size // align) * align
        names.types[name] = 6
    return names


def run_linked(  # noqa: PLR0913  one argument a fact
    host: Path,
    linked: Linked,
    arena: FakeArena,
    entry: bytes,
    argument: int,
    *,
    beside: Linked | None = None,
) -> int:
    """Map everything in a child, call a function by its canonical address, return its answer.

    Args:
        host: The program of `build_host`.
        linked: What is flipped to.
        arena: Its stubs and slots.
        entry: The function to call.
        argument: What it gets.
        beside: An older generation that is mapped as well.
    """
    graph = linked.graph
    parts = [
        _part(item.allocation.addr, image(graph, item, ARCH), _protection(item))
        for item in linked.placed
    ]
    older = beside.placed if beside else []
    parts += [
        _part(item.allocation.addr, image(beside.graph, item, ARCH), _protection(item))
        for item in older
        if beside
    ]
    generations = [beside.graph, graph] if beside else [graph]
    parts += _stub_parts(generations, arena)
    code = [item.allocation for item in linked.placed if item.region == Region.CODE]
    header = linked.unwind.header
    head = struct.pack(
        "<6q",
        len(parts),
        int(graph.symbols.addr[symbol_row(graph, entry)]),
        min(item.addr for item in code),
        max(item.addr + item.size for item in code),
        0 if header == NO_ROW else int(graph.blocks.addr[header]),
        argument,
    )
    script = host.with_suffix(".image")
    script.write_bytes(head + b"".join(parts))
    done = subprocess.run([str(host), str(script)], check=True, capture_output=True, timeout=60)
    return int(done.stdout)


def _protection(item: Placed) -> int:
    return {Region.CODE: 5, Region.RODATA: 1}.get(item.region, 3)


def _part(addr: int, data: U8, protection: int) -> bytes:
    return struct.pack("<3q", addr, len(data), protection) + data.tobytes()


def _stub_parts(generations: Sequence[LinkGraph], arena: FakeArena) -> list[bytes]:
    """Return the stub and slot pages as they are after the flip."""
    count = len(arena.slots)
    if not count:
        return []
    slots = np.array(arena.slots, np.uint64)
    for graph in generations:
        body = body_addr(graph)
        rows = np.flatnonzero((graph.symbols.slot >= 0) & (body != np.uint64(NO_ADDR)))
        slots[graph.symbols.slot[rows]] = body[rows]
    numbers = np.arange(count, dtype=np.uint64)
    stubs = np.full((_PAGE * 4 // 16, 16), 0xCC, np.uint8)
    ARCH.write_stubs(
        stubs[:count],
        np.uint64(arena.stub_addr(0)) + numbers * np.uint64(16),
        np.uint64(arena.slot_addr(0)) + numbers * np.uint64(8),
    )
    words = np.zeros(_PAGE // 8, np.uint64)
    words[:count] = slots
    return [
        _part(arena.stub_addr(0), stubs.reshape(-1), 5),
        _part(arena.slot_addr(0), words.view(np.uint8), 1),
    ]
