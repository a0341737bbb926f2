"""Block sizes and alignments -> offsets -> addresses in the arena.

One allocation an object and region, since that is what is given back as a whole. Within it
blocks stand in falling alignment, each size rounded up to its own alignment: then every
offset is the sum of the sizes before, and no gap is larger than a block's own tail.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from reloader.arch.base import Architecture
from reloader.elf.gather import rows_of
from reloader.ids import I64, NO_ADDR, NO_ROW, U8, U64, Addr, Bool, Region
from reloader.link.graph import LinkGraph, Origin
from reloader.link.grow import lookup
from reloader.live.target import Allocation

_FEW: Final = 64  # blocks that are stored one by one as quickly as together
_PAGE: Final = 4096  # the least alignment of an allocation

Allocate = Callable[[Sequence[tuple[int, int]]], list[Allocation]]  # (Region, size) of each


@dataclass(frozen=True, slots=True)
class Placed:
    """The memory of one object's blocks of one region."""

    object: int  # row of LinkGraph.objects, or NO_ROW: the whole transaction's
    region: int  # ids.Region
    allocation: Allocation


def place(graph: LinkGraph, allocate: Allocate) -> list[Placed]:
    """Give every live block an address, and every symbol in a block.

    Args:
        graph: Sizes are final, blocks.live and blocks.same are set.
        allocate: Takes fresh memory in the arena, page-granular.

    Returns:
        One row an object and region.
    """
    blocks = graph.blocks
    wanted = blocks.live & ~blocks.same & (blocks.addr == np.uint64(NO_ADDR))
    rows = (wanted & (blocks.region <= Region.DATA)).nonzero()[0].astype(np.int64)
    falling = -blocks.align[rows].astype(np.int64)
    order = np.lexsort((rows, falling, blocks.region[rows], blocks.object[rows]))
    rows = rows[order]
    group = blocks.object[rows].astype(np.int64) << 8 | blocks.region[rows]
    heads = np.diff(group, prepend=group[:1] - 1).nonzero()[0]
    placed = _place_groups(graph, rows, heads, allocate)
    place_symbols(graph)
    return placed


def _place_groups(graph: LinkGraph, rows: I64, heads: I64, allocate: Allocate) -> list[Placed]:
    """Place the blocks of each object and region.

    Args:
        graph: Whose blocks.
        rows: They, one group after the other, each in falling alignment.
        heads: Where in `rows` each group begins.
        allocate: Takes the memory.
    """
    blocks = graph.blocks
    align, size = blocks.align[rows], blocks.size[rows]
    rounded = (size + align - np.uint64(1)) & ~(align - np.uint64(1))
    end = np.cumsum(rounded)
    count = np.diff(np.append(heads, len(rows)))
    before = (end - rounded)[heads]
    total = end[heads + count - 1] - before
    greatest = np.maximum(align[heads], 1).astype(np.int64)
    wanted = np.maximum(total.astype(np.int64), 1) + np.maximum(greatest - _PAGE, 0)
    owners: list[int] = blocks.object[rows[heads]].tolist()
    regions: list[int] = blocks.region[rows[heads]].tolist()
    taken = allocate(list(zip(regions, wanted.tolist(), strict=True)))
    begin = np.array([allocation.addr for allocation in taken], np.uint64)
    last = (greatest - 1).astype(np.uint64)
    base = ((begin + last) & ~last) - before  # may wrap, and wraps back
    blocks.addr[rows] = np.repeat(base, count) + end - rounded
    return list(map(Placed, owners, regions, taken))


def one_by_one(allocate: Callable[[int, int], Allocation]) -> Allocate:
    """Return what takes several pieces of memory with what takes one."""
    return lambda wanted: [allocate(region, size) for region, size in wanted]


def place_symbols(graph: LinkGraph) -> None:
    """Set the address of symbols in blocks and of absolute ones; entries follow.

    A reloadable function keeps its canonical address, and its stub's entry.
    """
    symbols = graph.symbols
    body = body_addr(graph)
    own = (symbols.origin == Origin.BLOCK) & (body != np.uint64(NO_ADDR)) & ~symbols.reloadable
    symbols.addr[own] = body[own]
    absolute = symbols.origin == Origin.ABSOLUTE
    symbols.addr[absolute] = symbols.offset[absolute]
    direct = (symbols.slot < 0) & (symbols.addr != np.uint64(NO_ADDR))
    symbols.entry[direct] = symbols.addr[direct]


