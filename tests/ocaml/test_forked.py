"""A unit is known to one runtime: what becomes of children that share the slots."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from reloader.hosts.caml import family, switching
from reloader.hosts.caml.runtime import RunResult, Runtime, Script
from reloader.live.process import Process
from reloader.live.retire import RetirePolicy
from reloader.session.session import Session
from tests.support.live import until
from tests.support.ocaml import Build, Compiler
from tests.support.ocaml_forking import forking, reload, text_of
from tests.support.ocaml_project import session_of

OLD, NEW = "1", "2"  # what a child ran says its exit status


@pytest.fixture
def program(compiler: Compiler, tmp_path: Path) -> Iterator[Build]:
    with forking(compiler, tmp_path) as made:
        yield made


def test_a_child_that_is_forked_between_the_look_and_the_safe_point_refuses_the_swap(
    program: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse_children, children = family.refuse_children, list[str]()

    def fork_after_it(process: Process, patience_s: float) -> None:
        refuse_children(process, patience_s)
        children.append(program.ask("fork"))

    with session_of(program) as session:
        monkeypatch.setattr(family, "refuse_children", fork_after_it)
        said = text_of(reload(program, session, "first", "second"))
        assert said.startswith("refused")
        assert f"has forked {children[0]}, which runs on" in said
        assert program.ask("?") == "first 11first"
        monkeypatch.undo()
        assert program.ask("join") == OLD
        assert text_of(reload(program, session, "second", "third")).startswith("live")
        assert program.ask("?") == "third 11third"


def test_a_child_that_is_forked_after_the_swap_has_all_of_it(
    program: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    lead_on = switching.Switching.lead_on

    def fork_before(self: switching.Switching, *rest: object) -> None:
        program.ask("fork")
        lead_on(self, *rest)  # pyright: ignore[reportArgumentType]
        program.ask("fork")

    with session_of(program) as session:
        with monkeypatch.context() as patch:
            patch.setattr(switching.Switching, "lead_on", fork_before)
            assert text_of(reload(program, session, "first", "second")).startswith("live")
        assert program.ask("?") == "second 11second"
        assert program.ask("join") == f"{NEW} {NEW}"
        assert text_of(reload(program, session, "second", "third")).startswith("live")
        assert program.ask("?") == "third 11third"


def test_children_that_call_exec_are_waited_for(program: Build) -> None:
    with session_of(program) as session:
        assert program.process is not None
        assert program.process.stdin is not None
        program.process.stdin.write("spawn\n")
        program.process.stdin.flush()
        until(lambda: len(session.process.pids()) == 2, "there is a child")
        assert text_of(reload(program, session, "first", "second")).startswith("live")
        assert program.line() == "done"
        assert program.ask("?") == "second 11second"


def held_generations(session: Session) -> set[int]:
    """Let go of what can be; return the generations of which there is memory."""
    session.retiring.next_release = 0.0
    session.retiring.retirer.policy = RetirePolicy(min_interval=0.0)
    session.retiring.attempt()
    session.retiring.attempt()
    rows = session.program.ledger.rows.values()
    return {int(row.generation) for row in rows if row.object[0]}


def test_old_units_stay_while_the_runtime_of_a_child_knows_them(program: Build) -> None:
    with session_of(program) as session:
        assert text_of(reload(program, session, "first", "third")).startswith("live")
        assert text_of(reload(program, session, "third", "second")).startswith("live")
        child = program.ask("fork")
        assert held_generations(session) == {1, 2}
        pinned = session.retiring.why(None)
        assert any(child in holder.where for row in pinned for holder in row.holders)
        assert program.ask("join") == NEW
        assert held_generations(session) == {2}
        assert program.ask("gc") == "done"
        assert program.ask("?") == "second 11second"


def test_a_program_that_goes_on_as_its_child_is_reloaded_there(program: Build) -> None:
    with session_of(program) as session:
        assert text_of(reload(program, session, "first", "second")).startswith("live")
        first = session.process.pid
        assert program.ask("background") == "child"
        assert program.process is not None
        assert program.process.wait(10) == 0
        assert text_of(reload(program, session, "second", "third")).startswith("live")
        assert session.process.pid != first
        assert program.ask("gc") == "done"
        assert program.ask("?") == "third 11third"


def test_a_program_that_goes_on_as_its_child_right_after_the_swap_has_it(
    program: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Runtime.run

    def run_and_go(self: Runtime, script: Script, **numbers: int) -> RunResult:
        result = run(self, script, **numbers)
        assert program.ask("background") == "child"
        assert program.process is not None
        assert program.process.wait(10) == 0
        return result

    with session_of(program) as session:
        with monkeypatch.context() as patch:
            patch.setattr(Runtime, "run", run_and_go)
            assert text_of(reload(program, session, "first", "second")).startswith("live")
        row = session.store.targets.get(session.target)
        assert row is not None
        assert row.pid == session.process.pid
        assert program.ask("gc") == "done"
        assert program.ask("?") == "second 11second"
        assert text_of(reload(program, session, "second", "third")).startswith("live")
        assert program.ask("?") == "third 11third"


def test_a_program_that_is_killed_right_after_the_swap_is_said_to_have_ended(
    program: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Runtime.run

    def run_and_kill(self: Runtime, script: Script, **numbers: int) -> RunResult:
        result = run(self, script, **numbers)
        assert program.process is not None
        program.process.kill()
        program.process.wait(10)
        return result

    with session_of(program) as session, monkeypatch.context() as patch:
        patch.setattr(Runtime, "run", run_and_kill)
        outcome = reload(program, session, "first", "second")
        assert outcome.state == "failed"
        assert "has ended" in outcome.error
