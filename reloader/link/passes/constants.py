"""How far a function may read in read-only data that it refers to.

A jump table or an unnamed constant ends at the latest where another function's begins; a
named one has its symbol's size. Compilers fold indices into the address (`table[i - 1]`), so
named constants within a few bytes of the place are compared as well. Too long a range calls a
function changed that is not; it never hides a change.
"""

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Final

import numpy as np

from reloader.elf.constants import SHF_EXECINSTR
from reloader.elf.gather import rows_of
from reloader.ids import I64, NO_ROW, Bool, Region
from reloader.link.graph import Origin
from reloader.link.passes.matcher import Matcher
from reloader.link.passes.targets import Verdict
from reloader.link.passes.versions import Columns, Pairs, Units, Version, key_of

if TYPE_CHECKING:
    from reloader.link.passes.match_functions import Functions

STT_OBJECT: Final = 1
FOLDED: Final = 64  # bytes before or after a named constant that may be a folded index
IMMEDIATE: Final = 4  # in code, an immediate may follow a field: the place is so much further


@dataclass(frozen=True, slots=True)
class Uses(Columns):
    """(k,) columns: functions and the places in read-only data they refer to."""

    owner: I64  # row of Functions
    new_section: I64
    new_place: I64
    old_section: I64
    old_place: I64
    doubt: I64  # bytes that the place may be further on

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
            np.where(end > 0, IMMEDIATE, 0).astype(np.int64),
        )

    def unseen(self, seen: I64) -> tuple["Uses", I64]:
        """Return each use once, without those already followed, and all followed so far."""
        columns = np.stack([getattr(self, field.name) for field in fields(self)], axis=1)
        known = {row.tobytes() for row in seen.reshape(-1, columns.shape[1])}
        fresh = np.unique(columns, axis=0)
        kept = [row.tobytes() not in known for row in fresh]
        fresh = fresh[np.array(kept, np.bool_)]
        both = np.concatenate([seen.reshape(-1, columns.shape[1]), fresh])
        return Uses(*(fresh[:, i].copy() for i in range(columns.shape[1]))), both


@dataclass(frozen=True, slots=True)
class Named:
    """(c,) columns: the sized variables of one version, by place."""

    start: I64  # key of the place, ascending
    size: I64
    reach: I64  # the furthest end of this one and all before it

    @classmethod
    def of(cls, version: Version) -> "Named":
        """Collect the named constants of a version."""
        file = version.file
        home = file.symbol_sections.astype(np.int64)
        size = file.symbols["st_size"].astype(np.int64)
        rows = np.flatnonzero((file.types() == STT_OBJECT) & (home >= 0) & (size > 0))
        start = key_of(home[rows], file.symbols["st_value"][rows].astype(np.int64))
        order = np.argsort(start, kind="stable")
        start, size = start[order], size[rows][order]
        return cls(start, size, np.maximum.accumulate(start + size))


