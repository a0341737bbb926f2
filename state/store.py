"""Store: the state folder of one project, opened.

state.db             everything but the bytes of objects
objects/<2>/<digest>  large object snapshots
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final, Self

from state.crashes import Crashes
from state.database import Database
from state.errors import StateError
from state.journal import Journal
from state.ledger import Ledger
from state.query import Query
from state.resume import Resume
from state.rows import Json, encode
from state.snapshots import Snapshots
from state.targets import Targets

if TYPE_CHECKING:
    import sqlite3
    from contextlib import AbstractContextManager
    from pathlib import Path

_EVENTS_KEPT: Final = 10_000
_FILE: Final = "state.db"


class Store:
    """All that outlives the daemon. Any thread may use it; writes are serialised.

    Attributes:
        targets: Targets, processes, images.
        journal: One row an attempt.
        ledger: Objects, symbols, allocations, slots, call sites.
        query: Reads; never waits for a writer.
        resume: What a later daemon needs to go on.
        crashes: Where programs ended by a signal.
        snapshots: Object bytes by digest.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._db = Database(folder / _FILE)
        self.targets = Targets(self._db)
        self.ledger = Ledger(self._db)
        self.journal = Journal(self._db, self.ledger)
        self.query = Query(self._db)
        self.resume = Resume(self._db)
        self.crashes = Crashes(self._db)
        self.snapshots = Snapshots(self._db, folder)

    @classmethod
    def open(cls, folder: Path) -> Self:
        """Open, or begin, the state in a folder.

        Raises:
            StateError: The folder or the database cannot be used.
        """
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            action = "make the state folder"
            raise StateError.from_os(action, folder, error) from error
        return cls(folder)

    def transaction(
        self, action: str = "record the reload"
    ) -> AbstractContextManager[sqlite3.Connection]:
        """Group writes: one reload is recorded by one commit."""
        return self._db.transaction(action)

    def record_event(self, kind: str, data: Json, *, target: int | None = None) -> None:
        """Record that something happened."""
        with self._db.transaction("record an event") as conn:
            conn.execute(
                "INSERT INTO events(target, time, kind, data) VALUES (?,?,?,?)",
                (target, time.time(), kind, encode(data)),
            )

    def prune(self, keep: int) -> int:
        """Remove what the retention policy does not keep.

        Args:
            keep: How many of the newest generations of a living target stay loadable.

        Returns:
            The bytes of snapshots that were removed.
        """
        removed = self.snapshots.prune(keep)
        with self._db.transaction("prune events") as conn:
            conn.execute(
                "DELETE FROM events WHERE id <= (SELECT max(id) FROM events) - ?",
                (_EVENTS_KEPT,),
            )
        self._db.checkpoint()
        return removed

    def tidy(self) -> None:
        """Move what was committed into the database file, if it is much; takes some 10 ms."""
        self._db.fold()

    def deleted(self) -> bool:
        """Return whether the database was deleted or replaced while it is open here.

        SQLite goes on with the file it has; nobody else will ever read it.
        """
        return not self._db.is_in_place()

    def close(self) -> None:
        """Close the database."""
        self._db.close()

    def __enter__(self) -> Self:
        """Return the store itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the database."""
        self.close()