def body_addr(graph: LinkGraph) -> U64:
    """Return (n,) where the bytes of each symbol in a block of this graph are, else NO_ADDR."""
    symbols = graph.symbols
    inside = np.where(symbols.origin == Origin.BLOCK, symbols.block, NO_ROW).astype(np.int32)
    addr = lookup(graph.blocks.addr, inside, NO_ADDR)
    return np.where(addr == np.uint64(NO_ADDR), addr, addr + symbols.offset)


def fresh_blocks(graph: LinkGraph) -> Bool:
    """Return (b,) which blocks this transaction has placed."""
    blocks = graph.blocks
    placed = blocks.live & ~blocks.same & (blocks.addr != np.uint64(NO_ADDR))
    return placed & (blocks.region <= Region.DATA)


def initial_blocks(graph: LinkGraph) -> Bool:
    """Return (b,) which blocks hold initial values of thread-local variables."""
    blocks = graph.blocks
    return blocks.live & (blocks.region == Region.TLS) & (blocks.content >= 0)


def image(graph: LinkGraph, placed: Placed, arch: Architecture) -> U8:
    """Return all bytes of an allocation; gaps between functions are traps, others zero."""
    data = np.full(placed.allocation.size, _fill(placed.region, arch), np.uint8)
    write_images(graph, [placed], lambda _addr, _size: data, arch)
    return data


def write_images(
    graph: LinkGraph,
    placed: Sequence[Placed],
    view: Callable[[Addr, int], U8],
    arch: Architecture,
) -> None:
    """Store the blocks of allocations; the rest of them holds what fresh memory holds.

    Args:
        graph: Its content is final.
        placed: The allocations.
        view: Returns some memory; allocations side by side are asked for as one.
        arch: Knows what fills gaps.
    """
    blocks = graph.blocks
    rows = (fresh_blocks(graph) & (blocks.content >= 0)).nonzero()[0]
    rows = rows[blocks.addr[rows].argsort(kind="stable")]
    addr = blocks.addr[rows].view(np.int64)
    for first, last, region in _spans(placed):
        own = rows[slice(*addr.searchsorted([first, last]).tolist())]
        _store_blocks(graph, own, view(Addr(first), last - first), first, _fill(region, arch))


def _spans(placed: Sequence[Placed]) -> list[tuple[int, int, int]]:
    """Return (start, end, region) of allocations; those of a region side by side are one."""
    spans: list[tuple[int, int, int]] = []
    memory = sorted(
        (item.allocation.addr, item.allocation.size, item.region) for item in placed
    )
    for addr, size, region in memory:
        first = addr
        if spans and spans[-1][1:] == (addr, region):
            first = spans.pop()[0]
        spans.append((first, addr + size, region))
    return spans


def _fill(region: int, arch: Architecture) -> int:
    """Return the byte that is between blocks of a region."""
    return arch.trap[0] if region == Region.CODE else 0


def _store_blocks(graph: LinkGraph, rows: I64, room: U8, start: int, fill: int) -> None:
    """Store blocks in memory that begins at `start`.

    Those that are as far apart there as in their file are stored together, and what is in the
    gaps is mended after: an object of 20,000 functions is stored in one piece.
    """
    blocks = graph.blocks
    at = blocks.addr[rows].view(np.int64) - start
    content, size = blocks.content[rows], blocks.size[rows].astype(np.int64)
    if len(rows) < _FEW:
        _store_runs(graph.content, room, at, content, size)
        return
    gap = at[1:] - (at + size)[:-1]
    joined = (np.diff(at) == np.diff(content)) & (gap < _PAGE)
    heads = np.append(True, ~joined)[: len(rows)].nonzero()[0]
    tails = np.append(heads[1:], len(rows))[: len(heads)] - 1
    length = at[tails] + size[tails] - at[heads]
    _store_runs(graph.content, room, at[heads], content[heads], length)
    between = (joined & (gap > 0)).nonzero()[0]
    if len(between):
        room[rows_of((at + size)[between], gap[between])] = fill


def _store_runs(content: U8, room: U8, to: I64, begin: I64, size: I64) -> None:
    """Store runs of bytes of the content in memory."""
    source, target = content.data, room.data
    for at, first, count in zip(to.tolist(), begin.tolist(), size.tolist(), strict=True):
        target[at : at + count] = source[first : first + count]