@dataclass(frozen=True, slots=True)
class Extents:
    """Where read-only data of the new version may be cut."""

    new_size: I64  # (s,)
    old_size: I64
    anchor: I64  # (a,) key of each place referred to, ascending
    owner: I64  # (a,) the function that refers to it; all others differ from each other
    next_owner: I64  # (a,) row of the next anchor with another owner
    new_named: Named
    old_named: Named

    @classmethod
    def of(cls, match: Matcher, functions: "Functions") -> "Extents":
        """Collect the anchors and the named constants of an object."""
        anchor, owner = anchors(match, functions)
        order = np.lexsort((owner, anchor))
        anchor, owner = anchor[order], owner[order]
        differs = np.flatnonzero(owner[1:] != owner[:-1]) + 1
        at = np.searchsorted(differs, np.arange(len(owner)), side="right")
        next_owner = np.append(differs, len(owner))[at]
        named = Named.of(match.new), Named.of(match.old)
        return cls(match.new.size, match.old.size, anchor, owner, next_owner, *named)

    def ranges(self, uses: Uses) -> tuple[Units, Bool]:
        """Return the range of each use, and whether it lies inside both sections."""
        place = key_of(uses.new_section, uses.new_place)
        limit = key_of(uses.new_section, self.new_size[uses.new_section])
        last = self.next_foreign(place + uses.doubt, uses.owner)
        holder = np.searchsorted(self.new_named.start, place, side="right") - 1
        if len(self.new_named.start):
            end = self.new_named.reach[np.maximum(holder, 0)]
            last = np.where((holder >= 0) & (end > place + uses.doubt), end, last)
        size = np.minimum(last, limit) - place
        whole = (size > 0) & (uses.new_place >= 0) & (uses.old_place >= 0)
        whole &= uses.old_place + size <= self.old_size[uses.old_section]
        units = Units(uses.new_section, uses.new_place, uses.old_section, uses.old_place, size)
        return units, whole

    def neighbours(self, uses: Uses) -> tuple[Units, I64, Bool]:
        """Return the named constants that a folded index may mean.

        Only those count that stood at the same distance from the place in both versions: code
        that has not changed would have another index otherwise.

        Returns:
            Their ranges, the row of the use, and whether the old one has the same size.
        """
        new, old = self.new_named, self.old_named
        place = key_of(uses.new_section, uses.new_place)
        first = np.searchsorted(new.reach, place - FOLDED, side="right")
        count = np.searchsorted(new.start, place + FOLDED + IMMEDIATE, side="right") - first
        count = np.maximum(count, 0)
        use = np.repeat(np.arange(len(place)), count)
        row = rows_of(first, count)
        distance = new.start[row] - place[use]
        start = key_of(uses.old_section, uses.old_place)[use] + distance
        twin = np.searchsorted(old.start, start)
        found = twin < len(old.start)
        found[found] = old.start[twin[found]] == start[found]
        use, row, twin, distance = use[found], row[found], twin[found], distance[found]
        units = Units(
            uses.new_section[use],
            uses.new_place[use] + distance,
            uses.old_section[use],
            uses.old_place[use] + distance,
            new.size[row],
        )
        return units, use, new.size[row] == old.size[twin]

    def next_foreign(self, place: I64, owner: I64) -> I64:
        """Return the key of the first anchor of another function after each place."""
        if not len(self.anchor):
            return place + np.iinfo(np.int32).max
        at = np.searchsorted(self.anchor, place, side="right")
        row = np.minimum(at, len(self.anchor) - 1)
        at = np.where(
            (at < len(self.anchor)) & (self.owner[row] == owner), self.next_owner[row], at
        )
        row = np.minimum(at, len(self.anchor) - 1)
        far = place + np.iinfo(np.int32).max
        return np.where(at < len(self.anchor), self.anchor[row], far)


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


def own_tables(match: Matcher, functions: "Functions", uses: Uses) -> Bool:
    """Return which uses are of a jump table: its first word leads into the function itself.

    The word before it does not, or the place could be the middle of one.
    """
    graph, new = match.graph, match.new
    place = key_of(uses.new_section, uses.new_place)
    result = np.zeros(len(place), np.bool_)
    if not len(new.key):
        return result
    for distance, wanted in ((0, True), (-4, False), (-8, False)):
        row = np.minimum(np.searchsorted(new.key, place + distance), len(new.key) - 1)
        edge = match.edge[row]
        symbol = graph.edges.symbol[edge]
        block = graph.symbols.block[symbol]
        inside = (new.key[row] == place + distance) & (edge >= 0) & (block >= 0)
        inside &= graph.symbols.origin[symbol] == Origin.BLOCK
        section = graph.blocks.section[block]
        target = graph.symbols.offset[symbol].astype(np.int64) + graph.edges.addend[edge]
        target -= functions.units.new_start[uses.owner]
        inside &= section == functions.units.new_section[uses.owner]
        inside &= (target >= 0) & (target < functions.units.size[uses.owner])
        result = inside if wanted else result & ~inside
    return result
