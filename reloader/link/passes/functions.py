"""Which functions callers reach through a stub, and edges that mean one without naming it.

Assemblers write a reference to a static function as *section symbol + addend*, and resolve
`call g` and `lea g(%rip)` to the same section without any relocation. The calls are right,
since a block moves as a whole. The addresses are not: a callback registered by one generation
must be the function's canonical address, or it never sees the next generation. So both forms
become edges to the function's symbol; jump tables and unwind tables, which mean bytes of this
very block, keep their section symbol.
"""

from collections.abc import Sequence
from typing import Any, Final

import numpy as np

from reloader.arch.base import Architecture, Table
from reloader.elf.alike import of_tables
from reloader.elf.object import UNDEFINED, ObjectFile
from reloader.ids import I32, I64, NO_ADDR, NO_ROW, U64, Bool, Region
from reloader.link.graph import Edges, LinkGraph, Origin
from reloader.link.grow import append_edges, lookup
from reloader.link.kinds import kind_columns, of_kinds
from reloader.link.names import OWN_BYTES_NAME, named_blocks
from reloader.link.passes.confirm import confirmed
from reloader.link.section_names import holding
from reloader.live.objects import LiveObject

STT_FUNC, STT_SECTION, STT_TLS = 2, 3, 6
STB_LOCAL = 0
# Parts that a compiler splits off: their callers are all in the same object, they come and go.
_PIECE: Final = rb"\.(?:cold\b|part\.|isra\.|constprop\.|lto_priv\.)"
_Rows = dict[tuple[bytes, bool, int], int]  # (name, local, which of that name) -> symbol
FIELD_TO_NEXT: Final = 4  # a branch or lea ends with its 4-byte field


def mark_functions(graph: LinkGraph, arch: Architecture) -> None:
    """Set symbols.reloadable, and make every address of a function an edge to its symbol."""
    symbols, blocks = graph.symbols, graph.blocks
    inside = symbols.origin == Origin.BLOCK
    code = inside & (lookup(blocks.region, symbols.block, Region.NONE) == Region.CODE)
    function = code & (symbols.type == STT_FUNC)
    symbols.reloadable = function & ~_pieces(symbols.name, function)
    starts = _function_starts(graph)
    retarget_section_edges(graph, arch, starts)
    add_hidden_edges(graph, arch, starts)


def _pieces(names: list[bytes], among: Bool) -> Bool:
    """Return (n,) which of some functions are a compiler's pieces of another."""
    rows = among.nonzero()[0]
    piece = np.zeros(len(names), np.bool_)
    piece[rows[holding([names[row] for row in rows.tolist()], _PIECE)]] = True
    return piece


def _key(block: I32, offset: Any) -> I64:  # noqa: ANN401  any integer column
    """Return one sortable number a place."""
    return (block.astype(np.int64) << 32) | offset.astype(np.int64)


def _function_starts(graph: LinkGraph) -> tuple[I64, I32]:
    """Return the sorted places where reloadable functions start, and the symbol of each.

    Of several names for one place the first global one is taken, else the first.
    """
    symbols = graph.symbols
    rows = symbols.reloadable.nonzero()[0].astype(np.int32)
    key = _key(symbols.block[rows], symbols.offset[rows])
    order = np.lexsort((rows, symbols.binding[rows] == STB_LOCAL, key))
    places, first = np.unique(key[order], return_index=True)
    return places, rows[order][first]


def _find(starts: tuple[I64, I32], key: I64) -> I32:
    """Return the function that starts at each place, or NO_ROW."""
    places, rows = starts
    if not len(places):
        return np.full(len(key), NO_ROW, np.int32)
    at = np.minimum(places.searchsorted(key), len(places) - 1)
    return np.where(places[at] == key, rows[at], NO_ROW).astype(np.int32)


def content_fields(graph: LinkGraph, edges: Edges | None = None) -> I64:
    """Return (e,) the place in LinkGraph.content of every edge's field, or that of some."""
    edges = edges or graph.edges
    return graph.blocks.content[edges.block] + edges.offset


