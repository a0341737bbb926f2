"""Which functions of blocks that differ are the same as before, one by one.

A function is the same if its bytes outside relocated fields are, each field means the same
thing, and the branches that the assembler resolved itself lead to the same functions. What it
uses without going through a stub (a `.cold` or `.constprop` part, the bytes of a jump table)
must be the same too; that spreads backwards, as between blocks.
"""

from dataclasses import dataclass

import numpy as np

from reloader.elf.alike import of_tables
from reloader.elf.constants import SHF_EXECINSTR, STT_FUNC, STT_GNU_IFUNC
from reloader.elf.gather import one_of
from reloader.elf.object import ObjectFile
from reloader.ids import I64, NO_ROW, Bool, Region
from reloader.link.passes.branches import find_branches, unmoved
from reloader.link.passes.constants import Extents, Uses, field_end, own_tables
from reloader.link.passes.instructions import (
    Code,
    Decoder,
    hidden_references,
    x86_64_decoder,
)
from reloader.link.passes.matcher import Matcher
from reloader.link.passes.targets import Verdict, compare_targets
from reloader.link.passes.versions import (
    OFFSET_BITS,
    Pairs,
    Units,
    Version,
    equal_bytes,
    key_of,
    pair_relocations,
    spread,
)

MAX_DEPTH = 8  # constants that point to constants: beyond it, a function counts as changed


@dataclass(frozen=True, slots=True)
class Functions:
    """(u,) columns: the functions that are compared, by section, then start."""

    units: Units
    key: I64  # key_of(new section, new start), ascending
    same: Bool  # in progress
    known: Bool  # has a namesake in the old version
    paired: Bool  # which has the same size
    reloadable: Bool

    def holding(self, section: I64, place: I64) -> I64:
        """Return the function that holds each place of the new version, or NO_ROW."""
        if not len(self.key):
            return np.full(len(place), NO_ROW, np.int64)
        key = key_of(section, place)
        row = np.maximum(self.key.searchsorted(key, side="right") - 1, 0)
        inside = (key >= self.key[row]) & (key < self.key[row] + self.units.size[row])
        return np.where(inside, row, NO_ROW)

    def keeps_distance(self, row: I64, verdict: Verdict, end: I64, slack: I64) -> Bool:
        """Return where both places lie in function `row` at the same distance from its start.

        Args:
            row: (p,) functions.
            verdict: (p,) places.
            end: (p,) bytes from S + A to the place that is meant.
            slack: (p,) bytes past the function's end that still count.
        """
        units = self.units
        distance = verdict.new_place + end - units.new_start[row]
        equal = distance == verdict.old_place + end - units.old_start[row]
        equal &= verdict.new_section == units.new_section[row]
        equal &= verdict.old_section == units.old_section[row]
        return equal & (distance >= 0) & (distance < units.size[row] + slack) & (row >= 0)


def same_functions(match: Matcher, rows: I64) -> Bool:
    """Return whether each function is the same as its live version.

    Args:
        match: blocks.same is final.
        rows: (k,) symbol rows of functions in blocks that differ.
    """
    functions, order = function_units(match, rows)
    same = functions.same
    same &= functions.paired
    raw = equal_bytes(match.old, match.new, functions.units)
    fields, pairs = pair_relocations(match.old, match.new, functions.units)
    same &= fields
    in_place = unmoved(match, functions)
    same &= raw | ~in_place
    branches = find_branches(match, functions, raw, in_place)
    found = [(branches.user, branches.used), *follow_fields(match, functions, pairs)]
    decoded = same & branches.unsure
    found.append(compare_code(match, functions, decoded.nonzero()[0]))
    while True:
        spread(same, *(np.concatenate(column) for column in zip(*found, strict=True)))
        # most 1-byte numbers that seem to lead into a changed part are none: decode these
        doubt = branches.short_user[~same[branches.short_used]]
        doubt = np.unique(doubt[same[doubt] & ~decoded[doubt]])
        if not len(doubt):
            break
        decoded[doubt] = True
        found.append(compare_code(match, functions, doubt))
    result = np.zeros(len(rows), np.bool_)
    result[order] = same
    return result


