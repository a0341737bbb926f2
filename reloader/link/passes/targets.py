"""Whether two relocations, one of the old version and one of the new, mean the same thing.

Old and new name things differently: the old side is what the file says (often a section and
an addend), the new side is a graph edge that earlier passes have already pointed at a
function or a kept variable. S + A as a place in a section is what both sides can be turned
into, whatever symbol they were written with. A PC-relative addend carries the distance to the
end of the instruction; equal fields carry equal distances, so it is compared, not removed.
"""

from dataclasses import dataclass
from itertools import repeat

import numpy as np
from numpy.typing import NDArray

from reloader.elf.constants import SHF_MERGE, SHF_TLS, SHF_WRITE, STT_FUNC, STT_SECTION
from reloader.elf.object import ABSOLUTE, COMMON, UNDEFINED
from reloader.ids import I64, NO_ROW, Bool, Region
from reloader.link.graph import LinkGraph, Origin
from reloader.link.passes.pieces import split_sections
from reloader.link.passes.versions import (
    Fields,
    Pairs,
    Version,
    function_rows,
    key_of,
    pair_keys,
)
from reloader.live.objects import LiveObject

NO_ADDR = -1  # ids.NO_ADDR seen as int64
UNKNOWN = np.iinfo(np.int64).min  # an old address that cannot be known
# where the end of an instruction may lie after a PC-relative field: right behind it, or behind
# an immediate of up to four bytes
FIELD_END = (0, 4, 8)
STT_TLS = 6


@dataclass(frozen=True, slots=True)
class Matcher:
    """Both versions of one object, and what pairs their sections and symbols."""

    graph: LinkGraph
    row: int  # of graph.objects
    live: LiveObject
    fields: Fields
    old: Version
    new: Version
    old_of_section: I64  # (s,) the old section of each new one, or NO_ROW
    old_of_function: I64  # (n,) the old function of each new one, or NO_ROW
    old_name: I64  # (n_old,) a number for each name
    new_name: I64  # (n_new,) the same numbers; NO_ROW for a name the old version lacks
    edge: I64  # (r,) graph edge of each relocation of `new`, or NO_ROW


@dataclass(frozen=True, slots=True)
class Verdict:
    """(p,) what each pair of relocations says of its unit."""

    equal: Bool  # the same thing whatever becomes of anything else
    depends: Bool  # the places below, if what is there is the same
    new_section: I64
    new_place: I64  # S + A from the section's start
    old_section: I64
    old_place: I64


def pair_functions(old: Version, new: Version) -> I64:
    """Return for each new symbol that is a function the old one of its name and localness."""
    flags = (1 << 63) - 1
    old_rows = function_rows(old.file, old.flags | 1, flags)
    new_rows = function_rows(new.file, new.flags | 1, flags)
    pairs = pair_keys(function_keys(old, old_rows), function_keys(new, new_rows))
    result = np.full(len(new.file.symbols), NO_ROW, np.int64)
    found = pairs >= 0
    result[new_rows[found]] = old_rows[pairs[found]]
    return result


def function_keys(version: Version, rows: NDArray[np.int32]) -> list[tuple[bytes, bool]]:
    """Return what a function is known by in every version: its name and its localness."""
    names = version.file.symbol_names
    local: list[bool] = (version.file.bindings()[rows] == 0).tolist()
    return [(names[row], own) for row, own in zip(rows.tolist(), local, strict=True)]


def number_names(old: Version, new: Version) -> tuple[I64, I64]:
    """Return a number for each symbol's name, equal in both versions for equal names."""
    before, after = old.file.symbol_names, new.file.symbol_names
    row_of = dict(zip(before, range(len(before)), strict=True))
    old_number = np.fromiter(map(row_of.__getitem__, before), np.int64, len(before))
    found = map(row_of.get, after, repeat(NO_ROW))
    return old_number, np.fromiter(found, np.int64, len(after))


def find_edges(graph: LinkGraph, row: int, new: Version, numbers: I64) -> I64:
    """Return the graph edge that was made of each relocation, or NO_ROW.

    Args:
        graph: Its edges are sorted by block, then offset; passes may have added some.
        row: The object's row.
        new: Its relocations.
        numbers: (e,) relocation type of each edge.
    """
    block = graph.block_of_section[row][new.section].astype(np.int64)
    key = key_of(block, new.offset)
    edges = key_of(graph.edges.block.astype(np.int64), graph.edges.offset.astype(np.int64))
    first = np.searchsorted(edges, key)
    result = np.full(len(key), NO_ROW, np.int64)
    # a marker or a pass may have put a second edge on the same field
    for step in (0, 1):
        at = np.minimum(first + step, max(len(edges) - 1, 0))
        if not len(edges):
            break
        hit = (result < 0) & (block >= 0) & (edges[at] == key) & (numbers[at] == new.number)
        result[hit] = at[hit]
    # two relocations of one field cannot be told apart: they have no edge, and count as changed
    twice = np.flatnonzero(key[1:] == key[:-1])
    result[twice] = NO_ROW
    result[twice + 1] = NO_ROW
    return result


