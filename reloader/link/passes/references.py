"""References into writable sections that are written as *section symbol + addend*.

Assemblers write every reference to a static variable this way. Where the variables of a section
all moved by one distance the section's symbol is bound as a whole. Where they moved apart, each
reference has to be given to one variable, and a reference may point to the end of its variable,
or outside it. All variables it may mean are its candidates; where they lead to one address
nothing needs to be decided. Otherwise, in this order: how the instruction uses the address;
where the same instruction of the same function pointed in the live version; whether anything in
the live version pointed to an end at all. What is still open is refused: binding a reference to
the wrong neighbour is the one mistake nobody would ever find.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Final

import numpy as np

from reloader.arch.base import Architecture, Table
from reloader.elf.object import ObjectFile
from reloader.ids import I32, I64, U64, Bool
from reloader.link.passes.alignment import Match, Matches
from reloader.link.passes.operands import Code, How, Operand, Use, field_widths
from reloader.link.passes.pair_variables import Variables

_STT_SECTION: Final = 3
_EXECINSTR: Final = 0x4  # SHF_EXECINSTR
_ALLOC: Final = 0x2  # SHF_ALLOC
_SCALAR: Final = 8  # bytes: what is not larger is hardly an array whose end is pointed to
# bytes between an address and the array behind it, within which `&array[-1]` is thought
# possible
_BEFORE: Final = 16
_FIELD: Final = 4  # of a pc-relative operand


@dataclass(frozen=True, slots=True, eq=False)
class References:
    """(r,) columns: the section-symbol relocations of one object into its writable sections."""

    row: I64  # of ObjectFile.relocations
    source: I32  # section of the field
    field: I64  # its offset there
    section: I32  # section referred to
    addend: I64  # counted from that section's start
    pc: Bool
    plain: Bool  # S + A or S + A - P
    code: Bool  # the field is in an instruction


def references_of(file: ObjectFile, writable: Bool, arch: Architecture) -> References:
    """Return the section-symbol relocations of an object into some of its sections."""
    symbol = file.relocations["r_sym"].astype(np.int64)
    section = file.symbol_sections[symbol]
    chosen = (file.types()[symbol] == _STT_SECTION) & (section >= 0)
    chosen &= writable[np.maximum(section, 0)]
    flags = file.sections["sh_flags"][file.relocation_sections]
    chosen &= ((flags & _ALLOC) != 0) & (field_widths(file.relocations, arch) > 0)
    rows = np.flatnonzero(chosen)
    kinds = arch.kinds[arch.kind_of_number[file.relocations["r_type"][rows]]]
    plain = (kinds["table"] == Table.NONE) & ~kinds["branch"] & (kinds["width"] >= _FIELD)
    return References(
        row=rows,
        source=file.relocation_sections[rows],
        field=file.relocations["r_offset"][rows].astype(np.int64),
        section=section[rows],
        addend=file.relocations["r_addend"][rows]
        + file.symbols["st_value"][symbol[rows]].astype(np.int64),
        pc=kinds["pc"],
        plain=plain & np.isin(kinds["formula"], ["S + A", "S + A - P"]),
        code=(flags[rows] & _EXECINSTR) != 0,
    )


class Side:
    """One version of an object, with what its references mean found when asked."""

    def __init__(
        self, file: ObjectFile, variables: Variables, writable: Bool, arch: Architecture
    ) -> None:
        self.file = file
        self.variables = variables
        self.arch = arch
        self.writable = writable
        self._operands: dict[int, Operand] = {}
        self._by_field: dict[tuple[int, int], int] | None = None

    @cached_property
    def code(self) -> Code:
        """The decoded functions."""
        return Code(self.file, self.arch)

    @cached_property
    def references(self) -> References:
        """Every section-symbol reference to the variables."""
        return references_of(self.file, self.writable, self.arch)

    def operand(self, row: int) -> Operand:
        """Return how a reference uses its target."""
        known = self._operands.get(row)
        if known is None:
            table = self.references
            if not table.code[row]:
                word = table.plain[row] and not table.pc[row]
                known = Operand(How.WORD if word else How.UNKNOWN, 0)
            elif not table.plain[row]:
                known = Operand(How.ADDRESS, _FIELD)
            else:
                known = self.code.operand(int(table.source[row]), int(table.field[row]))
            self._operands[row] = known
        return known

    def target(self, row: int) -> int:
        """Return the offset in the data section that a reference means."""
        tail = self.operand(row).tail if self.references.pc[row] else 0
        return int(self.references.addend[row]) + tail

    def find(self, source: int, field: int) -> int | None:
        """Return the reference whose field is at an offset of a section."""
        if self._by_field is None:
            table = self.references
            places = zip(table.source.tolist(), table.field.tolist(), strict=True)
            self._by_field = {place: row for row, place in enumerate(places)}
        return self._by_field.get((source, field))

    @cached_property
    def guessed(self) -> I64:
        """(r,) targets as if no immediate followed: right for every `lea` and every word."""
        table = self.references
        return table.addend + np.where(table.pc & table.code, _FIELD, 0)


@dataclass(frozen=True, slots=True)
class Open:
    """A reference that nothing decides."""

    row: int
    target: int
    candidates: tuple[int, ...]  # rows of the new Variables


@dataclass(frozen=True, slots=True, eq=False)
class Bound:
    """What each reference means."""

    row: I64  # of References
    variable: I32  # row of Variables
    undecided: tuple[Open, ...]


class Binder:
    """Gives each section-symbol reference of a new version to one of its variables."""

    def __init__(
        self,
        old: Side,
        new: Side,
        old_row: I32,
        addr: U64,
        is_array: Callable[[int], bool | None],
    ) -> None:
        """Keep what decides.

        Args:
            old: The live version.
            new: The version to load.
            old_row: (v,) the live version's variable that each new one continues, or NO_ROW.
            addr: (v,) its live address; meaningless for new variables.
            is_array: Whether a new variable may hold an array, None if nothing tells.
        """
        self.old, self.new = old, new
        self.old_row = old_row
        self.is_array = is_array
        self.matches = Matches(old, new)
        table = new.variables
        shift = addr.view(np.int64) - table.offset
        # variables of one class lie as far from each other in the program as in the section
        self.cls: list[int | None] = [
            int(shift[row]) if old_row[row] >= 0 else None for row in range(len(old_row))
        ]
        self.start: list[int] = table.offset.tolist()
        self.end: list[int] = table.end().tolist()
        self.size: list[int] = table.size.tolist()
        self.local: list[bool] = table.local.tolist()

    def bind(self, section: int, needed: Bool) -> Bound:
        """Return what every needed reference to one section means."""
        table = self.new.references
        rows = np.flatnonzero((table.section == section) & needed)
        own = np.flatnonzero(self.new.variables.section == section)
        sure, variable = self.obvious(rows, own)
        undecided: list[Open] = []
        found: dict[int, int] = dict(
            zip(rows[sure].tolist(), variable[sure].tolist(), strict=True)
        )
        within = own.tolist()
        for row in rows[~sure].tolist():
            target = self.new.target(row)
            candidates = self.candidates(row, target, within)
            chosen = self.choose(row, target, candidates)
            if chosen is None:
                undecided.append(Open(row, target, tuple(candidates)))
            else:
                found[row] = chosen
        return Bound(
            np.fromiter(found.keys(), np.int64, len(found)),
            np.fromiter(found.values(), np.int32, len(found)),
            tuple(undecided),
        )

    def obvious(self, rows: I64, own: I64) -> tuple[Bool, I64]:
        """Return which references need no decoding, and their variable.

        These are pc-relative ones that stay inside one variable whatever follows the field,
        with nothing behind it that they could have been counted back from.
        """
        table, variables = self.new.references, self.new.variables
        low = table.addend[rows] + _FIELD
        start, end = variables.offset[own], variables.end()[own]
        at = np.searchsorted(start, low, side="right") - 1
        inside = (at >= 0) & table.pc[rows] & table.plain[rows] & table.code[rows]
        at = np.maximum(at, 0)
        following = np.append(start[1:], np.iinfo(np.int64).max)[at]
        inside &= (low > start[at]) & (low + 4 < end[at]) & (low + _BEFORE < following)
        return inside, own[at]

    def candidates(self, row: int, target: int, own: list[int]) -> list[int]:
        """Return the variables that a reference may mean, the likeliest first."""
        operand = self.new.operand(row)
        start, end = self.start, self.end
        inside = [v for v in own if start[v] <= target < end[v]]
        if operand.how == How.UNKNOWN:
            return inside + [v for v in own if v not in inside]
        if operand.how == How.DIRECT and inside:
            return inside
        at_start = any(start[v] == target for v in inside)
        if operand.how == How.INDEXED and not at_start:
            return inside + [v for v in own if v not in inside]
        ending = [v for v in own if end[v] == target and self.may_end(row, v, operand)]
        if inside:
            return inside + ending + ([] if at_start else self.behind(target, own))
        before = [v for v in own if end[v] <= target and v not in ending]
        after = [v for v in own if start[v] > target]
        return ending + before[-1:] + after[:1]

    def behind(self, target: int, own: list[int]) -> list[int]:
        """Return an array that starts just behind a target: it may be `&array[-1]`."""
        return [
            v
            for v in own
            if 0 < self.start[v] - target <= _BEFORE
            and self.size[v] > _SCALAR
            and self.local[v]
        ]

    def may_end(self, row: int, variable: int, operand: Operand) -> bool:
        """Return whether a reference may be the end of a variable.

        Global variables are referred to by their own symbol. The end of something that is no
        array is not used; without debug information, small ones are taken for scalars unless
        the same function also takes their address.
        """
        if not self.local[variable]:
            return False
        array = self.is_array(variable)
        if array is not None or self.size[variable] > _SCALAR:
            return array is not False
        return operand.how != How.WORD and self.uses(row, variable)

    def choose(self, row: int, target: int, candidates: list[int]) -> int | None:
        """Return the variable that a reference means, None if that stays open."""
        if not candidates:
            return None
        if len({self.cls[v] for v in candidates}) == 1:
            return candidates[0]
        left = self.as_used(row, target, candidates) or self.as_before(row, target, candidates)
        if left and len({self.cls[v] for v in left}) == 1:
            return left[0]
        return self.never_an_end(row, target, candidates)

    def as_used(self, row: int, target: int, candidates: list[int]) -> list[int]:
        """Return the candidates that agree with what the function does with the address.

        An access is inside its variable. A comparison is with the end of an array that the
        function walks, or with its start if it walks down.
        """
        operand = self.new.operand(row)
        if operand.use == Use.ACCESS:
            place = target + operand.reach
            return [v for v in candidates if self.start[v] <= place < self.end[v]]
        if operand.use == Use.COMPARED:
            return [v for v in candidates if self.uses(row, v)]
        return []

    def as_before(self, row: int, target: int, candidates: list[int]) -> list[int]:
        """Return the candidates that the same reference of the live version agrees with."""
        match = self.matches.find(row)
        if match is None:
            return []
        old = self.old.variables
        agreeing: list[int] = []
        for variable in candidates:
            past = int(self.old_row[variable])
            if past < 0 or int(old.section[past]) != match.section:
                continue
            if target - self.start[variable] != match.target - int(old.offset[past]):
                continue
            if self.start[variable] <= target < self.end[variable] or self.outside(
                match, target
            ):
                agreeing.append(variable)
        return agreeing

    def outside(self, match: Match, target: int) -> bool:
        """Return whether the live version tells a reference outside its variable from one inside.

        An edit may have replaced a variable by another in an otherwise equal function: what
        looks like the same end of `u` may have been the start of `w` and be that of `v` now.
        """
        old = self.old.variables
        own = old.section == match.section
        start, end = old.offset[own], old.end()[own]
        if not bool(((start <= match.target) & (match.target < end)).any()):
            return True
        starts = bool((start == match.target).any()) or target in self.start
        return match.identical and not starts

    def never_an_end(self, row: int, target: int, candidates: list[int]) -> int | None:
        """Return the variable that starts at a target if the others that end there are not meant.

        So if the live version never refers to their end, and the function that holds this
        reference uses them in no other way. (An end without its array in the same function is
        rare, and one that is new in the same edit as the neighbour rarer still.)
        """
        first = candidates[0]
        others = [v for v in candidates if self.cls[v] != self.cls[first]]
        if self.start[first] != target or self.new.operand(row).how == How.UNKNOWN:
            return None
        for variable in others:
            if self.end[variable] != target or self.uses(row, variable):
                return None
            past = int(self.old_row[variable])
            if past >= 0 and self.old_end_used(past):
                return None
        return first

    def old_end_used(self, past: int) -> bool:
        """Return whether anything in the live version may refer to the end of a variable."""
        old = self.old
        end = int(old.variables.offset[past]) + int(old.variables.size[past])
        hits = (old.guessed == end) & (old.references.section == old.variables.section[past])
        return bool(hits.any())

    def uses(self, row: int, variable: int) -> bool:
        """Return whether the function (or table) of a reference refers elsewhere into a variable."""
        table, guessed = self.new.references, self.new.guessed
        low, high = self.matches.extent(row)
        near = (table.source == table.source[row]) & (table.field >= low) & (table.field < high)
        near &= table.section == self.new.variables.section[variable]
        near &= (guessed >= self.start[variable]) & (guessed < self.end[variable])
        near[row] = False
        return bool(near.any())
