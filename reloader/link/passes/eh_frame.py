"""Unwind tables: cut down to the functions that are placed, and a sorted table to find them.

An `.eh_frame` section is a chain of records, each with its own length, so only walking it finds
where they begin. A CIE holds what several functions share (the personality routine); an FDE
describes one range of code and points back to its CIE. Nothing may ever walk our tables from
their start: they have no terminating zero, and are found through `.eh_frame_hdr` alone.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np

from reloader.elf.gather import rows_of
from reloader.errors.base import Place
from reloader.errors.linking import UnwindTableError
from reloader.ids import I32, I64, NO_ROW, U8, U64, Bool, Region
from reloader.link.graph import LinkGraph, Origin
from reloader.link.grow import append_filled_blocks, lookup
from reloader.link.names import UNWIND_NAME, named_blocks

_BEGIN: Final = 8  # of the start of the code in an FDE: length, CIE pointer, then it
_HEADER: Final = bytes([1, 0x1B, 0x03, 0x3B])  # version; pcrel sdata4, udata4, datarel sdata4
_HEADER_SIZE: Final = 12
_FEW: Final = 1000  # records: fewer are walked more quickly than looked up as columns


@dataclass(slots=True)
class Unwind:
    """(r,) columns: the records of all `.eh_frame` blocks, sorted by block, then start."""

    block: I32
    start: I64  # of the length field, in the block
    size: I64  # bytes, the length field included
    cie: I32  # row of the CIE of an FDE; NO_ROW for a CIE
    code: I32  # the code block that an FDE describes, NO_ROW: none of this graph
    begin_symbol: I32  # with begin_addend: where the FDE's code begins
    begin_addend: I64
    first_edge: I64  # rows of Edges in the record, until edges are added to the graph
    last_edge: I64
    header: int = NO_ROW  # block of `.eh_frame_hdr`


def read_unwind(graph: LinkGraph) -> Unwind:
    """Return the records of all unwind tables.

    Raises:
        UnwindTableError: A table's chain of lengths leaves it, or an FDE has no CIE.
    """
    tables = named_blocks(graph, UNWIND_NAME).nonzero()[0]
    edges = _edges_of(graph, tables)
    if len(edges) < _FEW:
        few = [at for table in tables.tolist() for at in _walked(graph, table)]
        key = np.array(few, np.int64)
    else:
        key, odd = _linked(graph, tables, edges)
        walked = [np.array(_walked(graph, table), np.int64) for table in odd]
        key = np.sort(np.concatenate([key, *walked])) if odd else key
    block, start = (key >> 32).astype(np.int32), key & 0xFFFF_FFFF
    words = graph.blocks.content[block] + start
    size, back = _words(graph, words) + 4, _words(graph, words + 4)
    none, zero = np.full(len(block), NO_ROW, np.int32), np.zeros(len(block), np.int64)
    unwind = Unwind(block, start, size, none, none, none, zero, zero, zero)
    _find_cies(graph, unwind, back)
    _find_edges(graph, unwind, edges)
    return unwind


def _edges_of(graph: LinkGraph, tables: I64) -> I64:
    """Return the edges of some blocks."""
    first: I64 = graph.edges.block.searchsorted(tables)
    last: I64 = graph.edges.block.searchsorted(tables, side="right")
    if len(tables) == 1:
        return np.arange(int(first[0]), int(last[0]), dtype=np.int64)
    return rows_of(first, last - first)


def _linked(graph: LinkGraph, tables: I64, edges: I64) -> tuple[I64, list[int]]:
    """Return the records (block << 32 | start) of tables of the usual form, and other tables.

    An FDE has a relocation where its code begins. So all edges tell where records may begin,
    and their CIE pointers where others do: if each of these ends where the next begins, they
    are what walking the table finds.
    """
    blocks = graph.blocks
    key = _edge_places(graph, edges) - _BEGIN
    block = graph.edges.block[edges]
    key = key[((key >> 32) == block) & (graph.edges.offset[edges] + 4 <= blocks.size[block])]
    word = _words(graph, _content_at(graph, key) + 4)
    cie = key + 4 - word
    known = (word != 0) & ((cie >> 32) == (key >> 32))
    key, cie = key[known], cie[known]
    shared = _words(graph, _content_at(graph, cie) + 4) == 0
    key, cie = key[shared], cie[shared]
    cie = np.unique(cie[np.diff(cie, prepend=-1) != 0])  # neighbours mostly share theirs
    key = np.sort(np.concatenate([cie, key]), kind="stable")
    block = key >> 32
    end = key + 4 + (length := _words(graph, _content_at(graph, key)))
    heads = np.diff(block, prepend=-1) != 0
    tails = np.diff(block, append=-1) != 0
    stop = (block << 32) + blocks.size[block].astype(np.int64)
    good = end == np.where(tails, stop, np.roll(key, -1))
    rest = (tails & (end + 4 <= stop)).nonzero()[0]  # a terminating zero may follow
    good[rest] = _words(graph, _content_at(graph, end[rest])) == 0
    good &= (length >= 4) & (end <= stop) & (~heads | (key == block << 32))
    usual = np.zeros(len(blocks.size), np.bool_)
    usual[block] = True
    usual[block[~good]] = False
    odd: list[int] = tables[~usual[tables]].tolist()
    return key[usual[block]], odd


def _edge_places(graph: LinkGraph, edges: I64) -> I64:
    """Return block << 32 | offset of some edges."""
    return (graph.edges.block[edges].astype(np.int64) << 32) | graph.edges.offset[edges]


def _content_at(graph: LinkGraph, key: I64) -> I64:
    """Return where in the content block << 32 | offset is."""
    return graph.blocks.content[key >> 32] + (key & 0xFFFF_FFFF)


def _words(graph: LinkGraph, at: I64) -> I64:
    """Return the 4-byte words at some places of the content."""
    return graph.content[at[:, None] + np.arange(4)].view("<u4").reshape(-1).astype(np.int64)


def _walked(graph: LinkGraph, block: int) -> list[int]:
    """Return each record of a table, block << 32 | start.

    A loop, since a record's start depends on all lengths before it; 0.1 us a record.
    """
    data = graph.block_bytes(block)
    text = data.data
    words = text[: len(data) & ~3].cast("I")
    starts: list[int] = []
    place, at, end = block << 32, 0, len(data)
    while at + 4 <= end:
        whole = not at & 3  # nearly always: tables are padded to words
        length = words[at >> 2] if whole else int.from_bytes(text[at : at + 4], "little")
        if not length:
            break
        if at + 8 > end:
            raise _broken(graph, block, at, "a record is cut off")
        if length < 4 or at + 4 + length > end:
            raise _broken(graph, block, at, f"a record of {length:#x} bytes leaves the table")
        starts.append(place | at)
        at += 4 + length
    return starts


def _broken(graph: LinkGraph, block: int, offset: int, why: str) -> UnwindTableError:
    file = graph.objects[int(graph.blocks.object[block])]
    return UnwindTableError(Place(file.name, ".eh_frame", offset), why)


def _find_cies(graph: LinkGraph, unwind: Unwind, back: I64) -> None:
    """Set `cie`: an FDE's second word is its distance from its CIE."""
    key = (unwind.block.astype(np.int64) << 32) | unwind.start
    fde = (back != 0).nonzero()[0]
    wanted = key[fde] + 4 - back[fde]
    row = np.minimum(key.searchsorted(wanted), max(len(key) - 1, 0))
    bad = fde[(key[row] != wanted) | (back[row] != 0)] if len(fde) else fde
    if len(bad):
        raise _broken(
            graph, int(unwind.block[bad[0]]), int(unwind.start[bad[0]]), "an FDE has no CIE"
        )
    unwind.cie = np.full(len(key), NO_ROW, np.int32)
    unwind.cie[fde] = row


