"""How far a function may read in read-only data that it refers to.

A jump table or an unnamed constant ends at the latest where another function's begins; a
named one has its symbol's size. Compilers fold indices into the address (`table[i - 1]`), so
near a named constant its neighbours within a few bytes are looked at as well. Too long a
range calls a function changed that is not; it never hides a change.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from reloader.elf.constants import SHF_EXECINSTR
from reloader.ids import I64, NO_ROW, Bool, Region
from reloader.link.graph import Origin
from reloader.link.passes.matcher import Matcher
from reloader.link.passes.targets import Verdict
from reloader.link.passes.versions import Pairs, Units, key_of

if TYPE_CHECKING:
    from reloader.link.passes.match_functions import Functions

STT_OBJECT: Final = 1
FOLDED: Final = 64  # bytes before or after a named constant that may be a folded index
IMMEDIATE: Final = 8  # an anchor closer than this may be the same, with an immediate behind it


@dataclass(frozen=True, slots=True)
class Uses:
    """(k,) columns: functions and the places in read-only data they refer to."""

    owner: I64  # row of Functions
    new_section: I64
    new_place: I64
    old_section: I64
    old_place: I64

    @classmethod
    def of(
        cls, match: Matcher, pairs: Pairs, verdict: Verdict, owner: I64, rows: I64
    ) -> "Uses":
        """Return what pairs of relocations refer to, past the end of the field."""
        end = field_end(match, pairs.new[rows])
        return cls(
            owner[rows],
            verdict.new_section[rows],
            verdict.new_place[rows] + end,
            verdict.old_section[rows],
            verdict.old_place[rows] + end,
        )

    def unseen(self, seen: I64) -> tuple["Uses", I64]:
        """Return each use once, without those already followed, and all followed so far."""
        columns = np.stack([getattr(self, name) for name in Uses.__slots__], axis=1)
        known = {row.tobytes() for row in seen.reshape(-1, columns.shape[1])}
        fresh = np.unique(columns, axis=0)
        kept = [row.tobytes() not in known for row in fresh]
        fresh = fresh[np.array(kept, np.bool_)]
        both = np.concatenate([seen.reshape(-1, columns.shape[1]), fresh])
        return Uses(*(fresh[:, i].copy() for i in range(columns.shape[1]))), both


@dataclass(frozen=True, slots=True)
class Extents:
    """Where read-only data of the new version may be cut."""

    new_size: I64  # (s,)
    old_size: I64
    anchor: I64  # (a,) key of each place referred to, ascending
    owner: I64  # (a,) the function that refers to it; all others differ from each other
    next_owner: I64  # (a,) row of the next anchor with another owner
    start: I64  # (c,) key of each named constant, ascending
    reach: I64  # (c,) the furthest end of this constant and all before it

    @classmethod
    def of(cls, match: Matcher, functions: "Functions") -> "Extents":
        """Collect the anchors and the named constants of an object."""
        anchor, owner = anchors(match, functions)
        order = np.lexsort((owner, anchor))
        anchor, owner = anchor[order], owner[order]
        differs = np.flatnonzero(owner[1:] != owner[:-1]) + 1
        at = np.searchsorted(differs, np.arange(len(owner)), side="right")
        next_owner = np.append(differs, len(owner))[at]
        start, reach = named_constants(match)
        sizes = match.new.size, match.old.size
        return cls(*sizes, anchor, owner, next_owner, start, reach)

    def ranges(self, uses: Uses) -> tuple[Units, Bool]:
        """Return the range of each use, and whether it lies inside both sections."""
        place = key_of(uses.new_section, uses.new_place)
        origin = key_of(uses.new_section, np.zeros(len(place), np.int64))
        limit = origin + self.new_size[uses.new_section]
        first, last = place, np.minimum(self.next_foreign(place, uses.owner), limit)
        if len(self.start):
            first, last = self.widen(place, last)
        first, last = np.maximum(first, origin), np.minimum(last, limit)
        size = last - first
        old_start = uses.old_place - (place - first)
        whole = (size > 0) & (old_start >= 0)
        whole &= old_start + size <= self.old_size[uses.old_section]
        units = Units(uses.new_section, first - origin, uses.old_section, old_start, size)
        return units, whole

    def next_foreign(self, place: I64, owner: I64) -> I64:
        """Return the key of the next anchor of another function."""
        if not len(self.anchor):
            return place + np.iinfo(np.int32).max
        at = np.searchsorted(self.anchor, place + IMMEDIATE, side="right")
        row = np.minimum(at, len(self.anchor) - 1)
        at = np.where(
            (at < len(self.anchor)) & (self.owner[row] == owner), self.next_owner[row], at
        )
        row = np.minimum(at, len(self.anchor) - 1)
        far = place + np.iinfo(np.int32).max
        return np.where(at < len(self.anchor), self.anchor[row], far)

    def widen(self, place: I64, last: I64) -> tuple[I64, I64]:
        """Return the range with the named constants near the place."""
        near_row = np.searchsorted(self.start, place + FOLDED + IMMEDIATE, side="right") - 1
        reach = self.reach[np.maximum(near_row, 0)]
        near = (near_row >= 0) & (reach > place - FOLDED)
        first_row = np.searchsorted(self.reach, place - FOLDED, side="right")
        first = self.start[np.minimum(first_row, len(self.start) - 1)]
        holder = np.searchsorted(self.start, place, side="right") - 1
        held = (holder >= 0) & (self.reach[np.maximum(holder, 0)] >= place + IMMEDIATE)
        end = np.where(held, np.maximum(reach, place + IMMEDIATE), np.maximum(last, reach))
        return np.where(near, np.minimum(place, first), place), np.where(near, end, last)


def field_end(match: Matcher, rows: I64) -> I64:
    """Return the bytes from S + A to the place meant: the field's own, if relative, in code."""
    code = (match.new.flags[match.new.section[rows]] & SHF_EXECINSTR) != 0
    return np.where(match.fields.pc[match.new.number[rows]] & code, 4, 0).astype(np.int64)


