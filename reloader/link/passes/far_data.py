"""Variables of shared libraries that new code names for the first time.

A compiler for executables expects them near: a linker would copy the variable into the executable (R_X86_64_COPY) and
every library would use that copy. Into a running process no such copy can be brought, the libraries are bound already.
So the instruction gets a form that goes through the GOT. `fprintf(stderr, ...)` in an edited function is this case.
What has no other form is left as it is, and its fixup is refused.
"""

import capstone
import numpy as np

from reloader.arch.base import Architecture, FarAccess
from reloader.ids import I64, NO_ROW, Bool, Region
from reloader.link.graph import LinkGraph, Origin
from reloader.link.grow import append_edges, append_filled_blocks, append_symbols
from reloader.link.passes.build_tables import is_far
from reloader.link.passes.functions import branch_edges
from reloader.link.passes.resolve import live_edges

_STT_FUNC = 2
_FIELD = 4  # bytes of a displacement
_ALIGN = 16


def reach_far_data(graph: LinkGraph, arch: Architecture, arena: tuple[int, int]) -> None:
    """Rewrite loads of variables that are out of reach; their new edges ask for GOT entries.

    Args:
        graph: Every symbol that live edges use is defined or bound.
        arch: Knows the instructions.
        arena: First address and the one past the last where blocks can be placed.
    """
    rows = far_edges(graph, arch, arena)
    found = [(row, access_at(graph, arch, row)) for row in rows.tolist()]
    jumps = [(row, access) for row, access in found if access is not None and access.thunk]
    for row, access in found:
        if access is not None and not access.thunk:
            put(graph, row, access)
            graph.edges.kind[row] = access.got_kind
    if jumps:
        add_thunks(graph, arch, jumps)


def far_edges(graph: LinkGraph, arch: Architecture, arena: tuple[int, int]) -> I64:
    """Return the edges of code that need a variable beyond the reach of their field."""
    edges, symbols = graph.edges, graph.symbols
    outside: Bool = (symbols.origin == Origin.BOUND) & is_far(symbols.addr, arena)
    if not outside.any():
        return np.zeros(0, np.int64)
    wanted = live_edges(graph) & outside[edges.symbol] & (edges.kind == arch.pc32)
    wanted &= (edges.addend == -_FIELD) & (graph.blocks.region[edges.block] == Region.CODE)
    return np.flatnonzero(wanted & ~branch_edges(graph, arch)).astype(np.int64)


def access_at(graph: LinkGraph, arch: Architecture, row: int) -> FarAccess | None:
    """Return the other form of the instruction that an edge's field ends."""
    edges, symbols = graph.edges, graph.symbols
    block, end = int(edges.block[row]), int(edges.offset[row]) + _FIELD
    inside = (
        (symbols.block == block)
        & (symbols.type == _STT_FUNC)
        & (symbols.origin == Origin.BLOCK)
    )
    starts = symbols.offset[inside & (symbols.offset < end)]
    if not len(starts):
        return None
    start = int(starts.max())
    code = graph.block_bytes(block)[start:end].tobytes()
    # from the function's start, since only that says whether a REX prefix is one
    for at, size, _, _ in capstone.Cs(*arch.capstone).disasm_lite(code, start):
        if at + size == end:
            return arch.far_access(code[at - start :])
    return None


def put(graph: LinkGraph, row: int, access: FarAccess) -> None:
    """Write the other form over the instruction."""
    end = int(graph.edges.offset[row]) + _FIELD
    body = graph.block_bytes(int(graph.edges.block[row]))
    body[end - len(access.site) : end] = np.frombuffer(access.site, np.uint8)


def add_thunks(
    graph: LinkGraph, arch: Architecture, jumps: list[tuple[int, FarAccess]]
) -> None:
    """Make code for each access, and edges to it, to the GOT and back."""
    edges = graph.edges
    rows = np.array([row for row, _ in jumps], np.int64)
    accesses = [access for _, access in jumps]
    for row, access in jumps:
        put(graph, row, access)
    site, variable = edges.block[rows], edges.symbol[rows]
    end = edges.offset[rows].astype(np.int64) + _FIELD
    owner = graph.blocks.object[site]
    sizes = np.array([len(access.thunk) for access in accesses], np.int64)
    block = append_filled_blocks(graph, sizes, object=owner, region=Region.CODE, align=_ALIGN)
    for made, access in zip(block.tolist(), accesses, strict=True):
        graph.block_bytes(made)[:] = np.frombuffer(access.thunk, np.uint8)
    names = [b""] * len(rows)
    there = append_symbols(graph, names, object=owner, source=NO_ROW, block=block)
    back = append_symbols(graph, names, object=owner, source=NO_ROW, block=site, offset=end)
    fields = np.array([len(access.site) - access.site_field for access in accesses], np.int64)
    edges.offset[rows] = (end - fields).astype(np.uint32)
    edges.symbol[rows] = there
    kinds = np.array([access.got_kind for access in accesses], np.uint16)
    got = np.array([access.thunk_got for access in accesses], np.int64)
    behind = np.array([access.thunk_back for access in accesses], np.int64)
    append_edges(
        graph, 2 * len(rows),
        block=np.concatenate([block, block]), offset=np.concatenate([got, behind]),
        kind=np.concatenate([kinds, np.full(len(rows), arch.pc32, np.uint16)]),
        symbol=np.concatenate([variable, back]), addend=-_FIELD,
    )  # fmt: skip
