"""Crashes: where programs ended by a signal, and which versions had to do with it."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from state.database import Database


@dataclass(frozen=True, slots=True)
class CrashRow:
    """One crash."""

    target: int
    generation: int  # whose code was on the stack; 0: none of ours
    time: float
    pid: int
    signal: str  # SIGSEGV
    function: str  # "": not known
    path: str  # of the object that the function is of, "": none of ours
    member: str
    digest: str
    line: str  # hud.c:41, "": not known
    text: str  # the sentence for people


class Crashes:
    """Reads and writes of crashes."""

    def __init__(self, db: Database) -> None:
        self._db = db

    def record(self, row: CrashRow) -> None:
        """Write a crash down, and add it to its generation's notes."""
        with self._db.transaction("record a crash") as conn:
            conn.execute(
                "INSERT INTO crashes(target, generation, time, pid, signal, function, path,"
                " member, digest, line, text) VALUES (?,?,?,?,?,?,?,?,?,?,?)",
                (
                    row.target, row.generation, row.time or time.time(), row.pid, row.signal,
                    row.function, row.path, row.member, row.digest, row.line, row.text,
                ),
            )  # fmt: skip
            conn.execute(
                "UPDATE generations SET notes=json_insert(notes, '$[#]', ?)"
                " WHERE target=? AND generation=?",
                (row.text, row.target, row.generation),
            )

    def of(self, target: int) -> list[CrashRow]:
        """Return a target's crashes, oldest first."""
        return self._db.rows(CrashRow, _SELECT + " WHERE target=? ORDER BY id", (target,))

    def of_program(self, exe: str) -> list[CrashRow]:
        """Return the crashes of every run of an executable, oldest first."""
        return self._db.rows(CrashRow, _SELECT + _OF_PROGRAM, (exe,))


_SELECT = (
    "SELECT target, generation, time, pid, signal, function, path, member, digest, line, text"
    " FROM crashes"
)
_OF_PROGRAM = " WHERE target IN (SELECT id FROM targets WHERE exe=?) ORDER BY id"
