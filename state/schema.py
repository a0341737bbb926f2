"""The schema as a list of migrations, each with one sentence of reason.

A migration is never edited once released: a change is a new one at the end. The number of
applied migrations is the database's `user_version`; one migration and its number are one
transaction, so a crash leaves the version before or the version after it.

Times are seconds since the epoch (REAL). Addresses and sizes are bytes in the target; NULL is
"none" or "unknown". JSON columns are TEXT and work with SQLite's `json_each`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlite_utils import Database


@dataclass(frozen=True, slots=True)
class Migration:
    """One step from a schema version to the next."""

    reason: str
    apply: Callable[[Database], None]


def _targets_and_members(db: Database) -> None:
    db.create_table(
        "targets",
        {
            "id": int,
            "pid": int,
            "start_time": int,  # clock ticks after boot: with pid it names one process
            "build_id": str,
            "exe": str,
            "argv": str,  # JSON list
            "cwd": str,
            "how": str,  # run | attach
            "began": float,
            "ended": float,
            "end_reason": str,
        },
        pk="id",
        not_null={"pid", "start_time", "build_id", "exe", "argv", "cwd", "how", "began"},
    )
    db.create_table(
        "processes",
        {
            "id": int,
            "target": int,
            "pid": int,
            "start_time": int,
            "parent_pid": int,
            "began": float,
            "ended": float,
        },
        pk="id",
        not_null={"target", "pid", "start_time", "began"},
        foreign_keys=[("target", "targets", "id")],
    )
    db.create_table(
        "images",
        {
            "id": int,
            "target": int,
            "kind": str,  # executable | library
            "path": str,
            "build_id": str,
            "base_addr": int,  # what is added to the file's addresses
            "start_addr": int,
            "end_addr": int,
        },
        pk="id",
        not_null={"target", "kind", "path", "build_id", "base_addr", "start_addr", "end_addr"},
        foreign_keys=[("target", "targets", "id")],
    )
    db.table("processes").create_index(["target", "pid", "start_time"], unique=True)
    db.table("images").create_index(["target", "path", "base_addr"], unique=True)


def _objects_and_snapshots(db: Database) -> None:
    db.create_table(
        "snapshots",
        {"digest": str, "path": str, "size": int, "saved": float},
        pk="digest",
        not_null={"path", "size", "saved"},
    )
    db.create_table(
        "objects",
        {
            "id": int,
            "target": int,
            "image": int,  # the image it was linked into, NULL for one that came later
            "path": str,
            "member": str,  # archive member, "" for a plain object
            "digest": str,  # of the version that is live; NULL: not loaded
            "source": str,
            "generation": int,  # that made the live version live
            "baseline": str,  # matched | not-this-program | new, or NULL: not looked at yet
            "note": str,
        },
        pk="id",
        not_null={"target", "path", "member", "generation"},
        foreign_keys=[("target", "targets", "id"), ("image", "images", "id")],
    )
    db.create_table(
        "versions",
        {"target": int, "generation": int, "object": int, "digest": str},
        pk=("target", "generation", "object"),
        foreign_keys=[("target", "targets", "id"), ("object", "objects", "id")],
    )
    db.table("objects").create_index(["target", "path", "member"], unique=True)
    db.table("versions").create_index(["object", "generation"])
    db.table("versions").create_index(["digest"])


def _journal(db: Database) -> None:
    db.create_table(
        "generations",
        {
            "target": int,
            "generation": int,  # counts every attempt, so a refused one has a number too
            "kind": str,  # load | unload | rollback | replay | remap
            "state": str,  # prepared | live | unchanged | refused | failed | rolled-back
            "began": float,
            "ended": float,
            "objects": str,  # JSON list of {path, member, digest}
            "functions": str,  # JSON list of changed functions
            "ms_total": float,  # from the file event to live
            "timings": str,  # JSON {step: milliseconds}
            "stop_us": float,  # the target's pause, 0.0 when nothing was stopped
            "error_code": str,
            "error": str,
            "notes": str,  # JSON list of what the user should know
            "plan": str,  # JSON, what recovery needs to undo or redo it
        },
        pk=("target", "generation"),
        not_null={"kind", "state", "began", "objects", "functions", "timings", "notes", "plan"},
        foreign_keys=[("target", "targets", "id")],
    )
    db.conn.execute(
        "CREATE INDEX unfinished_generations ON generations(target) WHERE state = 'prepared'"
    )


def _ledger(db: Database) -> None:
    db.create_table(
        "allocations",
        {
            "id": int,
            "target": int,
            "generation": int,
            "object": int,  # NULL: belongs to the whole transaction
            "region": str,  # code | rodata | data
            "section": str,
            "addr": int,
            "size": int,
            "allocated": float,
            "superseded": float,  # NULL: live code or data
            "freed": float,  # NULL: we still hold the memory
        },
        pk="id",
        not_null={"target", "generation", "region", "section", "addr", "size", "allocated"},
        foreign_keys=[("target", "targets", "id"), ("object", "objects", "id")],
    )
    db.conn.execute(
        "CREATE INDEX held_allocations ON allocations(target, addr) WHERE freed IS NULL"
    )


def _symbols_and_slots(db: Database) -> None:
    db.create_table(
        "symbols",
        {
            "id": int,
            "target": int,
            "object": int,  # NULL: of the image, no object is known for it
            "name": str,
            "kind": str,  # function | variable | other
            "section": str,
            "offset": int,  # in the section
            "addr": int,
            "size": int,
            "generation": int,
            "slot": int,
            "stub_addr": int,
            "live": int,  # 0: superseded, its memory not yet freed
        },
        pk="id",
        not_null={"target", "name", "kind", "section", "size", "generation", "live"},
        foreign_keys=[("target", "targets", "id"), ("object", "objects", "id")],
    )
    db.create_table(
        "slots",
        {
            "target": int,
            "slot": int,
            "object": int,
            "name": str,
            "slot_addr": int,
            "stub_addr": int,
            "canonical_addr": int,  # what a function pointer holds
            "code_addr": int,  # where the slot points now
            "generation": int,
        },
        pk=("target", "slot"),
        not_null={"name", "slot_addr", "stub_addr", "code_addr", "generation"},
        foreign_keys=[("target", "targets", "id"), ("object", "objects", "id")],
    )
    db.table("symbols").create_index(["target", "name"])
    db.table("symbols").create_index(["target", "addr"])
    db.table("symbols").create_index(["object", "name"])
    db.table("slots").create_index(["target", "stub_addr"])


def _call_sites_and_events(db: Database) -> None:
    db.create_table(
        "call_sites",
        {
            "id": int,
            "target": int,
            "object": int,
            "addr": int,  # of the rel32 field
            "callee": str,
            "state": str,  # original | redirected
            "old_bytes": bytes,
        },
        pk="id",
        not_null={"target", "addr", "callee", "state"},
        foreign_keys=[("target", "targets", "id"), ("object", "objects", "id")],
    )
    db.create_table(
        "events",
        {"id": int, "target": int, "time": float, "kind": str, "data": str},
        pk="id",
        not_null={"time", "kind", "data"},
        foreign_keys=[("target", "targets", "id")],
    )
    db.table("call_sites").create_index(["target", "callee"])
    db.table("events").create_index(["target", "id"])


def _resume(db: Database) -> None:
    db.create_table(
        "live_objects",
        {
            "target": int,
            "path": str,
            "member": str,
            "generation": int,
            "digest": str,
            "addrs": bytes,  # npz: section_addr, symbol_addr, symbol_slot, data map
        },
        pk=("target", "path", "member"),
        not_null={"generation", "digest", "addrs"},
        foreign_keys=[("target", "targets", "id")],
    )
    db.create_table(
        "slot_keys",
        {
            "target": int,
            "slot": int,
            "path": str,  # of the object of a local function, "" for a global one
            "member": str,
            "name": bytes,
            "original": int,  # the function's address outside of the arena, 0: none
        },
        pk=("target", "slot"),
        not_null={"path", "member", "name", "original"},
        foreign_keys=[("target", "targets", "id")],
    )
    db.create_table(
        "redirects",
        {"target": int, "slot": int, "addr": int, "old": bytes, "new": bytes},
        pk=("target", "addr"),
        not_null={"slot", "old", "new"},
        foreign_keys=[("target", "targets", "id")],
    )


def _crashes(db: Database) -> None:
    db.create_table(
        "crashes",
        {
            "id": int,
            "target": int,
            "generation": int,  # whose code was on the stack, 0: none of ours
            "time": float,
            "pid": int,
            "signal": str,
            "function": str,  # "" where unknown, as in the next four
            "path": str,  # of the object version that the function is of
            "member": str,
            "digest": str,
            "line": str,
            "text": str,  # the sentence for people
        },
        pk="id",
        not_null={"target", "generation", "time", "pid", "signal", "text"},
        foreign_keys=[("target", "targets", "id")],
    )
    db.table("crashes").create_index(["target"])


def _data(db: Database) -> None:
    db.table("snapshots").add_column("data", bytes)


def _host_rows(db: Database) -> None:
    db.table("host_rows").create(
        {"target": int, "name": str, "data": str},  # JSON of the daemon's own
        pk=("target", "name"),
        foreign_keys=[("target", "targets", "id")],
    )


MIGRATIONS: Final = (
    Migration(
        "Everything is keyed by target, member process and image from the start, so families, "
        "libraries and several targets need no redesign.",
        _targets_and_members,
    ),
    Migration(
        "An object's versions are named by content digest, so a generation can be linked again "
        "at other addresses.",
        _objects_and_snapshots,
    ),
    Migration("What was intended must be on disk before the target changes.", _journal),
    Migration("Every byte held in a target is accounted for, per object.", _ledger),
    Migration("`owner` answers for names and addresses, old and new.", _symbols_and_slots),
    Migration(
        "Redirected calls must be found again by a later daemon, and people want to know what "
        "happened.",
        _call_sites_and_events,
    ),
    Migration("A later daemon goes on where this one was killed.", _resume),
    Migration("What a program crashed in is not given to its next run unasked.", _crashes),
    Migration("Making a file takes longer than the rest of a small reload's commit.", _data),
    Migration("A language knows more of its units than addresses.", _host_rows),
)


def version(db: Database) -> int:
    """Return the number of migrations the database has had."""
    return int(db.conn.execute("PRAGMA user_version").fetchone()[0])


def migrate(db: Database) -> int:
    """Apply what is missing, each migration in its own transaction.

    Args:
        db: Open for writing, in autocommit mode.

    Returns:
        How many were applied.
    """
    done = 0
    while True:
        db.conn.execute("BEGIN IMMEDIATE")
        try:
            # read under the lock: another daemon may have migrated meanwhile
            step = version(db)
            if step >= len(MIGRATIONS):
                db.conn.execute("ROLLBACK")
                return done
            MIGRATIONS[step].apply(db)
            db.conn.execute(f"PRAGMA user_version = {step + 1}")
            db.conn.execute("COMMIT")
        except BaseException:
            if db.conn.in_transaction:
                db.conn.execute("ROLLBACK")
            raise
        done += 1
