"""The state folder: schema, journal, ledger, queries, snapshots, and every error's text."""

import os
import resource
import subprocess
import sys
import threading
from collections.abc import Generator
from pathlib import Path

import pytest
import sqlite_utils

from state.errors import SchemaTooNewError, StateError
from state.journal import NotPreparedError
from state.rows import NewAllocation, ObjectVersion, SlotRow, Summary, SymbolColumns
from state.schema import MIGRATIONS
from state.store import Store

NONE = 0xFFFF_FFFF_FFFF_FFFF


@pytest.fixture
def store(tmp_path: Path) -> Generator[Store]:
    with Store.open(tmp_path / "state") as made:
        yield made


@pytest.fixture
def target(store: Store) -> int:
    return store.targets.begin(pid=7, start_time=100, build_id="b1", exe="/bin/game")


def columns(*rows: tuple[str, int, int], slot: int = -1) -> SymbolColumns:
    """Functions of `.text` as (name, address, size)."""
    names = [name for name, _, _ in rows]
    return SymbolColumns(
        name=names,
        kind=["function"] * len(rows),
        section=[".text"] * len(rows),
        offset=list(range(len(rows))),
        addr=[addr for _, addr, _ in rows],
        size=[size for _, _, size in rows],
        slot=[slot] * len(rows),
        stub_addr=[NONE] * len(rows),
    )


def reload_(store: Store, target: int, digest: str | None, path: str = "/p/a.o") -> int:
    number = store.journal.prepare(target, [ObjectVersion(path, "", digest)], {"undo": []})
    store.journal.live(target, number, Summary(functions=["f"], ms_total=3.0))
    return number


def test_opening_again_finds_everything_and_migrates_nothing(tmp_path: Path) -> None:
    with Store.open(tmp_path) as first:
        target = first.targets.begin(pid=1, start_time=2, build_id="b", exe="/x", argv=["x"])
        first.targets.add_image(
            target, kind="executable", path="/x", build_id="b", base_addr=0,
            start_addr=0x400000, end_addr=0x500000,
        )  # fmt: skip
    with Store.open(tmp_path) as second:
        row = second.targets.get(target)
        assert row
        assert (row.argv, row.ended) == (["x"], None)
        assert second.targets.images(target)[0].path == "/x"
        assert [p.pid for p in second.targets.processes(target)] == [1]
        # the same process seen by another daemon is the same target
        again = second.targets.begin(pid=1, start_time=2, build_id="b", exe="/x")
        assert again == target


def test_sqlite_utils_opens_the_file_by_hand(store: Store, target: int) -> None:
    reload_(store, target, "d1")
    db = sqlite_utils.Database(store.folder / "state.db")
    assert db.conn.execute("PRAGMA user_version").fetchone()[0] == len(MIGRATIONS)
    assert [row["state"] for row in db["generations"].rows] == ["live"]
    assert all(migration.reason.endswith(".") for migration in MIGRATIONS)
    db.close()


def test_a_newer_schema_is_refused_with_both_versions(tmp_path: Path) -> None:
    Store.open(tmp_path).close()
    db = sqlite_utils.Database(tmp_path / "state.db")
    db.conn.execute("PRAGMA user_version = 99")
    db.close()
    with pytest.raises(SchemaTooNewError) as caught:
        Store.open(tmp_path)
    assert str(caught.value) == (
        f"{tmp_path}/state.db: cannot open it: its schema is version 99, this program knows "
        f"versions up to {len(MIGRATIONS)}. Nothing was recorded. Use the newer reloader, or "
        "move the file away."
    )


def test_a_file_that_is_no_database_is_named(tmp_path: Path) -> None:
    (tmp_path / "state.db").write_bytes(b"not a database, whatever its name" * 40)
    with pytest.raises(StateError, match=r"not a database.*Move it away"):
        Store.open(tmp_path)


