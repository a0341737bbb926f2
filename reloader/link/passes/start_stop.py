"""Sections that code walks from `__start_NAME` to `__stop_NAME`.

Every object adds its entries to a section of one name, and a linker lays them side by side. So
the blocks of that name become one block, of the first object that has any, with the others'
entries behind its own.
"""

import numpy as np

from reloader.ids import I64, NO_ROW
from reloader.link.graph import Edges, LinkGraph, Origin
from reloader.link.grow import append_filled_blocks


def joined_block(graph: LinkGraph, section: bytes) -> int:
    """Return the one placed block of all sections of a name, NO_ROW if nobody has any."""
    rows = _blocks_called(graph, section)
    if len(rows) < 2:
        return int(rows[0]) if len(rows) else NO_ROW
    blocks = graph.blocks
    align = blocks.align[rows].astype(np.int64)
    size = blocks.size[rows].astype(np.int64)
    place = np.zeros(len(rows), np.int64)
    end = 0
    for at in range(len(rows)):
        place[at] = -(-end // align[at]) * align[at]
        end = int(place[at] + size[at])
    made = int(
        append_filled_blocks(
            graph, np.array([end]), object=int(blocks.object[rows[0]]),
            region=int(blocks.region[rows[0]]), align=int(align.max()),
            section=int(blocks.section[rows[0]]),
        )[0]
    )  # fmt: skip
    for row, start in zip(rows.tolist(), place.tolist(), strict=True):
        old = graph.block_bytes(row)
        graph.block_bytes(made)[start : start + len(old)] = old
    _move(graph, rows, made, place)
    return made


def _blocks_called(graph: LinkGraph, section: bytes) -> I64:
    """Return the placed blocks that come from sections of a name, in the objects' order."""
    blocks = graph.blocks
    named = [
        block
        for block in np.flatnonzero(blocks.live & ~blocks.same & (blocks.section >= 0)).tolist()
        if graph.objects[int(blocks.object[block])].section_names[int(blocks.section[block])]
        == section
    ]
    return np.array(named, np.int64)


def _move(graph: LinkGraph, rows: I64, made: int, place: I64) -> None:
    """Let symbols and edges of some blocks be those of the block that holds their bytes."""
    symbols, edges, blocks = graph.symbols, graph.edges, graph.blocks
    shift = np.zeros(len(blocks.object), np.int64)
    moved = np.zeros(len(blocks.object), np.bool_)
    shift[rows], moved[rows] = place, True
    inside = (symbols.origin == Origin.BLOCK) & moved[np.maximum(symbols.block, 0)]
    symbols.offset[inside] += shift[symbols.block[inside]].astype(np.uint64)
    symbols.block[inside] = made
    fields = moved[edges.block]
    edges.offset[fields] += shift[edges.block[fields]].astype(np.uint32)
    edges.block[fields] = made
    blocks.live[rows] = False
    order = np.argsort((edges.block.astype(np.int64) << 32) | edges.offset, kind="stable")
    for name in Edges.__dataclass_fields__:
        setattr(edges, name, getattr(edges, name)[order])
