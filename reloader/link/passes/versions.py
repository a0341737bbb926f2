"""One version of an object prepared for the diff, and ranges of two versions side by side.

A *unit* is a range of a section in the old version beside a range of equal size in the new
one: a whole section, a function, a piece of read-only data. Every comparison of the diff is a
column operation over units or over the pairs of relocations inside them.
"""

from collections.abc import Hashable, Sequence
from dataclasses import Field, dataclass, fields, replace
from functools import lru_cache
from typing import Any, Self, cast

import numpy as np
from numpy.typing import NDArray

from reloader.elf.alike import of_equal_tables, of_tables
from reloader.elf.constants import SHF_ALLOC, SHT_NOBITS, STT_FUNC, STT_GNU_IFUNC
from reloader.elf.gather import rows_of
from reloader.elf.object import ObjectFile
from reloader.ids import I32, I64, NO_ROW, U8, Bool

_WORDS = (1, 2, 4, 8)  # bytes that a field may have
OFFSET_BITS = 40  # of a (section, offset) key: sections are far smaller than a terabyte


def key_of(section: I64, offset: I64) -> I64:
    """Return sortable keys of places; a negative offset sorts before its section."""
    return (section << OFFSET_BITS) + offset


@dataclass(frozen=True, slots=True, eq=False)
class Fields:
    """What the diff needs of the kind table, indexed by relocation number."""

    width: U8  # 0: a marker, or a number that the table does not know
    pc: Bool
    sized: Bool  # its formula asks for the symbol's size

    @classmethod
    def of(cls, kinds: NDArray[np.void]) -> "Fields":
        """Return the kind table's columns by number, the same object for the same table."""
        known = _FIELDS.get(id(kinds))
        if known is None or known[0] is not kinds:
            known = _FIELDS[id(kinds)] = kinds, cls._made_of(kinds)
        return known[1]

    @classmethod
    def _made_of(cls, kinds: NDArray[np.void]) -> "Fields":
        count = int(kinds["number"].max(initial=0)) + 1
        width, pc, sized = (np.zeros(count, np.uint8) for _ in range(3))
        width[kinds["number"]] = kinds["width"]
        pc[kinds["number"]] = kinds["pc"]
        sized[kinds["number"]] = np.char.startswith(kinds["formula"], "Z")
        return cls(width, pc.astype(np.bool_), sized.astype(np.bool_))


_FIELDS: dict[int, tuple[NDArray[np.void], Fields]] = {}


@dataclass(frozen=True, slots=True, eq=False)
class Version:
    """An object's loaded relocations, sorted by place, and its bytes without their fields."""

    file: ObjectFile
    key: I64  # (r,) key_of(section, offset), ascending
    section: I64
    offset: I64
    number: I64  # relocation type
    symbol: I64
    addend: I64
    home: I64  # as ObjectFile.symbol_sections, of the symbol
    place: I64  # S + A from the start of that section
    flags: I64  # (s,) sh_flags
    size: I64  # (s,) sh_size
    start: I64  # (s,) file offset of the section's bytes; NO_ROW: all zero
    fields: list[tuple[int, I64]]  # (bytes, places in the file) of relocated fields
    masked: bytearray  # the file, these zero


class Columns:
    """A frozen dataclass whose fields are arrays of one length."""

    __slots__ = ()

    def take(self, rows: NDArray[Any]) -> Self:
        """Return some rows of every column: indices, or a flag a row."""
        return type(self)(*(getattr(self, field.name)[rows] for field in self._fields()))

    def joined(self, other: Self) -> Self:
        """Return the rows of both."""
        names = (field.name for field in self._fields())
        pairs = ((getattr(self, name), getattr(other, name)) for name in names)
        return type(self)(*(np.concatenate(pair) for pair in pairs))

    def _fields(self) -> tuple[Field[Any], ...]:
        return fields(cast("Any", self))


@dataclass(frozen=True, slots=True)
class Units(Columns):
    """(u,) columns: equal-sized ranges of two versions."""

    new_section: I64
    new_start: I64
    old_section: I64
    old_start: I64
    size: I64

    def in_place(self) -> bool:
        """Return whether each range is where it was."""
        moved = (self.new_section != self.old_section) | (self.new_start != self.old_start)
        return not np.count_nonzero(moved)


