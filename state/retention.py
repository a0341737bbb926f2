"""Retention: what of a target's history stays, however long it runs.

Kept are the object versions of the newest generations, so that these can be returned to; the
newest rows of the journal, for people; and whatever a later daemon needs to go on: rows of
memory that is held, with their plans, and the newest generation that is live.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from state.database import Database

HISTORY_KEPT: Final = 1000  # attempts a target
EVENTS_KEPT: Final = 10_000

# the plan is for who takes over in the middle, and then says what held memory refers to
_NO_PLAN: Final = """
    UPDATE generations SET plan='{}'
     WHERE target=?1 AND state<>'prepared' AND plan<>'{}'
       AND generation NOT IN (SELECT generation FROM allocations
                               WHERE target=?1 AND freed IS NULL)
       AND generation < (SELECT max(generation) FROM generations WHERE target=?1)
"""
# the version of an object that was live after generation ?2 is wanted for returning there
_OLD_VERSIONS: Final = """
    DELETE FROM versions AS old
     WHERE old.target=?1 AND old.generation BETWEEN 1 AND ?2
       AND EXISTS (SELECT 1 FROM versions AS later
                    WHERE later.object=old.object AND later.generation > old.generation
                      AND later.generation <= ?2)
"""
_OLD_MEMORY: Final = (
    "DELETE FROM allocations WHERE target=?1 AND generation<=?2 AND freed IS NOT NULL"
)
_OLD_SYMBOLS: Final = """
    DELETE FROM symbols
     WHERE target=?1 AND generation<=?2 AND live=0
       AND NOT EXISTS (SELECT 1 FROM allocations AS held
                        WHERE held.target=?1 AND held.freed IS NULL
                          AND held.addr <= symbols.addr
                          AND symbols.addr < held.addr + held.size)
"""
_OLD_ATTEMPTS: Final = """
    DELETE FROM generations
     WHERE target=?1 AND generation<=?2 AND state<>'prepared'
       AND generation NOT IN (SELECT generation FROM allocations
                               WHERE target=?1 AND freed IS NULL)
       AND generation <> (SELECT coalesce(max(generation), 0) FROM generations
                           WHERE target=?1 AND state='live')
"""
_OLD_EVENTS: Final = "DELETE FROM events WHERE id <= (SELECT max(id) FROM events) - ?"


def prune_history(db: Database, keep: int) -> None:
    """Remove what no return, no later daemon and no reader of the history will ask for.

    Args:
        db: The database.
        keep: How many of the newest generations of each target stay loadable.
    """
    with db.transaction("prune the history") as conn:
        newest = conn.execute(
            "SELECT target, max(generation) FROM generations GROUP BY target"
        ).fetchall()
        for target, last in newest:
            conn.execute(_NO_PLAN, (target,))
            conn.execute(_OLD_VERSIONS, (target, last - keep + 1))
            for statement in (_OLD_MEMORY, _OLD_SYMBOLS, _OLD_ATTEMPTS):
                conn.execute(statement, (target, last - HISTORY_KEPT))
        conn.execute(_OLD_EVENTS, (EVENTS_KEPT,))
