"""Which variables surely start with the same value in both versions of an object.

An edit leaves nearly all of them alone, and an object may have thousands: all are compared at
once, as columns. Only for the others it is worth finding words for what their fields refer to.
"""

import numpy as np

from reloader.elf.object import COMMON
from reloader.ids import I32, I64, U64, Bool
from reloader.link.passes.matcher import number_names
from reloader.link.passes.references import Side
from reloader.link.passes.versions import (
    Fields,
    Units,
    Version,
    equal_bytes,
    pair_relocations,
    version_of,
)

_STT_SECTION = 3
_STRINGS = 0x30  # SHF_MERGE | SHF_STRINGS
_MIX: tuple[np.uint64, ...] = tuple(
    np.uint64(odd) for odd in (0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9)
)


def surely_equal(old: Side, new: Side, past: I32, rows: I64) -> Bool:
    """Return (k,) which pairs of variables have the same initial value.

    Args:
        old: The live version.
        new: The version to load.
        past: (k,) variables of the live version.
        rows: (k,) the same variables of the new version.
    """
    fields = Fields.of(old.arch.kinds)
    before, after = version_of(old.file, fields), version_of(new.file, fields)
    was, now = old.variables, new.variables
    home, section = was.section[past].astype(np.int64), now.section[rows].astype(np.int64)
    units = Units(section, now.offset[rows], home, was.offset[past], now.size[rows])
    result = units.size == was.size[past]
    result &= (home == COMMON) == (section == COMMON)
    placed = (result & (home >= 0) & (section >= 0)).nonzero()[0]
    units = units.take(placed)
    same = equal_bytes(before, after, units)
    paired, pairs = pair_relocations(before, after, units)
    same &= paired
    old_symbol, new_symbol = before.symbol[pairs.old], after.symbol[pairs.new]
    alike = same_meaning(before, after, old_symbol, new_symbol)
    alike &= before.addend[pairs.old] == after.addend[pairs.new]
    same[pairs.unit[~alike]] = False
    result[placed] = same
    return result


def same_meaning(old: Version, new: Version, was: I64, now: I64) -> Bool:
    """Return where two symbols of the same name, with equal addends, mean the same thing.

    A section symbol with an addend means whatever is there: text of strings, or the symbol
    around it.
    """
    old_number, new_number = number_names(old, new)
    whole = old.file.types()[was] == _STT_SECTION
    alike = (old_number[was] == new_number[now]) & (
        whole == (new.file.types()[now] == _STT_SECTION)
    )
    rows = (alike & whole).nonzero()[0]
    if not len(rows):
        return alike
    home = old.file.symbol_sections[was[rows]].astype(np.int64)
    section = new.file.symbol_sections[now[rows]].astype(np.int64)
    layout = signatures(old, old_number)[home] == signatures(new, new_number)[section]
    text = (old.flags[home] | new.flags[section]) & _STRINGS == _STRINGS
    layout[text] = same_bytes(old, new, home[text], section[text])
    alike[rows[~layout]] = False
    return alike


def signatures(version: Version, number: I64) -> U64:
    """Return (s,) a number made of the names, places and sizes of a section's symbols."""
    file = version.file
    rows = ((file.symbol_sections >= 0) & (file.types() != _STT_SECTION)).nonzero()[0]
    mixed = (number[rows].view(np.uint64) + np.uint64(1)) * _MIX[0]
    mixed ^= (file.symbols["st_value"][rows] + mixed) * _MIX[1]
    mixed ^= (file.symbols["st_size"][rows] + (mixed >> np.uint64(29))) * _MIX[2]
    result = np.zeros(len(version.flags), np.uint64)
    np.add.at(result, file.symbol_sections[rows], mixed)
    return result


def same_bytes(old: Version, new: Version, was: I64, now: I64) -> Bool:
    """Return where two sections hold the same bytes."""
    zero = np.zeros(len(was), np.int64)
    equal = equal_bytes(old, new, Units(now, zero, was, zero, new.size[now]))
    return equal & (old.size[was] == new.size[now])
