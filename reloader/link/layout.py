"""Block sizes and alignments -> offsets -> addresses in the arena.

One allocation an object and region, since that is what is given back as a whole. Within it
blocks stand in falling alignment, each size rounded up to its own alignment: then every
offset is the sum of the sizes before, and no gap is larger than a block's own tail.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from reloader.arch.base import Architecture
from reloader.ids import I64, NO_ADDR, NO_ROW, U8, U64, Bool, Region
from reloader.link.graph import LinkGraph, Origin
from reloader.link.grow import lookup
from reloader.live.target import Allocation

_PAGE: Final = 4096  # the least alignment of an allocation

Allocate = Callable[[int, int], Allocation]  # (Region, size)


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
        allocate: Takes fresh memory of a region in the arena, page-granular.

    Returns:
        One row an object and region; also of what was taken before an `allocate` that raised,
        the caller gives everything back.
    """
    blocks = graph.blocks
    wanted = blocks.live & ~blocks.same & (blocks.addr == np.uint64(NO_ADDR))
    rows = np.flatnonzero(wanted & (blocks.region <= Region.DATA)).astype(np.int64)
    falling = -blocks.align[rows].astype(np.int64)
    order = np.lexsort((rows, falling, blocks.region[rows], blocks.object[rows]))
    rows = rows[order]
    group = blocks.object[rows].astype(np.int64) << 8 | blocks.region[rows]
    heads = np.flatnonzero(np.diff(group, prepend=group[:1] - 1))
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
    placed: list[Placed] = []
    bases: list[int] = []
    groups = zip(
        blocks.object[rows[heads]].tolist(),
        blocks.region[rows[heads]].tolist(),
        total.tolist(),
        align[heads].tolist(),
        strict=True,
    )
    for owner, region, wanted, greatest in groups:
        allocation = allocate(region, max(wanted, 1) + max(greatest - _PAGE, 0))
        bases.append(-(-allocation.addr // greatest) * greatest)
        placed.append(Placed(owner, region, allocation))
    base = np.array(bases, np.uint64) - before  # may wrap, and wraps back
    blocks.addr[rows] = np.repeat(base, count) + end - rounded
    return placed


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
    data = np.empty(placed.allocation.size, np.uint8)
    fill_images(graph, [placed], [data], arch)
    return data


def fill_images(
    graph: LinkGraph, placed: Sequence[Placed], rooms: Iterable[U8], arch: Architecture
) -> None:
    """Store all bytes of allocations, as `image` returns them; blocks are looked at once.

    Args:
        graph: Its content is final.
        placed: The allocations.
        rooms: For each of them its memory, as large as it is.
        arch: Knows what fills gaps.
    """
    blocks = graph.blocks
    rows = np.flatnonzero(fresh_blocks(graph) & (blocks.content >= 0))
    rows = rows[np.argsort(blocks.addr[rows], kind="stable")]
    addr = blocks.addr[rows]
    columns = addr.tolist(), blocks.content[rows].tolist(), blocks.size[rows].tolist()
    source = graph.content.data
    starts = np.array([item.allocation.addr for item in placed], np.uint64)
    sizes = np.array([item.allocation.size for item in placed], np.uint64)
    bounds = addr.searchsorted(starts).tolist(), addr.searchsorted(starts + sizes).tolist()
    fills = {True: np.frombuffer(arch.trap, np.uint8), False: np.zeros(1, np.uint8)}
    for item, room, first, last in zip(placed, rooms, *bounds, strict=True):
        start, fill = int(item.allocation.addr), fills[item.region == Region.CODE]
        room.reshape(-1, len(fill))[:] = fill
        data, inside = room.data, slice(first, last)
        for at, content, length in zip(*(column[inside] for column in columns), strict=True):
            data[at - start : at - start + length] = source[content : content + length]
