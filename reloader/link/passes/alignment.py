"""The same reference in the live version of an object: the same instruction or table word.

An edit leaves most instructions of a function as they were. They are compared with relocated
fields zeroed and branches without their distance, and aligned as a diff aligns lines.
"""

from __future__ import annotations

from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import TYPE_CHECKING, Final

import numpy as np

from reloader.link.passes.pair_variables import base_name

if TYPE_CHECKING:
    from reloader.elf.object import ObjectFile
    from reloader.link.passes.operands import Function
    from reloader.link.passes.references import Side

_STT_OBJECT: Final = 1
# instructions between the equal beginning and the equal end of a function that are still
# aligned
_LONGEST: Final = 4000


@dataclass(frozen=True, slots=True)
class Match:
    """The same reference in the live version."""

    section: int  # referred to
    target: int  # offset in it
    identical: bool  # the function or table around it is as it was, all but what it refers to


class Matches:
    """Finds references of a new version in the live one."""

    def __init__(self, old: Side, new: Side) -> None:
        self.old, self.new = old, new
        self._aligned: dict[tuple[int, int], dict[int, int]] = {}

    def find(self, row: int) -> Match | None:
        """Return what the same reference of the live version means, None if it is new."""
        table = self.new.references
        source, field = int(table.source[row]), int(table.field[row])
        place = self.instruction(source, field) if table.code[row] else self.word(source, field)
        if place is None:
            return None
        found = self.old.find(place[0], place[1])
        if found is None or self.old.operand(found).how != self.new.operand(row).how:
            return None
        section = int(self.old.references.section[found])
        return Match(section, self.old.target(found), identical=place[2])

    def instruction(self, section: int, field: int) -> tuple[int, int, bool] | None:
        """Return (section, offset, is the function as it was) of the same field."""
        function = self.new.code.function_at(section, field)
        row = function.index_of(field)
        before = self.old.code.named(function.name) if function.name else None
        if before is None or row < 0:
            return None
        key = (section, function.start)
        if key not in self._aligned:
            self._aligned[key] = align(before, function)
        past = self._aligned[key].get(row)
        if past is None:
            return None
        same = before.shape == function.shape
        return before.section, before.at[past] + field - function.at[row], same

    def word(self, section: int, field: int) -> tuple[int, int, bool] | None:
        """Return (section, offset, has the table its size) of the same table word."""
        low, high = self.extent_of_object(section, field)
        name = base_name(self.name_at(section, low, high))
        row = only(self.old.file, name)
        if row is None or only(self.new.file, name) is None:
            return None
        old = self.old.file
        start, size = (int(old.symbols[column][row]) for column in ("st_value", "st_size"))
        if field - low >= size:
            return None
        return int(old.symbol_sections[row]), start + field - low, size == high - low

    def name_at(self, section: int, low: int, high: int) -> bytes:
        """Return the name of the object symbol that has exactly these bytes."""
        file = self.new.file
        rows = file.defined_in(section)
        exact = (file.symbols["st_value"][rows] == low) & (
            file.symbols["st_size"][rows] == high - low
        )
        rows = rows[exact & (file.types()[rows] == _STT_OBJECT)]
        return file.symbol_names[int(rows[0])] if len(rows) else b""

    def extent(self, row: int) -> tuple[int, int]:
        """Return the bytes of the function or table that holds a reference."""
        table = self.new.references
        section, field = int(table.source[row]), int(table.field[row])
        if not table.code[row]:
            return self.extent_of_object(section, field)
        function = self.new.code.function_at(section, field)
        end = function.at[-1] + function.size[-1] if function.at else function.start
        return function.start, max(end, field + 1)

    def extent_of_object(self, section: int, field: int) -> tuple[int, int]:
        """Return the bytes of the object symbol around an offset, else the whole section."""
        file = self.new.file
        rows = file.defined_in(section)
        rows = rows[file.types()[rows] == _STT_OBJECT]
        low = file.symbols["st_value"][rows].astype(np.int64)
        high = low + file.symbols["st_size"][rows].astype(np.int64)
        around = np.flatnonzero((low <= field) & (field < high))
        if not len(around):
            return 0, int(file.sections["sh_size"][section])
        return int(low[around[0]]), int(high[around[0]])


def only(file: ObjectFile, name: bytes) -> int | None:
    """Return the one object symbol that is called so, static locals without their number."""
    rows = [
        int(row)
        for row in np.flatnonzero((file.types() == _STT_OBJECT) & (file.symbol_sections > 0))
        if base_name(file.symbol_names[row]) == name
    ]
    return rows[0] if name and len(rows) == 1 else None


def align(old: Function, new: Function) -> dict[int, int]:
    """Return the instruction of the old function for each that the new one still has."""
    before, after = old.shape, new.shape
    short = min(len(before), len(after))
    head = next((i for i in range(short) if before[i] != after[i]), short)
    rest = short - head
    tail = next((i for i in range(rest) if before[-1 - i] != after[-1 - i]), rest)
    rows = {row: row for row in range(head)}
    gap = len(before) - len(after)
    rows |= {row: row + gap for row in range(len(after) - tail, len(after))}
    middle_old, middle_new = before[head : len(before) - tail], after[head : len(after) - tail]
    if len(middle_old) + len(middle_new) > _LONGEST:
        return rows
    matcher = SequenceMatcher(None, middle_old, middle_new, autojunk=False)
    for first, second, size in matcher.get_matching_blocks():
        rows |= {head + second + i: head + first + i for i in range(size)}
    return rows
