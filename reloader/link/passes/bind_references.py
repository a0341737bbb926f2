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
from typing import Final

import numpy as np

from reloader.ids import I32, I64, U64, Bool
from reloader.link.passes.alignment import Match, Matches
from reloader.link.passes.operands import How, Operand, Use
from reloader.link.passes.references import Side

_EXECINSTR: Final = 0x4  # SHF_EXECINSTR
_ALLOC: Final = 0x2  # SHF_ALLOC
_SCALAR: Final = 8  # bytes: what is not larger is hardly an array whose end is pointed to
# bytes between an address and the array behind it, within which `&array[-1]` is thought
# possible
_BEFORE: Final = 16
_FIELD: Final = 4  # of a pc-relative operand


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
        """Return whether the live version tells a reference outside its variable apart.

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
        """Return the variable that starts at a target if those that end there are not meant.

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
        """Return whether the function or table of a reference has another to a variable."""
        table, guessed = self.new.references, self.new.guessed
        low, high = self.matches.extent(row)
        near = (table.source == table.source[row]) & (table.field >= low) & (table.field < high)
        near &= table.section == self.new.variables.section[variable]
        near &= (guessed >= self.start[variable]) & (guessed < self.end[variable])
        near[row] = False
        return bool(near.any())