def test_a_full_disk_records_nothing_and_says_so(store: Store, target: int) -> None:
    conn = store._db.utils.conn  # pyright: ignore[reportPrivateUsage]
    pages = conn.execute("PRAGMA page_count").fetchone()[0]
    conn.execute(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(StateError) as caught:
        store.journal.prepare(target, [ObjectVersion("/p/a.o", "", "x" * 90_000)], {})
    assert str(caught.value) == (
        f"{store.folder}/state.db: cannot record the prepared generation: the disk is full "
        "(SQLITE_FULL). Nothing was recorded. Free some space there and try again."
    )
    assert store.query.history(target) == []
    conn.execute("PRAGMA max_page_count = 1000000")
    assert reload_(store, target, "d1") == 1


def test_a_snapshot_past_the_file_size_limit_leaves_no_part(tmp_path: Path) -> None:
    # its own process: the limit would hold for everything here
    code = (
        "import resource, sys; from pathlib import Path; from state.store import Store;"
        "store = Store.open(Path(sys.argv[1]));"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, 400_000));"
        "store.snapshots.save('ab12', b'x' * 500_000)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert (
        "cannot save an object snapshot: File too large. Nothing was recorded." in done.stderr
    )
    assert list((tmp_path / "objects" / "ab").iterdir()) == []
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] != 400_000


def test_the_journal_row_is_there_before_it_is_live(store: Store, target: int) -> None:
    versions = [ObjectVersion("/p/a.o", "", "d1"), ObjectVersion("/p/l.a", "m.o", "d2")]
    number = store.journal.prepare(target, versions, {"undo": [[1, 2]]})
    (row,) = store.journal.unfinished(target)
    assert (row.generation, row.state, row.plan, row.versions()) == (
        *(number, "prepared", {"undo": [[1, 2]]}),
        versions,
    )
    assert store.query.live_set(target) == []
    done = Summary(["draw"], 3.5, {"read": 0.2}, 12.0, notes=["main is active"])
    store.journal.live(target, number, done)
    assert store.journal.unfinished(target) == []
    (row,) = store.query.history(target)
    assert (row.state, row.functions, row.timings) == ("live", ["draw"], {"read": 0.2})
    assert (row.ms_total, row.stop_us, row.notes) == (3.5, 12.0, ["main is active"])
    assert store.query.live_set(target) == versions