def _find_edges(graph: LinkGraph, unwind: Unwind, own: I64) -> None:
    """Set the edges of each record, among the tables' own, and the code of each FDE."""
    edges, symbols, blocks = graph.edges, graph.symbols, graph.blocks
    place = _edge_places(graph, own)
    key = (unwind.block.astype(np.int64) << 32) | unwind.start
    first, last = place.searchsorted(key), place.searchsorted(key + unwind.size)
    row = np.append(own, 0)  # each table's edges stand together
    unwind.first_edge = row[first]
    unwind.last_edge = row[first] + last - first
    begin = place.searchsorted(key + _BEGIN)
    has = (begin < last) & (unwind.cie != NO_ROW)
    has &= np.append(place, NO_ROW)[begin] == key + _BEGIN
    row = np.where(has, row[begin], NO_ROW).astype(np.int32)
    unwind.begin_symbol = lookup(edges.symbol, row, NO_ROW)
    unwind.begin_addend = lookup(edges.addend, row, 0)
    within = lookup(symbols.origin, unwind.begin_symbol, Origin.UNDEFINED) == Origin.BLOCK
    code = np.where(within, lookup(symbols.block, unwind.begin_symbol, NO_ROW), NO_ROW)
    # A losing COMDAT copy's FDE is bound to the winner's section: that one has its own FDE.
    own = lookup(blocks.object, code, NO_ROW) == blocks.object[unwind.block]
    own &= lookup(blocks.region, code, Region.NONE) == Region.CODE
    unwind.code = np.where(own, code, NO_ROW).astype(np.int32)