@dataclass(frozen=True, slots=True)
class Pairs(Columns):
    """(p,) columns: relocations that stand at the same distance in both ranges of a unit."""

    unit: I64
    new: I64  # row of the new Version
    old: I64  # row of the old Version


@lru_cache(maxsize=8)  # the new version of one reload is the old one of the next
def version_of(file: ObjectFile, kinds: Fields) -> Version:
    """Return an object's columns for the diff; markers without a field are left out."""
    like = _columns_of(file, kinds)
    return replace(like, file=file, masked=_without_fields(file.data, like.fields))


@of_tables
def _columns_of(file: ObjectFile, kinds: Fields) -> Version:
    """Return all but the bytes."""
    flags = file.sections["sh_flags"].astype(np.int64)
    number = file.relocations["r_type"].astype(np.int64)
    known = np.minimum(number, len(kinds.width) - 1)
    width = np.where(number == known, kinds.width[known], 8)
    loaded = (flags[file.relocation_sections] & SHF_ALLOC) != 0
    rows = (loaded & ((width > 0) & (number != 0))).nonzero()[0]
    table: Any = file.relocations[rows]
    section = file.relocation_sections[rows].astype(np.int64)
    offset = table["r_offset"].astype(np.int64)
    key = key_of(section, offset)
    if bool(np.any(key[1:] < key[:-1])):
        order = np.argsort(key, kind="stable")
        key, section, offset = key[order], section[order], offset[order]
        table, rows = table[order], rows[order]
    nobits = file.sections["sh_type"] == SHT_NOBITS
    start = np.where(nobits, NO_ROW, file.sections["sh_offset"].astype(np.int64))
    held = start[section] >= 0
    at = (start[section] + offset)[held]
    width = width[rows][held]
    symbol, addend = table["r_sym"].astype(np.int64), table["r_addend"].astype(np.int64)
    return Version(
        file=file,
        key=key,
        section=section,
        offset=offset,
        number=table["r_type"].astype(np.int64),
        symbol=symbol,
        addend=addend,
        home=file.symbol_sections[symbol].astype(np.int64),
        place=file.symbols["st_value"][symbol].astype(np.int64) + addend,
        flags=flags,
        size=file.sections["sh_size"].astype(np.int64),
        start=start,
        fields=[(size, at[width == size]) for size in _WORDS if bool((width == size).any())],
        masked=bytearray(),
    )


def _without_fields(data: U8, fields: Sequence[tuple[int, I64]]) -> bytearray:
    """Return the bytes with each field zero: assemblers may leave anything in them."""
    result = bytearray(data.data)
    for size, places in fields:
        count = len(result) - size + 1
        if count > 0:  # a view with one element a byte position
            window = np.ndarray((count,), f"<u{size}", result, strides=(1,))
            window[np.minimum(places, count - 1)] = 0
    return result


def pair_keys(old: Sequence[Hashable], new: Sequence[Hashable]) -> I64:
    """Return for each new key the index of the equal old key, or NO_ROW.

    Equal keys of one side pair in their order: the second `.text.f` with the second.
    """
    if old == new:
        return np.arange(len(new), dtype=np.int64)
    row_of = dict(zip(old, range(len(old)), strict=True))
    if len(row_of) == len(old) and len(set(new)) == len(new):
        return np.array([row_of.get(key, NO_ROW) for key in new], np.int64)
    numbered_rows = dict(zip(numbered(old), range(len(old)), strict=True))
    return np.array([numbered_rows.get(key, NO_ROW) for key in numbered(new)], np.int64)


def numbered(keys: Sequence[Hashable]) -> list[tuple[Hashable, int]]:
    """Return each key with how many equal ones stand before it."""
    seen: dict[Hashable, int] = {}
    result: list[tuple[Hashable, int]] = []
    for key in keys:
        count = seen.get(key, 0)
        seen[key] = count + 1
        result.append((key, count))
    return result


@of_equal_tables
def pair_sections(old: Version, new: Version) -> I64:
    """Return the old section of each new one, or NO_ROW; only loaded sections are paired."""
    old_rows = (old.flags & SHF_ALLOC).nonzero()[0]
    new_rows = (new.flags & SHF_ALLOC).nonzero()[0]
    pairs = pair_keys(section_keys(old.file, old_rows), section_keys(new.file, new_rows))
    result = np.full(len(new.flags), NO_ROW, np.int64)
    found = pairs >= 0
    result[new_rows[found]] = old_rows[pairs[found]]
    return result


