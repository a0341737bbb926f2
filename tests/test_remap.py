"""A second placement for what is live: code and constants move, variables and answers stay."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from reloader.errors.session import NotLoadedError
from reloader.ids import NO_ADDR, Region
from reloader.session.session import Session
from tests.support.road import MAIN, Program, attached, reload

TABLE = """
static int count = 40;
const int weights[4] = {1, 20, 300, 4000};
static const char *const names[2] = {"zero", "one"};
__attribute__((noinline)) static int weigh(int n) { return weights[n & 3]; }
int (*handler)(int) = weigh;
int answer(int n)
{
    static int calls;
    calls++;
    count += weigh(n);
    switch (n) {
    case 0: return count + calls; case 1: return names[1][0]; case 2: return handler(1);
    case 3: return count * 7 - n; case 4: return n / 3 + 9; case 5: return handler == weigh;
    default: return calls;
    }
}
int other(int n);
"""
USER = """
extern const int weights[4];
int answer(int);
__attribute__((noinline)) int other(int n) { return weights[n & 3] + 5; }
"""
ASKED = (0, 1, 2, 3, 4, 5, 6)


@pytest.fixture(
    params=[("-O2",), ("-O0", "-g"), ("-O2", "-ffunction-sections", "-fno-pie")], ids=" ".join
)
def program(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Program]:
    flags: tuple[str, ...] = request.param
    made = Program(tmp_path, flags, ["-no-pie"] if "-fno-pie" in flags else [])
    yield made
    made.stop()


def places(session: Session, key: tuple[str, str], name: str) -> tuple[int, int]:
    """Return where a function's code is (0: it has no slot) and its canonical address."""
    live = session.program.objects[key]
    row = live.file.symbol_names.index(name.encode())
    slot = int(live.symbol_slot[row])
    code = int(session.process.arena.slots[slot]) if slot >= 0 else 0
    return code, int(live.symbol_addr[row])


def variables(session: Session, key: tuple[str, str]) -> list[int]:
    return session.program.objects[key].data.addr.tolist()


def test_functions_move_and_variables_and_answers_stay(program: Program) -> None:
    program.compile(main=MAIN, table=TABLE, user=USER)
    program.link()
    program.start()
    first = [program.ask(n) for n in ASKED]
    key = (str(program.folder / "table.o"), "")
    with attached(program) as session:
        seen: list[int] = []
        canonical, before = places(session, key, "answer")[1], variables(session, key)
        for generation in (1, 2, 3):  # of the executable's code, then of what was moved already
            outcome = session.remap(key)
            assert (outcome.state, outcome.error, outcome.notes) == ("live", "", [])
            assert outcome.generation == generation
            code, address = places(session, key, "answer")
            assert address == canonical
            seen.append(code)
            answers = [program.ask(n) for n in ASKED]
            assert answers[1:3] + answers[4:6] == first[1:3] + first[4:6]
            assert answers[6] == 7 * (generation + 1)
            assert np.intersect1d(variables(session, key), before).size == len(before)
            held = session.program.ledger.rows.values()
            used = [row for row in held if row.object == key and not row.superseded]
            moved = [r for r in used if r.allocation.region in {Region.CODE, Region.RODATA}]
            assert {row.generation for row in moved} == {generation}
        assert canonical not in seen
        assert seen[0] != seen[1]
        assert seen[1] != seen[2]


def test_a_moved_object_reloads_and_goes_back_as_any_other(program: Program) -> None:
    program.compile(main=MAIN, table=TABLE, user=USER)
    program.link()
    program.start()
    key = (str(program.folder / "table.o"), "")
    with attached(program) as session:
        edited = TABLE.replace("n / 3 + 9", "n / 3 + 20")
        assert reload(session, *program.compile(table=edited)).state == "live"
        assert program.ask(4) == 21
        assert session.remap(key).state == "live"
        assert program.ask(4) == 21
        edited = TABLE.replace("n / 3 + 9", "n / 3 + 90")
        outcome = reload(session, *program.compile(table=edited))
        assert (outcome.state, outcome.functions) == ("live", ["answer"])
        assert program.ask(4) == 91
        assert reload(session, *program.compile(table=edited)).state == "unchanged"
        assert session.rollback(0).state == "live"
        assert program.ask(4) == 10
    assert program.stop() == 0