def branch_edges(graph: LinkGraph, arch: Architecture, edges: Edges | None = None) -> Bool:
    """Return (e,) which edges, or which of some, are the field of a call or jump."""
    blocks, edges = graph.blocks, edges or graph.edges
    kinds = kind_columns(arch)
    branch = of_kinds(edges.kind, kinds.branch)
    rows = of_kinds(edges.kind, kinds.maybe_branch).nonzero()[0]
    rows = rows[blocks.region[edges.block[rows]] == Region.CODE]
    if len(rows):
        field = blocks.content[edges.block[rows]] + edges.offset[rows]
        branch[rows] = arch.is_branch(graph.content, field)
    return branch


def retarget_section_edges(
    graph: LinkGraph, arch: Architecture, starts: tuple[I64, I32]
) -> None:
    """Make section symbol + addend the symbol of the function that starts exactly there."""
    symbols, blocks, edges = graph.symbols, graph.blocks, graph.edges
    code = lookup(blocks.region, symbols.block, Region.NONE) == Region.CODE
    rows = (code & (symbols.type == STT_SECTION))[edges.symbol].nonzero()[0]
    rows = rows[~named_blocks(graph, OWN_BYTES_NAME)[edges.block[rows]]]
    pc = arch.kinds["pc"][edges.kind[rows]]
    from_code = blocks.region[edges.block[rows]] == Region.CODE
    field = blocks.content[edges.block[rows]] + edges.offset[rows]
    takes = arch.is_branch(graph.content, field) | arch.is_lea(graph.content, field)
    rows, pc = rows[~pc | (from_code & takes)], pc[~pc | (from_code & takes)]
    adjust = np.where(pc, FIELD_TO_NEXT, 0)
    section_offset = symbols.offset[edges.symbol[rows]].astype(np.int64)
    target = section_offset + edges.addend[rows] + adjust
    symbol = _find(starts, _key(symbols.block[edges.symbol[rows]], target))
    hit = symbol != NO_ROW
    edges.symbol[rows[hit]] = symbol[hit]
    edges.addend[rows[hit]] = -adjust[hit]


def add_hidden_edges(graph: LinkGraph, arch: Architecture, starts: tuple[I64, I32]) -> None:
    """Add the edges that an assembler left out: `lea f(%rip)` within one section.

    Bytes that look like one and land exactly on a function are confirmed by decoding.
    """
    block, field = lea_candidates(graph, arch)
    if not len(field):
        return
    content = graph.content
    bytes_at = field[:, None] + np.arange(4)
    distance = content[bytes_at].view("<i4").reshape(-1).astype(np.int64)
    offset = field - graph.blocks.content[block]
    target = offset + FIELD_TO_NEXT + distance
    symbol = _find(starts, _key(block, np.maximum(target, 0)))
    rows = ((symbol != NO_ROW) & (target >= 0)).nonzero()[0]
    if not len(rows):
        return
    rows = rows[_not_an_edge(graph, _key(block[rows], offset[rows]))]
    rows = rows[~np.isin(_key(block[rows], target[rows]), _base_labels(graph, arch))]
    rows = rows[confirmed(graph, arch, starts[0], block[rows], offset[rows])]
    append_edges(
        graph,
        len(rows),
        block=block[rows],
        offset=offset[rows],
        kind=arch.pc32,
        symbol=symbol[rows],
        addend=-FIELD_TO_NEXT,
    )


def _base_labels(graph: LinkGraph, arch: Architecture) -> I64:
    """Return the places that code of the large model takes to find its GOT from.

    `lea .L(%rip), %r15; movabs $_GLOBAL_OFFSET_TABLE_ - .L, %r11` means the label itself, and a
    compiler puts it at the very start of a function.
    """
    edges, kinds = graph.edges, arch.kinds
    base = kinds["pc"] & ((kinds["table"] == Table.GOT_BASE) | (kinds["width"] == 8))
    rows = of_kinds(edges.kind, base).nonzero()[0]
    rows = rows[graph.blocks.region[edges.block[rows]] == Region.CODE]
    label = edges.offset[rows].astype(np.int64) - edges.addend[rows]
    return _key(edges.block[rows], np.maximum(label, 0))


