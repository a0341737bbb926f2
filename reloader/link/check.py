"""The facts that passes rely on, as functions that may be run after any pass.

Each raises BrokenFactError with the rows that break it. Tests run them between all passes; the
road itself does not, since every one costs as much as a pass.
"""

import numpy as np

from reloader.arch.base import Architecture
from reloader.errors.linking import BrokenFactError
from reloader.ids import NO_ADDR, Bool, Region
from reloader.link.fixup import symbol_addrs
from reloader.link.graph import Blocks, Edges, LinkGraph, Origin, Symbols
from reloader.link.layout import fresh_blocks
from reloader.link.passes.build_tables import WANTS_SLOT


def _require(fact: str, broken: Bool) -> None:
    if broken.any():
        raise BrokenFactError(fact, np.flatnonzero(broken).tolist())


def columns_agree(graph: LinkGraph) -> None:
    """All columns of a table have the same length."""
    for kind, table in ((Blocks, graph.blocks), (Symbols, graph.symbols), (Edges, graph.edges)):
        sizes = [len(getattr(table, name)) for name in kind.__dataclass_fields__]
        _require(f"columns of {kind.__name__} differ in length", np.array(sizes) != sizes[0])


def edges_are_sorted(graph: LinkGraph) -> None:
    """Edges stand by block, then offset: searches rely on it."""
    key = (graph.edges.block.astype(np.int64) << 32) | graph.edges.offset
    _require("edges are not sorted by block and offset", np.diff(key) < 0)


def edges_fit_blocks(graph: LinkGraph, arch: Architecture) -> None:
    """The field of every live edge lies inside the content of its block."""
    edges, blocks = graph.edges, graph.blocks
    width = arch.kinds["width"][edges.kind].astype(np.int64)
    size = blocks.size[edges.block].astype(np.int64)
    past = edges.offset.astype(np.int64) + width > size
    empty = (blocks.content[edges.block] < 0) & (width > 0)
    _require("an edge's field is outside its block", edges.live & (past | empty))


def symbols_name_rows(graph: LinkGraph) -> None:
    """A symbol in a block names a row of blocks, any other none."""
    symbols = graph.symbols
    inside = symbols.origin == Origin.BLOCK
    wrong = inside & ((symbols.block < 0) | (symbols.block >= len(graph.blocks.object)))
    _require("a symbol is in no block", wrong)


def live_blocks_have_addresses(graph: LinkGraph) -> None:
    """Every live block of a loaded region has been placed."""
    blocks = graph.blocks
    loaded = blocks.live & (blocks.region <= Region.DATA)
    _require("a live block has no address", loaded & (blocks.addr == np.uint64(NO_ADDR)))


def blocks_are_aligned(graph: LinkGraph) -> None:
    """Every placed block stands at a multiple of its alignment."""
    blocks = graph.blocks
    off = (blocks.addr & (blocks.align - np.uint64(1))) != 0
    _require("a block is not aligned", fresh_blocks(graph) & off)


def blocks_do_not_overlap(graph: LinkGraph) -> None:
    """No two placed blocks share a byte."""
    blocks = graph.blocks
    rows = np.flatnonzero(fresh_blocks(graph) & (blocks.size > 0))
    rows = rows[np.argsort(blocks.addr[rows])]
    end = blocks.addr[rows] + blocks.size[rows]
    broken = np.zeros(len(blocks.object), np.bool_)
    broken[rows[1:][end[:-1] > blocks.addr[rows[1:]]]] = True
    _require("two blocks overlap", broken)


def edges_have_addresses(graph: LinkGraph, arch: Architecture) -> None:
    """Every live edge of a placed block has an address to write."""
    edges = graph.edges
    used = edges.live & fresh_blocks(graph)[edges.block]
    used &= ~np.isin(arch.kinds["width"][edges.kind], 0)
    known = symbol_addrs(graph, arch) != np.uint64(NO_ADDR)
    needs = np.array(
        [{"S", "L", "T", "G"} & set(f.split()) != set() for f in arch.kinds["formula"]]
    )
    _require("a live edge's symbol has no address", used & ~known & needs[edges.kind])


def slots_are_assigned(graph: LinkGraph) -> None:
    """Nobody waits for a slot any more."""
    _require("a symbol still wants a slot", graph.symbols.slot == WANTS_SLOT)


def check_built(graph: LinkGraph, arch: Architecture) -> None:
    """Check what holds from `build_graph` on."""
    columns_agree(graph)
    edges_are_sorted(graph)
    symbols_name_rows(graph)
    edges_fit_blocks(graph, arch)


def check_placed(graph: LinkGraph, arch: Architecture) -> None:
    """Check what holds from `place` on."""
    check_built(graph, arch)
    slots_are_assigned(graph)
    live_blocks_have_addresses(graph)
    blocks_are_aligned(graph)
    blocks_do_not_overlap(graph)
    edges_have_addresses(graph, arch)
