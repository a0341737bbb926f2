"""Variables of shared libraries that new code names for the first time.

A compiler for executables expects them near: a linker would copy the variable into the
executable (R_X86_64_COPY) and every library would use that copy. Into a running process no
such copy can be brought, the libraries are bound already. So the instruction gets a form that
goes through the GOT. `fprintf(stderr, ...)` in an edited function is this case. What has no
other form is left as it is, and its fixup is refused.
"""

from dataclasses import dataclass

import capstone
import numpy as np

from reloader.arch.base import Architecture, FarAccess
from reloader.elf.gather import one_of
from reloader.ids import I64, U8, Bool, Region
from reloader.link.graph import LinkGraph, Origin
from reloader.link.grow import (
    append_edges,
    append_filled_blocks,
    append_symbols,
    some_edges,
)
from reloader.link.passes.build_tables import is_far
from reloader.link.passes.functions import branch_edges
from reloader.link.passes.resolve import live_edges

_STT_FUNC, _STT_TLS = 2, 6
_TO_NEXT = -4  # from a pc-relative field to the end of a jump or load
_ALIGN = 16
_LONGEST = 15  # bytes of an instruction


@dataclass(frozen=True, slots=True)
class Site:
    """An instruction and its other form."""

    edge: int  # row of Edges
    block: int
    start: int  # of the instruction, in the block
    access: FarAccess


def reach_far_data(graph: LinkGraph, arch: Architecture, arena: tuple[int, int]) -> None:
    """Rewrite accesses to variables that are out of reach; their edges ask for GOT entries.

    Args:
        graph: Every symbol that live edges use is defined or bound.
        arch: Knows the instructions.
        arena: First address and the one past the last where blocks can be placed.
    """
    found = [site_at(graph, arch, row) for row in far_edges(graph, arch, arena).tolist()]
    sites = [site for site in found if site is not None]
    for site in sites:
        body = graph.block_bytes(site.block)
        body[site.start : site.start + len(site.access.site)] = bytes_of(site.access.site)
        if not site.access.thunk:
            graph.edges.kind[site.edge] = site.access.got_kind
    jumps = [site for site in sites if site.access.thunk]
    if jumps:
        add_thunks(graph, arch, jumps)


def far_edges(graph: LinkGraph, arch: Architecture, arena: tuple[int, int]) -> I64:
    """Return the edges of code that need a variable beyond the reach of their field."""
    edges, symbols = graph.edges, graph.symbols
    outside: Bool = (symbols.origin == Origin.BOUND) & is_far(symbols.addr, arena)
    outside &= symbols.type != _STT_TLS
    if not bool(outside.any()):
        return np.zeros(0, np.int64)
    rows = outside[edges.symbol].nonzero()[0]
    rows = rows[one_of(edges.kind[rows], arch.far_kinds)]
    rows = rows[graph.blocks.region[edges.block[rows]] == Region.CODE]
    if not len(rows):
        return rows
    rows = rows[live_edges(graph)[rows]]
    return rows[~branch_edges(graph, arch, some_edges(edges, rows))]


def site_at(graph: LinkGraph, arch: Architecture, row: int) -> Site | None:
    """Return the other form of the instruction that an edge's field belongs to."""
    edges, symbols = graph.edges, graph.symbols
    block, field = int(edges.block[row]), int(edges.offset[row])
    inside = (symbols.block == block) & (symbols.origin == Origin.BLOCK)
    inside &= (symbols.type == _STT_FUNC) & (symbols.offset <= field)
    if not inside.any():
        return None
    start = int(symbols.offset[inside].max())
    code = graph.block_bytes(block)[start : field + _LONGEST].tobytes()
    # from the function's start, since only that says whether a REX prefix is one
    for at, size, _, _ in capstone.Cs(*arch.capstone).disasm_lite(code, start):
        if at + size > field:
            meant = field - at - size if arch.kinds["pc"][edges.kind[row]] else 0
            if int(edges.addend[row]) != meant:
                return None
            instruction = code[at - start : at - start + size]
            access = arch.far_access(instruction, field - at)
            return None if access is None else Site(row, block, at, access)
    return None


def bytes_of(code: bytes) -> U8:
    """Return code as an array."""
    return np.frombuffer(code, np.uint8)


def add_thunks(graph: LinkGraph, arch: Architecture, sites: list[Site]) -> None:
    """Make code for each access, and edges to it, to the GOT and back."""
    edges = graph.edges
    forms = [site.access for site in sites]
    rows = np.array([site.edge for site in sites], np.int64)
    place, variable = edges.block[rows], edges.symbol[rows]
    start = np.array([site.start for site in sites], np.int64)
    behind = start + np.array([len(form.site) for form in forms], np.int64)
    owner = graph.blocks.object[place]
    sizes = np.array([len(form.thunk) for form in forms], np.int64)
    block = append_filled_blocks(graph, sizes, object=owner, region=Region.CODE, align=_ALIGN)
    for made, form in zip(block.tolist(), forms, strict=True):
        graph.block_bytes(made)[:] = bytes_of(form.thunk)
    names = [b""] * len(rows)
    there = append_symbols(graph, names, object=owner, block=block)
    back = append_symbols(graph, names, object=owner, block=place, offset=behind)
    jump = np.array([form.site_field for form in forms], np.int64)
    edges.offset[rows] = (start + jump).astype(np.uint32)
    edges.symbol[rows], edges.kind[rows], edges.addend[rows] = there, arch.pc32, _TO_NEXT
    got = [form.thunk_got for form in forms]
    end = [form.thunk_back for form in forms]
    kinds = [form.got_kind for form in forms] + [arch.pc32] * len(rows)
    append_edges(
        graph, 2 * len(rows),
        block=np.concatenate([block, block]), offset=np.array(got + end), kind=np.array(kinds),
        symbol=np.concatenate([variable, back]), addend=_TO_NEXT,
    )  # fmt: skip