def compare_targets(match: Matcher, pairs: Pairs) -> Verdict:
    """Compare what each pair of relocations refers to.

    Args:
        match: Functions and data of the graph are bound.
        pairs: Relocations of equal type at equal distances.
    """
    graph, old = match.graph, match.old
    edge = match.edge[pairs.new]
    known = edge >= 0
    symbol = graph.edges.symbol[edge].astype(np.int64)
    addend = graph.edges.addend[edge]
    origin = graph.symbols.origin[symbol]
    block = np.where(origin == Origin.BLOCK, graph.symbols.block[symbol], NO_ROW).astype(
        np.int64
    )
    inside = known & (block >= 0) & (graph.blocks.object[block] == match.row)
    new_section = np.where(inside, graph.blocks.section[block], NO_ROW).astype(np.int64)
    new_place = graph.symbols.offset[symbol].astype(np.int64) + addend
    was = old.symbol[pairs.old]
    old_section = old.file.symbol_sections[was].astype(np.int64)
    old_place = old.file.symbols["st_value"][was].astype(np.int64) + old.addend[pairs.old]
    region = graph.blocks.region[block]
    fixed = (region == Region.CODE) | (region == Region.RODATA)
    merge = inside & (graph.blocks.merge[block] > 0)
    depends = inside & fixed & ~merge & (new_section >= 0) & (old_section >= 0)
    equal = known & (
        same_names(match, pairs, symbol, addend)
        | same_addresses(match, pairs, symbol, addend)
        | same_functions(match, pairs, symbol, addend)
    )
    equal |= same_pieces(match, pairs, merge, symbol)
    equal |= inside & same_thread_locals(match, pairs, new_section, new_place)
    sized = match.fields.sized[match.new.number[pairs.new]]
    size = graph.symbols.size[symbol] != old.file.symbols["st_size"][was]
    wrong = (sized & size) | ~known
    return Verdict(
        equal=equal & ~wrong,
        depends=depends & ~equal & ~wrong,
        new_section=new_section,
        new_place=new_place,
        old_section=old_section,
        old_place=old_place,
    )


def own_symbol(match: Matcher, symbol: I64) -> I64:
    """Return each graph symbol's index in the new object, or NO_ROW for another's."""
    mine = match.graph.symbols.object[symbol] == match.row
    return np.where(mine, match.graph.symbols.source[symbol], NO_ROW).astype(np.int64)


def same_names(match: Matcher, pairs: Pairs, symbol: I64, addend: I64) -> Bool:
    """Return where both sides are undefined and ask for the same name."""
    old = match.old
    source, was = own_symbol(match, symbol), old.symbol[pairs.old]
    both = match.graph.symbols.origin[symbol] == Origin.UNDEFINED
    both = both & (source >= 0) & (old.file.symbol_sections[was] == UNDEFINED)
    name = match.new_name[source] == match.old_name[was]
    binding = match.graph.symbols.binding[symbol] == old.file.bindings()[was]
    return both & name & binding & (addend == old.addend[pairs.old])


def same_addresses(match: Matcher, pairs: Pairs, symbol: I64, addend: I64) -> Bool:
    """Return where both sides have an address and it is the same."""
    symbols = match.graph.symbols
    addr = symbols.addr[symbol].astype(np.int64)
    absolute = symbols.origin[symbol] == Origin.ABSOLUTE
    addr = np.where(absolute, symbols.offset[symbol].astype(np.int64), addr)
    bound = absolute | ((symbols.origin[symbol] == Origin.BOUND) & (addr != NO_ADDR))
    if not bool(bound.any()):
        return bound
    result = np.zeros(len(symbol), np.bool_)
    rows = np.flatnonzero(bound)
    before = old_targets(match, pairs.old[rows])
    result[rows] = (before != UNKNOWN) & (before == addr[rows] + addend[rows])
    return result


