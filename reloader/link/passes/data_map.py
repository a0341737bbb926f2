"""Where the writable bytes of a placed version live; the next reload starts from it."""

from typing import Any, Final

import numpy as np

from reloader.elf.object import COMMON, ObjectFile
from reloader.ids import I32, I64, NO_ADDR, NO_ROW, Bool, Region
from reloader.link.graph import LinkGraph, Origin
from reloader.link.passes.pair_variables import own_variables
from reloader.live.objects import DataMap

_STT_SECTION, _STT_TLS = 3, 6
_UNKNOWN: Final = np.uint64(NO_ADDR)


def next_data_maps(graph: LinkGraph) -> list[DataMap]:
    """Return where each writable byte of the objects' versions lives.

    Args:
        graph: Placed; every symbol has its address.
    """
    symbols, count = graph.symbols, len(graph.objects)
    home = np.concatenate([file.symbol_sections for file in graph.objects])
    own = len(home)
    inside = (home >= 0) | (home == COMMON)
    bound = inside & (symbols.origin[:own] == Origin.BOUND)
    mixed = np.bincount(symbols.object[:own][bound], minlength=count) > 0
    if bool(mixed.all()):
        return [next_data_map(graph, row) for row in range(count)]
    tables = _new_sections(graph, home)
    section = tables[1].astype(np.int32)
    bounds = tables[0].searchsorted(np.arange(count + 1)).tolist()
    return [
        next_data_map(graph, row)
        if mixed[row]
        else DataMap(
            section=section[first:last],
            offset=tables[2][first:last].view(np.uint64),
            size=tables[3][first:last].view(np.uint64),
            addr=tables[4][first:last].view(np.uint64),
        )
        for row, first, last in zip(range(count), bounds[:-1], bounds[1:], strict=True)
    ]


def _new_sections(graph: LinkGraph, home: I32) -> list[I64]:
    """Return object, section, offset, size, address of placed writable blocks, sorted."""
    blocks, symbols = graph.blocks, graph.symbols
    placed = blocks.live & (blocks.addr != _UNKNOWN) & (blocks.size > 0)
    placed &= (blocks.region == Region.DATA) & (blocks.object >= 0) & (blocks.section >= 0)
    rows = placed.nonzero()[0]
    common = home == COMMON
    common &= (symbols.addr[: len(home)] != _UNKNOWN) & (symbols.type[: len(home)] != _STT_TLS)
    shared = common.nonzero()[0]
    columns = [
        np.append(blocks.object[rows], symbols.object[shared]),
        np.append(blocks.section[rows], home[shared]),
        np.append(np.zeros(len(rows), np.int64), symbols.source[shared]),
        np.append(blocks.size[rows], symbols.size[shared]).view(np.int64),
        np.append(blocks.addr[rows], symbols.addr[shared]).view(np.int64),
    ]
    order = np.lexsort((columns[2], columns[1], columns[0]))
    return [column[order].astype(np.int64) for column in columns]


def next_data_map(graph: LinkGraph, object_row: int) -> DataMap:
    """Return where each writable byte of a version lives.

    Kept variables stay where they were, new ones are in the object's new blocks; runs of
    variables with a common displacement are one row. Variables that nothing in the transaction
    reaches were not placed and have no row: for the next reload they are new.

    Args:
        graph: Placed; every symbol has its address.
        object_row: Which of its objects.
    """
    file = graph.objects[object_row]
    first = int(graph.first_symbol[object_row])
    _, table = own_variables(file, in_data_block(graph, object_row))
    addr = graph.symbols.addr[table.symbol + first]
    whole = whole_sections(graph, object_row)
    known = addr != _UNKNOWN
    for row in whole:
        known &= table.section != row[0]
    section, offset = table.section[known], table.offset[known]
    shift = addr[known].view(np.int64) - offset
    runs = join_runs(section, offset, table.end()[known], shift)
    rows = [*whole, *runs]
    columns = np.array(sorted(rows), np.int64).reshape(-1, 4)
    return DataMap(
        section=columns[:, 0].astype(np.int32),
        offset=columns[:, 1].astype(np.uint64),
        size=columns[:, 2].astype(np.uint64),
        addr=(columns[:, 1] + columns[:, 3]).view(np.uint64),
    )


def join_runs(
    section: I32, offset: I64, end: I64, shift: I64
) -> list[tuple[int, int, int, int]]:
    """Return (section, offset, size, displacement) of neighbours that share a displacement."""
    if not len(section):
        return []
    new = (np.diff(section) != 0) | (np.diff(shift) != 0) | (section[1:] == COMMON)
    heads = np.append(True, new).nonzero()[0]
    ends = np.maximum.reduceat(end, heads)
    table = np.stack([section[heads], offset[heads], ends - offset[heads], shift[heads]])
    return [(a, b, c, d) for a, b, c, d in table.T.tolist()]


def whole_sections(graph: LinkGraph, object_row: int) -> list[tuple[int, int, int, int]]:
    """Return (section, 0, size, address) of sections that live in one piece.

    Those bound by their own symbol, and new blocks that hold no kept variable.
    """
    blocks, symbols = graph.blocks, graph.symbols
    file: ObjectFile = graph.objects[object_row]
    first = int(graph.first_symbol[object_row])
    own = slice(first, int(graph.first_symbol[object_row + 1]))
    bound = symbols.origin[own] == Origin.BOUND
    is_section = symbols.type[own] == _STT_SECTION
    mixed = set(file.symbol_sections[bound & ~is_section].tolist())
    by_symbol = {
        int(file.symbol_sections[row]): int(symbols.addr[first + row])
        for row in (bound & is_section).nonzero()[0].tolist()
    }
    headers: Any = file.sections
    rows: list[tuple[int, int, int, int]] = []
    for section in in_data_block(graph, object_row).nonzero()[0].tolist():
        block = int(graph.block_of_section[object_row][section])
        addr = by_symbol.get(section, NO_ADDR)
        if addr == NO_ADDR and section not in mixed and blocks.live[block]:
            addr = int(blocks.addr[block])
        size = int(headers["sh_size"][section])
        if addr != NO_ADDR and size:
            rows.append((section, 0, size, addr))
    return rows


def in_data_block(graph: LinkGraph, row: int) -> Bool:
    """Return (s,) which sections of an object are writable blocks of the graph."""
    block = graph.block_of_section[row]
    return (block != NO_ROW) & (graph.blocks.region[np.maximum(block, 0)] == Region.DATA)
