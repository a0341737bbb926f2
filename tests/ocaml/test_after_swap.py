"""Once units are swapped in nothing undoes that, whoever fails or dies before the books."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from reloader.errors.base import ReloaderError
from reloader.errors.live import AgentBusyError, TargetMemoryError
from reloader.hosts.caml import forwarding, runtime
from reloader.live import channel
from reloader.session.record import StateJournal
from reloader.session.session import Session
from state.errors import StateError
from stubs import layout
from tests.support.faults import Orders, check_consistency, run_daemon
from tests.support.live import traced
from tests.support.ocaml import Build, Compiler
from tests.support.ocaml_forking import forking, reload, text_of
from tests.support.ocaml_project import session_of

KILLED = -9
FULL = ("record", "the disk is full", "Make room")
SECOND = ("first", 'second"\nlet fresh_of_two () = "fresh')
THIRD = ("second", 'third"\nlet fresh_of_three () = "fresh')


@pytest.fixture
def program(compiler: Compiler, tmp_path: Path) -> Iterator[Build]:
    with forking(compiler, tmp_path) as made:
        yield made


def kill_a_daemon(program: Build, moment: str, *edits: tuple[str, str, str]) -> None:
    """Let a daemon reload what some edits make, and end itself at a moment of that."""
    assert program.process is not None
    with session_of(program, "initialiser_s = 60.0\n"):
        pass  # the state knows the program as it was linked
    objects = sorted({str(program.edit(*edit)) for edit in edits})
    watch = str(program.folder / "*.o")
    orders = Orders(program.process.pid, str(program.folder), watch, [objects], moment)
    status, _ = run_daemon(orders)
    assert status == KILLED


def says(program: Build) -> str:
    """Return what captured code and called code say; a collection has passed."""
    assert program.ask("gc") == "done"
    return program.ask("?")


@pytest.mark.parametrize(
    "moment",
    ["before_units_swap", "after_units_swapped", "after_first_word", "before_unit_jumps"],
)
def test_a_daemon_is_killed_around_the_swap(program: Build, moment: str) -> None:
    kill_a_daemon(program, moment, ("foo.ml", *SECOND))
    live = "first" if moment == "before_units_swap" else "second"
    assert program.ask("?").endswith(f"11{live}")
    for name, (old, new) in {"third": THIRD, "fourth": ("third", "fourth")}.items():
        with session_of(program) as session:
            check_consistency(session)
            assert "the daemon ended" in " ".join(session.notes) or name == "fourth"
            assert says(program) == f"{live} 11{live}"
            assert text_of(reload(program, session, old, new)).startswith("live")
            live = name
            assert says(program) == f"{live} 11{live}"
            check_consistency(session)
            session.retiring.next_release = 0.0
            session.retiring.attempt()
            assert says(program) == f"{live} 11{live}"


def test_a_daemon_is_killed_where_c_code_has_flipped_and_the_unit_is_not_swapped(
    program: Build,
) -> None:
    edits = ("foo.ml", *SECOND), ("stub.c", "2 * 10", "2 * 20")
    kill_a_daemon(program, "before_units_swap", *edits)
    for _ in range(2):
        with session_of(program) as session:
            check_consistency(session)
            assert says(program) == "first 11first"
    with session_of(program) as session:
        paths = [str(program.folder / name) for name in ("foo.o", "stub.o")]
        assert session.reload_files(paths).state == "live"
        assert says(program) == "second 21second"
        check_consistency(session)


def test_a_daemon_that_comes_while_an_initialiser_runs_waits_for_it(
    program: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    go_on = program.folder / "go-on"
    slow = f'let () = while not (Sys.file_exists "{go_on}") do Unix.sleepf 0.01 done'
    edits = ("foo.ml", "let calls", f"{slow}\nlet calls"), ("foo.ml", *SECOND)
    kill_a_daemon(program, "while_initialising", *edits)
    with monkeypatch.context() as patch:
        patch.setattr(runtime, "_SLACK", 0.05)
        patch.setattr(channel, "PATIENCE_S", 0.05)
        with pytest.raises(AgentBusyError), session_of(program):
            pass
    go_on.touch()
    with session_of(program) as session:
        check_consistency(session)
        assert says(program) == "second 11second"
        assert text_of(reload(program, session, "second", "third")).startswith("live")
        assert says(program) == "third 11third"


def test_a_daemon_without_the_compiler_does_not_decide_what_became_of_a_unit(
    program: Build,
) -> None:
    kill_a_daemon(program, "after_units_swapped", ("foo.ml", *SECOND))
    assert program.process is not None
    (program.folder / "reloader.toml").write_text('[ocaml]\ncompiler = "/nowhere/ocamlopt"\n')
    with pytest.raises(ReloaderError, match="/nowhere/ocamlopt"):
        Session.attach(
            program.process.pid, root=program.folder, watch=[str(program.folder / "*.o")]
        )
    with session_of(program) as session:
        check_consistency(session)
        assert says(program) == "second 11second"
        assert text_of(reload(program, session, *THIRD)).startswith("live")
        assert says(program) == "third 11third"


def test_a_daemon_that_finishes_under_a_debugger_leaves_the_jumps_to_the_next_reload(
    program: Build,
) -> None:
    kill_a_daemon(program, "after_units_swapped", ("foo.ml", *SECOND))
    assert program.process is not None
    with traced(program.process.pid) as tracer, session_of(program) as session:
        assert tracer in " ".join(session.notes)
        check_consistency(session)
        assert says(program) == "first 11second"
    with session_of(program) as session:
        assert text_of(reload(program, session, *THIRD)).startswith("live")
        assert says(program) == "third 11third"
        check_consistency(session)


def test_what_cannot_be_written_down_is_finished_by_the_next_daemon(
    program: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: StateJournal, *_: object) -> None:
        raise StateError(*FULL[:1], self.store.folder, *FULL[1:])

    with session_of(program) as session, monkeypatch.context() as patch:
        patch.setattr(StateJournal, "record_live", full)
        said = text_of(reload(program, session, *SECOND))
        assert said.startswith("live")
        assert "could not be written down" in said
        assert says(program) == "second 11second"
        assert not text_of(reload(program, session, *THIRD)).startswith("live")
        assert says(program) == "second 11second"
        session.close = session.process.close
    with session_of(program) as session:
        check_consistency(session)
        assert text_of(reload(program, session, "third", "fourth")).startswith("live")
        assert says(program) == "fourth 11fourth"


def test_functions_that_could_not_be_led_on_are_by_the_next_reload(
    program: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> None:
        raise TargetMemoryError(1, 0x1000, 8, verb="write")

    with session_of(program) as session:
        with monkeypatch.context() as patch:
            patch.setattr(forwarding, "write_words", fails)
            said = text_of(reload(program, session, "first", "second"))
        assert said.startswith("live")
        assert "whoever captured functions of Foo goes on with the old code" in said
        assert "Nothing was changed" not in said
        assert says(program).endswith(" 11second")
        assert text_of(reload(program, session, "second", "third")).startswith("live")
        assert says(program) == "third 11third"
        check_consistency(session)


def test_functions_of_a_unit_whose_first_version_raised_are_led_on_later(
    program: Build,
) -> None:
    with session_of(program) as session:
        program.edit("foo.ml", "let calls", 'let () = failwith "no"\nlet calls')
        said = text_of(reload(program, session, "first", "second"))
        assert "raised" in said
        assert says(program) == "first 11first"
        program.edit("foo.ml", 'let () = failwith "no"', "")
        assert text_of(reload(program, session, "second", "third")).startswith("live")
        assert says(program) == "third 11third"
    with session_of(program) as session:
        check_consistency(session)
        assert text_of(reload(program, session, "third", "fourth")).startswith("live")
        assert says(program) == "fourth 11fourth"


def test_functions_that_are_too_many_for_the_slot_table_are_refused_before_the_swap(
    program: Build,
) -> None:
    with session_of(program) as session:
        assert text_of(reload(program, session, "first", "second")).startswith("live")
        table = session.program.table
        room, table.capacity = table.capacity, len(table) + 1
        said = text_of(
            reload(program, session, "second", 'third"\nlet f () = 1\nlet g () = "2')
        )
        assert said.startswith("refused")
        assert "Nothing was changed" in said
        assert says(program) == "second 11second"
        table.capacity = room
        assert text_of(reload(program, session, "third", "fourth")).startswith("live")
        assert says(program) == "fourth 11fourth"


@pytest.mark.parametrize("room", [layout.TEXT_SIZE, 64])
def test_what_the_agent_still_reads_is_not_overwritten_by_who_gave_it_up(
    program: Build, monkeypatch: pytest.MonkeyPatch, room: int
) -> None:
    limits = "limit_s = 0.3\ninitialiser_s = 0.1\n"
    holding = 'external hold : int -> int = "hold"\nlet held = hold 1'
    monkeypatch.setattr(layout, "TEXT_SIZE", room)  # a long script has memory of its own
    with session_of(program, limits) as session:
        monkeypatch.setattr(runtime, "_SLACK", 0.1)
        # the first is swapped in, and has to be taken back when the second one is too late
        edits = ("foo.ml", "first", "second"), ("late.ml", "let said", f"{holding}\nlet said")
        outcome = session.reload_files([str(program.edit(*edit)) for edit in edits])
        assert "has been in a system call or a C function" in outcome.error
        for number in range(3):  # each takes memory, and wants to give a command
            text = f"let more{number} = ref {number}\nlet calls"
            assert text_of(reload(program, session, "let calls", text)).startswith("failed")
        (program.folder / "go-on").touch()
        monkeypatch.setattr(runtime, "_SLACK", 10.0)
        assert says(program) == "first 11first"
        program.edit("late.ml", holding, "")
        assert text_of(reload(program, session, "second", "third")).startswith("live")
        assert says(program) == "third 11third"
        assert program.ask("late") == "third"
