"""The ledger: objects and their versions, allocations, symbols, slots, call sites.

Bulk tables come as columns and go in by one `executemany` each.
"""

from __future__ import annotations

import time
from itertools import repeat
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from collections.abc import Set as AbstractSet

    from state.database import Database
    from state.rows import NewAllocation, ObjectVersion, SlotRow, SymbolColumns

_TOO_BIG: Final = 1 << 63  # SQLite's integers are signed; the sentinel "no address" is above
_INSERT_SYMBOL: Final = (
    "INSERT INTO symbols(target, object, name, kind, section, offset, addr, size, generation,"
    " slot, stub_addr, live) VALUES (?,?,?,?,?,?,?,?,?,?,?,1)"
)


class Ledger:
    """What is where in a target, and to whom it belongs."""

    def __init__(self, db: Database) -> None:
        self._db = db

    def object_id(
        self, target: int, path: str, member: str = "", *, image: int | None = None
    ) -> int:
        """Return an object's id; a new one gets a row."""
        with self._db.transaction("record an object") as conn:
            found = conn.execute(
                "SELECT id FROM objects WHERE target=? AND path=? AND member=?",
                (target, path, member),
            ).fetchone()
            if found:
                return int(found[0])
            cursor = conn.execute(
                "INSERT INTO objects(target, path, member, image, generation)"
                " VALUES (?,?,?,?,0)",
                (target, path, member, image),
            )
            return int(cursor.lastrowid or 0)

    def describe_object(
        self,
        object_id: int,
        *,
        source: str | None = None,
        baseline: str | None = None,
        note: str | None = None,
    ) -> None:
        """Fill in what was learnt about an object; None leaves a column as it is."""
        with self._db.transaction("describe an object") as conn:
            conn.execute(
                "UPDATE objects SET source=coalesce(?, source),"
                " baseline=coalesce(?, baseline), note=coalesce(?, note) WHERE id=?",
                (source, baseline, note, object_id),
            )

    def record_versions(
        self, target: int, generation: int, versions: Iterable[ObjectVersion]
    ) -> None:
        """Record which version of each object a generation made live; 0 is the baseline."""
        with self._db.transaction("record object versions") as conn:
            for version in versions:
                row = self.object_id(target, version.path, version.member)
                conn.execute(
                    "INSERT OR REPLACE INTO versions(target, generation, object, digest)"
                    " VALUES (?,?,?,?)",
                    (target, generation, row, version.digest),
                )
                conn.execute(
                    "UPDATE objects SET digest=?, generation=? WHERE id=?",
                    (version.digest, generation, row),
                )

    def replace_symbols(
        self, target: int, object_id: int | None, generation: int, columns: SymbolColumns
    ) -> None:
        """Make these the live symbols of an object; its earlier ones are superseded.

        Args:
            target: The target's id.
            object_id: The object, or None for symbols of the image that no object owns.
            generation: That made them live; 0 for the baseline.
            columns: (n,) columns.
        """
        with self._db.transaction("record symbols") as conn:
            conn.execute(
                "UPDATE symbols SET live=0 WHERE target=? AND object IS ? AND live=1",
                (target, object_id),
            )
            conn.executemany(
                _INSERT_SYMBOL, _symbol_rows(target, object_id, generation, columns)
            )

    def update_symbols(
        self, target: int, object_id: int, generation: int, columns: SymbolColumns
    ) -> None:
        """Make these the live versions of symbols that changed; the object's others stay.

        This is the cheap form for a reload that changed three functions of a large object.
        """
        with self._db.transaction("record symbols") as conn:
            conn.executemany(
                "UPDATE symbols SET live=0 WHERE target=? AND name=? AND object=? AND live=1",
                zip(repeat(target), columns.name, repeat(object_id), strict=False),
            )
            conn.executemany(
                _INSERT_SYMBOL, _symbol_rows(target, object_id, generation, columns)
            )

    def keep_symbols(self, target: int, object_id: int, names: AbstractSet[str]) -> None:
        """Supersede the symbols of an object that its new version has no more."""
        with self._db.transaction("record symbols") as conn:
            found = conn.execute(
                "SELECT id, name FROM symbols WHERE target=? AND object=? AND live=1",
                (target, object_id),
            ).fetchall()
            gone = [(row,) for row, name in found if name not in names]
            conn.executemany("UPDATE symbols SET live=0 WHERE id=?", gone)

    def record_allocations(
        self, target: int, generation: int, allocations: Iterable[NewAllocation]
    ) -> None:
        """Record address space taken for a generation."""
        now = time.time()
        with self._db.transaction("record allocations") as conn:
            conn.executemany(
                "INSERT INTO allocations"
                "(target, generation, object, region, section, addr, size, allocated)"
                " VALUES (?,?,?,?,?,?,?,?)",
                [
                    (target, generation, a.object, a.region, a.section, a.addr, a.size, now)
                    for a in allocations
                ],
            )

    def mark_superseded(self, target: int, addrs: Iterable[int]) -> None:
        """Record that nothing live is in these allocations any more; they await retirement."""
        now = time.time()
        with self._db.transaction("record superseded allocations") as conn:
            conn.executemany(
                "UPDATE allocations SET superseded=?"
                " WHERE target=? AND addr=? AND freed IS NULL AND superseded IS NULL",
                [(now, target, addr) for addr in addrs],
            )

    def mark_needed(self, target: int, addrs: Iterable[int]) -> None:
        """Record that allocations are live again: an earlier generation was returned to."""
        with self._db.transaction("record needed allocations") as conn:
            conn.executemany(
                "UPDATE allocations SET superseded=NULL"
                " WHERE target=? AND addr=? AND freed IS NULL AND superseded IS NOT NULL",
                [(target, addr) for addr in addrs],
            )

    def mark_freed(self, target: int, addrs: Sequence[int]) -> int:
        """Record that allocations were given back; their superseded symbols go with them.

        Args:
            target: The target's id.
            addrs: First address of each allocation.

        Returns:
            The bytes that were freed.
        """
        now = time.time()
        freed = 0
        with self._db.transaction("record freed allocations") as conn:
            for addr in addrs:
                held = conn.execute(
                    "SELECT id, size FROM allocations"
                    " WHERE target=? AND addr=? AND freed IS NULL",
                    (target, addr),
                ).fetchall()
                for row, size in held:
                    freed += int(size)
                    conn.execute("UPDATE allocations SET freed=? WHERE id=?", (now, row))
                    conn.execute(
                        "DELETE FROM symbols WHERE target=? AND addr>=? AND addr<? AND live=0",
                        (target, addr, addr + size),
                    )
        return freed

    def record_slots(self, slots: Iterable[SlotRow]) -> None:
        """Record slots, new ones and those that were flipped."""
        with self._db.transaction("record slots") as conn:
            conn.executemany(
                "INSERT OR REPLACE INTO slots(target, slot, object, name, slot_addr, stub_addr,"
                " canonical_addr, code_addr, generation) VALUES (?,?,?,?,?,?,?,?,?)",
                [
                    (
                        *(s.target, s.slot, s.object, s.name, s.slot_addr, s.stub_addr),
                        *(s.canonical_addr, s.code_addr, s.generation),
                    )
                    for s in slots
                ],
            )

    def record_call_sites(
        self,
        target: int,
        object_id: int | None,
        addrs: Sequence[int],
        callees: Sequence[str],
        old_bytes: Sequence[bytes],
    ) -> None:
        """Record calls that were redirected, with the bytes that stood there."""
        rows = zip(addrs, callees, old_bytes, strict=True)
        with self._db.transaction("record call sites") as conn:
            conn.executemany(
                "INSERT INTO call_sites(target, object, addr, callee, state, old_bytes)"
                " VALUES (?,?,?,?,'redirected',?)",
                [(target, object_id, addr, callee, old) for addr, callee, old in rows],
            )


def _symbol_rows(
    target: int, object_id: int | None, generation: int, columns: SymbolColumns
) -> Iterable[tuple[object, ...]]:
    return zip(
        repeat(target),
        repeat(object_id),
        columns.name,
        columns.kind,
        columns.section,
        columns.offset,
        [a if a < _TOO_BIG else None for a in columns.addr],
        columns.size,
        repeat(generation),
        [s if s >= 0 else None for s in columns.slot],
        [a if 0 < a < _TOO_BIG else None for a in columns.stub_addr],
        strict=False,  # `repeat` never ends
    )
