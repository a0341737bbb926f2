"""What a later daemon needs to go on with a process that this one worked on.

Three tables beside the ledger's: the addresses of each live object as one blob, whose every
slot is, and which bytes of the executable were replaced. They are written in the same commit as
the journal row they belong to.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from state.database import Database


@dataclass(frozen=True, slots=True)
class LiveRow:
    """One live object."""

    path: str
    member: str
    generation: int
    digest: str
    addrs: bytes  # the daemon's own packing


@dataclass(frozen=True, slots=True)
class SlotKeyRow:
    """Whose a slot is; `path` is empty for a global function."""

    slot: int
    path: str
    member: str
    name: bytes
    original: int  # address outside of the arena, 0: none


@dataclass(frozen=True, slots=True)
class RedirectRow:
    """Bytes of the executable that were replaced for a slot."""

    slot: int
    addr: int
    old: bytes
    new: bytes


class Resume:
    """Reads and writes of the three tables."""

    def __init__(self, db: Database) -> None:
        self._db = db

    def put_live(self, target: int, rows: Iterable[LiveRow]) -> None:
        """Record what objects are now."""
        with self._db.transaction("record live objects") as conn:
            conn.executemany(
                "INSERT OR REPLACE INTO live_objects"
                "(target, path, member, generation, digest, addrs) VALUES (?,?,?,?,?,?)",
                [(target, r.path, r.member, r.generation, r.digest, r.addrs) for r in rows],
            )

    def remove_live(self, target: int, path: str, member: str) -> None:
        """Forget an object: it was unloaded."""
        with self._db.transaction("forget a live object") as conn:
            conn.execute(
                "DELETE FROM live_objects WHERE target=? AND path=? AND member=?",
                (target, path, member),
            )

    def put_host(self, target: int, rows: Mapping[str, str]) -> None:
        """Record what the program's language needs; "" forgets a row."""
        if not rows:
            return
        with self._db.transaction("record the language's state") as conn:
            conn.executemany(
                "INSERT OR REPLACE INTO host_rows(target, name, data) VALUES (?,?,?)",
                [(target, name, data) for name, data in rows.items()],
            )

    def host(self, target: int) -> dict[str, str]:
        """Return what `put_host` recorded."""
        rows = self._db.raw("SELECT name, data FROM host_rows WHERE target=?", (target,))
        return {name: data for name, data in rows if data}

    def put_slots(self, target: int, rows: Iterable[SlotKeyRow]) -> None:
        """Record whose new slots are."""
        with self._db.transaction("record slot owners") as conn:
            conn.executemany(
                "INSERT OR REPLACE INTO slot_keys(target, slot, path, member, name, original)"
                " VALUES (?,?,?,?,?,?)",
                [(target, r.slot, r.path, r.member, r.name, r.original) for r in rows],
            )

    def put_redirects(self, target: int, rows: Iterable[RedirectRow]) -> None:
        """Record replaced bytes."""
        with self._db.transaction("record redirects") as conn:
            conn.executemany(
                "INSERT OR REPLACE INTO redirects(target, slot, addr, old, new)"
                " VALUES (?,?,?,?,?)",
                [(target, r.slot, r.addr, r.old, r.new) for r in rows],
            )

    def remove_redirects(self, target: int, slots: Iterable[int]) -> None:
        """Forget replaced bytes: the original ones are back."""
        with self._db.transaction("forget redirects") as conn:
            conn.executemany(
                "DELETE FROM redirects WHERE target=? AND slot=?", [(target, s) for s in slots]
            )

    def live(self, target: int) -> list[LiveRow]:
        """Return the live objects."""
        return self._db.rows(
            LiveRow,
            "SELECT path, member, generation, digest, addrs FROM live_objects WHERE target=?"
            " ORDER BY path, member",
            (target,),
        )

    def slots(self, target: int) -> list[SlotKeyRow]:
        """Return whose each slot is, by number."""
        return self._db.rows(
            SlotKeyRow,
            "SELECT slot, path, member, name, original FROM slot_keys WHERE target=?"
            " ORDER BY slot",
            (target,),
        )

    def redirects(self, target: int) -> list[RedirectRow]:
        """Return the replaced bytes."""
        return self._db.rows(
            RedirectRow,
            "SELECT slot, addr, old, new FROM redirects WHERE target=? ORDER BY addr",
            (target,),
        )
