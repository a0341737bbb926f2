"""ObjectFile -> LinkGraph: the last place that knows ELF.

A block is made for every section that has bytes of its own, so that symbols of debug sections
have a row too; only allocated ones get a region, content and edges. The content of an object is
copied in long runs, not section by section: an object built with -ffunction-sections has
thousands of them, in file order with small gaps.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Final

import numpy as np

from reloader.arch.base import Architecture
from reloader.elf.gather import one_of
from reloader.elf.object import ABSOLUTE, COMMON, ObjectFile
from reloader.errors.base import Place
from reloader.errors.linking import FieldOutsideError, FieldRow, KindRow, UnknownRelocationError
from reloader.ids import I32, I64, NO_ADDR, NO_ROW, U8, U32, U64, Bool, Region
from reloader.link.comdat import bind_lost_locals, lost_groups
from reloader.link.graph import Blocks, Edges, LinkGraph, Origin, Symbols
from reloader.link.kinds import kind_columns
from reloader.link.names import matching_sections

SHT_NOBITS, STT_TLS = 8, 6
_NOT_BLOCKS: Final = (0, 2, 3, 4, 9, 17, 18)  # NULL SYMTAB STRTAB RELA REL GROUP SYMTAB_SHNDX
_ARRAYS: Final = (14, 15, 16)  # INIT_ARRAY FINI_ARRAY PREINIT_ARRAY
SHF_WRITE, SHF_ALLOC, SHF_EXECINSTR, SHF_MERGE, SHF_TLS = 1, 2, 4, 0x10, 0x400
# Written once and never by the program: they are replaced with the code that refers to them.
_READ_ONLY_NAMES: Final = (
    rb"\.(?:data\.rel\.ro|(?:preinit|init|fini)_array|ctors|dtors|eh_frame|gcc_except_table)"
)
_FILE_BITS: Final = 40  # of a place in all files together: files are smaller than a terabyte
_WIDEST: Final = 8  # bytes of a field
_GAP: Final = 4096  # bytes between two sections that cost less to copy than to skip


def build_graph(objects: Sequence[ObjectFile], arch: Architecture) -> LinkGraph:
    """Return the graph of a transaction's objects, nothing bound and nothing placed.

    Raises:
        UnknownRelocationError: Some relocations have a type that `arch` does not know.
        FieldOutsideError: Some relocations patch bytes past the end of their section.
    """
    files = list(objects)
    lost = lost_groups(files)
    firsts = np.cumsum([0, *(len(file.sections) for file in files)], dtype=np.int64)
    sectioned, of_section, content = _blocks_of(files, joined(lost), firsts)
    symbols, commons = _symbols_of(files, of_section, firsts, len(sectioned.object))
    blocks = _concatenate(Blocks, [sectioned, commons])
    counts = [0, *(len(file.symbols) for file in files)]
    bounds = zip(firsts[:-1].tolist(), firsts[1:].tolist(), strict=True)
    graph = LinkGraph(
        objects=files,
        content=content,
        blocks=blocks,
        symbols=symbols,
        edges=_edges_of(files, of_section, firsts, blocks, arch),
        first_symbol=np.cumsum(counts).astype(np.int32),
        block_of_section=[of_section[first:last] for first, last in bounds],
    )
    bind_lost_locals(graph, lost)
    return graph


def joined(columns: Sequence[Any]) -> Any:  # noqa: ANN401  arrays of one type
    """Return several arrays as one; a single one is not copied."""
    if len(columns) == 1:
        return columns[0]
    record = columns[0].dtype
    if record.names is None:
        return np.concatenate(columns)
    # for each pair of records numpy would work out anew what both are
    return np.concatenate([column.view(np.uint8) for column in columns]).view(record)


def _concatenate(kind: Any, parts: Sequence[Any]) -> Any:  # noqa: ANN401  Blocks or Edges
    """Return one table of the columns of several."""
    parts = [part for part in parts if len(part.object)] or parts[:1]
    if len(parts) == 1:
        return parts[0]
    names = kind.__dataclass_fields__
    return kind(**{name: np.concatenate([getattr(p, name) for p in parts]) for name in names})


def _regions(files: Sequence[ObjectFile], headers: Any) -> U8:  # noqa: ANN401  record columns
    """Return (s,) the Region of every section of all files together."""
    flags, kinds = headers["sh_flags"], headers["sh_type"]
    writable = (flags & SHF_WRITE) != 0
    writable[matching_sections(files, _READ_ONLY_NAMES)] = False
    writable &= ~one_of(kinds, _ARRAYS)
    region = np.full(len(flags), Region.RODATA, np.uint8)
    region[writable] = Region.DATA
    region[(flags & SHF_EXECINSTR) != 0] = Region.CODE
    region[(flags & SHF_TLS) != 0] = Region.TLS
    region[(flags & SHF_ALLOC) == 0] = Region.NONE
    return region


def _blocks_of(files: Sequence[ObjectFile], lost: Bool, firsts: I64) -> tuple[Blocks, I32, U8]:
    """Return a block a section, the block of each section of all files, and the content."""
    headers: Any = joined([file.sections for file in files])
    kept = ~one_of(headers["sh_type"], _NOT_BLOCKS) & ~lost
    rows = np.flatnonzero(kept)
    of_section = np.full(len(headers), NO_ROW, np.int32)
    of_section[rows] = np.arange(len(rows), dtype=np.int32)
    counts = np.diff(firsts)
    owner = np.repeat(np.arange(len(files), dtype=np.int32), counts)[rows]
    own: Any = headers if len(rows) == len(headers) else headers[rows]
    region = _regions(files, headers)[rows]
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
    breaks = np.flatnonzero(first[1:] > last[:-1] + _GAP) + 1
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
    run = np.searchsorted(first[heads], key, side="right") - 1
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
    common = np.flatnonzero(section == COMMON)
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


def _edges_of(
    files: Sequence[ObjectFile],
    of_section: I32,
    section_firsts: I64,
    blocks: Blocks,
    arch: Architecture,
) -> Edges:
    """Return the edges of all allocated blocks, sorted by block, then offset."""
    raw: Any = joined([file.relocations for file in files])
    counts = [len(file.relocations) for file in files]
    section = joined([file.relocation_sections for file in files])
    symbol = raw["r_sym"].astype(np.int32)
    if len(files) > 1:
        firsts = np.cumsum([0, *(len(file.symbols) for file in files)])[:-1]
        symbol += np.repeat(firsts.astype(np.int32), counts)
        section = section + np.repeat(section_firsts[:-1], counts)
    loaded = (of_section >= 0) & (blocks.region != Region.NONE)[of_section]
    block = np.where(loaded, of_section, NO_ROW)[section]
    if len(block) and int(block.min()) < 0:
        kept = np.flatnonzero(block >= 0)
        block, raw, symbol = block[kept], raw[kept], symbol[kept]
    offset = raw["r_offset"].astype(np.uint32)
    if not _is_sorted(block, offset):
        order = np.lexsort((offset, block))
        block, raw, symbol, offset = block[order], raw[order], symbol[order], offset[order]
    edges = Edges(
        block=block,
        offset=offset,
        kind=_kinds_of(files, blocks, block, raw, arch),
        symbol=symbol,
        addend=raw["r_addend"].astype(np.int64),
        live=np.ones(len(block), np.bool_),
    )
    _check_fields(files, blocks, edges, arch)
    return edges


def _is_sorted(block: I32, offset: U32) -> bool:
    """Return whether edges are in the order of their block, then of their offset."""
    if bool((block[1:] < block[:-1]).any()):
        return False
    falls = offset[1:] < offset[:-1]
    rows = np.flatnonzero(falls)
    return bool((block[rows + 1] != block[rows]).all())


def _kinds_of(
    files: Sequence[ObjectFile],
    blocks: Blocks,
    block: I32,
    raw: Any,  # noqa: ANN401  record columns
    arch: Architecture,
) -> Any:  # noqa: ANN401
    """Return the kind row of every relocation; refuse all unknown ones at once."""
    number, known = raw["r_type"], _known_kinds(arch)
    if not len(number) or int(number.max()) < len(known):
        row = known[number]
    else:
        row = np.append(known, np.int16(NO_ROW))[np.minimum(number, len(known))]
    if len(row) and int(row.min()) < 0:
        bad = np.flatnonzero(row == NO_ROW)
        places = [_place(files, blocks, int(block[i]), int(raw["r_offset"][i])) for i in bad]
        rows = [KindRow(p, int(number[i])) for p, i in zip(places, bad, strict=True)]
        raise UnknownRelocationError(rows, arch.name)
    return row.view(np.uint16)


@lru_cache
def _known_kinds(arch: Architecture) -> Any:  # noqa: ANN401  an int16 column
    return arch.kind_of_number.astype(np.int16)


def _check_fields(
    files: Sequence[ObjectFile], blocks: Blocks, edges: Edges, arch: Architecture
) -> None:
    rows = _last_edges(blocks, edges)
    width = kind_columns(arch).width[edges.kind[rows]]
    size = np.where(blocks.content >= 0, blocks.size, 0).astype(np.int64)
    past = (size[edges.block[rows]] - edges.offset[rows] < width) & (width > 0)
    bad = rows[past]
    if len(bad):
        kinds = arch.kinds[edges.kind[bad]]
        raise FieldOutsideError(
            [
                FieldRow(
                    _place(files, blocks, int(edges.block[i]), int(edges.offset[i])),
                    str(kind["name"]),
                    int(kind["width"]),
                    int(size[edges.block[i]]),
                )
                for i, kind in zip(bad.tolist(), kinds, strict=True)
            ]
        )


def _last_edges(blocks: Blocks, edges: Edges) -> I64:
    """Return the edges that begin in the last bytes of their block, and maybe others.

    The edges are sorted: these stand at the end of each block's.
    """
    block, offset = edges.block, edges.offset
    size = np.where(blocks.content >= 0, blocks.size, 0).astype(np.int64) - _WIDEST
    rows = np.flatnonzero(np.append(block[1:] != block[:-1], len(block) > 0))
    found: list[I64] = []
    while len(rows):
        if len(found) > _WIDEST:  # many fields on the same bytes
            return np.arange(len(block))
        rows = rows[offset[rows].astype(np.int64) > size[block[rows]]]
        found.append(rows)
        before = rows[rows > 0] - 1
        rows = before[block[before] == block[before + 1]]
    return np.sort(np.concatenate([np.zeros(0, np.int64), *found]))


def _place(files: Sequence[ObjectFile], blocks: Blocks, block: int, offset: int) -> Place:
    file = files[int(blocks.object[block])]
    section = file.section_names[int(blocks.section[block])].decode("utf-8", "replace")
    return Place(file.name, section, offset)
