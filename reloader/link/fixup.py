"""Edges -> bytes: one array expression a kind; all ranges are checked before any byte changes.

S, the symbol's address, is not one number here. Bytes of a block that mean bytes of the same
block (a jump table's case, a call of a neighbour) mean its own copy. A branch that leaves its
block goes to the stub. Everything else that means a function's start takes its canonical
address.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from reloader.arch.base import Architecture
from reloader.errors.linking import FixupRangeError, RangeRow
from reloader.ids import I64, NO_ADDR, NO_ROW, U8, U16, U64, Bool, Region
from reloader.link.graph import Edges, LinkGraph, Origin
from reloader.link.grow import lookup, some_edges
from reloader.link.kinds import FREE, LIMITED, LONG, OTHER, PC, kind_columns
from reloader.link.layout import body_addr, fresh_blocks, initial_blocks
from reloader.link.names import OWN_BYTES_NAME, named_blocks
from reloader.link.passes.functions import branch_edges, content_fields
from reloader.link.passes.mark_live import means_start
from reloader.link.passes.resolve import Lines, edge_place, no_lines


@dataclass(frozen=True, slots=True, eq=False)
class Values:
    """(v,) columns: what is to be written where."""

    edge: I64  # row of Edges
    kind: U16
    value: I64
    fits: Bool


def apply_fixups(graph: LinkGraph, arch: Architecture, lines: Lines = no_lines) -> None:
    """Write the value of every live edge of the placed blocks into graph.content.

    Args:
        graph: Every symbol that a live edge uses has its address.
        arch: One row an edge kind; its formula is the psABI's.
        lines: Finds the source line of a place, for errors.

    Raises:
        FixupRangeError: Some values do not fit; carries all of them, and nothing is written.
    """
    values = edge_values(graph, arch)
    bad = (~values.fits).nonzero()[0]
    if len(bad):
        raise FixupRangeError(
            [_range_row(graph, arch, values, row, lines) for row in bad.tolist()]
        )
    edges = some_edges(graph.edges, values.edge)
    place = content_fields(graph, edges)
    long = (kind_columns(arch).traits[edges.kind] & np.uint8(LONG)) != 0
    if bool(long.all()):
        _store(graph.content, place, values.value, 4)
        return
    rows = long.nonzero()[0]
    _store(graph.content, place[rows], values.value[rows], 4)
    others = (~long).nonzero()[0]
    width = arch.kinds["width"][edges.kind[others]]
    for size in (1, 2, 8):
        rows = others[width == size]
        _store(graph.content, place[rows], values.value[rows], size)


def _store(content: U8, place: I64, value: I64, size: int) -> None:
    """Store the low bytes of values at places of any alignment."""
    if not len(place):
        return
    count = len(content) - size + 1
    # One element a byte position: numpy may store to unaligned, overlapping views.
    window = np.ndarray((count,), f"<u{size}", content.data, strides=(1,))
    window[place] = value.view(np.uint64)


def edge_values(graph: LinkGraph, arch: Architecture, among: I64 | None = None) -> Values:
    """Return the value of live edges of the placed blocks, and whether it fits.

    Args:
        graph: Every symbol that a live edge uses has its address.
        arch: The kind table.
        among: Rows of edges to look at, None: all.
    """
    rows = written_edges(graph, arch)
    if among is not None:
        rows = among[rows[among]]
    elif bool(rows.all()):
        rows = np.arange(len(rows))
    else:
        rows = rows.nonzero()[0]
    edges = some_edges(graph.edges, rows)
    traits = kind_columns(arch).traits[edges.kind]
    symbol = symbol_addrs(graph, arch, edges)
    value = symbol + edges.addend.view(np.uint64)
    place = graph.blocks.addr[edges.block]
    place += edges.offset
    relative = (traits & np.uint8(PC)) != 0
    value -= place if bool(relative.all()) else place * relative
    other = (traits & np.uint8(OTHER)).nonzero()[0]
    if len(other):
        value[other] = _other_values(
            graph, arch, some_edges(edges, other), symbol[other], place[other]
        )
    signed = value.view(np.int64)
    return Values(rows, edges.kind, signed, _fits(arch, edges.kind, traits, signed))


def written_edges(graph: LinkGraph, arch: Architecture) -> Bool:
    """Return (e,) which edges write bytes of this transaction's blocks."""
    edges = graph.edges
    blocks = fresh_blocks(graph) | initial_blocks(graph)
    written = (kind_columns(arch).width > 0)[edges.kind]
    written &= edges.live
    if not bool((blocks | (graph.blocks.region == Region.NONE)).all()):
        written &= blocks[edges.block]
    return written


