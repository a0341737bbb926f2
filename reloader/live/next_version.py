"""What each object will be once a transaction is live, and what its new memory depends on."""

from collections.abc import Iterator, Sequence
from itertools import accumulate, pairwise
from typing import Final

import numpy as np

from reloader.elf.object import UNDEFINED
from reloader.ids import I32, I64, NO_ADDR, NO_ROW, U64, Generation, Region
from reloader.link.graph import LinkGraph
from reloader.link.layout import Placed, body_addr
from reloader.link.names import UNWIND_NAME, named_blocks
from reloader.link.passes.bind_data import next_data_maps
from reloader.live.ledger import Held, Ledger
from reloader.live.objects import LiveObject
from reloader.live.program import Program

_PAGE_BITS: Final = np.uint64(12)
_PAGES_BITS: Final = np.uint64(36)  # of a page's number: addresses have 47 bits
_ADDR_MASK: Final = np.uint64((1 << 48) - 1)
_MOST_FLAGS: Final = 1 << 24  # (allocation, symbol) pairs that are flagged, not sorted


def next_versions(
    graph: LinkGraph, program: Program, generation: Generation
) -> list[LiveObject]:
    """Return the LiveObject of every object of a placed graph."""
    version = program.host.version
    symbols = list(pairwise(graph.first_symbol.tolist()))
    sections = list(pairwise(accumulate(map(len, graph.block_of_section), initial=0)))
    section_addr, symbol_addr = section_addrs(graph), defined_addrs(graph)
    slot = np.maximum(graph.symbols.slot[: len(symbol_addr)], NO_ROW).astype(np.int32)
    return [
        version(
            LiveObject(
                file, generation, section_addr[slice(*own)], symbol_addr[a:b], slot[a:b], data
            )
        )
        for file, own, (a, b), data in zip(
            graph.objects, sections, symbols, next_data_maps(graph), strict=True
        )
    ]


def section_addrs(graph: LinkGraph) -> U64:
    """Return where each section's single copy is, of all objects; data maps have the others."""
    blocks = graph.blocks
    block = np.concatenate([np.zeros(0, np.int32), *graph.block_of_section])
    addr = blocks.addr[np.maximum(block, 0)]
    single = (block != NO_ROW) & (blocks.region[np.maximum(block, 0)] <= Region.RODATA)
    return np.where(single, addr, np.uint64(NO_ADDR)).astype(np.uint64)


def defined_addrs(graph: LinkGraph) -> U64:
    """Return the canonical address of the objects' own symbols, NO_ADDR for undefined ones."""
    sections = np.concatenate([file.symbol_sections for file in graph.objects])
    own = graph.symbols.addr[: len(sections)]
    return np.where(sections == UNDEFINED, np.uint64(NO_ADDR), own).astype(np.uint64)


def hold(
    graph: LinkGraph,
    placed: Sequence[Placed],
    ledger: Ledger,
    generation: Generation,
    unwind: int,
) -> list[Held]:
    """Return the ledger rows of a transaction's allocations, with what each refers to.

    Args:
        graph: Placed; every symbol has its address.
        placed: One row an object and region.
        ledger: Only read: what older generations hold.
        generation: The one being made.
        unwind: Address of the transaction's `.eh_frame_hdr`, 0: it has none.
    """
    keys = [*(file.key for file in graph.objects), ("", "")]  # the last one is for NO_ROW
    rows = [
        Held(
            allocation=item.allocation,
            generation=generation,
            object=keys[item.object],
            unwind_addr=unwind if item.region == Region.CODE else 0,
        )
        for item in placed
    ]
    fresh = Ledger()
    fresh.add(rows)
    for source, targets in references(graph, fresh, ledger):
        fresh.rows[source].references.update(targets)
    if unwind:
        tables = unwind_tables(graph, unwind, fresh, ledger)
        for row, item in zip(rows, placed, strict=True):
            if row.unwind_addr:
                row.references.update(tables[NO_ROW], tables.get(item.object, ()))
    return rows


def unwind_tables(
    graph: LinkGraph, header: int, fresh: Ledger, ledger: Ledger
) -> dict[int, set[int]]:
    """Return the memory that holds each object's unwind tables: an unwinder reads them.

    That of the header, which is all objects', is under NO_ROW.
    """
    blocks = graph.blocks
    rows = (named_blocks(graph, UNWIND_NAME) & blocks.live).nonzero()[0]
    addrs = np.append(blocks.addr[rows], np.uint64(header))
    owners: list[int] = [*blocks.object[rows].tolist(), NO_ROW]
    tables: dict[int, set[int]] = {NO_ROW: set()}
    for owner, start in zip(owners, holders(addrs, fresh, ledger).tolist(), strict=True):
        if start:
            tables.setdefault(owner, set[int]()).add(start)
    return tables


def holders(addrs: U64, fresh: Ledger, ledger: Ledger) -> U64:
    """Return the start of the memory of ours that each address is in, new or old, or 0."""
    start = fresh.starts_of(addrs)
    return np.where(start != 0, start, ledger.starts_of(addrs))


def references(
    graph: LinkGraph, fresh: Ledger, ledger: Ledger
) -> Iterator[tuple[int, list[int]]]:
    """Yield the address of new memory, and of all memory that edges in it lead to."""
    blocks, symbols = graph.blocks, graph.symbols
    sources, home = fresh.find(blocks.addr)
    # A table describes code and does not keep it; the code keeps the table.
    home[~blocks.live | named_blocks(graph, UNWIND_NAME)] = NO_ROW
    row, symbol = used_symbols(graph, home, len(sources))
    source = np.array(sources, np.uint64)[row]
    keys: list[U64] = []
    for addr in (symbols.addr[symbol], body_addr(graph)[symbol]):
        target = holders(addr, fresh, ledger)
        used = (target != 0) & (target != source)
        keys.append(row[used].astype(np.uint64) << _PAGES_BITS | target[used] >> _PAGE_BITS)
    key = np.unique(np.concatenate(keys))
    heads = np.diff(key >> _PAGES_BITS, prepend=np.uint64(len(sources))).nonzero()[0].tolist()
    rows: list[int] = (key >> _PAGES_BITS)[heads].tolist()
    targets: list[int] = ((key << _PAGE_BITS) & _ADDR_MASK).tolist()
    ends = [*heads[1:], len(key)] if heads else []
    for at, first, last in zip(rows, heads, ends, strict=True):
        yield sources[at], targets[first:last]


def used_symbols(graph: LinkGraph, home: I32, count: int) -> tuple[I64, I64]:
    """Return each distinct (row of `home`, symbol) that a live edge joins.

    Args:
        graph: Placed.
        home: (b,) the allocation of each block, or NO_ROW.
        count: How many allocations there are.
    """
    edges, symbols = graph.edges, len(graph.symbols.name)
    row = home[edges.block]
    used = edges.live & (row != NO_ROW)
    key = row.astype(np.int64) * symbols + edges.symbol
    key = key if bool(used.all()) else key[used]
    if count * symbols > _MOST_FLAGS:
        distinct = np.unique(key)
    else:  # a flag each: no sort of all edges
        flags = np.zeros(count * symbols, np.bool_)
        flags[key] = True
        distinct = flags.nonzero()[0]
    return distinct // symbols, distinct % symbols