def lea_candidates(graph: LinkGraph, arch: Architecture) -> tuple[I32, I64]:
    """Return the code block and the place in content of every field that a lea might have."""
    blocks, content = graph.blocks, graph.content
    code = ((blocks.region == Region.CODE) & (blocks.content >= 0)).nonzero()[0]
    code = code[np.argsort(blocks.content[code], kind="stable")].astype(np.int32)
    if not len(code):
        return code, np.zeros(0, np.int64)
    field = arch.lea_fields(content)
    row = blocks.content[code].searchsorted(field, side="right") - 1
    block = code[np.maximum(row, 0)]
    offset = field - blocks.content[block]
    fits = (row >= 0) & (offset >= 2) & (offset + 4 <= blocks.size[block].astype(np.int64))
    return block[fits], field[fits]


def _not_an_edge(graph: LinkGraph, key: I64) -> Bool:
    """Return which places have no edge yet; searching the sorted edges beats `np.isin`."""
    edges = _key(graph.edges.block, graph.edges.offset)
    if not len(edges):
        return np.ones(len(key), np.bool_)
    at = np.minimum(edges.searchsorted(key), len(edges) - 1)
    return edges[at] != key


def bind_functions(graph: LinkGraph, live: Sequence[LiveObject | None]) -> None:
    """Give functions and thread-local variables the address and slot of their live version.

    A name belongs to the live version's symbol of the same name and the same localness; of
    several local ones the first is paired with the first, the second with the second.
    """
    for row, version in enumerate(live):
        if version is not None:
            _bind_one(graph, row, version)


def _bind_one(graph: LinkGraph, row: int, version: LiveObject) -> None:
    symbols = graph.symbols
    own = slice(int(graph.first_symbol[row]), int(graph.first_symbol[row + 1]))
    old = version.file
    before, threads = _known_by_name(old)
    names, binding = symbols.name[own], symbols.binding[own]
    after = _named(names, binding, symbols.reloadable[own])
    _take(graph, own.start, after, before, version)
    if not threads:
        return
    before, sizes = threads, old.symbols["st_size"]
    inside = symbols.origin[own] == Origin.BLOCK
    after = _named(names, binding, inside & (symbols.type[own] == STT_TLS))
    after = {
        key: new
        for key, new in after.items()
        if key in before and sizes[before[key]] == symbols.size[own][new]
    }
    for new in _take(graph, own.start, after, before, version).tolist():
        symbols.origin[new] = Origin.BOUND
        symbols.entry[new] = symbols.addr[new]


@of_tables
def _known_by_name(old: ObjectFile) -> tuple[_Rows, _Rows]:
    """Return the functions that a version defines, and its thread-local variables."""
    names, binding = old.symbol_names, old.bindings()
    functions = (old.symbol_sections >= 0) & (old.types() == STT_FUNC)
    threads = (old.symbol_sections != UNDEFINED) & (old.types() == STT_TLS)
    return _named(names, binding, functions), _named(names, binding, threads)


def _named(names: list[bytes], binding: Any, among: Bool) -> _Rows:  # noqa: ANN401  any integer column
    """Return the row of each (name, local, how many of that name came before)."""
    found: _Rows = {}
    turns: dict[tuple[bytes, bool], int] = {}
    rows = among.nonzero()[0]
    for row, local in zip(rows.tolist(), (binding[rows] == STB_LOCAL).tolist(), strict=True):
        turn = turns[names[row], local] = turns.get((names[row], local), -1) + 1
        found[names[row], local, turn] = row
    return found


def _take(
    graph: LinkGraph,
    first: int,
    after: _Rows,
    before: _Rows,
    version: LiveObject,
) -> I64:
    """Copy address and slot of the pairs whose old side has an address; return the new rows."""
    symbols = graph.symbols
    pairs = [(new, before[key]) for key, new in after.items() if key in before]
    new, old = np.array(pairs, np.int64).reshape(-1, 2).T
    addr: U64 = version.symbol_addr[old]
    known = addr != np.uint64(NO_ADDR)
    rows = new[known] + first
    symbols.addr[rows] = addr[known]
    symbols.slot[rows] = version.symbol_slot[old[known]]
    direct = rows[symbols.slot[rows] == NO_ROW]
    symbols.entry[direct] = symbols.addr[direct]
    return rows
