"""Whether two relocations, one of the old version and one of the new, mean the same thing.

Old and new name things differently: the old side is what the file says (often a section and
an addend), the new side is a graph edge that earlier passes have already pointed at a
function or a kept variable. S + A as a place in a section is what both sides can be turned
into, whatever symbol they were written with. A PC-relative addend carries the distance to the
end of the instruction; equal fields carry equal distances, so it is compared, not removed.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from reloader.elf.constants import SHF_EXECINSTR, SHF_MERGE, SHF_TLS, STT_SECTION, STT_TLS
from reloader.elf.object import UNDEFINED
from reloader.ids import I64, NO_ROW, Bool, Region
from reloader.link.graph import Origin
from reloader.link.passes.addresses import same_addresses
from reloader.link.passes.matcher import NO_ADDR, Matcher
from reloader.link.passes.pieces import split_sections
from reloader.link.passes.versions import (
    OFFSET_BITS,
    Columns,
    Pairs,
    Units,
    Version,
    equal_bytes,
    key_of,
)

_UNKNOWN = np.uint64(NO_ADDR & 0xFFFF_FFFF_FFFF_FFFF)


@dataclass(frozen=True, slots=True)
class Verdict(Columns):
    """(p,) what each pair of relocations says of its unit."""

    equal: Bool  # the same thing whatever becomes of anything else
    depends: Bool  # the places below, if what is there is the same
    new_section: I64
    new_place: I64  # S + A from the section's start
    old_section: I64
    old_place: I64


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
    old_section, old_place = old.home[pairs.old], old.place[pairs.old]
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
    wrong = ~known | other_sizes(match, pairs, symbol)
    # a thread-local variable that is started anew gets another place
    thread = inside & (graph.symbols.type[symbol] == STT_TLS)
    if np.count_nonzero(thread):
        wrong |= thread & (match.live.symbol_addr[old.symbol[pairs.old]] != _UNKNOWN)
    return Verdict(
        equal=equal & ~wrong,
        depends=depends & ~equal & ~wrong,
        new_section=new_section,
        new_place=new_place,
        old_section=old_section,
        old_place=old_place,
    )


def other_sizes(match: Matcher, pairs: Pairs, symbol: I64) -> Bool:
    """Return where a symbol's size is asked for that was another."""
    sized = match.fields.sized[match.new.number[pairs.new]]
    if np.count_nonzero(sized):
        before: Any = match.old.file.symbols
        was = before["st_size"][match.old.symbol[pairs.old]]
        sized &= match.graph.symbols.size[symbol] != was
    return sized


def own_symbol(match: Matcher, symbol: I64) -> I64:
    """Return each graph symbol's index in the new object, or NO_ROW for another's."""
    mine = match.graph.symbols.object[symbol] == match.row
    return np.where(mine, match.graph.symbols.source[symbol], NO_ROW).astype(np.int64)


def same_names(match: Matcher, pairs: Pairs, symbol: I64, addend: I64) -> Bool:
    """Return where both sides are undefined and ask for the same name."""
    old = match.old
    both = match.graph.symbols.origin[symbol] == Origin.UNDEFINED
    both &= old.home[pairs.old] == UNDEFINED
    if not np.count_nonzero(both):
        return both
    source, was = own_symbol(match, symbol), old.symbol[pairs.old]
    both &= source >= 0
    name = match.new_name[source] == match.old_name[was]
    binding = match.graph.symbols.binding[symbol] == old.file.bindings()[was]
    return both & name & binding & (addend == old.addend[pairs.old])


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
    if not np.count_nonzero(stable):
        return stable
    field = match.new.number[pairs.new]
    # in code the end of a PC-relative field is the end of a call or lea; in data it is S itself
    code = (match.new.flags[match.new.section[pairs.new]] & SHF_EXECINSTR) != 0
    ends = match.fields.pc[field] & code & (match.fields.width[field] == 4)
    start = addend == np.where(ends, -4, 0)
    value = old.file.symbols["st_value"][namesake].astype(np.int64)
    there = old.home[pairs.old] == old.file.symbol_sections[namesake]
    return stable & start & there & (old.place[pairs.old] - value == addend)