def function_units(match: Matcher, rows: I64) -> tuple[Functions, I64]:
    """Return the functions beside their namesakes, and the order they were put in."""
    symbols, blocks = match.graph.symbols, match.graph.blocks
    source = symbols.source[rows].astype(np.int64)
    section = blocks.section[symbols.block[rows]].astype(np.int64)
    start = symbols.offset[rows].astype(np.int64)
    order = np.argsort(key_of(section, start), kind="stable")
    source, section, start = source[order], section[order], start[order]
    size = function_sizes(match.new)[source]
    was = match.old_of_function[source]
    home = match.old.file.symbol_sections[was].astype(np.int64)
    known = (was >= 0) & (home >= 0)
    known &= (match.old.flags[np.maximum(home, 0)] & SHF_EXECINSTR) != 0
    paired = known & (size > 0) & (function_sizes(match.old)[was] == size)
    old_start = match.old.file.symbols["st_value"][was].astype(np.int64)
    units = Units(section, start, np.where(known, home, 0), old_start, size)
    key = key_of(section, start)
    reloadable = symbols.reloadable[rows][order]
    return Functions(units, key, np.ones(len(rows), np.bool_), known, paired, reloadable), order


def function_sizes(version: Version) -> I64:
    """Return (n,) the size of each symbol; a function without one ends at the next symbol."""
    return _sizes(version.file)


@of_tables
def _sizes(file: ObjectFile) -> I64:
    sections = file.sections["sh_size"].astype(np.int64)
    size = file.symbols["st_size"].astype(np.int64)
    home = file.symbol_sections.astype(np.int64)
    value = file.symbols["st_value"].astype(np.int64)
    room = np.where(home >= 0, sections[np.maximum(home, 0)] - value, 0)
    bare = (size == 0) & (home >= 0)
    bare = (bare & one_of(file.types(), (STT_FUNC, STT_GNU_IFUNC))).nonzero()[0]
    if len(bare):
        places = np.unique(key_of(home, value)[home >= 0])
        at = places.searchsorted(key_of(home, value)[bare], side="right")
        after = places[np.minimum(at, len(places) - 1)] - key_of(home, value)[bare]
        after = np.where(at < len(places), after, room[bare])
        size[bare] = np.minimum(after, room[bare])
    return np.clip(size, 0, np.maximum(room, 0))


def compare_code(match: Matcher, functions: Functions, rows: I64) -> tuple[I64, I64]:
    """Decode functions and compare the references that have no relocation.

    Returns:
        (user, used) rows of functions that need another function's bytes to be the same.
    """
    user: list[int] = []
    used: list[int] = []
    decode = x86_64_decoder() if len(rows) else None
    for row in rows.tolist():
        targets = code_targets(match, functions, row, decode) if decode else None
        if targets is None:
            functions.same[row] = False
            continue
        user += [row] * len(targets)
        used += targets
    return np.array(user, np.int64), np.array(used, np.int64)


def code_targets(
    match: Matcher, functions: Functions, row: int, decode: Decoder
) -> list[int] | None:
    """Return the functions whose bytes a function uses, or None if it is not the same."""
    units = functions.units
    old = code_of(match.old, int(units.old_section[row]), int(units.old_start[row]), units, row)
    new = code_of(match.new, int(units.new_section[row]), int(units.new_start[row]), units, row)
    found = hidden_references(decode, old, new)
    if not found:
        return found if found is None else []
    section, home = (
        np.full(len(found), s[row]) for s in (units.new_section, units.old_section)
    )
    to = np.array([reference.new for reference in found], np.int64)
    was = np.array([reference.old for reference in found], np.int64)
    target = functions.holding(section, to)
    distance = to - units.new_start[target]
    equal = (target >= 0) & functions.known[target] & (units.old_section[target] == home)
    equal &= distance == was - units.old_start[target]
    if not bool(equal.all()):
        return None
    entered = functions.reloadable[target] & (distance == 0)
    return target[~entered].tolist()