def unwind_edges(unwind: Unwind) -> tuple[I32, I64]:
    """Return (code block, edge row) of all that the unwinder follows from a code block.

    These are the edges of its FDEs (the exception table) and of their CIEs (the personality).
    """
    fde = (unwind.code != NO_ROW).nonzero()[0]
    record = np.concatenate([fde, unwind.cie[fde].astype(np.int64)])
    code = np.concatenate([unwind.code[fde], unwind.code[fde]])
    first = unwind.first_edge[record]
    count = unwind.last_edge[record] - first
    return code.repeat(count), rows_of(first, count)


def cut_eh_frame(graph: LinkGraph, unwind: Unwind) -> None:
    """Drop every record that describes no placed code, in place; the blocks get smaller.

    Sets blocks.live of the tables. Edges of dropped records die; the others move with their
    record. A header block is added, whose size is final.
    """
    blocks = graph.blocks
    kept = lookup(blocks.live & ~blocks.same, unwind.code, 0)
    kept[unwind.cie[kept]] = True
    blocks.live[unwind.block] = False
    blocks.live[unwind.block[kept]] = True
    if not bool(kept.all()) or _ends_early(graph, unwind):
        _cut(graph, unwind, kept)
    fdes = int(np.count_nonzero(unwind.code != NO_ROW))
    if fdes:
        size = np.array([_HEADER_SIZE + 8 * fdes], np.int64)
        unwind.header = int(append_filled_blocks(graph, size, align=4)[0])


def _ends_early(graph: LinkGraph, unwind: Unwind) -> bool:
    """Return whether a table has bytes after its last record."""
    size = graph.blocks.size
    held = np.bincount(unwind.block, unwind.size, len(size))
    return bool((held[unwind.block] != size[unwind.block]).any())


def _cut(graph: LinkGraph, unwind: Unwind, kept: Bool) -> None:
    """Close the tables up to the records that are kept."""
    blocks = graph.blocks
    new_start = _new_starts(unwind, kept)
    _move_edges(graph, unwind, kept, new_start)
    left = np.bincount(unwind.block, np.where(kept, unwind.size, 0), len(blocks.size))
    blocks.size[unwind.block] = left[unwind.block].astype(np.uint64)
    for block in np.unique(unwind.block[~kept]).tolist():
        _compact(graph, unwind, block, kept, new_start)
    unwind.start = new_start
    unwind.code = np.where(kept, unwind.code, NO_ROW).astype(np.int32)


