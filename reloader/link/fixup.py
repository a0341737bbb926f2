"""Edges -> bytes: one array expression a kind; all ranges are checked before any byte changes.

S, the symbol's address, is not one number here. Bytes of a block that mean bytes of the same
block (a jump table's case, a call of a neighbour) mean its own copy. A branch that leaves its
block goes to the stub. Everything else that means a function's start takes its canonical
address.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import numpy as np

from reloader.arch.base import Architecture
from reloader.errors.linking import FixupRangeError, RangeRow
from reloader.ids import I32, I64, NO_ADDR, NO_ROW, U8, U16, U64, Bool, Region
from reloader.link.graph import Edges, LinkGraph, Origin
from reloader.link.grow import lookup, some_edges
from reloader.link.kinds import FREE, LIMITED, LONG, OTHER, PC, kind_columns, of_kinds
from reloader.link.layout import body_addr, fresh_blocks, initial_blocks
from reloader.link.names import OWN_BYTES_NAME, named_blocks
from reloader.link.passes.functions import branch_edges, content_fields
from reloader.link.passes.mark_live import means_start
from reloader.link.passes.resolve import Lines, edge_place, no_lines

_INNER, _ENTRY = np.uint8(1), np.uint8(2)
_PIECE: Final = 1 << 16  # edges at a time: what is computed of them stays in the caches


@dataclass(frozen=True, slots=True, eq=False)
class Meanings:
    """What an edge's symbol can mean; (n,) columns by symbol unless another size is told."""

    addr: U64  # (3n,) canonical address, then where branches go, then where the bytes are
    how: U8  # _INNER: it has bytes here that others reach through a stub; _ENTRY: see `addr`
    home: I32  # the placed block it is in, or NO_ROW
    own_bytes: Bool | None  # (b,) blocks that mean the bytes of this very copy, None: no block

    @classmethod
    def of(cls, graph: LinkGraph) -> "Meanings":
        """Return them for a graph whose symbols have their addresses."""
        symbols = graph.symbols
        body, none = body_addr(graph), np.uint64(NO_ADDR)
        placed = body != none
        home = np.where((symbols.origin == Origin.BLOCK) & placed, symbols.block, NO_ROW)
        own_bytes = named_blocks(graph, OWN_BYTES_NAME)
        return cls(
            addr=np.concatenate([symbols.addr, symbols.entry, body]),
            how=(symbols.reloadable & placed) * _INNER + (symbols.entry != none) * _ENTRY,
            home=home.astype(np.int32),
            own_bytes=own_bytes if bool(own_bytes.any()) else None,
        )

    def of_edges(self, graph: LinkGraph, arch: Architecture, edges: Edges) -> U64:
        """Return (e,) the address S of some edges, NO_ADDR where one has none."""
        count = len(self.home)
        branch, start = branch_edges(graph, arch, edges), means_start(graph, arch, edges)
        # Bytes inside a function, and what unwind tables describe, are those of this very copy.
        how = self.how[edges.symbol]
        inner = (how & _INNER) != 0
        inner &= ~start if self.own_bytes is None else ~start | self.own_bytes[edges.block]
        inner |= branch & (self.home[edges.symbol] == edges.block)
        through = branch & start & ~inner & ((how & _ENTRY) != 0)
        row = edges.symbol + (inner * np.int32(2 * count))
        row += through * np.int32(count)
        return self.addr[row]


def apply_fixups(graph: LinkGraph, arch: Architecture, lines: Lines = no_lines) -> None:
    """Write the value of every live edge of the placed blocks into graph.content.

    Args:
        graph: Every symbol that a live edge uses has its address.
        arch: One row an edge kind; its formula is the psABI's.
        lines: Finds the source line of a place, for errors.

    Raises:
        FixupRangeError: Some values do not fit; carries all of them, and nothing is written.
    """
    written, meanings = written_edges(graph, arch), Meanings.of(graph)
    rows = None if bool(written.all()) else written.nonzero()[0]
    bad: list[RangeRow] = []
    fields: list[tuple[Edges, I64 | I32]] = []
    for first in range(0, len(written) if rows is None else len(rows), _PIECE):
        part = slice(first, first + _PIECE)
        own = part if rows is None else rows[part]
        edges = Edges(*(getattr(graph.edges, name)[own] for name in Edges.__dataclass_fields__))
        traits = kind_columns(arch).traits[edges.kind]
        value, fits = edge_values(graph, arch, edges, traits, meanings)
        if not bool(fits.all()):
            wrong = (~fits).nonzero()[0]
            numbers = wrong + first if rows is None else rows[wrong + first]
            found = zip(numbers.tolist(), value[wrong].tolist(), strict=True)
            bad += [_range_row(graph, arch, row, number, lines) for row, number in found]
        elif bool((traits & np.uint8(LONG)).all()):
            fields.append((edges, value.astype(np.int32)))
        else:
            fields.append((edges, value))
    if bad:
        raise FixupRangeError(bad)
    for edges, value in fields:
        _store_all(graph, arch, edges, value)


