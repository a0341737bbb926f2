"""The program is killed, or ends by itself, at each step of a reload."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from reloader.live import patching
from reloader.reload import STEPS
from reloader.session.outcome import Outcome
from reloader.session.session import Session
from tests.support.road import MAIN, Program, attached

PART = """
static int count;
int answer(int n) { count++; return n * %d + count; }
"""


@pytest.fixture
def program(tmp_path: Path) -> Iterator[Program]:
    made = Program(tmp_path, ["-O2", "-falign-functions=16"])
    made.compile(main=MAIN, part=PART % 10)
    made.link()
    made.start()
    yield made
    made.stop()


def kill(program: Program) -> None:
    """Kill it; it is gone when this returns."""
    assert program.process is not None
    program.process.kill()
    program.process.wait()


def leave_a_zombie(program: Program) -> None:
    """Kill it, and do not ask for its status: it stays in the process table."""
    process = program.process
    assert process is not None
    process.kill()
    while "Z" not in Path(f"/proc/{process.pid}/stat").read_text("utf-8").rsplit(")", 1)[1]:
        pass


def end_by_itself(program: Program) -> None:
    """Close its input and wait: it leaves main."""
    assert program.process is not None
    assert program.process.stdin is not None
    program.process.stdin.close()
    program.process.wait()


WAYS: list[Callable[[Program], None]] = [kill, leave_a_zombie, end_by_itself]


def told(session: Session, outcome: Outcome, *doing: str) -> None:
    """Check what is said, and written down."""
    assert (outcome.state, outcome.code) == ("failed", "target-gone"), outcome
    pid = session.process.pid
    assert outcome.error in {
        f"process {pid} has ended while reloader was {what}. Start it again to go on."
        for what in doing
    }
    rows = session.store.query.history(session.target, limit=9)
    assert (rows[0].state, rows[0].error) == ("failed", outcome.error)
    assert session.store.journal.unfinished(session.target) == []
    row = session.store.targets.get(session.target)
    assert row is not None
    assert row.end_reason == "the program ended"


def at(session: Session, step: str, action: Callable[[], None]) -> None:
    def before(name: str) -> None:
        if name == step:
            action()

    session.before_step = before


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("step", [step for step in STEPS if step != "record"])
@pytest.mark.parametrize("later", [False, True], ids=["first", "later"])
def test_the_program_ends_before_a_step(
    program: Program, step: str, way: Callable[[Program], None], *, later: bool
) -> None:
    with attached(program) as session:
        (part,) = program.compile(part=PART % 20)
        if later:
            assert session.reload_files([str(part)]).state == "live"
            program.compile(part=PART % 30)
        at(session, step, lambda: way(program))
        outcome = session.reload_files([str(part)])
        told(session, outcome, *list(STEPS.values())[list(STEPS).index(step) :])
        session.before_step = lambda _: None
        again = session.reload_files([str(part)])
        assert (again.state, again.code) == ("failed", "target-gone")


def test_the_program_ends_when_it_is_live_already(program: Program) -> None:
    with attached(program) as session:
        (part,) = program.compile(part=PART % 20)
        at(session, "record", lambda: kill(program))
        outcome = session.reload_files([str(part)])
        assert (outcome.state, outcome.error) == ("live", "")
        program.compile(part=PART % 30)
        told(session, session.reload_files([str(part)]), "linking", "making new code live")


def test_the_program_is_killed_while_all_its_threads_are_stopped(
    program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    write: Any = patching._write  # pyright: ignore[reportPrivateUsage]

    def kill_and_write(*arguments: object) -> None:
        assert program.process is not None
        program.process.kill()
        write(*arguments)

    monkeypatch.setattr(patching, "_write", kill_and_write)
    with attached(program) as session:
        (part,) = program.compile(part=PART % 20)
        told(session, session.reload_files([str(part)]), "making new code live")


def test_a_constructor_that_ends_the_program_is_told(program: Program) -> None:
    text = """
    extern void _exit(int);
    __attribute__((constructor)) static void begin(void) { _exit(7); }
    """
    with attached(program) as session:
        (extra,) = program.compile(extra=text)
        outcome = session.reload_files([str(extra)], named=True)
        told(session, outcome, "initialising new code")