def _new_starts(unwind: Unwind, kept: Bool) -> I64:
    """Return where each record begins among the kept ones of its block."""
    size = np.where(kept, unwind.size, 0)
    end = np.cumsum(size)
    head = unwind.block.searchsorted(unwind.block)  # the block's first record
    return end - size - (end - size)[head]


def _move_edges(graph: LinkGraph, unwind: Unwind, kept: Bool, new_start: I64) -> None:
    """Move edges with their records; those of dropped ones die, yet keep the table sorted."""
    if not len(unwind.block):
        return
    count = unwind.last_edge - unwind.first_edge
    step = np.arange(int(count.sum())) - np.repeat(np.cumsum(count) - count, count)
    row = np.repeat(unwind.first_edge, count) + step
    stays = np.repeat(kept, count)
    inner = graph.edges.offset[row].astype(np.int64) - np.repeat(unwind.start, count)
    moved = np.repeat(new_start, count) + np.where(stays, inner, 0)
    graph.edges.offset[row] = moved
    alive = graph.edges.live[row] & stays
    is_table = np.zeros(len(graph.blocks.object), np.bool_)
    is_table[unwind.block] = True
    # what follows a terminating zero is in no record
    graph.edges.live[is_table[graph.edges.block]] = False
    graph.edges.live[row] = alive


def _compact(graph: LinkGraph, unwind: Unwind, block: int, kept: Bool, new_start: I64) -> None:
    """Close the gaps between a block's kept records and mend their CIE pointers."""
    ends: list[int] = unwind.block.searchsorted([block, block + 1]).tolist()
    rows: I64 = np.arange(*ends, dtype=np.int64)
    stays = np.repeat(kept[rows], unwind.size[rows])
    first = int(graph.blocks.content[block])
    data = graph.content[first : first + len(stays)]
    left = data[stays]
    fde = rows[kept[rows] & (unwind.cie[rows] != NO_ROW)]
    back: I64 = new_start[fde] + 4 - new_start[unwind.cie[fde]]
    left[(new_start[fde] + 4)[:, None] + np.arange(4)] = (
        back.astype("<u4").view(np.uint8).reshape(-1, 4)
    )
    data[: len(left)] = left


def unwind_ranges(graph: LinkGraph, unwind: Unwind) -> tuple[U64, U64]:
    """Return where each kept FDE's code begins, sorted, and where the FDE is.

    Args:
        graph: Every block has its address.
        unwind: Cut down to what is placed.
    """
    symbols, blocks = graph.symbols, graph.blocks
    fde = (unwind.code != NO_ROW).nonzero()[0]
    begin = blocks.addr[unwind.code[fde]] + symbols.offset[unwind.begin_symbol[fde]]
    begin = begin + unwind.begin_addend[fde].astype(np.uint64)
    at = blocks.addr[unwind.block[fde]] + unwind.start[fde].astype(np.uint64)
    order = np.argsort(begin, kind="stable")
    return begin[order], at[order]


def write_eh_frame_hdr(graph: LinkGraph, unwind: Unwind) -> None:
    """Write the table through which unwinders find an FDE by binary search."""
    if unwind.header == NO_ROW:
        return
    begin, at = unwind_ranges(graph, unwind)
    header = graph.blocks.addr[unwind.header]
    table: U8 = graph.block_bytes(unwind.header)
    table[:4] = np.frombuffer(_HEADER, np.uint8)
    frame = np.array([int(at.min()) - int(header) - 4], "<i8").astype("<i4")
    table[4:8] = frame.view(np.uint8)
    table[8:12] = np.array([len(begin)], "<u4").view(np.uint8)
    pairs = np.stack([begin - header, at - header], axis=1).view(np.int64)
    table[12:] = pairs.astype("<i4").reshape(-1).view(np.uint8)