def code_of(version: Version, section: int, start: int, units: Units, row: int) -> Code:
    """Return a function's masked bytes and the offsets of its relocated fields."""
    size = int(units.size[row])
    at = int(version.start[section]) + start
    first, last = version.key.searchsorted(
        (section << OFFSET_BITS) + np.array([start, start + size], np.int64)
    )
    fields = (version.offset[int(first) : int(last)] - start).tolist()
    return Code(bytes(version.masked[at : at + size]), start, frozenset(fields))


@dataclass(frozen=True, slots=True)
class Found:
    """(p,) columns: pairs of relocations, and the function each one belongs to."""

    owner: I64
    slack: I64  # bytes past the owner's end that a jump table's entries may seem to lead to
    pairs: Pairs


def follow_fields(match: Matcher, functions: Functions, pairs: Pairs) -> list[tuple[I64, I64]]:
    """Clear `same` where a relocation means another thing; return who uses whose bytes.

    Constants are followed from the function that uses them: a range of read-only data is
    compared as if it were part of that function, so its jump table may lead back into it.
    """
    used: list[tuple[I64, I64]] = []
    found = Found(pairs.unit, np.zeros(len(pairs.unit), np.int64), pairs)
    extents: Extents | None = None
    seen = np.zeros(0, np.int64)
    for _ in range(MAX_DEPTH):
        verdict = compare_targets(match, found.pairs)
        user, target, constant = settle(match, functions, found, verdict)
        used.append((user, target))
        if not len(constant):
            return used
        extents = extents or Extents.of(match, functions)
        uses = Uses.of(match, found.pairs, verdict, found.owner, constant)
        uses, seen = uses.unseen(seen)
        found = compare_constants(match, functions, extents, uses)
    functions.same[found.owner] = False
    return used


def settle(
    match: Matcher, functions: Functions, found: Found, verdict: Verdict
) -> tuple[I64, I64, I64]:
    """Decide the relocations that do not mean the same thing at first sight.

    Returns:
        (user, used) rows of functions, and the rows that mean constants still to be compared.
    """
    rows = (~verdict.equal).nonzero()[0]
    graph, field, owner = match.graph, found.pairs.new[rows], found.owner[rows]
    verdict = verdict.take(rows)
    blocks = graph.block_of_section[match.row][verdict.new_section]
    region = graph.blocks.region[blocks]
    end = field_end(match, field)
    kept = verdict.depends & graph.blocks.same[blocks]
    kept &= verdict.new_place == verdict.old_place
    kept &= match.old_of_section[verdict.new_section] == verdict.old_section
    inside_code = verdict.depends & (region == Region.CODE) & ~kept
    own = inside_code & functions.keeps_distance(owner, verdict, end, found.slack[rows])
    target = functions.holding(verdict.new_section, verdict.new_place + end)
    other = inside_code & ~own & (target >= 0) & functions.known[target]
    other &= functions.keeps_distance(target, verdict, end, np.zeros(len(rows), np.int64))
    constant = verdict.depends & (region == Region.RODATA) & ~kept
    functions.same[owner[~(kept | own | other | constant)]] = False
    return owner[other], target[other], rows[constant]


def compare_constants(
    match: Matcher, functions: Functions, extents: Extents, uses: Uses
) -> Found:
    """Compare the ranges of read-only data that functions use, and return their relocations."""
    base, whole = extents.ranges(uses)
    functions.same[uses.owner[~whole]] = False
    folded = (~own_tables(match, functions, uses)).nonzero()[0]
    named, use, sized = extents.neighbours(uses.take(folded))
    functions.same[uses.owner[folded][use[~sized]]] = False
    owner = np.concatenate([uses.owner[whole], uses.owner[folded][use[sized]]])
    units = base.take(whole).joined(named.take(sized))
    same = equal_bytes(match.old, match.new, units)
    fields, pairs = pair_relocations(match.old, match.new, units)
    functions.same[owner[~(same & fields)]] = False
    return Found(owner[pairs.unit], units.size[pairs.unit], pairs)
