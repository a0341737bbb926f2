"""What must be placed: all that the changed functions reach, and nothing more.

A function that is unchanged is reached where it already is, through its canonical address; a
block that equals its live version stays where it is; kept variables are bound outside. Of the
rest, a block is live if a root reaches it. The search is one pass over the edges: each is
looked at once, in the round in which its block is first reached.
"""

from collections.abc import Sequence
from typing import Final

import numpy as np

from reloader.arch.base import Architecture
from reloader.ids import I32, I64, NO_ADDR, NO_ROW, Bool, Region
from reloader.link.graph import Edges, LinkGraph, Origin
from reloader.link.grow import lookup, some_edges
from reloader.link.kinds import kind_columns
from reloader.link.names import UNWIND_NAME, named_blocks
from reloader.link.passes.eh_frame import Unwind, unwind_edges
from reloader.live.objects import LiveObject

_LOADED: Final = Region.TLS  # the last region whose blocks have a place in the process
KEPT_ARRAYS: Final = rb"\.(?:init_array|fini_array|preinit_array|ctors|dtors|init|fini)\b"
STB_LOCAL = 0


def mark_live(  # noqa: PLR0913  one argument a fact
    graph: LinkGraph,
    live: Sequence[LiveObject | None],
    arch: Architecture,
    unwind: Unwind,
    *,
    roots: Sequence[int] = (),
    prune: bool = False,
) -> None:
    """Set blocks.live.

    Args:
        graph: Functions and data are bound, blocks.same and symbols.changed are set.
        live: Per object its live version, or None for a first load.
        arch: The kind table.
        unwind: Its unwind tables, which make a function reach its exception table.
        roots: More blocks to keep, whatever changed.
        prune: Of a first load, keep only what its global symbols and arrays reach.
    """
    blocks = graph.blocks
    reached = _roots(graph, live, prune=prune)
    reached[list(roots)] = True
    open_ = ~reached & (blocks.region <= _LOADED)
    if not bool((~open_ | named_blocks(graph, UNWIND_NAME)).all()):  # on a first load all are
        _spread(reached, *_steps(graph, arch, unwind))
    copied = reached & blocks.same  # merged strings: equal, but nobody knows where
    blocks.same[copied] = False
    blocks.live = reached


def _roots(graph: LinkGraph, live: Sequence[LiveObject | None], *, prune: bool) -> Bool:
    blocks, symbols = graph.blocks, graph.symbols
    first_load = np.array([version is None for version in live], np.bool_)
    new = lookup(first_load, blocks.object, 0) & (blocks.region <= _LOADED)
    if prune:
        new &= _named_from_outside(graph)
    new &= ~named_blocks(graph, UNWIND_NAME)
    changed = symbols.changed & symbols.reloadable & (symbols.origin == Origin.BLOCK)
    holders = np.zeros(len(blocks.object), np.bool_)
    holders[symbols.block[changed]] = True
    return new | (holders & ~blocks.same & (blocks.region == Region.CODE))


def _named_from_outside(graph: LinkGraph) -> Bool:
    """Return (b,) which blocks a global symbol names, or that run by themselves."""
    symbols = graph.symbols
    visible = (symbols.origin == Origin.BLOCK) & (symbols.binding != STB_LOCAL)
    named = named_blocks(graph, KEPT_ARRAYS)
    named[symbols.block[visible & (symbols.block >= 0)]] = True
    return named


def means_start(graph: LinkGraph, arch: Architecture, edges: Edges | None = None) -> Bool:
    """Return (e,) which edges, or which of some, mean their symbol itself.

    Others mean a place at some distance from it. A pc-relative field of code counts from the
    end of its instruction, thus from the field's.
    """
    edges = edges or graph.edges
    to_next = kind_columns(arch).to_next[edges.kind]
    code = graph.blocks.region == Region.CODE
    if len(to_next) and not bool(code[edges.block[0] : edges.block[-1] + 1].all()):
        to_next = to_next * code[edges.block]
    return edges.addend == -to_next


def _steps(graph: LinkGraph, arch: Architecture, unwind: Unwind) -> tuple[I32, I32]:
    """Return (source block, target block) of every edge that makes its target live."""
    edges, symbols, blocks = graph.edges, graph.symbols, graph.blocks
    known = symbols.addr != np.uint64(NO_ADDR)
    stays = symbols.reloadable & known & ~symbols.changed
    home = np.where(symbols.origin == Origin.BLOCK, symbols.block, NO_ROW).astype(np.int32)
    placed = blocks.same & (blocks.addr != np.uint64(NO_ADDR))
    ends = lookup(placed, home, 1) | (lookup(blocks.region, home, Region.NONE) > _LOADED)
    home[ends] = NO_ROW
    block = home[edges.symbol]
    goes = edges.live & (block != NO_ROW)
    goes &= block != edges.block
    if bool(stays.any()):
        rows = (goes & stays[edges.symbol]).nonzero()[0]
        goes[rows[means_start(graph, arch, some_edges(edges, rows))]] = False
    plain = goes.nonzero()[0]
    plain = plain[~named_blocks(graph, UNWIND_NAME)[edges.block[plain]]]
    code, row = unwind_edges(unwind)
    inner = goes[row]
    source = np.concatenate([edges.block[plain], code[inner]]).astype(np.int32)
    return source, np.concatenate([block[plain], block[row[inner]]]).astype(np.int32)


def _spread(reached: Bool, source: I32, target: I32) -> None:
    """Reach everything that a reached block has an edge to."""
    new = ~reached[target]
    source, target = source[new], target[new]
    if not len(source):
        return
    order = np.argsort(source, kind="stable")
    target = target[order]
    first = source[order].searchsorted(np.arange(len(reached) + 1))
    frontier = reached.nonzero()[0]
    while len(frontier):
        found = target[_ranges(first[frontier], first[frontier + 1])]
        frontier = np.unique(found[~reached[found]])
        reached[frontier] = True


def _ranges(first: I64, last: I64) -> I64:
    """Return all rows of several half-open ranges, one range after the other."""
    size = last - first
    shift = np.repeat(first - (np.cumsum(size) - size), size)
    return np.arange(int(size.sum()), dtype=np.int64) + shift