def _other_values(
    graph: LinkGraph, arch: Architecture, edges: Edges, symbol: U64, place: U64
) -> U64:
    """Return the values of edges whose formula has other letters, one kind after the other."""
    letters = {
        "S": symbol,
        "A": edges.addend.view(np.uint64),
        "P": place,
        "GOT": _got_addr(graph, edges),
        "Z": graph.symbols.size[edges.symbol],
    }
    letters["L"] = letters["T"] = letters["S"]
    # the edge's symbol is the GOT, see build_tables
    letters["G"] = letters["S"] - letters["GOT"]
    value = np.zeros(len(symbol), np.uint64)
    for row in np.unique(edges.kind).tolist():
        mine = (edges.kind == row).nonzero()[0]
        for sign, letter in _terms(str(arch.kinds["formula"][row])):
            term = letters[letter][mine]
            value[mine] += term if sign else np.uint64(0) - term
    return value


@lru_cache
def _terms(formula: str) -> tuple[tuple[bool, str], ...]:
    """Return (is added, letter) of each term of `S + A - P`."""
    words = ["+", *formula.split()]
    return tuple((words[i] == "+", words[i + 1]) for i in range(0, len(words), 2))


@lru_cache
def limits(arch: Architecture, kind: int) -> tuple[int, int]:
    """Return the least and the greatest value that a field of a kind holds."""
    row = arch.kinds[kind]
    bits = 8 * int(row["width"])
    if bool(row["signed"]):
        return -(1 << bits - 1), (1 << bits - 1) - 1
    # Narrow absolute fields are used for signed and for unsigned numbers alike.
    return -(1 << bits - 1) if bits < 32 else 0, (1 << bits) - 1


def _fits(arch: Architecture, kind: U16, traits: U8, value: I64) -> Bool:
    """Return which values their fields hold; nearly all are signed 4-byte ones."""
    fits = value.astype(np.int32) == value
    fits |= (traits & np.uint8(FREE)) != 0
    rows = (traits & np.uint8(LIMITED)).nonzero()[0]
    for row in np.unique(kind[rows]).tolist():
        low, high = limits(arch, row)
        mine = rows[kind[rows] == row]
        fits[mine] = (value[mine] >= low) & (value[mine] <= high)
    return fits


def symbol_addrs(graph: LinkGraph, arch: Architecture, edges: Edges | None = None) -> U64:
    """Return (e,) the address S of every edge, or of some, NO_ADDR where it has none."""
    symbols, edges = graph.symbols, edges or graph.edges
    body, none = body_addr(graph), np.uint64(NO_ADDR)
    home = np.where((symbols.origin == Origin.BLOCK) & (body != none), symbols.block, NO_ROW)
    branch, start = branch_edges(graph, arch, edges), means_start(graph, arch, edges)
    # Bytes inside a function, and what unwind tables describe, are those of this very copy.
    inner = (symbols.reloadable & (body != none))[edges.symbol]
    own_bytes = named_blocks(graph, OWN_BYTES_NAME)
    inner &= ~start | own_bytes[edges.block] if bool(own_bytes.any()) else ~start
    inner |= branch & (home.astype(np.int32)[edges.symbol] == edges.block)
    through = branch & start
    through &= (symbols.entry != none)[edges.symbol]
    # one look-up in three columns laid end to end is cheaper than three look-ups and a choice
    row = edges.symbol + (inner * np.int32(2 * len(body)))
    through &= ~inner
    row += through * np.int32(len(body))
    return np.concatenate([symbols.addr, symbols.entry, body])[row]


def _got_addr(graph: LinkGraph, edges: Edges) -> U64:
    """Return (e,) the address of the GOT of each edge's object; 0: it has none."""
    owner = lookup(graph.blocks.object, edges.block, NO_ROW)
    symbol = lookup(graph.got_symbol, owner, NO_ROW)
    return lookup(graph.symbols.addr, symbol, 0)


def _range_row(
    graph: LinkGraph, arch: Architecture, values: Values, row: int, lines: Lines
) -> RangeRow:
    """Return what the error says of one value."""
    edge, kind = int(values.edge[row]), int(values.kind[row])
    symbol = int(graph.edges.symbol[edge])
    low, high = limits(arch, kind)
    name = graph.symbols.name[symbol].decode("utf-8", "replace")
    return RangeRow(
        place=edge_place(graph, edge, lines),
        symbol=name or "(no name)",
        kind=str(arch.kinds["name"][kind]),
        branch=bool(branch_edges(graph, arch)[edge]),
        pc=bool(arch.kinds["pc"][kind]),
        value=int(values.value[row]),
        low=low,
        high=high,
    )


def edge_targets(graph: LinkGraph, arch: Architecture) -> tuple[U64, U64]:
    """Return (source address, target address) of every edge of the placed blocks.

    The ledger keeps memory that a live block still refers to, and this is who refers to what.
    """
    rows = (graph.edges.live & fresh_blocks(graph)[graph.edges.block]).nonzero()[0]
    source = graph.blocks.addr[graph.edges.block[rows]] + graph.edges.offset[rows]
    return source, symbol_addrs(graph, arch)[rows]
