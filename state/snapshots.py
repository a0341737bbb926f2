"""Object snapshots: the bytes of every version that was live, by digest.

Small ones are in their row and cost the commit that names them next to nothing; making a file
takes longer than that whole commit. Large ones are files:

    objects/3f/3f09…    the bytes, read-only, never changed

A file is written under another name, then renamed: a name that exists is complete. A snapshot
is kept as long as a kept generation names its digest.
"""

from __future__ import annotations

import os
import time
from functools import partial
from typing import TYPE_CHECKING, Final

from state.errors import StateError

if TYPE_CHECKING:
    from pathlib import Path

    from state.database import Database

_SMALL: Final = 64 << 10  # bytes that go into the row

# digests that must stay: of what is live now, and of all versions that are remembered of every
# target that lives and of the newest of each executable: who starts it again gets that
_NOT_KEPT: Final = """
    SELECT digest, path, size FROM snapshots WHERE digest NOT IN (
    SELECT digest FROM (
           SELECT target, digest FROM versions
            UNION ALL SELECT target, digest FROM objects
            UNION ALL SELECT target, json_extract(value, '$.digest')
                        FROM generations, json_each(objects) WHERE state='prepared')
     WHERE digest IS NOT NULL AND target IN (
           SELECT id FROM targets WHERE ended IS NULL
            UNION SELECT max(id) FROM targets GROUP BY exe))
"""


class Snapshots:
    """Content-addressed storage beside the database."""

    def __init__(self, db: Database, folder: Path) -> None:
        self._db = db
        self._folder = folder
        self._known: set[str] = set()  # saved by this daemon: row and file are there

    def save(self, digest: str, data: bytes | memoryview) -> None:
        """Keep the bytes of an object version; one that is kept already costs one look-up.

        Raises:
            StateError: The disk is full or the like; no half-written file stays.
        """
        if digest in self._known:
            return
        small = len(data) <= _SMALL
        place = "" if small else self._file(digest, data)
        with self._db.transaction("record an object snapshot") as conn:
            conn.execute(
                "INSERT OR IGNORE INTO snapshots(digest, path, size, saved, data)"
                " VALUES (?,?,?,?,?)",
                (digest, place, len(data), time.time(), data if small else None),
            )
            self._db.on_commit(partial(self._known.add, digest))

    def _file(self, digest: str, data: bytes | memoryview) -> str:
        """Keep bytes in a file; return its path below the state folder."""
        path = self._path(digest)
        try:
            if not path.exists():
                self._write(path, data)
        except OSError as error:
            action = "save an object snapshot"
            raise StateError.from_os(action, path, error) from error
        return str(path.relative_to(self._folder))

    def load(self, digest: str) -> bytes:
        """Return the bytes of a version.

        Raises:
            StateError: It was never saved, or was pruned.
        """
        path = self._path(digest)
        found = self._db.raw("SELECT data FROM snapshots WHERE digest=?", (digest,))
        if found and found[0][0] is not None:
            return bytes(found[0][0])
        try:
            return path.read_bytes()
        except FileNotFoundError:
            action, reason = "load an object snapshot", "it is not kept"
            remedy = "Build the object again, or raise `keep` in the configuration"
            raise StateError(action, path, reason, remedy) from None
        except OSError as error:
            action = "load an object snapshot"
            raise StateError.from_os(action, path, error) from error

    def has(self, digest: str) -> bool:
        """Return whether a version's bytes are kept."""
        found = self._db.raw("SELECT data IS NOT NULL FROM snapshots WHERE digest=?", (digest,))
        return bool(found and found[0][0]) or self._path(digest).exists()

    def prune(self) -> int:
        """Remove snapshots that no version which is remembered names; return their bytes."""
        removed = 0
        with self._db.transaction("prune object snapshots") as conn:
            for digest, path, size in conn.execute(_NOT_KEPT).fetchall():
                if path:
                    (self._folder / path).unlink(missing_ok=True)
                self._known.discard(digest)
                conn.execute("DELETE FROM snapshots WHERE digest=?", (digest,))
                removed += int(size)
        return removed

    def _path(self, digest: str) -> Path:
        if not digest.isalnum():  # it becomes a file name
            message = f"not a digest: {digest!r}"
            raise ValueError(message)
        return self._folder / "objects" / digest[:2] / digest

    def _write(self, path: Path, data: bytes | memoryview) -> None:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        part = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o400)
            with open(descriptor, "wb", buffering=0) as file:  # noqa: PTH123 - a descriptor
                rest = memoryview(data)
                while rest:
                    rest = rest[file.write(rest) or 0 :]
            part.replace(path)
        except OSError:
            part.unlink(missing_ok=True)
            raise