def old_targets(match: Matcher, rows: I64) -> I64:
    """Return S + A of relocations of the old version, or UNKNOWN."""
    old, live = match.old, match.live
    symbol, addend = old.symbol[rows], old.addend[rows]
    section = old.file.symbol_sections[symbol].astype(np.int64)
    value = old.file.symbols["st_value"][symbol].astype(np.int64)
    result = np.full(len(rows), UNKNOWN, np.int64)
    absolute = section == ABSOLUTE
    result[absolute] = (value + addend)[absolute]
    base = live.section_addr[np.maximum(section, 0)].astype(np.int64)
    placed = (section >= 0) & (base != NO_ADDR)
    result[placed] = (base + value + addend)[placed]
    canonical = live.symbol_addr[symbol].astype(np.int64)
    kind = old.file.types()[symbol]
    # a thread-local variable's address is its offset from the thread pointer
    function = ((kind == STT_FUNC) | (kind == STT_TLS)) & (canonical != NO_ADDR)
    result[function] = (canonical + addend)[function]
    writable = (section >= 0) & ((old.flags[np.maximum(section, 0)] & SHF_WRITE) != 0)
    common = section == COMMON
    kept = np.flatnonzero((writable & ~placed) | common)
    result[kept] = kept_targets(match, rows[kept])
    return result


def kept_targets(match: Matcher, rows: I64) -> I64:
    """Return S + A of old relocations to writable data, by where each variable is now.

    A section symbol with an addend names a byte near a variable. Where variables have moved
    apart, the byte is trusted only if every instruction end gives the same displacement.
    """
    old = match.old
    symbol, addend = old.symbol[rows], old.addend[rows]
    section = old.file.symbol_sections[symbol].astype(np.int64)
    value = old.file.symbols["st_value"][symbol].astype(np.int64)
    # DataMap keeps a COMMON symbol under the symbol's index
    value = np.where(section == COMMON, symbol, value)
    named = (old.file.types()[symbol] != STT_SECTION) | (section == COMMON)
    pc = match.fields.pc[old.number[rows]]
    moves = [
        displacement(match.live, section, np.where(named, value, value + addend + end * pc))
        for end in FIELD_END
    ]
    certain = (moves[0] == moves[1]) & (moves[1] == moves[2])
    single = single_moves(match.live, section)
    move = np.where(single != UNKNOWN, single, np.where(certain, moves[0], UNKNOWN))
    return np.where(move == UNKNOWN, UNKNOWN, move + value + addend)


def single_moves(live: LiveObject, section: I64) -> I64:
    """Return address minus offset for sections that live in one piece, else UNKNOWN."""
    first = np.searchsorted(live.data.section, section)
    last = np.searchsorted(live.data.section, section, side="right")
    alone = (last - first == 1) & (section >= 0)
    row = np.minimum(first, max(len(live.data.section) - 1, 0))
    if not len(live.data.section):
        return np.full(len(section), UNKNOWN, np.int64)
    move = live.data.addr[row].astype(np.int64) - live.data.offset[row].astype(np.int64)
    return np.where(alone, move, UNKNOWN)


def displacement(live: LiveObject, section: I64, offset: I64) -> I64:
    """Return address minus offset of the DataMap row that holds each byte, else UNKNOWN."""
    data = live.data
    if not len(data.section):
        return np.full(len(section), UNKNOWN, np.int64)
    start = data.offset.astype(np.int64)
    # section is COMMON (-3) for rows of COMMON symbols; their index is the whole offset
    key = key_of(data.section.astype(np.int64), start)
    row = np.maximum(np.searchsorted(key, key_of(section, offset), side="right") - 1, 0)
    inside = (data.section[row] == section) & (offset >= start[row])
    inside &= offset < start[row] + data.size[row].astype(np.int64)
    inside |= (section == COMMON) & (data.section[row] == COMMON) & (start[row] == offset)
    return np.where(inside, data.addr[row].astype(np.int64) - start[row], UNKNOWN)


def same_functions(match: Matcher, pairs: Pairs, symbol: I64, addend: I64) -> Bool:
    """Return where both sides mean the start of a function that keeps its canonical address.

    Such a reference never spreads a change: it goes through the stub or the old entry.
    """
    symbols, old = match.graph.symbols, match.old
    source = own_symbol(match, symbol)
    namesake = np.where(source >= 0, match.old_of_function[source], NO_ROW)
    addr = symbols.addr[symbol]
    stable = symbols.reloadable[symbol] & (symbols.origin[symbol] == Origin.BLOCK)
    stable &= (namesake >= 0) & (addr.astype(np.int64) != NO_ADDR)
    stable &= match.live.symbol_addr[namesake] == addr
    field = match.new.number[pairs.new]
    # in code the end of a PC-relative field is the end of a call or lea; in data it is S itself
    code = (match.new.flags[match.new.section[pairs.new]] & 4) != 0
    ends = match.fields.pc[field] & code & (match.fields.width[field] == 4)
    start = addend == np.where(ends, -4, 0)
    was = old.symbol[pairs.old]
    place = old.file.symbols["st_value"][was].astype(np.int64) + old.addend[pairs.old]
    home = old.file.symbol_sections
    value = old.file.symbols["st_value"][namesake].astype(np.int64)
    return stable & start & (home[was] == home[namesake]) & (place - value == addend)


