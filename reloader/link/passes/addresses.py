"""Where the targets of the old version's relocations are in the process, and if that is kept.

Writable variables are found through the live version's DataMap. As long as a section lives in
one piece, any reference into it is certain. Where an earlier reload moved its variables
apart, `section + addend` may mean the variable on either side of a border, since a PC-relative
addend hides how long the instruction is.
"""

import numpy as np

from reloader.elf.constants import SHF_WRITE, STT_FUNC, STT_SECTION, STT_TLS
from reloader.elf.object import ABSOLUTE, COMMON
from reloader.ids import I32, I64, Bool
from reloader.link.graph import Origin
from reloader.link.passes.matcher import NO_ADDR, Matcher
from reloader.link.passes.versions import Pairs, Version, key_of
from reloader.live.objects import LiveObject

UNKNOWN = np.iinfo(np.int64).min  # an old address that cannot be known
# where the end of an instruction may lie after a PC-relative field: right behind it, or behind
# an immediate of up to four bytes
FIELD_END = (0, 4, 8)


def same_addresses(match: Matcher, pairs: Pairs, symbol: I64, addend: I64) -> Bool:
    """Return where both sides have an address and it is the same."""
    symbols = match.graph.symbols
    addr = symbols.addr[symbol].astype(np.int64)
    absolute = symbols.origin[symbol] == Origin.ABSOLUTE
    addr = np.where(absolute, symbols.offset[symbol].astype(np.int64), addr)
    bound = absolute | ((symbols.origin[symbol] == Origin.BOUND) & (addr != NO_ADDR))
    rows = bound.nonzero()[0]
    if not len(rows):
        return bound
    before = old_targets(match, pairs.old[rows])
    hit = (before != UNKNOWN) & (before == (addr[rows] + addend[rows])[:, None])
    equal = hit.all(axis=1)
    # where instruction ends disagree, the very same words in both files mean the same variable
    doubtful = (hit.any(axis=1) & ~equal).nonzero()[0]
    if len(doubtful) and same_layout(match):
        equal[doubtful] = same_words(match, pairs.take(rows[doubtful]))
    result = np.zeros(len(symbol), np.bool_)
    result[rows] = equal
    return result


def same_words(match: Matcher, pairs: Pairs) -> Bool:
    """Return where both files name the same place of paired sections."""
    old, new = match.old, match.new
    was, now = old.symbol[pairs.old], new.symbol[pairs.new]
    home = new.file.symbol_sections[now].astype(np.int64)
    paired = (home >= 0) & (
        match.old_of_section[np.maximum(home, 0)] == old.file.symbol_sections[was]
    )
    before = old.file.symbols["st_value"][was].astype(np.int64) + old.addend[pairs.old]
    after = new.file.symbols["st_value"][now].astype(np.int64) + new.addend[pairs.new]
    return paired & (before == after)


def same_layout(match: Matcher) -> bool:
    """Return whether both files lay out the same writable variables in the same places."""
    return layout_of(match.old) == layout_of(match.new)


def layout_of(version: Version) -> list[tuple[bytes, bytes, int, int]]:
    """Return section, name, offset and size of every writable variable, in a fixed order."""
    file = version.file
    home = file.symbol_sections
    writable = (home >= 0) & ((version.flags[np.maximum(home, 0)] & SHF_WRITE) != 0)
    rows = (writable & (file.types() != STT_SECTION)).nonzero()[0]
    values: list[int] = file.symbols["st_value"][rows].tolist()
    sizes: list[int] = file.symbols["st_size"][rows].tolist()
    names: list[bytes] = [file.symbol_names[row] for row in rows.tolist()]
    homes: list[bytes] = [file.section_names[section] for section in home[rows].tolist()]
    return sorted(zip(homes, names, values, sizes, strict=True))