def test_a_daemon_killed_after_prepare_leaves_the_row_unfinished(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys; from pathlib import Path; from state.store import Store;"
        "s = Store.open(Path(sys.argv[1]));"
        "t = s.targets.begin(pid=1, start_time=2, build_id='b', exe='/x');"
        "s.journal.prepare(t, [], {'n': 5}); os.kill(os.getpid(), signal.SIGKILL)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False)
    with Store.open(tmp_path) as store:
        (target,) = store.targets.unended()
        (row,) = store.journal.unfinished(target.id)
        assert row.plan == {"n": 5}
        store.journal.fail(target.id, row.generation, Summary(error="undone"))
        assert store.query.history(target.id)[0].state == "failed"


def test_every_attempt_has_a_number_and_only_a_prepared_one_is_finished(
    store: Store, target: int
) -> None:
    assert reload_(store, target, "d1") == 1
    why = Summary(error_code="undefined", error="undefined: pow")
    assert store.journal.record(target, "refused", [], why) == 2
    assert reload_(store, target, "d2") == 3
    with pytest.raises(NotPreparedError, match="target 1: generation 2 is not prepared"):
        store.journal.live(target, 2, Summary())
    assert store.query.latest_live(target) == 3
    assert [row.generation for row in store.query.generations(target)] == [3, 1]
    store.journal.mark_rolled_back(target, [3])
    assert store.query.latest_live(target) == 1
    assert [r.state for r in store.query.history(target)] == ["rolled-back", "refused", "live"]
    other = store.targets.begin(pid=8, start_time=1, build_id="b2", exe="/bin/other")
    assert reload_(store, other, "d9") == 1  # numbers are each target's own


def test_the_live_set_after_any_generation_can_be_asked_for(store: Store, target: int) -> None:
    store.ledger.record_versions(target, 0, [ObjectVersion("/p/a.o", "", "d0")])
    for digest in ("d1", "d2", None):
        reload_(store, target, digest)
    live = [store.query.live_set(target, g)[0].digest for g in range(4)]
    assert live == ["d0", "d1", "d2", None]


def test_a_transaction_that_fails_records_none_of_its_parts(store: Store, target: int) -> None:
    def group() -> None:
        with store.transaction():
            store.ledger.object_id(target, "/p/a.o")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        group()
    assert store.query.objects(target) == []


def test_owner_answers_for_names_addresses_stubs_gaps_and_the_image(
    store: Store, target: int
) -> None:
    store.targets.add_image(
        target, kind="executable", path="/bin/game", build_id="b1", base_addr=0,
        start_addr=0x400000, end_addr=0x410000,
    )  # fmt: skip
    member = store.ledger.object_id(target, "/p/lib.a", "hud.o")
    store.ledger.describe_object(member, source="hud.c", baseline="matched")
    store.ledger.replace_symbols(
        target, member, 0, columns(("draw", 0x401000, 64), ("alias", 0x401000, 64))
    )
    slot = SlotRow(target, 16, member, "draw", 0x9000, 0x8000, 0x401000, 0x401000, 0)
    store.ledger.record_slots([slot])
    store.ledger.record_allocations(
        target, 1, [NewAllocation(member, "code", ".text", 0x700000, 4096)]
    )
    (named,) = store.query.owner(target, "draw")
    assert (named.object, named.section, named.source) == ("/p/lib.a(hud.o)", ".text", "hud.c")
    inside = store.query.owner(target, "0x401010")
    assert {(o.name, o.distance) for o in inside} == {("draw", 16), ("alias", 16)}
    assert store.query.owner(target, 0x8004)[0].kind == "stub"
    assert store.query.owner(target, 0x8010) == []
    assert store.query.owner(target, 0x700010)[0].kind == "memory"
    assert store.query.owner(target, 0x40F000)[0].kind == "image"
    assert store.query.owner(target, NONE) == []
    assert store.query.owner(target, "0xnonsense") == []


def test_superseded_symbols_are_known_until_their_memory_is_freed(
    store: Store, target: int
) -> None:
    row = store.ledger.object_id(target, "/p/a.o")
    store.ledger.replace_symbols(
        target, row, 1, columns(("f", 0x700000, 8), ("g", 0x700100, 8))
    )
    store.ledger.record_allocations(
        target, 1, [NewAllocation(row, "code", ".text", 0x700000, 4096)]
    )
    store.ledger.update_symbols(target, row, 2, columns(("f", 0x800000, 8)))
    assert [(o.generation, o.live) for o in store.query.owner(target, "f")] == [
        *[(2, True), (1, False)]
    ]
    assert store.query.owner(target, "g")[0].generation == 1  # kept: still the live one
    store.ledger.mark_superseded(target, [0x700000])
    assert store.query.memory(target)[0].superseded_size == 4096
    assert store.ledger.mark_freed(target, [0x700000]) == 4096
    assert store.ledger.mark_freed(target, [0x700000]) == 0
    assert store.query.memory(target)[0].freed_size == 4096
    assert [o.generation for o in store.query.owner(target, "f")] == [2]
    assert store.query.allocations(target) == []
    assert len(store.query.allocations(target, held=False)) == 1


@pytest.mark.parametrize(
    ("typed", "meant"),
    [("drw_hud", "draw_hud"), ("xraw_hud", "draw_hud"), ("draw_hux", "draw_hud")],
)
def test_a_misspelt_name_gets_the_nearest(
    store: Store, target: int, typed: str, meant: str
) -> None:
    rows = [("draw_hud", 1, 1), ("score", 2, 1), ("main", 3, 1)]
    store.ledger.replace_symbols(target, None, 0, columns(*rows))
    assert store.query.owner(target, typed) == []
    assert store.query.nearest_names(target, typed) == [meant]


def test_a_reader_sees_what_was_committed_while_a_writer_works(
    store: Store, target: int
) -> None:
    entered, leave = threading.Event(), threading.Event()

    def write() -> None:
        with store.transaction():
            store.ledger.replace_symbols(target, None, 0, columns(("f", 1, 1)))
            entered.set()
            leave.wait(30)

    writer = threading.Thread(target=write)
    writer.start()
    assert entered.wait(30)
    assert store.query.owner(target, "f") == []  # answered at once, from before
    leave.set()
    writer.join()
    assert len(store.query.owner(target, "f")) == 1


def test_a_snapshot_of_a_transaction_that_failed_is_kept_the_next_time(store: Store) -> None:
    digest = "ab" * 16

    def keep(times: int) -> float:
        with store.transaction():
            store.snapshots.save(digest, b"bytes")
            return 1 / times

    with pytest.raises(ZeroDivisionError):
        keep(0)
    assert keep(1)
    assert store.snapshots.load(digest) == b"bytes"


def test_slots_remember_where_they_point(store: Store, target: int) -> None:
    slot = SlotRow(target, 16, None, "f", 0x9000, 0x8000, None, 0x700000, 4)
    store.ledger.record_slots([slot])
    (found,) = store.query.slots(target)
    assert (found.code_addr, found.generation, found.stub_addr) == (0x700000, 4, 0x8000)


def test_the_end_of_a_target_keeps_its_history_and_drops_its_memory(
    store: Store, target: int
) -> None:
    reload_(store, target, "d1")
    row = store.ledger.object_id(target, "/p/a.o")
    store.ledger.replace_symbols(target, row, 1, columns(("f", 1, 1)))
    store.ledger.record_allocations(target, 1, [NewAllocation(row, "code", ".text", 1, 4096)])
    store.targets.end(target, "exited with 0")
    ended = store.targets.get(target)
    assert ended
    assert ended.end_reason == "exited with 0"
    assert store.targets.unended() == []
    assert store.query.owner(target, "f") == []
    assert store.query.allocations(target) == []
    assert store.query.live_set(target)[0].digest == "d1"
    second = store.targets.begin(pid=9, start_time=1, build_id="b1", exe="/bin/game")
    previous = store.targets.previous("/bin/game", second)
    assert previous
    assert previous.id == target  # what a restart replays


def test_snapshots_are_kept_for_the_newest_generations(store: Store, target: int) -> None:
    for number in range(1, 7):
        store.snapshots.save(f"d{number}", bytes([number]) * 100)
        reload_(store, target, f"d{number}")
    assert store.snapshots.load("d1") == b"\1" * 100
    assert store.prune(keep=2) == 400
    assert [store.snapshots.has(f"d{n}") for n in range(1, 7)] == [False] * 4 + [True] * 2
    with pytest.raises(StateError, match=r"it is not kept.*raise `keep`"):
        store.snapshots.load("d1")
    store.snapshots.save("d1", b"again")
    assert store.snapshots.load("d1") == b"again"
    store.targets.end(target, "exited")
    store.prune(keep=2)
    assert store.snapshots.has("d6")  # the newest run's live set can be replayed
    assert store.snapshots.has("d5")  # and what a crash in it falls back to
    assert not store.snapshots.has("d1")


def test_a_digest_cannot_leave_the_folder(store: Store) -> None:
    with pytest.raises(ValueError, match="not a digest"):
        store.snapshots.load("../../etc/passwd")


def test_events_are_kept_newest_first(store: Store, target: int) -> None:
    store.record_event("attached", {"pid": 7}, target=target)
    store.record_event("warning", {"text": "x"})
    assert [event.kind for event in store.query.events()] == ["warning", "attached"]
    assert [event.data for event in store.query.events(target)] == [{"pid": 7}]


def test_call_sites_keep_the_bytes_that_stood_there(store: Store, target: int) -> None:
    store.ledger.record_call_sites(target, None, [0x401005], ["f"], [b"\xe8\0\0\0\0"])
    db = sqlite_utils.Database(store.folder / "state.db")
    row = db.conn.execute("SELECT callee, old_bytes FROM call_sites").fetchone()
    assert row == ("f", b"\xe8\0\0\0\0")
    db.close()


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StateError, match="cannot make the state folder: Not a directory"):
        Store.open(tmp_path / "file" / "state")
    assert os.listdir(tmp_path) == ["file"]  # noqa: PTH208 - names
