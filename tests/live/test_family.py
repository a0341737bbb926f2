"""Forked children are members of the target: every change reaches every process."""

import itertools
import os
import signal
import threading
from pathlib import Path
from typing import Any

import pytest

from reloader.live import patching
from reloader.live.family import outsiders
from tests.support.family import PART, Family, family, until_gone
from tests.support.live import until
from tests.support.road import attached, reload


def test_first_redirects_are_made_in_every_process_and_later_ones_flip_without_a_stop(
    tmp_path: Path,
) -> None:
    with family(tmp_path, 3) as (program, session):
        assert [program.at(index, index) for index in range(4)] == [400, 410, 420, 430]
        (part,) = program.compile(part=PART.replace("* 10", "* 100"))
        first = reload(session, part)
        assert first.state == "live", first.error
        assert first.stop_us
        assert [program.at(index) for index in range(4)] == [4000, 4100, 4200, 4300]
        (part,) = program.compile(part=PART.replace("* 10", "* 1000"))
        second = reload(session, part)
        assert (second.state, second.stop_us) == ("live", 0), second.error
        assert [program.at(index) for index in range(4)] == [40000, 41000, 42000, 43000]


def test_a_new_variable_begins_with_its_initial_value_in_each_process(tmp_path: Path) -> None:
    text = "int fresh = 5;\nstatic int more[2000] = {7};\n" + PART.replace(
        "total += n;", "total += n; fresh += n; more[0] += n; return fresh * 100 + more[0];"
    )
    with family(tmp_path, 2) as (program, session):
        (part,) = program.compile(part=text)
        assert reload(session, part).state == "live"
        assert [program.at(index, index) for index in range(3)] == [507, 608, 709]
        program.fork(3, parent=2)
        assert [program.at(index, 1) for index in range(4)] == [608, 709, 810, 810]


def test_processes_that_end_or_execute_another_program_are_forgotten(tmp_path: Path) -> None:
    with family(tmp_path, 3) as (program, session):
        first, ended, other, left = session.process.pids()
        program.tell(1, "q")
        program.tell(2, "x")
        until_gone(ended)
        (part,) = program.compile(part=PART.replace("* 10", "* 100"))
        outcome = reload(session, part)
        assert outcome.state == "live", outcome.error
        assert [program.at(0), program.at(3)] == [4000, 4000]
        assert session.process.pids() == [first, left]
        assert other not in session.process.pids()


COUNT = 12


def steps(done: int) -> str:
    """Return the object after some edits: each changes one more function for the first time."""
    functions = "".join(
        f"int __attribute__((noinline)) g{row}(int n) {{ return n * {3 + (row < done)}; }}\n"
        for row in range(COUNT)
    )
    total = " + ".join(f"g{row}(n)" for row in range(COUNT))
    return f"{functions}int answer(int n) {{ return {total}; }}\n"


def test_processes_that_come_and_go_all_the_time_are_right(tmp_path: Path) -> None:
    with family(tmp_path, 1, steps(0)) as (program, session):
        enough = threading.Event()

        def come_and_go() -> None:
            for number in itertools.count(2):
                program.fork(number, parent=number % 2)
                if number < 10:
                    continue
                program.tell(number, "q")
                if enough.is_set():
                    return

        forking = threading.Thread(target=come_and_go)
        forking.start()
        try:
            for done in range(1, COUNT + 1):
                (part,) = program.compile(part=steps(done))
                outcome = reload(session, part)
                assert outcome.state == "live", outcome.error
                assert outcome.stop_us
        finally:
            enough.set()
            forking.join()
        assert {program.at(index, 1) for index in range(10)} == {4 * COUNT}


def test_a_child_of_vfork_is_not_a_process_of_its_own(tmp_path: Path) -> None:
    with family(tmp_path, 1) as (program, session):
        with program.connect(1, "v") as sock, sock.makefile() as answer:
            child = int(answer.readline())
            assert child not in session.process.pids()
            assert len(session.process.pids()) == 2
        until_gone(child)
        assert len(session.process.pids()) == 2


def test_a_grandchild_whose_parent_ended_is_found(tmp_path: Path) -> None:
    with family(tmp_path, 1) as (program, session):
        parent = session.process.pids()[1]
        grandchild = program.go_on_as(2, parent=1)
        until_gone(parent)
        assert session.process.pids() == [session.process.pid, grandchild]
        (part,) = program.compile(part=PART.replace("* 10", "* 100"))
        assert reload(session, part).state == "live"
        assert program.at(2) == 4000


def test_when_the_first_process_ends_another_stands_for_all(tmp_path: Path) -> None:
    with family(tmp_path, 1) as (program, session):
        parent, child = session.process.pids()
        program.go_on_as(2, parent=0)
        until_gone(parent)
        assert session.follow()
        assert session.process.pid == child
        (part,) = program.compile(part=PART.replace("* 10", "* 100"))
        outcome = reload(session, part)
        assert outcome.state == "live", outcome.error
        assert [program.at(1), program.at(2)] == [4000, 4000]


def test_when_the_first_process_executes_another_program_its_children_go_on(
    tmp_path: Path,
) -> None:
    with family(tmp_path, 1) as (program, session):
        _, child = session.process.pids()
        program.tell(0, "x")
        until(lambda: session.process.pids() == [child], "the first has left")
        (part,) = program.compile(part=PART.replace("* 10", "* 100"))
        outcome = reload(session, part)
        assert outcome.state == "live", outcome.error
        assert (session.process.pid, program.at(1)) == (child, 4000)


def test_children_that_were_forked_before_we_came_are_named(tmp_path: Path) -> None:
    program = Family(tmp_path)
    try:
        program.start()
        child = program.fork(1)
        with attached(program) as session:
            assert outsiders(session.process.pid, session.process.pids()) == [child]
            assert f"({child}): forked before reloader came" in session.notes[0]
            (part,) = program.compile(part=PART.replace("* 10", "* 100"))
            outcome = reload(session, part)
            assert (program.at(0), program.at(1)) == (4000, 400)
        assert any(f"1 child process keeps the code of before ({child})" in note
                   for note in outcome.notes)  # fmt: skip
    finally:
        program.end()


def test_a_switch_under_which_the_first_process_is_killed_is_taken_back_in_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with family(tmp_path, 2) as (program, session):
        first, *others = session.process.pids()

        def kill_and_write(*arguments: object) -> None:
            os.kill(first, signal.SIGKILL)
            until_gone(first)
            write(*arguments)

        write: Any = patching._write  # pyright: ignore[reportPrivateUsage]
        (part,) = program.compile(part=PART.replace("* 10", "* 100"))
        with monkeypatch.context() as patch:
            patch.setattr(patching, "_write", kill_and_write)
            outcome = reload(session, part)
        assert outcome.code == "target-gone"
        assert f"process {first} has ended while reloader was making" in outcome.error
        assert session.process.pids() == others
        assert [program.at(1), program.at(2)] == [400, 400]
        assert session.reload_files([str(part)]).state == "live"
        assert [program.at(1), program.at(2)] == [4000, 4000]
        row = session.store.targets.get(session.target)
        assert row is not None
        assert (row.pid, row.end_reason) == (others[0], None)
