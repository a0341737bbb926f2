"""ObjectFile -> LinkGraph: the last place that knows ELF.

A block is made for every section that has bytes of its own, so that symbols of debug sections
have a row too; only allocated ones get a region, content and edges. The content of an object is
copied in long runs, not section by section: an object built with -ffunction-sections has
thousands of them, in file order with small gaps.
"""

from collections.abc import Sequence
from typing import Any, Final

import numpy as np

from reloader.arch.base import Architecture
from reloader.elf.gather import one_of
from reloader.elf.object import ABSOLUTE, COMMON, ObjectFile
from reloader.ids import I32, I64, NO_ADDR, NO_ROW, U8, U64, Bool, Region
from reloader.link.comdat import bind_lost_locals, lost_groups
from reloader.link.edges import edges_of, joined
from reloader.link.graph import Blocks, LinkGraph, Origin, Symbols
from reloader.link.section_names import SectionNames

SHT_NOBITS, STT_TLS = 8, 6
_NOT_BLOCKS: Final = (0, 2, 3, 4, 9, 17, 18)  # NULL SYMTAB STRTAB RELA REL GROUP SYMTAB_SHNDX
_ARRAYS: Final = (14, 15, 16)  # INIT_ARRAY FINI_ARRAY PREINIT_ARRAY
SHF_WRITE, SHF_ALLOC, SHF_EXECINSTR, SHF_MERGE, SHF_TLS = 1, 2, 4, 0x10, 0x400
# Written once and never by the program: they are replaced with the code that refers to them.
_READ_ONLY_NAMES: Final = (
    rb"\.(?:data\.rel\.ro|(?:preinit|init|fini)_array|ctors|dtors|eh_frame|gcc_except_table)"
)
_FILE_BITS: Final = 40  # of a place in all files together: files are smaller than a terabyte
_GAP: Final = 4096  # bytes between two sections that cost less to copy than to skip


def build_graph(objects: Sequence[ObjectFile], arch: Architecture) -> LinkGraph:
    """Return the graph of a transaction's objects, nothing bound and nothing placed.

    Raises:
        UnknownRelocationError: Some relocations have a type that `arch` does not know.
        FieldOutsideError: Some relocations patch bytes past the end of their section.
    """
    files = list(objects)
    firsts = np.cumsum([0, *(len(file.sections) for file in files)], dtype=np.int64)
    lost = lost_groups(files, firsts)
    names = SectionNames.of(files)
    sectioned, of_section, content = _blocks_of(files, lost, firsts, names)
    symbols, commons = _symbols_of(files, of_section, firsts, len(sectioned.object))
    blocks = _concatenate(Blocks, [sectioned, commons])
    counts = [0, *(len(file.symbols) for file in files)]
    bounds = zip(firsts[:-1].tolist(), firsts[1:].tolist(), strict=True)
    graph = LinkGraph(
        objects=files,
        content=content,
        blocks=blocks,
        symbols=symbols,
        edges=edges_of(files, of_section, firsts, blocks, arch),
        first_symbol=np.cumsum(counts).astype(np.int32),
        block_of_section=[of_section[first:last] for first, last in bounds],
        section_names=names,
    )
    bind_lost_locals(graph, lost, firsts)
    return graph


def _concatenate(kind: Any, parts: Sequence[Any]) -> Any:  # noqa: ANN401  Blocks or Edges
    """Return one table of the columns of several."""
    parts = [part for part in parts if len(part.object)] or parts[:1]
    if len(parts) == 1:
        return parts[0]
    names = kind.__dataclass_fields__
    return kind(**{name: np.concatenate([getattr(p, name) for p in parts]) for name in names})


def _regions(names: SectionNames, headers: Any) -> U8:  # noqa: ANN401  record columns
    """Return (s,) the Region of every section of all files together."""
    flags, kinds = headers["sh_flags"], headers["sh_type"]
    writable = (flags & SHF_WRITE) != 0
    writable[names.matching(_READ_ONLY_NAMES)] = False
    writable &= ~one_of(kinds, _ARRAYS)
    region = np.full(len(flags), Region.RODATA, np.uint8)
    region[writable] = Region.DATA
    region[(flags & SHF_EXECINSTR) != 0] = Region.CODE
    region[(flags & SHF_TLS) != 0] = Region.TLS
    region[(flags & SHF_ALLOC) == 0] = Region.NONE
    return region


