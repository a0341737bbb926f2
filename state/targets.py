"""Targets, their member processes and their images."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from state.rows import ImageRow, ProcessRow, TargetRow, encode

if TYPE_CHECKING:
    from collections.abc import Sequence

    from state.database import Database


class Targets:
    """Who is, or was, under the daemon."""

    def __init__(self, db: Database) -> None:
        self._db = db

    def begin(  # noqa: PLR0913 - a target's identity has this many parts, all by name
        self,
        *,
        pid: int,
        start_time: int,
        build_id: str,
        exe: str,
        argv: Sequence[str] = (),
        cwd: str = "",
        how: str = "attach",
    ) -> int:
        """Record a target and its first process.

        A target whose pid and start time are those of an unfinished row is the same one, seen
        again by a later daemon.

        Returns:
            The target's id.
        """
        with self._db.transaction("record the target") as conn:
            known = conn.execute(
                "SELECT id FROM targets WHERE pid=? AND start_time=? AND ended IS NULL",
                (pid, start_time),
            ).fetchone()
            if known:
                return int(known[0])
            cursor = conn.execute(
                "INSERT INTO targets(pid, start_time, build_id, exe, argv, cwd, how, began)"
                " VALUES (?,?,?,?,?,?,?,?)",
                (pid, start_time, build_id, exe, encode(list(argv)), cwd, how, time.time()),
            )
            target = int(cursor.lastrowid or 0)
            self.add_process(target, pid=pid, start_time=start_time)
            return target

    def follow(self, target: int, *, pid: int, start_time: int) -> None:
        """Record that another process of the family stands for the target from now on."""
        before = self.get(target)
        parent = before.pid if before else None
        self.add_process(target, pid=pid, start_time=start_time, parent_pid=parent)
        if before:
            self.end_process(target, before.pid)
        with self._db.transaction("record the process that stands for a target") as conn:
            conn.execute(
                "UPDATE targets SET pid=?, start_time=? WHERE id=?", (pid, start_time, target)
            )

    def end(self, target: int, reason: str) -> None:
        """Record that a target ended or was let go.

        Its history and object versions stay; what describes its memory goes with the memory.
        """
        now = time.time()
        with self._db.transaction("record the target's end") as conn:
            conn.execute(
                "UPDATE targets SET ended=?, end_reason=? WHERE id=? AND ended IS NULL",
                (now, reason, target),
            )
            conn.execute(
                "UPDATE processes SET ended=? WHERE target=? AND ended IS NULL", (now, target)
            )
            conn.execute(
                "UPDATE allocations SET freed=? WHERE target=? AND freed IS NULL", (now, target)
            )
            conn.execute("DELETE FROM symbols WHERE target=?", (target,))
            conn.execute("DELETE FROM slots WHERE target=?", (target,))
            conn.execute("DELETE FROM call_sites WHERE target=?", (target,))

    def add_process(
        self, target: int, *, pid: int, start_time: int, parent_pid: int | None = None
    ) -> None:
        """Record a member process; a known one stays as it is."""
        with self._db.transaction("record a process") as conn:
            conn.execute(
                "INSERT OR IGNORE INTO processes(target, pid, start_time, parent_pid, began)"
                " VALUES (?,?,?,?,?)",
                (target, pid, start_time, parent_pid, time.time()),
            )

    def end_process(self, target: int, pid: int) -> None:
        """Record that a member process ended."""
        with self._db.transaction("record a process's end") as conn:
            conn.execute(
                "UPDATE processes SET ended=? WHERE target=? AND pid=? AND ended IS NULL",
                (time.time(), target, pid),
            )

    def add_image(  # noqa: PLR0913 - an image's identity has this many parts, all by name
        self,
        target: int,
        *,
        kind: str,
        path: str,
        build_id: str,
        base_addr: int,
        start_addr: int,
        end_addr: int,
    ) -> int:
        """Record the executable or a library and return its id."""
        with self._db.transaction("record an image") as conn:
            conn.execute(
                "INSERT OR IGNORE INTO images"
                "(target, kind, path, build_id, base_addr, start_addr, end_addr)"
                " VALUES (?,?,?,?,?,?,?)",
                (target, kind, path, build_id, base_addr, start_addr, end_addr),
            )
            row = conn.execute(
                "SELECT id FROM images WHERE target=? AND path=? AND base_addr=?",
                (target, path, base_addr),
            ).fetchone()
            return int(row[0])

    def get(self, target: int) -> TargetRow | None:
        """Return a target, or None."""
        rows = self._db.rows(TargetRow, "SELECT * FROM targets WHERE id=?", (target,))
        return rows[0] if rows else None

    def unended(self) -> list[TargetRow]:
        """Return the targets whose end was never recorded: what a new daemon may take over."""
        return self._db.rows(TargetRow, "SELECT * FROM targets WHERE ended IS NULL ORDER BY id")

    def previous(self, exe: str, before: int) -> TargetRow | None:
        """Return the newest target of an executable before a given one, for a replay."""
        rows = self._db.rows(
            TargetRow,
            "SELECT * FROM targets WHERE exe=? AND id<? ORDER BY id DESC LIMIT 1",
            (exe, before),
        )
        return rows[0] if rows else None

    def last(self) -> TargetRow | None:
        """Return the newest target, None if there never was one."""
        rows = self._db.rows(TargetRow, "SELECT * FROM targets ORDER BY id DESC LIMIT 1")
        return rows[0] if rows else None

    def processes(self, target: int) -> list[ProcessRow]:
        """Return the member processes of a target."""
        return self._db.rows(
            ProcessRow, "SELECT * FROM processes WHERE target=? ORDER BY id", (target,)
        )

    def images(self, target: int) -> list[ImageRow]:
        """Return the images of a target."""
        return self._db.rows(
            ImageRow, "SELECT * FROM images WHERE target=? ORDER BY start_addr", (target,)
        )
