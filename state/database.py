"""One SQLite file, a connection that writes and one that reads.

Readers never wait for a writer in WAL mode, so `owner` is answered while a reload is being
recorded. `synchronous=NORMAL` makes a commit a write without a flush: it survives the death of
the daemon, and a power cut loses at most the end of a history whose target died with it.
"""

from __future__ import annotations

import sqlite3
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final, TypeVar

import sqlite_utils

from state.errors import SchemaTooNewError, StateError
from state.rows import decode
from state.schema import MIGRATIONS, migrate, version

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Sequence
    from pathlib import Path

T = TypeVar("T")
_BUSY_TIMEOUT_S: Final = 5.0  # a person may hold the file open in sqlite-utils or Datasette
# The commit that makes the log larger than this many pages folds it into the file, and flushes:
# some reload would wait for it. So it is made in a quiet moment, from a lower bound on.
_MOST_PAGES: Final = 8000
_MUCH_SIZE: Final = 4 << 20  # bytes of the log


class Database:
    """Transactions, reads, and SQLite's errors in words."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._write_lock = threading.RLock()
        self._read_lock = threading.Lock()
        self._depth = 0
        self._on_commit: list[Callable[[], object]] = []
        with self._translated("open it"):
            self._writer = self._connect()
        try:
            self._prepare()
            self._inode = self.path.stat().st_ino
            with self._translated("open it"):
                self._reader = self._connect()
                self._reader.conn.execute("PRAGMA query_only=ON")
        except BaseException:
            self._writer.close()
            raise

    @property
    def utils(self) -> sqlite_utils.Database:
        """The writing connection, for sqlite-utils' own conveniences."""
        return self._writer

    @contextmanager
    def transaction(self, action: str) -> Generator[sqlite3.Connection]:
        """Hold one write transaction; a nested one joins the outer.

        Args:
            action: What is being done, for the error's text: `record a generation`.

        Raises:
            StateError: Nothing of the transaction was recorded.
        """
        with self._write_lock, self._translated(action):
            conn = self._writer.conn
            if self._depth:
                yield conn
                return
            conn.execute("BEGIN IMMEDIATE")
            self._depth = 1
            try:
                yield conn
                conn.execute("COMMIT")
                for call in self._on_commit:
                    call()
            except BaseException:
                if conn.in_transaction:
                    conn.execute("ROLLBACK")
                raise
            finally:
                self._depth = 0
                self._on_commit.clear()

    def on_commit(self, call: Callable[[], object]) -> None:
        """Have a function called once the transaction that is under way is recorded."""
        self._on_commit.append(call)

    def rows(self, row_type: type[T], sql: str, parameters: Sequence[object] = ()) -> list[T]:
        """Return what a query finds among the committed rows."""
        return [decode(row_type, row) for row in self.raw(sql, parameters)]

    def raw(self, sql: str, parameters: Sequence[object] = ()) -> list[Any]:
        """Return the `sqlite3.Row`s of a query among the committed rows."""
        with self._read_lock, self._translated("read it"):
            return self._reader.conn.execute(sql, parameters).fetchall()

    def fold(self) -> None:
        """Move the log's pages into the database file if there are many; wait for nobody."""
        log = self.path.with_name(f"{self.path.name}-wal")
        if not log.exists() or log.stat().st_size < _MUCH_SIZE:
            return
        with self._write_lock, self._translated("tidy it up"):
            self._writer.conn.execute("PRAGMA wal_checkpoint(PASSIVE)")

    def is_in_place(self) -> bool:
        """Return whether the file that is open is still the one at its path."""
        try:
            return self.path.stat().st_ino == self._inode
        except OSError:
            return False

    def close(self) -> None:
        """Close both connections; SQLite folds the log into the file."""
        with self._write_lock, self._read_lock:
            self._reader.close()
            self._writer.close()

    def _connect(self) -> sqlite_utils.Database:
        # isolation_level None: no transaction begins behind our back
        conn = sqlite3.connect(
            self.path,
            timeout=_BUSY_TIMEOUT_S,
            isolation_level=None,
            check_same_thread=False,
        )
        conn.row_factory = sqlite3.Row
        try:
            conn.execute("PRAGMA synchronous=NORMAL")
            conn.execute(f"PRAGMA wal_autocheckpoint={_MOST_PAGES}")
            conn.execute(f"PRAGMA journal_size_limit={_MUCH_SIZE // 2}")
            conn.execute("PRAGMA foreign_keys=ON")
        except sqlite3.Error:
            conn.close()
            raise
        return sqlite_utils.Database(conn, execute_plugins=False)

    def _prepare(self) -> None:
        with self._translated("open it"):
            self._writer.enable_wal()
            found = version(self._writer)
        if found > len(MIGRATIONS):
            raise SchemaTooNewError(self.path, found, len(MIGRATIONS))
        with self._translated("bring its schema up to date"):
            migrate(self._writer)

    @contextmanager
    def _translated(self, action: str) -> Generator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise StateError.from_sqlite(action, self.path, error) from error
        except UnicodeEncodeError as error:  # a file's name, which may be any bytes
            reason = f"{error.object!a} is no UTF-8"
            raise StateError(action, self.path, reason, "Rename that file or folder") from error
