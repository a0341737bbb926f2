"""What the user wants done before and after a reload, in the shell and in the program."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from reloader.config import Config, HooksConfig
from reloader.server.engine import WatchOptions
from reloader.server.sessions import Sessions
from reloader.wire.protocol import Event
from tests.support.road import MAIN, Program, attached, reload

TEXT = """
int answer(int n) { return n + 1; }
int quiet_since, seen;
int prepare(unsigned generation) { quiet_since = generation; return 0; }
int refuse(unsigned generation) { return -(int)generation; }
int look(unsigned generation) { seen = generation * 100 + answer(1); return 0; }
int watched(void) { return quiet_since * 10000 + seen; }
"""
ASK = MAIN.replace(
    "answer(atoi(line))", "*line == 'w' ? watched() : answer(atoi(line))"
).replace("int answer(int);", "int answer(int), watched(void);")
EDITED = TEXT.replace("n + 1", "n + 2")


@pytest.fixture
def program(tmp_path: Path) -> Iterator[Program]:
    made = Program(tmp_path, ("-O2", "-g", "-fno-inline"))
    made.compile(main=ASK, hooked=TEXT)
    made.link()
    made.start()
    yield made
    made.stop()


def watched(program: Program) -> int:
    assert program.process is not None
    assert program.process.stdin is not None
    program.process.stdin.write("w\n")
    program.process.stdin.flush()
    return int(program.line())


def hooks(**keys: str | float) -> Config:
    return Config(hooks=HooksConfig(**keys))  # type: ignore[arg-type]  # keys of several types


def test_commands_are_told_what_is_reloaded(program: Program) -> None:
    tell = "printf '%s %s %s %s\\n' $RELOADER_HOOK $RELOADER_GENERATION $RELOADER_PID "
    config = hooks(
        before_reload=f'{tell} "$RELOADER_OBJECTS" >>told',
        after_reload=f'{tell} "$RELOADER_FUNCTIONS" >>told',
    )
    with attached(program) as session:
        session.configure(config, program.folder)
        outcome = reload(session, *program.compile(hooked=EDITED))
        assert outcome.state == "live", outcome.error
        pid = session.process.pid
    told = (program.folder / "told").read_text().splitlines()
    assert told == [
        f"before_reload 1 {pid} {program.folder / 'hooked.o'}",
        f"after_reload 1 {pid} answer",
    ]


def test_nothing_runs_for_what_is_unchanged(program: Program) -> None:
    with attached(program) as session:
        session.configure(hooks(before_reload="false"), program.folder)
        assert reload(session, *program.compile(hooked=TEXT + "//\n")).state == "unchanged"


def test_a_failing_command_cancels_and_its_output_is_shown(program: Program) -> None:
    with attached(program) as session:
        session.configure(hooks(before_reload="echo tests fail; exit 3"), program.folder)
        outcome = reload(session, *program.compile(hooked=EDITED))
        assert (outcome.state, outcome.code) == ("refused", "hook-failed")
        assert outcome.error == (
            "before_reload (echo tests fail; exit 3) ended with status 3.\n    tests fail\n"
            "Nothing was changed. Correct what it complains about, or take it out of [hooks] "
            "in reloader.toml."
        )
        assert program.ask(1) == 2
        session.configure(Config(), program.folder)
        assert reload(session, *program.compile(hooked=EDITED)).state == "live"
        assert program.ask(1) == 3


def test_a_command_that_does_not_end_is_ended_and_cancels(program: Program) -> None:
    with attached(program) as session:
        session.configure(hooks(before_reload="sleep 100", timeout_s=0.05), program.folder)
        outcome = reload(session, *program.compile(hooked=EDITED))
        assert "was still running after 0.05 s (timeout_s) and was ended" in outcome.error
    assert program.ask(1) == 2


def test_functions_of_the_program_run_before_and_after(program: Program) -> None:
    with attached(program) as session:
        config = hooks(before_function="prepare", after_function="look")
        session.configure(config, program.folder)
        outcome = reload(session, *program.compile(hooked=EDITED))
        assert outcome.state == "live", outcome.error
        assert outcome.notes == []
    assert watched(program) == 10000 + 100 + 3  # `look` saw the new code


def test_a_function_that_says_no_cancels(program: Program) -> None:
    with attached(program) as session:
        session.configure(hooks(before_function="refuse"), program.folder)
        outcome = reload(session, *program.compile(hooked=EDITED))
        assert outcome.code == "hook-failed"
        assert "before_function (refuse) returned -1, not 0" in outcome.error
        session.configure(hooks(before_function="nobody"), program.folder)
        outcome = reload(session, *program.compile(hooked=EDITED))
        assert "before_function (nobody) is no function of the program" in outcome.error
    assert program.ask(1) == 2


def test_what_fails_after_a_reload_is_a_note(program: Program) -> None:
    with attached(program) as session:
        config = hooks(after_reload="exit 1", after_function="refuse")
        session.configure(config, program.folder)
        outcome = reload(session, *program.compile(hooked=EDITED))
        assert outcome.state == "live"
        assert outcome.notes == [
            "after_function (refuse) returned -1, not 0; the new code is live",
            "after_reload (exit 1) ended with status 1; the new code is live",
        ]
    assert program.ask(1) == 3


class Quiet:
    """A host that listens to nobody."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def post(self, work: Callable[[], object]) -> None: ...

    def files_changed(self, paths: frozenset[str]) -> None: ...

    def emit(self, event: Event) -> None: ...

    def progress(self, text: str) -> None: ...

    def targets_changed(self, count: int) -> None: ...


def test_the_projects_file_says_hooks_and_conversions(program: Program) -> None:
    (program.folder / "reloader.toml").write_text(
        "[hooks]\nbefore_reload = 'test ! -e no'\n"
        "[types]\naccept = ['enum mode']\n[migrate]\nseen = 'convert'\n"
    )
    assert program.process is not None
    engine = Sessions(program.folder, Quiet(program.folder))
    try:
        engine.attach(program.process.pid, WatchOptions(watch=("*.o",)))
        path = str(program.compile(hooked=EDITED)[0])
        (program.folder / "no").touch()
        answer = engine.load([path], None, [])
        assert "before_reload (test ! -e no) ended with status 1" in str(answer["error"])
        (program.folder / "no").unlink()
        assert engine.load([path], None, [])["outcome"] == "live"
        wider = EDITED.replace("quiet_since, seen", "quiet_since; long seen") + (
            "void convert(const int *old, long *fresh) { *fresh = *old + 5000; }\n"
        )
        answer = engine.load([str(program.compile(hooked=wider)[0])], None, [])
        assert answer["outcome"] == "live", answer["error"]
        assert watched(program) == 5000
    finally:
        engine.close()
