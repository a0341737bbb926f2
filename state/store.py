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
from state.retention import prune_history
from state.rows import Json, encode
from state.snapshots import Snapshots
from state.targets import Targets

if TYPE_CHECKING:
    import sqlite3
    from contextlib import AbstractContextManager
    from pathlib import Path

_FILE: Final = "state.db"
_PRUNE_EVERY: Final = 500  # attempts: a reload that comes just then waits for it


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
        self._pruned_at = 0  # how many attempts there had been

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
            keep: How many of the newest generations of a target stay loadable.

        Returns:
            The bytes of snapshots that were removed.
        """
        prune_history(self._db, keep)
        return self.snapshots.prune()

    def tidy(self, keep: int) -> None:
        """Move what was committed into the database file, if it is much; prune now and then.

        It takes some 10 ms when there is something to do.
        """
        self._db.fold()
        ((attempts,),) = self._db.raw("SELECT coalesce(max(rowid), 0) FROM generations")
        if attempts >= self._pruned_at + _PRUNE_EVERY:
            self._pruned_at = attempts
            self.prune(keep)

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
