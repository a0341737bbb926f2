"""The journal: one row an attempt, on disk before the target changes.

    prepare -> live            the slots were flipped
            -> failed          undone; the old generation is live
    record  -> unchanged, refused, failed    decided before anything was prepared
    live    -> rolled-back     a later generation took its changes back

The journal says what was intended, the target's slots say what is: after a crash the daemon
reads `unfinished` rows, looks at the slots, and mends the row by `live` or `fail`.
"""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING

from state.rows import GenerationRow, Json, Kind, ObjectVersion, Outcome, Summary, encode

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Iterable, Sequence

    from state.database import Database
    from state.ledger import Ledger

_INSERT = (
    "INSERT INTO generations(target, generation, kind, state, began, ended, objects, functions,"
    " ms_total, timings, stop_us, error_code, error, notes, plan)"
    " VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?,?,?)"
)
_FINISH = (
    "UPDATE generations SET state=?, ended=?, functions=?, ms_total=?, timings=?, stop_us=?,"
    " error_code=?, error=?, notes=? WHERE target=? AND generation=? AND state='prepared'"
)


class NotPreparedError(LookupError):
    """A generation was to be finished that is not prepared: a defect of the caller."""

    def __init__(self, target: int, generation: int) -> None:
        self.target = target
        self.generation = generation
        super().__init__(f"target {target}: generation {generation} is not prepared")


class Journal:
    """Attempts, in the order they were made."""

    def __init__(self, db: Database, ledger: Ledger) -> None:
        self._db = db
        self._ledger = ledger

    def prepare(
        self,
        target: int,
        objects: Sequence[ObjectVersion],
        plan: Json,
        *,
        kind: Kind = "load",
    ) -> int:
        """Write the row that must be on disk before the target changes.

        Args:
            target: The target's id.
            objects: The versions that are to become live.
            plan: What recovery needs to undo or redo it; anything JSON can hold.
            kind: Why the reload is made.

        Returns:
            The generation's number.

        Raises:
            StateError: The disk is full or the like; the target must stay untouched.
        """
        with self._db.transaction("record the prepared generation") as conn:
            number = _next(conn, target)
            empty = Summary()
            row = _row(target, number, kind, "prepared", objects, empty, encode(plan))
            conn.execute(_INSERT, row)
            return number

    def live(self, target: int, generation: int, summary: Summary) -> None:
        """Record that a prepared generation is live, and with it its objects' versions."""
        with self._db.transaction(f"record that generation {generation} is live") as conn:
            self._finish(conn, target, generation, "live", summary)
            found = conn.execute(
                "SELECT objects FROM generations WHERE target=? AND generation=?",
                (target, generation),
            ).fetchone()
            self._ledger.record_versions(target, generation, parse_versions(found[0]))

    def fail(self, target: int, generation: int, summary: Summary) -> None:
        """Record that a prepared generation was undone."""
        with self._db.transaction(f"record that generation {generation} failed") as conn:
            self._finish(conn, target, generation, "failed", summary)

    def record(
        self,
        target: int,
        state: Outcome,
        objects: Sequence[ObjectVersion],
        summary: Summary,
        *,
        kind: Kind = "load",
    ) -> int:
        """Write an attempt that was decided before it was prepared.

        Args:
            target: The target's id.
            state: `unchanged`, `refused` or `failed`.
            objects: The versions it was about.
            summary: What there is to say.
            kind: Why it was made.

        Returns:
            The attempt's number.
        """
        with self._db.transaction("record the attempt") as conn:
            number = _next(conn, target)
            conn.execute(_INSERT, _row(target, number, kind, state, objects, summary, "{}"))
            return number

    def mark_rolled_back(self, target: int, generations: Iterable[int]) -> None:
        """Record that live generations were taken back by a rollback."""
        with self._db.transaction("record the rollback") as conn:
            conn.executemany(
                "UPDATE generations SET state='rolled-back'"
                " WHERE target=? AND generation=? AND state='live'",
                [(target, generation) for generation in generations],
            )

    def unfinished(self, target: int) -> list[GenerationRow]:
        """Return the prepared rows nobody finished: the daemon died between two steps."""
        return self._db.rows(
            GenerationRow,
            "SELECT * FROM generations WHERE target=? AND state='prepared' ORDER BY generation",
            (target,),
        )

    def _finish(
        self,
        conn: sqlite3.Connection,
        target: int,
        generation: int,
        state: Outcome,
        summary: Summary,
    ) -> None:
        row = (state, time.time(), *_summary_columns(summary), target, generation)
        if conn.execute(_FINISH, row).rowcount != 1:
            raise NotPreparedError(target, generation)


def parse_versions(text: str) -> list[ObjectVersion]:
    """Return the object versions in a journal row's JSON."""
    return [ObjectVersion(o["path"], o["member"], o["digest"]) for o in json.loads(text)]


def _next(conn: sqlite3.Connection, target: int) -> int:
    found = conn.execute(
        "SELECT coalesce(max(generation), 0) + 1 FROM generations WHERE target=?", (target,)
    ).fetchone()
    return int(found[0])


def _summary_columns(summary: Summary) -> tuple[object, ...]:
    return (
        encode(list(summary.functions)),
        summary.ms_total,
        encode(dict(summary.timings)),
        summary.stop_us,
        summary.error_code,
        summary.error,
        encode(list(summary.notes)),
    )


def _row(  # noqa: PLR0913, PLR0917 - one argument a column
    target: int,
    number: int,
    kind: Kind,
    state: Outcome,
    objects: Sequence[ObjectVersion],
    summary: Summary,
    plan: str,
) -> tuple[object, ...]:
    now = time.time()
    versions = [{"path": o.path, "member": o.member, "digest": o.digest} for o in objects]
    ended = None if state == "prepared" else now
    return (
        *(target, number, kind, state, now, ended, encode(versions)),
        *_summary_columns(summary),
        plan,
    )
