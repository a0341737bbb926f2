"""Loads and calls through the GOT become direct where the symbol turned out to be near.

The instruction gets another form of the same length. Sizes stay as they are: the entry is kept,
unused. Each change is tried with the fixup arithmetic itself and taken back where it does not
fit, so nothing here has a range of its own to get wrong.
"""

from functools import lru_cache
from typing import Final

import numpy as np

from reloader.arch.base import Architecture, Rewritten, Table
from reloader.ids import I64, NO_ROW, Bool
from reloader.link.fixup import Meanings, edge_values
from reloader.link.graph import LinkGraph
from reloader.link.grow import lookup, some_edges
from reloader.link.kinds import kind_columns, of_kinds
from reloader.link.layout import fresh_blocks

_RELAXABLE: Final = (
    "X"  # GOTPCRELX and REX_GOTPCRELX: the assembler vouches for the instruction
)
_TO_NEXT: Final = -4


def relax_got(graph: LinkGraph, arch: Architecture) -> None:
    """Rewrite `mov`, `call *` and `jmp *` through GOT entries; every block has its address."""
    edges = graph.edges
    rows = _candidates(graph, arch)
    if not len(rows):
        return
    field = graph.blocks.content[edges.block[rows]] + edges.offset[rows]
    plan = arch.plan_got(graph.content, field)
    entry = _entry_edges(graph, rows)
    weak_zero = graph.symbols.addr[edges.symbol[np.maximum(entry, 0)]] == 0
    chosen = plan.done & (entry != NO_ROW) & ~weak_zero
    rows, field, entry = rows[chosen], field[chosen], entry[chosen]
    columns = (edges.kind, edges.symbol, edges.addend, edges.offset)
    before = [column[rows] for column in columns]
    _take(graph, rows, entry, plan, chosen)
    direct = some_edges(edges, rows)
    traits = kind_columns(arch).traits[direct.kind]
    _, fits = edge_values(graph, arch, direct, traits, Meanings.of(graph))
    for column, old in zip(columns, before, strict=True):
        column[rows[~fits]] = old[~fits]
    arch.rewrite_got(graph.content, field[fits])


def _candidates(graph: LinkGraph, arch: Architecture) -> I64:
    edges = graph.edges
    rows = of_kinds(edges.kind, _relaxable(arch)).nonzero()[0]
    return rows[edges.live[rows] & fresh_blocks(graph)[edges.block[rows]]]


@lru_cache
def _relaxable(arch: Architecture) -> Bool:
    """Return (k,) which kinds are loads and calls that may become direct."""
    kinds = arch.kinds
    return np.char.endswith(kinds["name"], _RELAXABLE) & (kinds["table"] == Table.GOT)


def _entry_edges(graph: LinkGraph, rows: I64) -> I64:
    """Return the edge of the GOT entry that each edge goes through, or NO_ROW."""
    edges, symbols = graph.edges, graph.symbols
    key = (edges.block.astype(np.int64) << 32) | edges.offset
    block = lookup(symbols.block, edges.symbol[rows], NO_ROW).astype(np.int64)
    wanted = (block << 32) | np.maximum(edges.addend[rows] - _TO_NEXT, 0)
    at = np.minimum(key.searchsorted(wanted), max(len(key) - 1, 0))
    return np.where(key[at] == wanted, at, NO_ROW).astype(np.int64)


def _take(
    graph: LinkGraph,
    rows: I64,
    entry: I64,
    plan: Rewritten,
    chosen: np.ndarray[tuple[int], np.dtype[np.bool_]],
) -> None:
    """Let edges mean what their GOT entries hold."""
    edges = graph.edges
    edges.kind[rows] = plan.kind[chosen]
    edges.symbol[rows] = edges.symbol[entry]
    edges.addend[rows] = edges.addend[entry] + _TO_NEXT
    edges.offset[rows] += plan.shift[chosen].astype(np.uint32)
