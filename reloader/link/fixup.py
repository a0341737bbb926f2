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
from reloader.ids import I32, I64, NO_ADDR, NO_ROW, U8, U64, Bool
from reloader.link.graph import LinkGraph, Origin
from reloader.link.grow import lookup
from reloader.link.layout import body_addr, fresh_blocks, initial_blocks
from reloader.link.names import OWN_BYTES_NAME, named_blocks
from reloader.link.passes.functions import branch_edges
from reloader.link.passes.mark_live import means_start
from reloader.link.passes.resolve import Lines, edge_place, no_lines


@dataclass(frozen=True, slots=True, eq=False)
class Values:
    """(v,) columns: what is to be written where."""

    edge: I64  # row of Edges
    kind: I32
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
    bad = np.flatnonzero(~values.fits)
    if len(bad):
        raise FixupRangeError(
            [_range_row(graph, arch, values, row, lines) for row in bad.tolist()]
        )
    place = graph.blocks.content[graph.edges.block] + graph.edges.offset.astype(np.int64)
    width = arch.kinds["width"][values.kind]
    for size in (1, 2, 4, 8):
        rows = np.flatnonzero(width == size)
        _store(graph.content, place[values.edge[rows]], values.value[rows], size)


def _store(content: U8, place: I64, value: I64, size: int) -> None:
    """Store the low bytes of values at places of any alignment."""
    if not len(place):
        return
    count = len(content) - size + 1
    # One element a byte position: numpy may store to unaligned, overlapping views.
    window = np.ndarray((count,), f"<u{size}", content.data, strides=(1,))
    window[place] = value.view(np.uint64)


def edge_values(graph: LinkGraph, arch: Architecture) -> Values:
    """Return the value of every live edge of the placed blocks, and whether it fits."""
    edges = graph.edges
    has_bytes = arch.kinds["width"][edges.kind] > 0
    written = fresh_blocks(graph) | initial_blocks(graph)
    rows = np.flatnonzero(edges.live & written[edges.block] & has_bytes)
    letters = {
        "S": symbol_addrs(graph, arch)[rows],
        "A": edges.addend[rows].view(np.uint64),
        "P": (graph.blocks.addr[edges.block] + edges.offset)[rows],
        "GOT": _got_addr(graph)[rows],
        "Z": graph.symbols.size[edges.symbol[rows]],
    }
    letters["L"] = letters["T"] = letters["S"]
    letters["G"] = (
        letters["S"] - letters["GOT"]
    )  # the edge's symbol is the GOT, see build_tables
    kind = edges.kind[rows].astype(np.int32)
    value = np.zeros(len(rows), np.uint64)
    for row in sorted(set(kind.tolist())):
        mine = np.flatnonzero(kind == row)
        for sign, letter in _terms(str(arch.kinds["formula"][row])):
            term = letters[letter][mine]
            value[mine] += term if sign else np.uint64(0) - term
    signed = value.view(np.int64)
    return Values(rows, kind, signed, _fits(arch, kind, signed))


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


def _fits(arch: Architecture, kind: I32, value: I64) -> Bool:
    fits = np.ones(len(value), np.bool_)
    for row in sorted(set(kind.tolist())):
        if bool(arch.kinds["checked"][row]):
            low, high = limits(arch, row)
            mine = kind == row
            fits[mine] = (value[mine] >= low) & (value[mine] <= high)
    return fits


def symbol_addrs(graph: LinkGraph, arch: Architecture) -> U64:
    """Return (e,) the address S of every edge, NO_ADDR where it has none."""
    edges, symbols = graph.edges, graph.symbols
    body = body_addr(graph)[edges.symbol]
    inside = symbols.origin[edges.symbol] == Origin.BLOCK
    same_block = inside & (symbols.block[edges.symbol] == edges.block)
    branch, start = branch_edges(graph, arch), means_start(graph, arch)
    # Bytes inside a function, and what unwind tables describe, are those of this very copy.
    reloadable = symbols.reloadable[edges.symbol]
    own_bytes = named_blocks(graph, OWN_BYTES_NAME)[edges.block]
    means_body = (reloadable & (~start | own_bytes)) | (same_block & branch)
    means_body &= body != np.uint64(NO_ADDR)
    entry = symbols.entry[edges.symbol]
    through = branch & start & (entry != np.uint64(NO_ADDR))
    canonical = np.where(through, entry, symbols.addr[edges.symbol])
    return np.where(means_body, body, canonical)


def _got_addr(graph: LinkGraph) -> U64:
    """Return (e,) the address of the GOT of each edge's object; 0: it has none."""
    owner = lookup(graph.blocks.object, graph.edges.block, NO_ROW)
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
    rows = np.flatnonzero(graph.edges.live & fresh_blocks(graph)[graph.edges.block])
    source = graph.blocks.addr[graph.edges.block[rows]] + graph.edges.offset[rows]
    return source, symbol_addrs(graph, arch)[rows]