def old_targets(match: Matcher, rows: I64) -> I64:
    """Return (p, 3) S + A of relocations of the old version, or UNKNOWN.

    The columns differ only where it is not certain which variable is meant.
    """
    old, live = match.old, match.live
    symbol, addend = old.symbol[rows], old.addend[rows]
    section, place = old.home[rows], old.place[rows]
    result = np.where(section == ABSOLUTE, place, UNKNOWN)
    base = live.section_addr[np.maximum(section, 0)].view(np.int64)
    placed = (section >= 0) & (base != NO_ADDR)
    result[placed] = (base + place)[placed]
    canonical = live.symbol_addr[symbol].astype(np.int64)
    kind = old.file.types()[symbol]
    # a thread-local variable's address is its offset from the thread pointer
    known = ((kind == STT_FUNC) | (kind == STT_TLS)) & (canonical != NO_ADDR)
    result[known] = (canonical + addend)[known]
    columns = np.repeat(result[:, None], len(FIELD_END), axis=1)
    # of a section whose variables were split up, `section_addr` is that of its new ones only
    kept = in_sections(section, live.data.section).nonzero()[0]
    if len(kept):
        columns[kept] = kept_targets(match, rows[kept])
    return columns


def in_sections(section: I64, known: I32) -> Bool:
    """Return which sections are among some, given in ascending order."""
    if not len(known):
        return np.zeros(len(section), np.bool_)
    at = np.minimum(known.searchsorted(section), len(known) - 1)
    return known[at] == section


def kept_targets(match: Matcher, rows: I64) -> I64:
    """Return (p, 3) S + A of old relocations to writable data, by where each variable is now.

    A section symbol with an addend names a byte near a variable: the columns are what each
    possible end of the instruction would make of it.
    """
    old = match.old
    symbol, addend, section = old.symbol[rows], old.addend[rows], old.home[rows]
    # DataMap keeps a COMMON symbol under the symbol's index
    value = np.where(section == COMMON, symbol, old.place[rows] - addend)
    single = single_moves(match.live, section)
    if not np.count_nonzero(single == UNKNOWN):
        return np.repeat((single + value + addend)[:, None], len(FIELD_END), axis=1)
    named = (old.file.types()[symbol] != STT_SECTION) | (section == COMMON)
    pc = match.fields.pc[old.number[rows]]
    columns: list[I64] = []
    for end in FIELD_END:
        at = np.where(named, value, value + addend + end * pc)
        move = np.where(single != UNKNOWN, single, displacement(match.live, section, at))
        columns.append(np.where(move == UNKNOWN, UNKNOWN, move + value + addend))
    return np.stack(columns, axis=1)


def single_moves(live: LiveObject, section: I64) -> I64:
    """Return address minus offset for sections that live in one piece, else UNKNOWN."""
    data = live.data
    if not len(data.section):
        return np.full(len(section), UNKNOWN, np.int64)
    first = data.section.searchsorted(section)
    alone = data.section.searchsorted(section, side="right") - first == 1
    alone &= section >= 0
    row = np.minimum(first, len(data.section) - 1)
    move = (data.addr - data.offset).view(np.int64)[row]
    return np.where(alone, move, UNKNOWN)


def displacement(live: LiveObject, section: I64, offset: I64) -> I64:
    """Return address minus offset of the DataMap row that holds each byte, else UNKNOWN."""
    data = live.data
    if not len(data.section):
        return np.full(len(section), UNKNOWN, np.int64)
    start = data.offset.astype(np.int64)
    # section is COMMON (-3) for rows of COMMON symbols; their index is the whole offset
    key = key_of(data.section.astype(np.int64), start)
    row = np.maximum(key.searchsorted(key_of(section, offset), side="right") - 1, 0)
    inside = (data.section[row] == section) & (offset >= start[row])
    inside &= offset < start[row] + data.size[row].astype(np.int64)
    inside |= (section == COMMON) & (data.section[row] == COMMON) & (start[row] == offset)
    return np.where(inside, data.addr[row].astype(np.int64) - start[row], UNKNOWN)
