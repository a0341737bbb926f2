"""StateError: the database or a snapshot could not be read or written."""

from __future__ import annotations

import errno
import os
import sqlite3
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from pathlib import Path

# SQLite primary result code -> (what it means, what to do); an extended code's low byte is its
# primary one
_MEANING: Final = {
    sqlite3.SQLITE_FULL: ("the disk is full", "Free some space there and try again"),
    sqlite3.SQLITE_READONLY: ("the file is read-only", "Make it writable for this user"),
    sqlite3.SQLITE_PERM: ("permission denied", "Make it writable for this user"),
    sqlite3.SQLITE_CANTOPEN: (
        "the file cannot be opened",
        "Check that the folder exists and is writable for this user",
    ),
    sqlite3.SQLITE_IOERR: (
        "the disk reports an error, or is full",
        "Check the disk and its free space and try again",
    ),
    sqlite3.SQLITE_BUSY: (
        "another program holds the database",
        "End the program that has it open for writing and try again",
    ),
    sqlite3.SQLITE_CORRUPT: (
        "the file is damaged",
        "Move it away; the daemon starts a new one and loses only the history",
    ),
    sqlite3.SQLITE_NOTADB: (
        "the file is not a database",
        "Move it away; the daemon starts a new one",
    ),
}
_OS_REMEDY: Final = {
    errno.ENOSPC: "Free some space there and try again",
    errno.EDQUOT: "Free some space there and try again",
    errno.EFBIG: "Raise the file size limit (ulimit -f) and try again",
}


class StateError(Exception):
    """State could not be read or written; what was begun is undone.

    Attributes:
        action: What was being done, as a verb phrase: `record a generation`.
        path: The file concerned.
        reason: Why it failed, in words.
        remedy: What the user can do.
    """

    code = "state"

    def __init__(self, action: str, path: Path, reason: str, remedy: str) -> None:
        self.action = action
        self.path = path
        self.reason = reason
        self.remedy = remedy
        super().__init__(f"{path}: cannot {action}: {reason}. Nothing was recorded. {remedy}.")

    @classmethod
    def from_sqlite(cls, action: str, path: Path, error: sqlite3.Error) -> StateError:
        """Build the error from SQLite's own, with its code's meaning in words."""
        number: int = getattr(error, "sqlite_errorcode", 0) & 0xFF
        reason, remedy = _MEANING.get(number, (str(error), "Report this as a defect"))
        if number == sqlite3.SQLITE_CANTOPEN and not os.access(path.parent, os.W_OK):
            there = path.parent.exists()
            reason = "its folder is read-only" if there else "its folder does not exist"
        name: str = getattr(error, "sqlite_errorname", "")
        return cls(action, path, f"{reason} ({name})" if name else reason, remedy)

    @classmethod
    def from_os(cls, action: str, path: Path, error: OSError) -> StateError:
        """Build the error from a failed file operation."""
        remedy = _OS_REMEDY.get(error.errno or 0, "Make it writable for this user")
        return cls(action, path, error.strerror or str(error), remedy)


class SchemaTooNewError(StateError):
    """The database was written by a newer version.

    Attributes:
        found: The schema version in the file.
        known: The newest version this program knows.
    """

    def __init__(self, path: Path, found: int, known: int) -> None:
        self.found = found
        self.known = known
        super().__init__(
            "open it",
            path,
            f"its schema is version {found}, this program knows versions up to {known}",
            "Use the newer reloader, or move the file away",
        )
