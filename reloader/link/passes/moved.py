"""Constants that get another place, and everything that refers to them by name.

A variable keeps its address; a constant that changed is replaced, so code that was linked to
the old place would go on reading the old value, and the reload would be a silent no-op for it.
The objects that name such a constant are therefore linked again with it, and in them every
function that uses it counts as changed.
"""

from collections.abc import Sequence

import numpy as np

from reloader.ids import I32, NO_ADDR, Bool, Region
from reloader.link.graph import LinkGraph, Origin
from reloader.link.grow import lookup
from reloader.link.passes.match_old import function_symbols
from reloader.live.objects import LiveObject

STB_LOCAL = 0


def moved_names(graph: LinkGraph, live: Sequence[LiveObject | None]) -> set[bytes]:
    """Return the global names of constants and restarted variables that get another place.

    Args:
        graph: Compared with the live generation.
        live: Per object its live version.
    """
    symbols, blocks = graph.symbols, graph.blocks
    rows = ((symbols.origin == Origin.BLOCK) & (symbols.binding != STB_LOCAL)).nonzero()[0]
    block = symbols.block[rows]
    data = (blocks.region[block] == Region.RODATA) | (blocks.region[block] == Region.DATA)
    rows = rows[data & ~blocks.same[block]]
    chosen: list[int] = rows.tolist()
    moved = [row for row in chosen if differs(graph, row, live[int(symbols.object[row])])]
    return {symbols.name[row] for row in moved}


def differs(graph: LinkGraph, row: int, before: LiveObject | None) -> bool:
    """Return whether a constant exists in the process with other bytes than it is to have."""
    if before is None:
        return False
    file, symbols = before.file, graph.symbols
    name = symbols.name[row]
    old = [
        at
        for at, known in enumerate(file.symbol_names)
        if known == name and file.symbol_sections[at] >= 0
    ]
    if not old or int(before.symbol_addr[old[0]]) == NO_ADDR:
        return False
    section, at = int(file.symbol_sections[old[0]]), int(file.symbols["st_value"][old[0]])
    size = int(symbols.size[row])
    if size == 0 or size != int(file.symbols["st_size"][old[0]]):
        return True
    block, offset = int(symbols.block[row]), int(symbols.offset[row])
    if graph.blocks.region[block] == Region.DATA:
        return True  # a variable in a block of its own is one that starts anew
    here = graph.edges_of(block)
    field = graph.edges.offset[here].astype(np.int64)
    if bool(((field >= offset) & (field < offset + size)).any()):
        return True
    new_bytes = graph.block_bytes(block)[offset : offset + size]
    return not np.array_equal(new_bytes, file.section_bytes(section)[at : at + size])


def mark_users(graph: LinkGraph, names: set[bytes]) -> None:
    """Count every function and table that refers to a moved name as changed."""
    symbols, edges = graph.symbols, graph.edges
    hit = np.array([name in names for name in symbols.name], np.bool_)
    hit &= symbols.origin == Origin.UNDEFINED
    while True:
        rows = (hit[edges.symbol] & edges.live).nonzero()[0].astype(np.int32)
        tables = mark_sources(graph, rows)
        inside = np.where(symbols.origin == Origin.BLOCK, symbols.block, -1).astype(np.int32)
        more = lookup(tables, inside, 0) & ~hit
        if not more.any():
            return
        hit |= more


def mark_sources(graph: LinkGraph, rows: I32) -> Bool:
    """Mark the blocks and functions that hold some edges; return (b,) which are constants."""
    blocks, symbols, edges = graph.blocks, graph.symbols, graph.edges
    tables = np.zeros(len(blocks.object), np.bool_)
    source = edges.block[rows]
    constant = blocks.region[source] == Region.RODATA
    tables[source[constant]] = True
    touched = source[blocks.region[source] != Region.DATA]
    blocks.same[touched] = False
    blocks.addr[touched] = np.uint64(NO_ADDR)
    functions = function_symbols(graph).nonzero()[0]
    for row in rows[blocks.region[source] == Region.CODE].tolist():
        own = functions[symbols.block[functions] == edges.block[row]]
        at = np.uint64(edges.offset[row])
        inside = (symbols.offset[own] <= at) & (at < symbols.offset[own] + symbols.size[own])
        symbols.changed[own[inside]] = True
    return tables
