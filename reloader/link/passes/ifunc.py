"""Functions that choose their body when they are loaded (STT_GNU_IFUNC).

The bytes behind such a symbol are its resolver's. So the name gets a stub, like a function of
ours, and the resolver another symbol; the process calls the resolver before the code is in
reach, and its answer goes into the stub's slot. `f == f` holds everywhere: all mean the stub.
"""

import numpy as np

from reloader.ids import I32, NO_ADDR, NO_ROW, Bool
from reloader.link.graph import LinkGraph, Origin
from reloader.link.grow import append_symbols
from reloader.link.passes.resolve import WANTS_SLOT, live_edges

STB_LOCAL, STT_FUNC, STT_GNU_IFUNC = 0, 2, 10

Resolvers = tuple[I32, I32]  # rows of the functions, rows of their resolvers


def split_ifuncs(graph: LinkGraph) -> Resolvers:
    """Give resolvers a symbol of their own, and the functions a stub.

    Args:
        graph: Every symbol that live edges use is defined or bound.
    """
    rows = _own(graph).nonzero()[0].astype(np.int32)
    if not len(rows):
        return rows, rows
    symbols = graph.symbols
    resolvers = append_symbols(
        graph,
        [symbols.name[row] for row in rows.tolist()],
        object=symbols.object[rows],
        block=symbols.block[rows],
        offset=symbols.offset[rows],
        type=STT_FUNC,
    )
    symbols.origin[rows], symbols.block[rows] = Origin.BOUND, NO_ROW
    symbols.addr[rows] = symbols.entry[rows] = np.uint64(NO_ADDR)
    symbols.slot[rows] = WANTS_SLOT
    return rows, resolvers


def _own(graph: LinkGraph) -> Bool:
    """Return (n,) which symbols are such functions of blocks that are placed, and needed."""
    symbols, blocks = graph.symbols, graph.blocks
    own = (symbols.type == STT_GNU_IFUNC) & (symbols.origin == Origin.BLOCK)
    if not own.any():
        return own
    used = symbols.binding != STB_LOCAL
    used[graph.edges.symbol[live_edges(graph)]] = True
    block = np.maximum(symbols.block, 0)
    return own & used & (symbols.block >= 0) & blocks.live[block] & ~blocks.same[block]


def choices(graph: LinkGraph, found: Resolvers) -> list[tuple[int, int]]:
    """Return (slot, address of the resolver) of each; everything has its address."""
    symbols = graph.symbols
    functions, resolvers = found
    slots: list[int] = symbols.slot[functions].tolist()
    return list(zip(slots, symbols.addr[resolvers].tolist(), strict=True))