def test_whoever_names_a_constant_that_moves_is_linked_to_the_new_place(tmp_path: Path) -> None:
    shared = "const int weights[4] = {1, 20, 300, 4000};"
    main = "extern const int weights[4]; int answer(int n) { return weights[n & 3]; }"
    program = Program(tmp_path)
    program.compile(main=MAIN, shared=shared, user=main)
    program.link()
    program.start()
    try:
        with attached(program) as session:
            key = (str(tmp_path / "shared.o"), "")
            live = session.program.objects[key]
            row = live.file.symbol_names.index(b"weights")
            outcome = session.remap(key)
            assert (outcome.state, outcome.error) == ("live", "")
            moved = int(session.program.objects[key].symbol_addr[row])
            assert moved not in {int(live.symbol_addr[row]), NO_ADDR}
            user = session.program.objects[str(tmp_path / "user.o"), ""]
            assert user.generation == outcome.generation
            assert [program.ask(n) for n in range(4)] == [1, 20, 300, 4000]
            # changed once more, the constant is still found under its name
            edited = shared.replace("20", "21")
            assert reload(session, *program.compile(shared=edited)).error == ""
            assert program.ask(1) == 21
    finally:
        program.stop()


def test_a_function_without_room_for_a_jump_stays_and_is_named(tmp_path: Path) -> None:
    tiny = """
    int state;
    void tiny(void) { }
    void (*taken)(void) = tiny;
    int answer(int n) { taken(); return n + ++state; }
    """
    program = Program(tmp_path, ("-O1", "-fno-align-functions", "-fcf-protection=none"))
    program.compile(main=MAIN, tiny=tiny)
    program.link()
    program.start()
    try:
        assert program.ask(1) == 2
        with attached(program) as session:
            outcome = session.remap((str(tmp_path / "tiny.o"), ""))
            assert (outcome.state, outcome.error) == ("live", "")
            assert outcome.functions == ["answer"]
            (note,) = outcome.notes
            assert note.startswith("tiny (0x")
            assert note.endswith("it stays where it is")
            assert program.ask(1) == 3
    finally:
        program.stop()


def test_a_later_daemon_finds_what_was_moved(tmp_path: Path) -> None:
    program = Program(tmp_path)
    program.compile(main=MAIN, table=TABLE, user=USER)
    program.link()
    program.start()
    key = (str(tmp_path / "table.o"), "")
    try:
        with attached(program) as session:
            assert session.remap(key).state == "live"
            before = places(session, key, "answer")
        with attached(program) as session:
            assert places(session, key, "answer") == before
            kinds = [row.kind for row in session.store.query.history(session.target, limit=5)]
            assert kinds == ["remap"]
            assert session.remap(key).state == "live"
            assert places(session, key, "answer")[0] != before[0]
            assert program.ask(4) == 10
    finally:
        program.stop()


def test_an_object_that_is_not_live_cannot_be_moved(tmp_path: Path) -> None:
    program = Program(tmp_path)
    program.compile(main=MAIN, table=TABLE, user=USER)
    program.link()
    program.start()
    try:
        with attached(program) as session:
            with pytest.raises(NotLoadedError) as caught:
                session.remap(("nobody.o", ""))
            assert str(caught.value) == (
                "nobody.o: not loaded in this program. Nothing was changed."
            )
    finally:
        program.stop()


def test_a_function_that_runs_finishes_in_its_old_place(tmp_path: Path) -> None:
    text = """
    #include <stdio.h>
    #include <stdlib.h>
    int total;
    int answer(int n)
    {
        char line[64];
        total += n;
        while (n == 7 && fgets(line, sizeof line, stdin)) {
            if (atoi(line) == 8) return total;
            printf("%d\\n", ++total);
        }
        return total;
    }
    """
    program = Program(tmp_path)
    program.compile(main=MAIN, loop=text)
    program.link()
    program.start()
    key = (str(tmp_path / "loop.o"), "")
    try:
        assert program.ask(1) == 1
        with attached(program) as session:
            assert session.remap(key).state == "live"
            first = places(session, key, "answer")[0]
            program.say("7\n1")
            assert program.line() == "9"
            assert session.remap(key).state == "live"
            session.retiring.attempt()
            waiting = [row for row in session.retiring.superseded() if row.generation == 1]
            assert any(
                row.allocation.addr <= first < row.allocation.addr + row.allocation.size
                for row in waiting
            )
            assert program.ask(8) == 9
            assert program.ask(1) == 10
            report = session.retiring.attempt()
            assert {row.generation for row in report.freed} == {1}
            assert program.ask(1) == 11
    finally:
        program.stop()
