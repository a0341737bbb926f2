"""Two versions of a C file: the one live at chosen addresses, and the one to bind to it.

Compilers write a reference to a static variable as section symbol + addend. `truth_of`
assembles the same assembly text again with every static variable made global, which changes
nothing but that the relocations name what they mean.
"""

import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

import numpy as np

from reloader.arch.x86_64 import X86_64
from reloader.elf.object import COMMON, ObjectFile
from reloader.elf.read import read_object
from reloader.ids import NO_ADDR, NO_ROW, Generation, Region
from reloader.link.build import build_graph
from reloader.link.graph import LinkGraph, Origin
from reloader.link.passes.bind_data import DataReport, bind_data
from reloader.link.passes.pair_variables import writable_sections
from reloader.live.objects import DataMap, LiveObject

if TYPE_CHECKING:
    from reloader.arch.base import Architecture

ARCH: Final = cast("Architecture", X86_64())
LIVE_AT: Final = 0x5000_0000  # of the first section; each next one far away
APART: Final = 0x10_0000
_GCC: Final = shutil.which("gcc") or "gcc"
_OBJECT: Final = re.compile(r"^\s*\.type\s+([^,\s]+),\s*@object", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Compiled:
    """One version, and the same one with references that name their variables."""

    file: ObjectFile
    truth: ObjectFile


def compile_c(folder: Path, source: str, *flags: str, name: str = "a") -> Compiled:
    """Compile C source to an object, twice: as it is, and with named references."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.c"
    path.write_text(source)
    listing = folder / f"{name}.s"
    subprocess.run([_GCC, "-S", *flags, "-o", str(listing), str(path)], check=True)
    return assemble(folder, listing.read_text(), name=name)


def assemble(folder: Path, text: str, *, name: str = "a") -> Compiled:
    """Assemble a listing twice: as it is, and with named references."""
    # `.local x` and `.comm x` make a static in .bss; as a global it would become COMMON
    named = re.sub(
        r"^\s*\.local\s+(\S+)\n\s*\.comm\s+\S+?,(\d+),(\d+)", _in_bss, text, flags=re.MULTILINE
    )
    plain = re.sub(
        r"^\s*\.local\s+(\S+)\n\s*\.comm\s+\S+?,(\d+),(\d+)", _in_bss, text, flags=re.MULTILINE
    )
    hidden = "".join(f"\t.globl {symbol}\n" for symbol in sorted(set(_OBJECT.findall(named))))
    return Compiled(
        _assemble(folder / f"{name}.o", plain),
        _assemble(folder / f"{name}.truth.o", named + hidden),
    )


def _in_bss(found: re.Match[str]) -> str:
    name, size, align = found.groups()
    return (
        f"\t.pushsection .bss\n\t.balign {align}\n\t.type {name}, @object\n"
        f"\t.size {name}, {size}\n{name}:\n\t.zero {size}\n\t.popsection"
    )


def _assemble(path: Path, text: str) -> ObjectFile:
    subprocess.run(
        [_GCC, "-c", "-x", "assembler", "-o", str(path), "-"], input=text.encode(), check=True
    )
    return read_object(str(path), path.read_bytes())


def live_object(file: ObjectFile, at: int = LIVE_AT) -> LiveObject:
    """Return an object as if the program had been linked with it, sections far apart."""
    headers: Any = file.sections
    count = len(headers)
    section_addr = (np.arange(count, dtype=np.int64) * APART + at).astype(np.uint64)
    section_addr[(headers["sh_flags"] & 2) == 0] = NO_ADDR  # SHF_ALLOC
    where = file.symbol_sections
    base = section_addr[np.maximum(where, 0)]
    symbol_addr = np.where(
        (where > 0) & (base != np.uint64(NO_ADDR)),
        base + file.symbols["st_value"].astype(np.uint64),
        np.uint64(NO_ADDR),
    )
    commons = np.flatnonzero(where == COMMON)
    symbol_addr[commons] = np.arange(len(commons), dtype=np.uint64) * np.uint64(
        0x1000
    ) + np.uint64(at + APART * count)
    writable = np.flatnonzero(writable_sections(file) & (headers["sh_size"] > 0))
    data = DataMap(
        section=np.append(np.full(len(commons), COMMON), writable).astype(np.int32),
        offset=np.append(commons, np.zeros(len(writable))).astype(np.uint64),
        size=np.append(file.symbols["st_size"][commons], headers["sh_size"][writable]).astype(
            np.uint64
        ),
        addr=np.append(symbol_addr[commons], section_addr[writable]).astype(np.uint64),
    )
    slots = np.full(len(file.symbols), NO_ROW, np.int32)
    return LiveObject(file, Generation(0), section_addr, symbol_addr, slots, data)


def bind(
    old: Compiled | LiveObject, new: Compiled, *reinit: str
) -> tuple[LinkGraph, DataReport]:
    """Build the graph of a new version and bind it to the live one."""
    before = old if isinstance(old, LiveObject) else live_object(old.file)
    graph = build_graph([new.file], ARCH)
    return graph, bind_data(graph, [before], ARCH, reinit=frozenset(reinit))


def place(graph: LinkGraph, at: int = 0x9000_0000) -> None:
    """Give every block an address, as the layout does, and with it every symbol."""
    count = len(graph.blocks.object)
    graph.blocks.addr[:] = np.arange(count, dtype=np.uint64) * np.uint64(APART) + np.uint64(at)
    symbols = graph.symbols
    inside = symbols.origin == Origin.BLOCK
    symbols.addr[inside] = graph.blocks.addr[symbols.block[inside]] + symbols.offset[inside]


def wrong_references(graph: LinkGraph, new: Compiled) -> list[str]:
    """Return every reference to a variable that does not lead to where its name says.

    The graph has to be placed.
    """
    symbols, edges, blocks = graph.symbols, graph.edges, graph.blocks
    addr_of = {
        name: int(symbols.addr[row])
        for row, name in enumerate(new.file.symbol_names)
        if int(new.file.types()[row]) in {1, 5}
    }
    means = _named_targets(new.truth)
    wrong: list[str] = []
    for edge in np.flatnonzero(edges.live).tolist():
        block = int(edges.block[edge])
        section = new.file.section_names[int(blocks.section[block])]
        meant = means.get((section, int(edges.offset[edge])))
        if meant is None or meant[0] not in addr_of or blocks.region[block] == Region.NONE:
            continue
        leads = (int(symbols.addr[edges.symbol[edge]]) + int(edges.addend[edge])) & NO_ADDR
        should = (addr_of[meant[0]] + meant[1]) & NO_ADDR
        if leads != should:
            wrong.append(f"{section!r}+{edges.offset[edge]:#x}: {meant} {leads:#x} {should:#x}")
    return wrong


def _named_targets(truth: ObjectFile) -> dict[tuple[bytes, int], tuple[bytes, int]]:
    """Return (name, addend) of each relocation of a truth object, by its place."""
    places: dict[tuple[bytes, int], tuple[bytes, int]] = {}
    rows: Any = truth.relocations
    for row in range(len(rows)):
        section = truth.section_names[int(truth.relocation_sections[row])]
        name = truth.symbol_names[int(rows["r_sym"][row])]
        places[section, int(rows["r_offset"][row])] = (name, int(rows["r_addend"][row]))
    return places


def address_of(graph: LinkGraph, name: str) -> int:
    """Return the address a symbol of the first object is bound to."""
    return int(graph.symbols.addr[graph.symbols.name.index(name.encode())])


def live_address(old: Compiled | LiveObject, name: str) -> int:
    """Return where a variable of the live version is."""
    before = old if isinstance(old, LiveObject) else live_object(old.file)
    return int(before.symbol_addr[before.file.symbol_names.index(name.encode())])
