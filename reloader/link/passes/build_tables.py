"""What edges ask for beside their value: GOT entries, and stubs of functions they call.

The GOT is one read-only block an object. An edge that goes through an entry is turned into an
edge to the GOT's symbol with the entry's offset in its addend, so fixups know only addresses.
"""

from functools import lru_cache
from typing import Final

import numpy as np

from reloader.arch.base import Architecture, Table
from reloader.elf.gather import one_of
from reloader.ids import I32, I64, NO_ADDR, NO_ROW, U64, Bool, Region
from reloader.link.graph import LinkGraph, Origin
from reloader.link.grow import (
    append_edges,
    append_filled_blocks,
    append_symbols,
    lookup,
)
from reloader.link.kinds import kind_columns, of_kinds
from reloader.link.passes.functions import branch_edges
from reloader.link.passes.resolve import (
    GOT_NAME,
    WANTS_SLOT,
    live_edges,
)

_ENTRY: Final = 8  # bytes of a GOT entry
_ENTRIES: Final = (Table.GOT, Table.TLS_IE)  # what goes through one
_REACH: Final = (1 << 31) - (1 << 20)  # of a branch, less than what one instruction may add


def build_tables(graph: LinkGraph, arch: Architecture, arena: tuple[int, int]) -> None:
    """Make the GOT of each object, and say which symbols need a stub.

    Args:
        graph: Every symbol that live edges use is defined or bound.
        arch: The kind table.
        arena: First address and the one past the last where blocks can be placed.
    """
    mark_stubs(graph, arch, arena)
    build_got(graph, arch)


def mark_stubs(graph: LinkGraph, arch: Architecture, arena: tuple[int, int]) -> None:
    """Set symbols.slot to WANTS_SLOT for functions that callers must reach through a stub.

    These are: reloadable functions that another block branches to, or whose own block is placed
    because they changed, or that are new (their stub is their address); and functions outside
    that are too far for a branch.
    """
    symbols, edges, blocks = graph.symbols, graph.edges, graph.blocks
    inside = symbols.origin == Origin.BLOCK
    home = np.where(inside, symbols.block, NO_ROW)
    leaves = edges.block != home[edges.symbol]
    leaves &= live_edges(graph)
    called = np.zeros(len(symbols.name), np.bool_)
    if bool(leaves.any()):
        called[edges.symbol[leaves & branch_edges(graph, arch)]] = True
    placed = inside & lookup(blocks.live & ~blocks.same, symbols.block, 0)
    new = placed & (symbols.addr == np.uint64(NO_ADDR))
    wants = symbols.reloadable & (called | (placed & symbols.changed) | new)
    wants |= called & ~inside & is_far(graph.symbols.addr, arena)
    symbols.slot[wants & (symbols.slot == NO_ROW)] = WANTS_SLOT


def is_far(addr: U64, arena: tuple[int, int]) -> Bool:
    """Return (n,) which known addresses some place of the arena cannot reach."""
    low, high = np.uint64(arena[0]), np.uint64(arena[1])
    known = addr != np.uint64(NO_ADDR)
    above = (addr > low) & (addr - low > np.uint64(_REACH))
    below = (addr < high) & (high - addr > np.uint64(_REACH))
    return known & (above | below)


def build_got(graph: LinkGraph, arch: Architecture) -> None:
    """Make one entry for each (object, symbol, plain or thread-local) that edges ask for."""
    edges, blocks, symbols = graph.edges, graph.blocks, graph.symbols
    names_got = _names_got(graph)
    wants = of_kinds(edges.kind, _asks_got(arch))
    if bool(names_got.any()):
        wants |= names_got[edges.symbol]
    rows = wants.nonzero()[0]
    rows = rows[live_edges(graph)[rows]] if len(rows) else rows
    if not len(rows):
        return
    owner = lookup(blocks.object, edges.block[rows], NO_ROW)
    objects = np.unique(owner)
    table = kind_columns(arch).table[edges.kind[rows]]
    entry = one_of(table, _ENTRIES)
    rows, owner = rows[entry], owner[entry]
    thread = (table[entry] == Table.TLS_IE).astype(np.int64)
    key = (owner.astype(np.int64) << 33) | (edges.symbol[rows].astype(np.int64) << 1)
    key, entry_of_edge = _distinct(key | thread, len(objects), len(symbols.name))
    key_owner = (key >> 33).astype(np.int32)
    first = key_owner.searchsorted(objects)
    count = key_owner.searchsorted(objects, side="right") - first
    block = append_filled_blocks(
        graph, np.maximum(count, 1) * _ENTRY, object=objects, region=Region.RODATA
    )
    got = append_symbols(graph, [GOT_NAME] * len(objects), object=objects, block=block)
    graph.got_symbol = np.full(len(graph.objects), NO_ROW, np.int32)
    graph.got_symbol[objects] = got
    _define_got_names(graph, names_got)
    at = (np.arange(len(key)) - first[objects.searchsorted(key_owner)]) * _ENTRY
    edges.symbol[rows] = graph.got_symbol[owner]
    edges.addend[rows] += at[entry_of_edge]
    append_edges(
        graph,
        len(key),
        block=symbols.block[graph.got_symbol[key_owner]],
        offset=at,
        kind=np.where(key & 1, arch.thread_word, arch.word),
        symbol=((key >> 1) & 0xFFFF_FFFF).astype(np.int32),
    )


@lru_cache
def _asks_got(arch: Architecture) -> Bool:
    """Return (k,) which kinds need their object's GOT."""
    return one_of(kind_columns(arch).table, (*_ENTRIES, Table.GOT_BASE))


def _names_got(graph: LinkGraph) -> Bool:
    """Return (n,) which symbols are an object's undefined `_GLOBAL_OFFSET_TABLE_`."""
    symbols = graph.symbols
    named = np.zeros(len(symbols.name), np.bool_)
    for row in (symbols.origin == Origin.UNDEFINED).nonzero()[0].tolist():
        named[row] = symbols.name[row] == GOT_NAME
    return named


def _distinct(key: I64, objects: int, symbols: int) -> tuple[I64, I64]:
    """Return the distinct keys, ascending, and which of them each is: mostly without a sort."""
    if objects > 1:
        distinct, which = np.unique(key, return_inverse=True)
        return distinct, which.reshape(-1)
    low = key & ((1 << 33) - 1)
    flags = np.zeros(2 * symbols, np.bool_)
    flags[low] = True
    found = flags.nonzero()[0]
    number = np.cumsum(flags) - 1
    return found + (key[:1] - low[:1] if len(key) else 0), number[low]


def _define_got_names(graph: LinkGraph, named: Bool) -> None:
    """Make each object's `_GLOBAL_OFFSET_TABLE_` the start of its own GOT."""
    symbols = graph.symbols
    rows: I64 = named.nonzero()[0]
    got: I32 = lookup(graph.got_symbol, symbols.object[rows], NO_ROW)
    rows, got = rows[got != NO_ROW], got[got != NO_ROW]
    symbols.origin[rows] = Origin.BLOCK
    symbols.block[rows] = symbols.block[got]