def anchors(match: Matcher, functions: "Functions") -> tuple[I64, I64]:
    """Return the key of each place referred to in read-only data, and who refers to it."""
    graph, new = match.graph, match.new
    rows = np.flatnonzero(match.edge >= 0)
    edge = match.edge[rows]
    symbol = graph.edges.symbol[edge]
    block = graph.symbols.block[symbol]
    mine = (graph.symbols.origin[symbol] == Origin.BLOCK) & (block >= 0)
    mine &= (graph.blocks.region[block] == Region.RODATA) & (graph.blocks.merge[block] == 0)
    mine &= (graph.blocks.object[block] == match.row) & (graph.blocks.section[block] >= 0)
    rows, edge = rows[mine], edge[mine]
    symbol = graph.edges.symbol[edge]
    section = graph.blocks.section[graph.symbols.block[symbol]].astype(np.int64)
    place = graph.symbols.offset[symbol].astype(np.int64) + graph.edges.addend[edge]
    owner = functions.holding(new.section[rows], new.offset[rows])
    # a reference from elsewhere belongs to nobody: it bounds every function's range
    owner = np.where(owner >= 0, owner, NO_ROW - 1 - np.arange(len(rows)))
    return key_of(section, place + field_end(match, rows)), owner


def named_constants(match: Matcher) -> tuple[I64, I64]:
    """Return the key of each sized symbol in data, and the furthest end up to there."""
    file = match.new.file
    home = file.symbol_sections.astype(np.int64)
    size = file.symbols["st_size"].astype(np.int64)
    rows = np.flatnonzero((file.types() == STT_OBJECT) & (home >= 0) & (size > 0))
    start = key_of(home[rows], file.symbols["st_value"][rows].astype(np.int64))
    order = np.argsort(start, kind="stable")
    start = start[order]
    return start, np.maximum.accumulate(start + size[rows][order]) if len(rows) else start
