"""Objects compiled from a few lines, and a live version of one at made-up addresses."""

import subprocess
from pathlib import Path

import numpy as np

from reloader.arch.x86_64 import X86_64
from reloader.elf.object import COMMON, ObjectFile
from reloader.elf.read import read_object
from reloader.ids import NO_ADDR, NO_ROW, Generation, Region
from reloader.link.build import build_graph
from reloader.link.graph import LinkGraph, Origin
from reloader.link.passes.functions import bind_functions, mark_functions
from reloader.link.passes.match_old import changed_functions, match_old
from reloader.live.objects import DataMap, LiveObject

BASE = 0x5555_0000_0000  # where the made-up live version begins


def compiled(folder: Path, text: str, *flags: str, suffix: str = ".c") -> bytes:
    """Compile a source text with gcc and return the object's bytes."""
    source, target = folder / f"unit{suffix}", folder / "unit.o"
    source.write_text(text)
    command = ["gcc", "-c", *flags, str(source), "-o", str(target)]
    subprocess.run(command, check=True, capture_output=True)
    return target.read_bytes()


def compiled_object(folder: Path, text: str, *flags: str, suffix: str = ".c") -> ObjectFile:
    """Compile a source text with gcc and read the object."""
    return read_object("/p/unit.o", compiled(folder, text, *flags, suffix=suffix))


def live_version(file: ObjectFile, base: int = BASE) -> LiveObject:
    """Return an object as if a linker had placed each loaded section in a row."""
    flags = file.sections["sh_flags"].astype(np.int64)
    addr = np.full(len(flags), NO_ADDR, np.uint64)
    rows: list[tuple[int, int, int, int]] = []
    for section in np.flatnonzero(flags & 2).tolist():
        place = base + section * 0x10_0000
        name, size = file.section_names[section], int(file.sections["sh_size"][section])
        if int(flags[section]) & 0x10 and int(flags[section]) & 1 == 0:
            continue  # a linker merges it piece by piece: no single address
        if int(flags[section]) & 1 and not name.startswith((b".data.rel.ro", b".init_array")):
            rows.append((section, 0, size, place))
        addr[section] = place
    symbol_addr = np.full(len(file.symbols), NO_ADDR, np.uint64)
    home = file.symbol_sections
    for symbol in np.flatnonzero(home > 0).tolist():
        if int(addr[home[symbol]]) != NO_ADDR:
            value = int(file.symbols["st_value"][symbol])
            symbol_addr[symbol] = int(addr[home[symbol]]) + value
    for symbol in np.flatnonzero(home == COMMON).tolist():
        place, size = base + 0x8000_0000 + symbol * 0x1000, int(file.symbols["st_size"][symbol])
        rows.append((COMMON, symbol, size, place))
    columns = np.array(sorted(rows), np.int64).reshape(-1, 4)
    data = DataMap(
        columns[:, 0].astype(np.int32),
        columns[:, 1].astype(np.uint64),
        columns[:, 2].astype(np.uint64),
        columns[:, 3].astype(np.uint64),
    )
    slots = np.full(len(file.symbols), NO_ROW, np.int32)
    return LiveObject(file, Generation(0), addr, symbol_addr, slots, data)


def bind_same_data(graph: LinkGraph, live: LiveObject) -> None:
    """Bind writable sections of one object that have kept their size to the live ones."""
    symbols, blocks = graph.symbols, graph.blocks
    old = live.file
    for block in np.flatnonzero(blocks.region == Region.DATA).tolist():
        rows = np.flatnonzero((symbols.block == block) & (symbols.origin == Origin.BLOCK))
        section = int(blocks.section[block])
        name = graph.objects[0].section_names[section] if section >= 0 else b""
        if section >= 0 and name in old.section_names:
            was = old.section_names.index(name)
            if int(old.sections["sh_size"][was]) != int(blocks.size[block]):
                continue
            for row in rows.tolist():
                move = int(live.section_addr[was])
                symbols.addr[row] = move + int(symbols.offset[row])
                symbols.origin[row] = Origin.BOUND
        for row in rows.tolist() if section < 0 else []:
            was = old.symbol_names.index(symbols.name[row])
            symbols.addr[row] = live.data.find(COMMON, was)
            symbols.origin[row] = Origin.BOUND


def bound_graph(new: ObjectFile, live: LiveObject) -> LinkGraph:
    """Return an object's graph with functions and data bound to a live version."""
    arch = X86_64()
    graph = build_graph([new], arch)
    mark_functions(graph, arch)
    bind_functions(graph, [live])
    bind_same_data(graph, live)
    return graph


def matched(old: ObjectFile, new: ObjectFile) -> LinkGraph:
    """Return the new object's graph after the diff against a live version of the old one."""
    live = live_version(old)
    graph = bound_graph(new, live)
    match_old(graph, [live], X86_64().kinds)
    return graph


def changed_names(graph: LinkGraph) -> set[str]:
    """Return the names of the changed functions."""
    return {graph.symbols.name[row].decode() for row in changed_functions(graph)}


def differing_sections(graph: LinkGraph) -> set[str]:
    """Return the names of the loaded sections that cannot keep their place, data left out."""
    loaded = (graph.blocks.region != Region.DATA) & (graph.blocks.region != Region.NONE)
    rows = np.flatnonzero(loaded & ~graph.blocks.same & (graph.blocks.section >= 0))
    names = graph.objects[0].section_names
    sections: list[int] = graph.blocks.section[rows].tolist()
    return {names[section].decode() for section in sections}


def replaced(data: bytes, at: int, value: int, width: int) -> bytes:
    """Return the bytes with one little-endian number overwritten."""
    return data[:at] + value.to_bytes(width, "little") + data[at + width :]
