"""Functions of sections in which an edit moved nothing, compared without decoding.

A new number in a condition leaves every function where it was, as large as it was. Then the
relocations of a function are those of its section, which has been compared as a whole, and a
branch that the assembler resolved has the same bytes if it leads to the same function. What is
left is to compare bytes. Where a compiler's pieces are about, or a field means something that
may be the same or not, nothing is said here: `match_functions` looks closer.
"""

from dataclasses import dataclass

import numpy as np

from reloader.ids import I64, Bool
from reloader.link.passes.match_functions import function_sizes
from reloader.link.passes.matcher import Matcher
from reloader.link.passes.targets import Verdict
from reloader.link.passes.versions import Pairs, Units, equal_bytes, key_of


@dataclass(frozen=True, slots=True)
class Compared:
    """What comparing whole sections has found."""

    paired: Bool  # (s,) sections all of whose relocations are in `pairs`
    pairs: Pairs
    verdict: Verdict  # on `pairs`


def same_in_place(match: Matcher, compared: Compared, rows: I64) -> Bool | None:
    """Return which functions are as they were, None where that needs a closer look.

    Args:
        match: blocks.same is final.
        compared: Its sections.
        rows: (k,) symbol rows of all functions in blocks that differ.
    """
    units = units_in_place(match, compared, rows)
    if units is None:
        return None
    same = equal_bytes(match.old, match.new, units)
    verdict, key = compared.verdict, match.new.key[compared.pairs.new]
    same &= ~holding(units, key[~verdict.equal & ~verdict.depends])
    # where there is a change, one more field does not matter
    kept = match.graph.block_of_section[match.row][verdict.new_section]
    kept = match.graph.blocks.same[kept] & (verdict.new_place == verdict.old_place)
    kept &= match.old_of_section[verdict.new_section] == verdict.old_section
    open_ = same & holding(units, key[verdict.depends & ~kept])
    return None if bool(open_.any()) else same


def units_in_place(match: Matcher, compared: Compared, rows: I64) -> Units | None:
    """Return functions beside their namesakes, None if any was moved or may be a piece."""
    symbols, old = match.graph.symbols, match.old.file
    source = symbols.source[rows]
    was = match.old_of_function[source]
    if not bool((symbols.reloadable[rows] & (was >= 0)).all()):
        return None
    section = match.graph.blocks.section[symbols.block[rows]].astype(np.int64)
    start = symbols.offset[rows].astype(np.int64)
    size = function_sizes(match.new)[source]
    stays = (size > 0) & (size == function_sizes(match.old)[was]) & compared.paired[section]
    stays &= old.symbols["st_value"][was] == symbols.offset[rows]
    stays &= old.symbol_sections[was] == match.old_of_section[section]
    if not bool(stays.all()):
        return None
    return Units(section, start, match.old_of_section[section], start, size)


def holding(units: Units, key: I64) -> Bool:
    """Return which functions hold one of some places of the new version."""
    key = np.sort(key)
    first = key_of(units.new_section, units.new_start)
    return key.searchsorted(first) < key.searchsorted(first + units.size)