def same_pieces(match: Matcher, pairs: Pairs, merge: Bool, symbol: I64) -> Bool:
    """Return where both sides mean equal strings or constants of mergeable sections.

    A named label marks its piece itself and the addend is a distance inside it (linkers do
    the same); with a section symbol the addend finds the piece, after the 4 bytes of the field.
    """
    result = np.zeros(len(merge), np.bool_)
    old, new = match.old, match.new
    home = old.file.symbol_sections[old.symbol[pairs.old]].astype(np.int64)
    both = merge & (home >= 0) & ((old.flags[np.maximum(home, 0)] & SHF_MERGE) != 0)
    rows = np.flatnonzero(both)
    if not len(rows):
        return result
    graph, edge = match.graph, match.edge[pairs.new[rows]]
    chosen, addend = symbol[rows], graph.edges.addend[match.edge[pairs.new[rows]]]
    section = graph.blocks.section[graph.symbols.block[chosen]].astype(np.int64)
    was, before = old.symbol[pairs.old[rows]], old.addend[pairs.old[rows]]
    pc = match.fields.pc[new.number[pairs.new[rows]]] * np.int64(4)
    new_named = graph.symbols.type[chosen] != STT_SECTION
    old_named = old.file.types()[was] != STT_SECTION
    value = graph.symbols.offset[chosen].astype(np.int64)
    past = old.file.symbols["st_value"][was].astype(np.int64)
    new_at = value + np.where(new_named, 0, graph.edges.addend[edge] + pc)
    old_at = past + np.where(old_named, 0, before + pc)
    numbers: dict[bytes, int] = {}
    wanted_old, wanted_new = (np.zeros(len(v.flags), np.bool_) for v in (old, new))
    wanted_old[home[rows]] = True
    wanted_new[section] = True
    pieces_old = split_sections(old, wanted_old, numbers)
    pieces_new = split_sections(new, wanted_new, numbers)
    old_number, old_distance = pieces_old.find(key_of(home[rows], old_at))
    new_number, new_distance = pieces_new.find(key_of(section, new_at))
    equal = (old_number >= 0) & (old_number == new_number) & (old_distance == new_distance)
    # what stays outside of the piece: the whole addend of a label, the field's end otherwise
    rest = np.where(new_named, addend, -pc) == np.where(old_named, before, -pc)
    # an immediate behind the field would put the piece 4 bytes on: then both must agree
    loose = (pc > 0) & ~(new_named & old_named)
    if bool(loose.any()):
        old_next, new_next = (
            pieces.find(key_of(at, to + 4))
            for pieces, at, to in (
                (pieces_old, home[rows], old_at),
                (pieces_new, section, new_at),
            )
        )
        agree = (old_next[0] == new_next[0]) & (old_next[1] == new_next[1])
        equal &= agree | ~loose
    result[rows] = equal & rest
    return result


def same_thread_locals(match: Matcher, pairs: Pairs, section: I64, place: I64) -> Bool:
    """Return where both sides mean the same byte of an unchanged thread-local section."""
    old, new = match.old, match.new
    home = old.file.symbol_sections[old.symbol[pairs.old]].astype(np.int64)
    was = old.file.symbols["st_value"][old.symbol[pairs.old]].astype(np.int64)
    both = (home >= 0) & (section >= 0)
    both &= (new.flags[np.maximum(section, 0)] & SHF_TLS) != 0
    both &= match.old_of_section[np.maximum(section, 0)] == home
    both &= new.size[np.maximum(section, 0)] == old.size[np.maximum(home, 0)]
    if bool(both.any()) and thread_locals(old) != thread_locals(new):
        return np.zeros(len(both), np.bool_)
    return both & (was + old.addend[pairs.old] == place)


def thread_locals(version: Version) -> list[tuple[bytes, int, int]]:
    """Return name, offset and size of every thread-local variable, in a fixed order."""
    file = version.file
    rows = np.flatnonzero(file.types() == STT_TLS)
    values: list[int] = file.symbols["st_value"][rows].tolist()
    sizes: list[int] = file.symbols["st_size"][rows].tolist()
    names: list[bytes] = [file.symbol_names[row] for row in rows.tolist()]
    return sorted(zip(names, values, sizes, strict=True))
