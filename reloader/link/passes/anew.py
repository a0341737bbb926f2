"""Code and constants that get another place although they are what is live.

A re-mapped object is linked from the snapshot that runs. Its variables are bound as in every
reload, so they stay; of the rest nothing counts as equal, so everything that is in use is
placed again, every function is a changed one, and its slot flips.
"""

from dataclasses import dataclass

import numpy as np

from reloader.ids import I32, NO_ADDR, Bool, Region
from reloader.link.graph import LinkGraph, Origin
from reloader.link.names import UNWIND_NAME, named_blocks
from reloader.link.passes.mark_live import KEPT_ARRAYS
from reloader.link.passes.match_old import function_symbols

STB_LOCAL = 0


@dataclass(frozen=True, slots=True)
class Anew:
    """What a transaction has to place again."""

    objects: frozenset[tuple[str, str]] = frozenset()  # (path, member)
    stays: frozenset[bytes] = frozenset()  # functions that callers cannot be sent away from


def place_anew(graph: LinkGraph, anew: Anew) -> set[bytes]:
    """Let nothing of some objects' code and constants keep its address.

    Args:
        graph: Compared with the live generation.
        anew: Which objects.

    Returns:
        The global names of constants that will move: their users have to be linked again.
    """
    if not anew.objects:
        return set()
    blocks, symbols = graph.blocks, graph.symbols
    mine = _blocks_of(graph, anew)
    blocks.same[mine] = False
    blocks.addr[mine] = np.uint64(NO_ADDR)
    functions = np.flatnonzero(function_symbols(graph) & mine[np.maximum(symbols.block, 0)])
    moves = [symbols.name[row] not in anew.stays for row in functions.tolist()]
    symbols.changed[functions] = moves
    return {symbols.name[row] for row in _constants(graph, mine).tolist()}


def anew_roots(graph: LinkGraph, anew: Anew) -> list[int]:
    """Return the blocks that other objects know by name: placed whether used here or not."""
    if not anew.objects:
        return []
    return np.unique(graph.symbols.block[_constants(graph, _blocks_of(graph, anew))]).tolist()


def _blocks_of(graph: LinkGraph, anew: Anew) -> Bool:
    """Return (b,) which blocks are code or constants of the objects."""
    chosen = np.array([file.key in anew.objects for file in graph.objects], np.bool_)
    blocks = graph.blocks
    mine = (blocks.object >= 0) & chosen[np.maximum(blocks.object, 0)]
    mine &= blocks.region <= Region.RODATA
    return mine & ~named_blocks(graph, KEPT_ARRAYS) & ~named_blocks(graph, UNWIND_NAME)


def _constants(graph: LinkGraph, mine: Bool) -> I32:
    """Return the global symbols in constant blocks of some objects."""
    symbols, blocks = graph.symbols, graph.blocks
    named = (symbols.origin == Origin.BLOCK) & (symbols.binding != STB_LOCAL)
    at = np.maximum(symbols.block, 0)
    named &= mine[at] & (blocks.region[at] == Region.RODATA)
    return np.flatnonzero(named).astype(np.int32)