def same_pieces(match: Matcher, pairs: Pairs, merge: Bool, symbol: I64) -> Bool:
    """Return where both sides mean equal strings or constants of mergeable sections.

    A named label marks its piece itself and the addend is a distance inside it (linkers do
    the same); with a section symbol the addend finds the piece, after the 4 bytes of the field.
    """
    result = np.zeros(len(merge), np.bool_)
    old, new = match.old, match.new
    home = old.home[pairs.old]
    both = merge & (home >= 0) & ((old.flags[np.maximum(home, 0)] & SHF_MERGE) != 0)
    rows = both.nonzero()[0]
    if not len(rows):
        return result
    graph, chosen = match.graph, symbol[rows]
    addend = graph.edges.addend[match.edge[pairs.new[rows]]]
    section = graph.blocks.section[graph.symbols.block[chosen]].astype(np.int64)
    was, before = old.symbol[pairs.old[rows]], old.addend[pairs.old[rows]]
    pc = match.fields.pc[new.number[pairs.new[rows]]] * np.int64(4)
    new_named = graph.symbols.type[chosen] != STT_SECTION
    old_named = old.file.types()[was] != STT_SECTION
    value = graph.symbols.offset[chosen].astype(np.int64)
    past = old.file.symbols["st_value"][was].astype(np.int64)
    new_at = value + np.where(new_named, 0, addend + pc)
    old_at = past + np.where(old_named, 0, before + pc)
    # what stays outside of the piece: the whole addend of a label, the field's end otherwise
    rest = np.where(new_named, addend, -pc) == np.where(old_named, before, -pc)
    equal = (old_at == new_at) & equal_sections(old, new, home[rows], section)
    equal &= (new_at >= 0) & (new_at < new.size[section])
    # an immediate behind the field would put the piece 4 bytes on: then both must agree
    loose = (pc > 0) & ~(new_named & old_named)
    left = (~equal & rest).nonzero()[0]
    if len(left):
        places = (home[rows][left], old_at[left]), (section[left], new_at[left])
        equal[left] = equal_pieces((old, new), places, loose[left])
    result[rows] = equal & rest
    return result


def equal_sections(old: Version, new: Version, was: I64, section: I64) -> Bool:
    """Return where two mergeable sections hold the same bytes, cut in the same way."""
    key = was << OFFSET_BITS | section
    first, row = np.zeros(1, np.int64), np.zeros(len(key), np.int64)
    if bool((key != key[0]).any()):
        _, first, row = np.unique(key, return_index=True, return_inverse=True)
    was, section = was[first], section[first]
    zero = np.zeros(len(was), np.int64)
    same = (old.size[was] == new.size[section]) & (old.flags[was] == new.flags[section])
    entry = "sh_entsize"
    same &= old.file.sections[entry][was] == new.file.sections[entry][section]
    same &= equal_bytes(old, new, Units(section, zero, was, zero, new.size[section]))
    return same[row.reshape(-1)]


def equal_pieces(
    versions: tuple[Version, Version], places: tuple[tuple[I64, I64], ...], loose: Bool
) -> Bool:
    """Return where the places of two versions mean equal strings or constants.

    Args:
        versions: The old one and the new one.
        places: Of each version the sections and the offsets.
        loose: Where a place four bytes on may be meant instead: both have to be equal then.
    """
    numbers: dict[bytes, int] = {}
    found: list[tuple[I64, I64]] = []
    following: list[tuple[I64, I64]] = []
    for version, (section, at) in zip(versions, places, strict=True):
        wanted = np.zeros(len(version.flags), np.bool_)
        wanted[section] = True
        pieces = split_sections(version, wanted, numbers)
        found.append(pieces.find(key_of(section, at)))
        following.append(pieces.find(key_of(section, at + 4)))
    (old, old_distance), (new, new_distance) = found
    equal = (old >= 0) & (old == new) & (old_distance == new_distance)
    agree = (following[0][0] == following[1][0]) & (following[0][1] == following[1][1])
    return equal & (agree | ~loose)


def same_thread_locals(match: Matcher, pairs: Pairs, section: I64, place: I64) -> Bool:
    """Return where both sides mean the same byte of an unchanged thread-local section."""
    old, new = match.old, match.new
    if not bool((new.flags & SHF_TLS).any()):
        return np.zeros(len(section), np.bool_)
    home = old.home[pairs.old]
    both = (home >= 0) & (section >= 0)
    both &= (new.flags[np.maximum(section, 0)] & SHF_TLS) != 0
    both &= match.old_of_section[np.maximum(section, 0)] == home
    both &= new.size[np.maximum(section, 0)] == old.size[np.maximum(home, 0)]
    if bool(both.any()) and thread_locals(old) != thread_locals(new):
        return np.zeros(len(both), np.bool_)
    return both & (old.place[pairs.old] == place)


def thread_locals(version: Version) -> list[tuple[bytes, int, int]]:
    """Return name, offset and size of every thread-local variable, in a fixed order."""
    file = version.file
    rows = (file.types() == STT_TLS).nonzero()[0]
    values: list[int] = file.symbols["st_value"][rows].tolist()
    sizes: list[int] = file.symbols["st_size"][rows].tolist()
    names: list[bytes] = [file.symbol_names[row] for row in rows.tolist()]
    return sorted(zip(names, values, sizes, strict=True))