def _store_all(graph: LinkGraph, arch: Architecture, edges: Edges, value: I64 | I32) -> None:
    """Store the values of some edges; 4-byte ones if all fields are so wide."""
    place = content_fields(graph, edges)
    if value.dtype == np.int32:
        _store(graph.content, place, value, 4)
        return
    width = kind_columns(arch).width[edges.kind]
    for size in (4, 1, 2, 8):
        rows = (width == size).nonzero()[0]
        _store(graph.content, place[rows], value[rows], size)


def _store(content: U8, place: I64, value: I64 | I32, size: int) -> None:
    """Store the low bytes of values at places of any alignment."""
    if not len(place):
        return
    count = len(content) - size + 1
    # One element a byte position: numpy may store to unaligned, overlapping views.
    window = np.ndarray((count,), f"<u{size}", content.data, strides=(1,))
    window[place] = value.view(f"u{value.itemsize}")


def edge_values(
    graph: LinkGraph, arch: Architecture, edges: Edges, traits: U8, meanings: Meanings
) -> tuple[I64, Bool]:
    """Return the values of some edges, and which of them fit.

    Args:
        graph: Every symbol that a live edge uses has its address.
        arch: The kind table.
        edges: Of placed blocks.
        traits: Those of their kinds, see `kind_columns`.
        meanings: Those of the graph as it is.
    """
    symbol = meanings.of_edges(graph, arch, edges)
    value = symbol + edges.addend.view(np.uint64)
    place = _block_column(graph.blocks.addr, edges) + edges.offset
    relative = (traits & np.uint8(PC)) != 0
    value -= place if bool(relative.all()) else place * relative
    other = (traits & np.uint8(OTHER)).nonzero()[0]
    if len(other):
        value[other] = _other_values(
            graph, arch, some_edges(edges, other), symbol[other], place[other]
        )
    signed = value.view(np.int64)
    return signed, _fits(arch, edges.kind, traits, signed)


def _block_column(column: U64, edges: Edges) -> U64:
    """Return a column of blocks for each of some edges; one number if one block has them."""
    one = len(edges.block) > 0 and edges.block[0] == edges.block[-1]
    return column[edges.block[:1]] if one else column[edges.block]


def written_edges(graph: LinkGraph, arch: Architecture) -> Bool:
    """Return (e,) which edges write bytes of this transaction's blocks."""
    edges = graph.edges
    blocks = fresh_blocks(graph) | initial_blocks(graph)
    written = edges.live & ~of_kinds(edges.kind, kind_columns(arch).width == 0)
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


def symbol_addrs(graph: LinkGraph, arch: Architecture) -> U64:
    """Return (e,) the address S of every edge, NO_ADDR where it has none."""
    return Meanings.of(graph).of_edges(graph, arch, graph.edges)


def _got_addr(graph: LinkGraph, edges: Edges) -> U64:
    """Return (e,) the address of the GOT of each edge's object; 0: it has none."""
    owner = lookup(graph.blocks.object, edges.block, NO_ROW)
    symbol = lookup(graph.got_symbol, owner, NO_ROW)
    return lookup(graph.symbols.addr, symbol, 0)


def _range_row(
    graph: LinkGraph, arch: Architecture, edge: int, value: int, lines: Lines
) -> RangeRow:
    """Return what the error says of the value of one edge."""
    kind = int(graph.edges.kind[edge])
    symbol = int(graph.edges.symbol[edge])
    low, high = limits(arch, kind)
    name = graph.symbols.name[symbol].decode("utf-8", "replace")
    return RangeRow(
        place=edge_place(graph, edge, lines),
        symbol=name or "(no name)",
        kind=str(arch.kinds["name"][kind]),
        branch=bool(branch_edges(graph, arch)[edge]),
        pc=bool(arch.kinds["pc"][kind]),
        value=value,
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
