"""Reads for the command line and the daemon, from the committed rows.

`owner` must answer within two milliseconds among 100,000 symbols, so each of its questions is
one index range: the name, the nearest addresses below, the held allocation, the image.
"""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING, Final

from state.rows import (
    AllocationRow,
    EventRow,
    GenerationRow,
    MemoryRow,
    ObjectRow,
    ObjectVersion,
    Owner,
    SlotRow,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from state.database import Database

_STUB_SIZE: Final = 16  # the widest stub of any architecture
_NEIGHBOURS: Final = 16  # symbols looked at below an address: aliases and nested labels
_SUGGESTIONS: Final = 3
_OWNER: Final = """
    SELECT s.name, s.kind, o.path, o.member, o.source, s.section, s.offset, s.addr, s.size,
           s.generation, s.slot, s.stub_addr, s.live
      FROM symbols s LEFT JOIN objects o ON o.id = s.object
"""


class Query:
    """Answers; nothing here writes."""

    def __init__(self, db: Database) -> None:
        self._db = db

    def owner(self, target: int, what: str | int) -> list[Owner]:
        """Return whom a name or an address belongs to, best first; empty if unknown.

        A name may have several owners: statics of that name, and superseded versions whose
        memory is still held. Text that reads as a number is an address.
        """
        addr = what if isinstance(what, int) else parse_address(what)
        if addr is not None:
            # what SQLite cannot hold is no address of a program
            return self._owner_of_address(target, addr) if addr < 1 << 63 else []
        rows = self._db.raw(
            _OWNER + "WHERE s.target=? AND s.name=? ORDER BY s.live DESC, s.generation DESC"
            " LIMIT 1000",
            (target, what),
        )
        return [_owner(row, 0) for row in rows]

    def nearest_names(self, target: int, name: str) -> list[str]:
        """Return existing names that look like a misspelt one."""
        sql = "SELECT DISTINCT name FROM symbols WHERE target=? AND live=1 AND "
        found: dict[str, None] = {}
        near_length = "length(name) BETWEEN ? AND ?"
        size = len(name)
        for where, values in (
            ("name >= ? AND name < ?", (name[:2], name[:2] + "\U0010ffff")),
            (f"name LIKE ? AND {near_length}", (f"%{name[-3:]}", size - 2, size + 2)),
            (f"name LIKE ? AND {near_length}", (f"{name[:1]}%", size - 2, size + 2)),
        ):
            rows = self._db.raw(f"{sql}{where} LIMIT 2000", (target, *values))
            found.update((row[0], None) for row in rows)
        return difflib.get_close_matches(name, found, n=_SUGGESTIONS, cutoff=0.6)

    def history(
        self, target: int | None = None, *, limit: int = 50, since: int = 0
    ) -> list[GenerationRow]:
        """Return attempts, newest first.

        Args:
            target: One target's, or None for all.
            limit: At most so many.
            since: Only numbers above.
        """
        return self._db.rows(
            GenerationRow,
            "SELECT * FROM generations WHERE (?1 IS NULL OR target=?1) AND generation>?2"
            " ORDER BY target DESC, generation DESC LIMIT ?3",
            (target, since, limit),
        )

    def generation(self, target: int, generation: int) -> GenerationRow | None:
        """Return one attempt, or None."""
        rows = self._db.rows(
            GenerationRow,
            "SELECT * FROM generations WHERE target=? AND generation=?",
            (target, generation),
        )
        return rows[0] if rows else None

    def generations(self, target: int) -> list[GenerationRow]:
        """Return the generations that became live, newest first."""
        return self._db.rows(
            GenerationRow,
            "SELECT * FROM generations WHERE target=? AND state IN ('live', 'rolled-back')"
            " ORDER BY generation DESC",
            (target,),
        )

    def live_numbers(self, target: int) -> list[int]:
        """Return the numbers of the generations that became live, newest first."""
        rows = self._db.raw(
            "SELECT generation FROM generations WHERE target=?"
            " AND state IN ('live', 'rolled-back') ORDER BY generation DESC",
            (target,),
        )
        return [int(row[0]) for row in rows]

    def latest_live(self, target: int) -> int:
        """Return the newest generation that is live, 0 for the executable as linked."""
        rows = self._db.raw(
            "SELECT coalesce(max(generation), 0) FROM generations"
            " WHERE target=? AND state='live'",
            (target,),
        )
        return int(rows[0][0])

    def objects(self, target: int) -> list[ObjectRow]:
        """Return the known objects of a target."""
        return self._db.rows(
            ObjectRow, "SELECT * FROM objects WHERE target=? ORDER BY path, member", (target,)
        )

    def live_set(self, target: int, generation: int | None = None) -> list[ObjectVersion]:
        """Return the version of each object that was live after a generation.

        Args:
            target: The target's id.
            generation: After which one; None for now.
        """
        rows = self._db.raw(
            "SELECT o.path, o.member, v.digest, max(v.generation) FROM versions v"
            " JOIN objects o ON o.id = v.object"
            " WHERE v.target=?1 AND (?2 IS NULL OR v.generation<=?2)"
            " GROUP BY v.object ORDER BY o.path, o.member",
            (target, generation),
        )
        return [ObjectVersion(row[0], row[1], row[2]) for row in rows]

    def memory(self, target: int) -> list[MemoryRow]:
        """Return the bytes held per object, generation and region, newest generation first."""
        return self._db.rows(MemoryRow, _MEMORY, (target,))

    def allocations(self, target: int, *, held: bool = True) -> list[AllocationRow]:
        """Return allocations, those still held only or all."""
        return self._db.rows(
            AllocationRow,
            "SELECT * FROM allocations WHERE target=? AND (NOT ? OR freed IS NULL)"
            " ORDER BY addr",
            (target, held),
        )

    def slots(self, target: int) -> list[SlotRow]:
        """Return the slot table as recorded."""
        return self._db.rows(
            SlotRow, "SELECT * FROM slots WHERE target=? ORDER BY slot", (target,)
        )

    def events(self, target: int | None = None, *, limit: int = 200) -> list[EventRow]:
        """Return what happened, newest first."""
        return self._db.rows(
            EventRow,
            "SELECT * FROM events WHERE (?1 IS NULL OR target=?1) ORDER BY id DESC LIMIT ?2",
            (target, limit),
        )

    def _owner_of_address(self, target: int, addr: int) -> list[Owner]:
        rows = self._db.raw(
            _OWNER + "WHERE s.target=? AND s.addr<=? ORDER BY s.addr DESC LIMIT ?",
            (target, addr, _NEIGHBOURS),
        )
        inside = [r for r in rows if addr < r["addr"] + r["size"] or r["addr"] == addr]
        if inside:
            # the live one first, then the narrowest around the address
            inside.sort(key=lambda r: (-r["live"], addr - r["addr"], -r["size"]))
            return [_owner(row, addr - row["addr"]) for row in inside]
        return (
            self._owner_of_stub(target, addr)
            or self._owner_of_memory(target, addr)
            or self._owner_of_image(target, addr)
        )

    def _owner_of_stub(self, target: int, addr: int) -> list[Owner]:
        rows = self._db.raw(
            "SELECT t.name, 'stub' AS kind, o.path, o.member, o.source, '' AS section,"
            " NULL AS offset, t.stub_addr AS addr, ?1 AS size, t.generation, t.slot,"
            " t.stub_addr, 1 AS live"
            " FROM slots t LEFT JOIN objects o ON o.id = t.object"
            " WHERE t.target=?2 AND t.stub_addr<=?3 AND t.stub_addr>?3-?1"
            " ORDER BY t.stub_addr DESC LIMIT 1",
            (_STUB_SIZE, target, addr),
        )
        return [_owner(row, addr - row["addr"]) for row in rows]

    def _owner_of_memory(self, target: int, addr: int) -> list[Owner]:
        rows = self._db.raw(
            "SELECT '' AS name, 'memory' AS kind, o.path, o.member, o.source, a.section,"
            " NULL AS offset, a.addr, a.size, a.generation, NULL AS slot, NULL AS stub_addr,"
            " a.superseded IS NULL AS live"
            " FROM allocations a LEFT JOIN objects o ON o.id = a.object"
            " WHERE a.target=? AND a.addr<=? AND a.freed IS NULL ORDER BY a.addr DESC LIMIT 4",
            (target, addr),
        )
        return [_owner(r, addr - r["addr"]) for r in rows if addr < r["addr"] + r["size"]]

    def _owner_of_image(self, target: int, addr: int) -> list[Owner]:
        rows = self._db.raw(
            "SELECT path AS name, 'image' AS kind, NULL AS path, NULL AS member,"
            " NULL AS source, '' AS section, NULL AS offset, start_addr AS addr,"
            " end_addr - start_addr AS size, 0 AS generation, NULL AS slot,"
            " NULL AS stub_addr, 1 AS live"
            " FROM images WHERE target=?1 AND start_addr<=?2 AND end_addr>?2",
            (target, addr),
        )
        return [_owner(row, addr - row["addr"]) for row in rows]


_MEMORY: Final = """
    SELECT CASE WHEN o.member IS NULL OR o.member = '' THEN o.path
                ELSE o.path || '(' || o.member || ')' END AS object,
           a.generation, a.region,
           sum(CASE WHEN a.freed IS NULL AND a.superseded IS NULL THEN a.size ELSE 0 END)
               AS live_size,
           sum(CASE WHEN a.freed IS NULL AND a.superseded IS NOT NULL THEN a.size ELSE 0 END)
               AS superseded_size,
           sum(CASE WHEN a.freed IS NOT NULL THEN a.size ELSE 0 END) AS freed_size
      FROM allocations a LEFT JOIN objects o ON o.id = a.object
     WHERE a.target = ?
     GROUP BY a.object, a.generation, a.region
     ORDER BY a.generation DESC, o.path, o.member, a.region
"""


def parse_address(text: str) -> int | None:
    """Return the number a text spells (`0x…` or decimal), or None if it is a name."""
    try:
        return int(text, 0) if text[:1].isdigit() else None
    except ValueError:
        return None


def _owner(row: Sequence[object], distance: int) -> Owner:
    name, kind, path, member, source, *place, slot, stub_addr, live = row
    section, offset, addr, size, generation = place
    shown = f"{path}({member})" if member else path
    return Owner(  # the columns of `_OWNER`, whose types the schema holds
        name, kind, shown, path, member, source, section, offset, addr,  # type: ignore[arg-type]
        size, generation, slot, stub_addr, bool(live), distance,  # type: ignore[arg-type]
    )  # fmt: skip