def _blocks_of(
    files: Sequence[ObjectFile], lost: Bool, firsts: I64, names: SectionNames
) -> tuple[Blocks, I32, U8]:
    """Return a block a section, the block of each section of all files, and the content."""
    headers: Any = joined([file.sections for file in files])
    kept = ~one_of(headers["sh_type"], _NOT_BLOCKS) & ~lost
    rows = kept.nonzero()[0]
    of_section = np.full(len(headers), NO_ROW, np.int32)
    of_section[rows] = np.arange(len(rows), dtype=np.int32)
    counts = np.diff(firsts)
    owner = np.repeat(np.arange(len(files), dtype=np.int32), counts)[rows]
    own: Any = headers if len(rows) == len(headers) else headers[rows]
    region = _regions(names, headers)[rows]
    size = own["sh_size"].astype(np.uint64)
    loaded = (region != Region.NONE) & (own["sh_type"] != SHT_NOBITS) & (size > 0)
    content = np.full(len(rows), NO_ROW, np.int64)
    content[loaded], data = _copy_runs(
        files, owner[loaded], own["sh_offset"][loaded].astype(np.int64), size[loaded]
    )
    merge = np.where((own["sh_flags"] & SHF_MERGE) != 0, own["sh_entsize"], 0)
    blocks = Blocks(
        object=owner,
        section=(rows - firsts[owner]).astype(np.int32),
        region=region,
        size=size,
        align=np.maximum(own["sh_addralign"], 1).astype(np.uint64),
        content=content,
        merge=merge.astype(np.uint16),
        live=region != Region.NONE,
        same=np.zeros(len(rows), np.bool_),
        addr=np.full(len(rows), NO_ADDR, np.uint64),
    )
    return blocks, of_section, data


def _copy_runs(
    files: Sequence[ObjectFile], owner: I32, offset: I64, size: U64
) -> tuple[I64, U8]:
    """Return where each range of its file is in a copy that holds all ranges, and the copy."""
    if not len(offset):
        return offset, np.zeros(0, np.uint8)
    key = (owner.astype(np.int64) << _FILE_BITS) | offset
    order = np.argsort(key, kind="stable")
    first, last = key[order], key[order] + size[order].astype(np.int64)
    last = np.maximum.accumulate(last)  # sections of a damaged file may overlap
    breaks = (first[1:] > last[:-1] + _GAP).nonzero()[0] + 1
    heads, tails = np.append(0, breaks), np.append(breaks, len(order)) - 1
    low = (1 << _FILE_BITS) - 1
    owners: list[int] = owner[order[heads]].tolist()
    ranges = zip(
        owners,
        (first[heads] & low).tolist(),
        (last[tails] & low).tolist(),
        strict=True,
    )
    spans: list[U8] = [files[row].data[start:end] for row, start, end in ranges]
    starts = np.cumsum([0, *map(len, spans)])[:-1]
    run = first[heads].searchsorted(key, side="right") - 1
    return starts[run] + key - first[heads][run], np.concatenate(spans)


def _symbols_of(
    files: Sequence[ObjectFile], of_section: I32, firsts: I64, block_count: int
) -> tuple[Symbols, Blocks]:
    """Return the symbols of all objects, and a zero-fill block for each COMMON one."""
    names = [name for file in files for name in file.symbol_names]
    raw: Any = joined([file.symbols for file in files])
    section = joined([file.symbol_sections for file in files])
    counts = [len(file.symbols) for file in files]
    owner = np.repeat(np.arange(len(files), dtype=np.int32), counts)
    block = of_section[np.maximum(section, 0) + firsts[owner]]
    block[section < 0] = NO_ROW
    origin = np.where(block >= 0, Origin.BLOCK, Origin.UNDEFINED).astype(np.uint8)
    origin[section == ABSOLUTE] = Origin.ABSOLUTE
    # gABI: a relocation against the null symbol uses 0 as the symbol's value
    nulls = np.cumsum([0, *counts])[:-1][np.array(counts, np.int64) > 0]
    origin[nulls] = Origin.ABSOLUTE
    offset = raw["st_value"].astype(np.uint64)
    common = (section == COMMON).nonzero()[0]
    block[common] = block_count + np.arange(len(common), dtype=np.int32)
    origin[common] = Origin.BLOCK
    commons = _common_blocks(owner[common], raw["st_size"][common], offset[common])
    commons.region[(raw["st_info"][common] & np.uint8(15)) == STT_TLS] = Region.TLS
    offset[common] = 0
    offset[origin == Origin.UNDEFINED] = 0
    count = len(names)
    symbols = Symbols(
        object=owner,
        source=joined([np.arange(size, dtype=np.int32) for size in counts]),
        name=names,
        origin=origin,
        block=block,
        offset=offset,
        size=raw["st_size"].astype(np.uint64),
        binding=raw["st_info"] >> np.uint8(4),
        type=raw["st_info"] & np.uint8(15),
        visibility=raw["st_other"] & np.uint8(3),
        reloadable=np.zeros(count, np.bool_),
        changed=np.zeros(count, np.bool_),
        slot=np.full(count, NO_ROW, np.int32),
        addr=np.full(count, NO_ADDR, np.uint64),
        entry=np.full(count, NO_ADDR, np.uint64),
    )
    return symbols, commons


def _common_blocks(owner: I32, size: Any, align: Any) -> Blocks:  # noqa: ANN401  record columns
    """Return one zero-filled DATA block a COMMON symbol, whose value was its alignment."""
    count = len(owner)
    return Blocks(
        object=owner,
        section=np.full(count, NO_ROW, np.int32),
        region=np.full(count, Region.DATA, np.uint8),
        size=size.astype(np.uint64),
        align=np.maximum(align, 1).astype(np.uint64),
        content=np.full(count, NO_ROW, np.int64),
        merge=np.zeros(count, np.uint16),
        live=np.ones(count, np.bool_),
        same=np.zeros(count, np.bool_),
        addr=np.full(count, NO_ADDR, np.uint64),
    )