def section_keys(file: ObjectFile, rows: NDArray[np.intp]) -> list[Hashable]:
    """Return what a section is known by in every version: its name, and its group's."""
    names: list[bytes] = [file.section_names[row] for row in rows.tolist()]
    groups: list[int] = file.group_sections[rows].tolist()
    if not any(groups):
        return list(names)
    signed = zip(names, groups, strict=True)
    return [
        (name, file.group_signatures.get(group, b"")) if group else name
        for name, group in signed
    ]


def equal_bytes(old: Version, new: Version, units: Units) -> Bool:
    """Return (u,) whether both ranges hold the same bytes outside relocated fields.

    A slice comparison a unit: memcmp over both files' bytes is faster than any index array.
    """
    old_at = old.start[units.old_section]
    new_at = new.start[units.new_section]
    zero = (old_at < 0) | (new_at < 0)
    both = (old_at < 0) & (new_at < 0)
    a, b, size = old_at + units.old_start, new_at + units.new_start, units.size
    left, right = old.masked, new.masked
    rows = zip(a.tolist(), b.tolist(), size.tolist(), strict=True)
    same = [left[i : i + n] == right[j : j + n] for i, j, n in rows]
    return np.where(zero, both, np.array(same, np.bool_).reshape(len(size)))


def pair_relocations(old: Version, new: Version, units: Units) -> tuple[Bool, Pairs]:
    """Pair the relocations of each unit.

    Returns:
        (u,) whether both ranges have relocations of the same types at the same distances, and
        the pairs of those units.
    """
    new_key = key_of(units.new_section, units.new_start)
    if old.file.tables is new.file.tables and units.in_place():
        first = new.key.searchsorted(new_key)
        count = new.key.searchsorted(new_key + units.size) - first
        row, unit = rows_of(first, count), np.arange(len(count)).repeat(count)
        return np.ones(len(count), np.bool_), Pairs(unit, row, row)
    old_key = key_of(units.old_section, units.old_start)
    new_first = new.key.searchsorted(new_key)
    old_first = old.key.searchsorted(old_key)
    count = new.key.searchsorted(new_key + units.size) - new_first
    equal = count == old.key.searchsorted(old_key + units.size) - old_first
    kept = equal.nonzero()[0]
    unit = kept.repeat(count[kept])
    new_row = rows_of(new_first[kept], count[kept])
    old_row = rows_of(old_first[kept], count[kept])
    distance = new.key[new_row] - new_key[unit] != old.key[old_row] - old_key[unit]
    bad = distance | (new.number[new_row] != old.number[old_row])
    equal[unit[bad]] = False
    good = equal[unit]
    return equal, Pairs(unit[good], new_row[good], old_row[good])


def spread(same: Bool, user: I64, used: I64) -> None:
    """Make every unit unequal that depends, over any number of steps, on an unequal one.

    Args:
        same: (u,) changed in place; the result is the greatest fixpoint, so units that only
            depend on each other stay equal.
        user: (d,) the unit that depends.
        used: (d,) the unit it depends on.
    """
    unequal = ~same[used] & same[user]
    if not np.count_nonzero(unequal):
        return
    order = used.argsort(kind="stable")
    user, used = user[order], used[order]
    frontier = (~same).nonzero()[0]
    # every dependency is looked at once, when what it depends on turns unequal
    while len(frontier):
        first = used.searchsorted(frontier)
        count = used.searchsorted(frontier, side="right") - first
        reached = user[rows_of(first, count)]
        frontier = np.unique(reached[same[reached]])
        same[frontier] = False


def function_rows(file: ObjectFile, flags: I64, wanted: int) -> I32:
    """Return the symbols that are functions defined in sections with a flag."""
    types = file.types()
    home = file.symbol_sections
    defined = (home >= 0) & ((types == STT_FUNC) | (types == STT_GNU_IFUNC))
    inside = (flags[np.maximum(home, 0)] & wanted) != 0
    return (defined & inside).nonzero()[0].astype(np.int32)
