"""Detach and attach again: everything is kept, by the same state or refused with a reason."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from reloader.errors.live import AlreadyAttachedError
from reloader.errors.session import StateLostError
from reloader.session.session import Session
from tests.support.faults import Orders, check_consistency, run_daemon
from tests.support.road import MAIN, PARTS, Program, attached, counting, reload


@pytest.fixture
def program(tmp_path: Path) -> Iterator[Program]:
    with counting(tmp_path) as made:
        yield made


def test_what_was_reloaded_goes_on_without_a_daemon_and_under_the_next(
    program: Program,
) -> None:
    with attached(program) as session:
        for number in (2, 3):
            assert reload(session, *program.compile(parts=PARTS % number)).state == "live"
        target = session.target
    assert program.ask(1) == 401
    with attached(program) as session:
        assert session.target == target
        assert session.program.generation == 2
        check_consistency(session)
        states = [row.state for row in session.store.query.history(target, limit=9)]
        assert states == ["live", "live"]
        outcome = reload(session, program.folder / "parts.o")
        assert outcome.state == "unchanged"
        outcome = reload(session, *program.compile(parts=PARTS % 4))
        assert (outcome.state, outcome.stop_us) == ("live", 0)  # its jumps are known
        assert program.ask(1) == 502
        assert session.rollback(2).state == "live"
        assert program.ask(1) == 403
        assert session.rollback(0).state == "live"
        assert program.ask(1) == 204
        check_consistency(session)


def test_many_daemons_one_after_the_other_leave_nothing_behind(program: Program) -> None:
    used: list[int] = []
    for number in range(2, 8):
        with attached(program) as session:
            check_consistency(session)
            assert reload(session, *program.compile(parts=PARTS % number)).state == "live"
            for _ in range(4):
                session.retiring.retirer._last = 0.0  # pyright: ignore[reportPrivateUsage]
                session.retiring.attempt()
            check_consistency(session)
            rows = session.program.ledger.rows.values()
            used.append(sum(row.allocation.size for row in rows))
            assert program.ask(1) == (number + 1) * 100 + number - 1
    assert used[-1] <= used[1]


def test_a_program_that_was_attached_and_not_changed_is_the_same_target(
    program: Program,
) -> None:
    with attached(program) as session:
        target = session.target
    with attached(program) as session:
        assert session.target == target
        assert reload(session, *program.compile(parts=PARTS % 2)).state == "live"
        assert program.ask(1) == 301


def test_an_object_that_is_new_to_the_state_is_taken_in(program: Program) -> None:
    with attached(program, watch="main.o") as session:
        assert list(session.program.objects) == [(str(program.folder / "main.o"), "")]
    with attached(program) as session:
        assert len(session.program.objects) == 2
        check_consistency(session)
        assert reload(session, *program.compile(parts=PARTS % 2)).state == "live"
        assert program.ask(1) == 301
        check_consistency(session)
    with attached(program) as session:
        check_consistency(session)


def test_what_differs_from_the_program_stays_refused_under_the_next_daemon(
    program: Program,
) -> None:
    with attached(program, watch="main.o"):
        pass
    program.compile(parts=(PARTS % 1).replace("count++", "count += 5"))
    with attached(program) as session:
        assert "was not built from this file" in " ".join(session.notes)
        outcome = reload(session, program.folder / "parts.o")
        assert (outcome.state, outcome.code) == ("refused", "not-of-this-program")


def test_variables_keep_their_values_over_daemons(program: Program) -> None:
    text = PARTS.replace("static int count;", "static int count; static int added = 40;")
    text = text.replace("count++;", "count++; added++;").replace("+ count", "+ count + added")
    with attached(program) as session:
        assert reload(session, *program.compile(parts=text % 1)).new_variables == ["added"]
        assert program.ask(1) == 242
    with attached(program) as session:
        check_consistency(session)
        assert reload(session, *program.compile(parts=text % 2)).state == "live"
        assert program.ask(1) == 344


def test_a_second_daemon_is_refused_with_the_number_of_the_first(program: Program) -> None:
    assert program.process is not None
    pid = program.process.pid
    with attached(program) as session:
        orders = Orders(pid, str(program.folder / "other"), str(program.folder / "*.o"), [])
        with pytest.raises(AssertionError) as caught:
            run_daemon(orders)
        text = str(caught.value)
        assert f"process {pid} already has a reloader daemon, process {os.getpid()}" in text
        assert "Nothing was changed." in text
        assert reload(session, *program.compile(parts=PARTS % 2)).state == "live"
        assert program.ask(1) == 301


def test_a_second_session_of_one_daemon_is_refused_and_the_first_goes_on(
    program: Program,
) -> None:
    assert program.process is not None
    with attached(program) as session:
        with pytest.raises(AlreadyAttachedError, match=f"process {os.getpid()}"):
            Session.attach(program.process.pid, program.folder, [])
        assert reload(session, *program.compile(parts=PARTS % 2)).state == "live"
        assert program.ask(1) == 301


def test_another_project_folder_does_not_know_the_program(program: Program) -> None:
    assert program.process is not None
    with attached(program) as session:
        assert reload(session, *program.compile(parts=PARTS % 2)).state == "live"
    with pytest.raises(StateLostError) as caught:
        Session.attach(program.process.pid, program.folder / "elsewhere", [])
    assert str(program.folder / "elsewhere") in str(caught.value)
    assert "Nothing was changed." in str(caught.value)
    assert program.ask(1) == 301
    with attached(program) as session:
        check_consistency(session)


EXECS = """
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
int answer(int);
int main(int argc, char **argv)
{
    char line[64];
    (void)argc;
    setvbuf(stdout, NULL, _IOLBF, 0);
    setvbuf(stdin, NULL, _IONBF, 0);
    puts("ready");
    while (fgets(line, sizeof line, stdin)) {
        if (atoi(line) < 0)
            execv("/proc/self/exe", argv);
        printf("%d\\n", answer(atoi(line)));
    }
    return 0;
}
"""


def test_a_program_that_has_executed_itself_anew_is_entered_anew(tmp_path: Path) -> None:
    program = Program(tmp_path, ["-O2", "-falign-functions=16"])
    program.compile(main=EXECS, parts=PARTS % 1)
    program.link()
    program.start()
    with attached(program) as session:
        target = session.target
        assert reload(session, *program.compile(parts=PARTS % 2)).state == "live"
        assert program.ask(1) == 301
    assert program.process is not None
    assert program.process.stdin is not None
    program.process.stdin.write("-1\n")
    program.process.stdin.flush()
    assert program.line() == "ready"
    assert program.ask(1) == 201
    program.compile(parts=PARTS % 1)
    with attached(program) as session:
        assert session.target != target
        row = session.store.targets.get(target)
        assert row is not None
        assert row.end_reason == "the process runs another program now"
        assert reload(session, *program.compile(parts=PARTS % 2)).state == "live"
        assert program.ask(1) == 302
        check_consistency(session)
    assert program.stop() == 0


def test_a_program_that_ended_without_a_daemon_is_written_down_by_the_next(
    program: Program, tmp_path: Path
) -> None:
    other = Program(tmp_path / "other")
    other.folder.mkdir()
    other.compile(main=MAIN, parts=PARTS % 1)
    other.link()
    pid = other.start()
    session = Session.attach(pid, program.folder, [str(other.folder / "*.o")])
    target = session.target
    session.close()
    assert other.stop() == 0
    with attached(program) as session:
        row = session.store.targets.get(target)
        assert row is not None
        assert row.end_reason == "ended while no daemon was there"


def test_a_state_folder_that_is_read_only_is_told(program: Program) -> None:
    """Root writes everywhere unless it gives that right away first."""
    assert program.process is not None
    folder = program.folder / "project"
    with_state = Session.attach(program.process.pid, folder, [str(program.folder / "*.o")])
    with_state.close()
    state = folder / ".reloader"
    wrapper = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"]
    if os.geteuid():
        wrapper = []
    (path,) = program.compile(parts=PARTS % 2)
    for part in (*state.rglob("*"), state):
        if part.is_dir():
            part.chmod(0o500)
    orders = Orders(
        program.process.pid, str(folder), str(program.folder / "*.o"), [[str(path)]]
    )
    with pytest.raises(AssertionError) as caught:
        run_daemon(orders, wrapper)
    for part in (state, *state.rglob("*")):
        if part.is_dir():
            part.chmod(0o700)
    text = str(caught.value)
    assert "StateError" in text
    assert str(state) in text
    assert "Make it writable for this user" in text
    assert program.ask(1) == 201
    status, outcomes = run_daemon(orders)
    assert (status, outcomes[0]["state"]) == (0, "live")
    assert program.ask(1) == 302
