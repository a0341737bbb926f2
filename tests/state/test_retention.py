"""What stays of a long history: what can be returned to, and what a later daemon needs."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from state.errors import StateError
from state.retention import HISTORY_KEPT
from state.rows import NewAllocation, ObjectVersion, Summary
from state.store import Store

MANY = HISTORY_KEPT + 50


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "state") as opened:
        yield opened


@pytest.fixture
def target(store: Store) -> int:
    return store.targets.begin(pid=7, start_time=1, build_id="b", exe="/bin/game")


def reload_(store: Store, target: int, path: str, digest: str) -> int:
    """Make a version live as the road does; its memory is at 4096 times its number."""
    store.snapshots.save(digest, digest.encode())
    number = store.journal.prepare(target, [ObjectVersion(path, "", digest)], {"some": "plan"})
    store.journal.live(target, number, Summary())
    row = store.ledger.object_id(target, path)
    memory = NewAllocation(row, "code", ".text", number * 4096, 4096)
    store.ledger.record_allocations(target, number, [memory])
    return number


def test_a_long_history_keeps_what_held_memory_and_returns_need(
    store: Store, target: int
) -> None:
    with store.transaction():
        reload_(store, target, "/p/old.o", "seldom")
        reload_(store, target, "/p/held.o", "pinned")
        for number in range(3, MANY):
            reload_(store, target, "/p/a.o", f"v{number}")
        store.ledger.mark_freed(target, [n * 4096 for n in range(3, MANY - 1)])
    store.prune(keep=10)
    rows = {row.generation: row for row in store.query.history(target, limit=MANY)}
    assert sorted(rows) == [1, 2, *range(MANY - HISTORY_KEPT, MANY)]
    assert [n for n in sorted(rows) if rows[n].plan] == [1, 2, MANY - 1]
    held = store.query.allocations(target)
    assert [row.generation for row in held] == [1, 2, MANY - 1]
    assert len(store.query.allocations(target, held=False)) == HISTORY_KEPT + 2
    for back in range(MANY - 10, MANY):
        live = {v.path: v.digest for v in store.query.live_set(target, back)}
        assert live == {"/p/old.o": "seldom", "/p/held.o": "pinned", "/p/a.o": f"v{back}"}
        for digest in live.values():
            assert store.snapshots.load(digest or "") == (digest or "").encode()
    with pytest.raises(StateError, match="it is not kept"):
        store.snapshots.load(f"v{MANY - 11}")


def test_the_newest_live_generation_stays_behind_any_number_of_refusals(
    store: Store, target: int
) -> None:
    reload_(store, target, "/p/a.o", "good")
    store.ledger.mark_freed(target, [4096])
    with store.transaction():
        for _ in range(MANY):
            store.journal.record(
                target, "refused", [ObjectVersion("/p/a.o", "", "bad")], Summary(error="no")
            )
    store.prune(keep=2)
    assert store.query.latest_live(target) == 1
    assert store.snapshots.load("good") == b"good"
    assert reload_(store, target, "/p/a.o", "next") == MANY + 2


def test_what_is_prepared_keeps_its_plan_and_its_bytes(store: Store, target: int) -> None:
    store.snapshots.save("begun", b"begun")
    store.journal.prepare(target, [ObjectVersion("/p/a.o", "", "begun")], {"some": "plan"})
    store.prune(keep=1)
    (row,) = store.journal.unfinished(target)
    assert row.plan == {"some": "plan"}
    assert store.snapshots.load("begun") == b"begun"


def test_a_store_is_pruned_as_it_is_tidied_once_there_is_much(
    store: Store, target: int
) -> None:
    with store.transaction():
        for number in range(600):
            reload_(store, target, "/p/a.o", f"v{number}")
    store.tidy(keep=5)
    assert not store.snapshots.has("v100")
    assert store.snapshots.has("v599")
