"""Functions of shared libraries that a table names with 32 bits: personality routines.

Code for a program at a low address says in `.eh_frame` with four bytes where its personality
routine is. A linker would make that the address of a PLT entry; here it is a jump in the arena,
which is near. Nobody compares the address of a personality routine.
"""

import numpy as np

from reloader.arch.base import Architecture
from reloader.ids import Region
from reloader.link.graph import LinkGraph, Origin
from reloader.link.grow import append_edges, append_filled_blocks, append_symbols
from reloader.link.names import UNWIND_NAME, named_blocks
from reloader.link.passes.build_tables import is_far
from reloader.link.passes.resolve import live_edges

_FIELD = 4  # bytes that do not reach everywhere
_TO_NEXT = -4  # from a pc-relative field to the end of its instruction
_ALIGN = 16


def reach_far_functions(graph: LinkGraph, arch: Architecture, arena: tuple[int, int]) -> None:
    """Let narrow fields of unwind tables lead to far functions through a jump near by.

    Args:
        graph: Every symbol that live edges use is defined or bound.
        arch: Has the jump.
        arena: First address and the one past the last where blocks can be placed.
    """
    edges, symbols = graph.edges, graph.symbols
    far = (symbols.origin == Origin.BOUND) & is_far(symbols.addr, arena)
    if not bool(far.any()):
        return
    rows = far[edges.symbol].nonzero()[0]
    rows = rows[named_blocks(graph, UNWIND_NAME)[edges.block[rows]]]
    if not len(rows):
        return
    narrow = (arch.kinds["width"] == _FIELD) & (arch.kinds["table"] == 0)
    rows = rows[live_edges(graph)[rows] & narrow[edges.kind[rows]]]
    if not len(rows):
        return
    owner = graph.blocks.object[edges.block[rows]].astype(np.int64)
    key, of_row = np.unique((owner << 32) | edges.symbol[rows], return_inverse=True)
    shim, count = arch.far_jump, len(key)
    objects, targets = (key >> 32).astype(np.int32), (key & 0xFFFF_FFFF).astype(np.int32)
    sizes = np.full(count, len(shim.code), np.int64)
    block = append_filled_blocks(graph, sizes, object=objects, region=Region.CODE, align=_ALIGN)
    for made in block.tolist():
        graph.block_bytes(made)[:] = np.frombuffer(shim.code, np.uint8)
    rows_of: list[int] = targets.tolist()
    names = [graph.symbols.name[row] for row in rows_of]
    jump = append_symbols(graph, names, object=objects, block=block)
    edges.symbol[rows] = jump[of_row.reshape(-1)]
    ((field, kind, _),) = shim.fields
    append_edges(
        graph, count, block=block, offset=field, kind=kind, symbol=targets, addend=_TO_NEXT
    )
