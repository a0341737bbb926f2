"""The user's own build: restarts, transactions, failures, leftovers."""

import os
import queue
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from reloader.errors.watch import BuildFailedError, BuildStartError
from reloader.watching.build import MAX_RESTARTS, BuildResult, BuildRunner
from reloader.watching.child import BoundedOutput, BuildChild
from reloader.watching.finished import Files  # noqa: TC001 - the tree imports types plainly, as everywhere else
from reloader.watching.globs import parse_pattern
from reloader.watching.stale import stale_objects
from reloader.watching.watch import Watcher

pytestmark = pytest.mark.timeout(60)

MAKEFILE = """\
prog: a.o b.o
\tgcc -o prog a.o b.o
%.o: %.c
\tgcc -c $<
"""


@dataclass
class Building:
    """A build runner with a watcher of its objects, and all that it tells."""

    runner: BuildRunner
    watcher: Watcher
    results: "queue.SimpleQueue[BuildResult]"
    direct: "queue.SimpleQueue[Files]"
    starts: "queue.SimpleQueue[tuple[Path, ...]]"

    def result(self) -> BuildResult:
        return self.results.get(timeout=30)


@contextmanager
def building(cwd: Path, command: str, *sources: str) -> Generator[Building]:
    results: queue.SimpleQueue[BuildResult] = queue.SimpleQueue()
    direct: queue.SimpleQueue[Files] = queue.SimpleQueue()
    starts: queue.SimpleQueue[tuple[Path, ...]] = queue.SimpleQueue()
    problems: list[Exception] = []
    runner = BuildRunner(
        command,
        sources or ("*.c",),
        cwd,
        results.put,
        on_files=direct.put,
        on_problem=problems.append,
        on_start=starts.put,
    )
    with Watcher(parse_pattern("*.o", cwd), runner.offer, problems.append) as watcher:
        runner.start(watcher)
        yield Building(runner, watcher, results, direct, starts)
        runner.stop()
    assert problems == []


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "Makefile").write_text(MAKEFILE, encoding="utf-8")
    (tmp_path / "a.c").write_text("int b(void); int main(void) { return b(); }\n", "utf-8")
    (tmp_path / "b.c").write_text("int b(void) { return 0; }\n", "utf-8")
    return tmp_path


@pytest.fixture
def gate(tmp_path: Path) -> Generator[Callable[[], int]]:
    """A FIFO that a build opens for writing: reading it says that the build runs."""
    fifo = tmp_path / "gate"
    os.mkfifo(fifo)
    handle = os.open(fifo, os.O_RDWR)

    def wait_running() -> int:
        return int(os.read(handle, 64).split()[0])

    yield wait_running
    os.close(handle)


def test_a_saved_source_builds_and_all_objects_come_in_one_transaction(project: Path) -> None:
    with building(project, "make") as build:
        (project / "b.c").write_text("int b(void) { return 3; }\n", encoding="utf-8")
        result = build.result()
        assert result.error is None
        assert result.status == 0
        assert result.seconds > 0
        assert sorted(file.path.name for file in result.files) == ["a.o", "b.o"]
        assert all(file.data == file.path.read_bytes() for file in result.files)
        assert result.sources == (project / "b.c",)
        assert result.stale == ()
        assert "gcc -c" in result.output
        assert build.direct.empty()


def test_a_failed_build_shows_its_output_and_hands_nothing_on_until_one_succeeds(
    project: Path,
) -> None:
    with building(project, "make") as build:
        (project / "b.c").write_text("int b(void) { return }\n", encoding="utf-8")
        result = build.result()
        assert result.files == ()
        assert isinstance(result.error, BuildFailedError)
        text = str(result.error)
        assert text.startswith("the build `make` failed (exit status 2, ")
        assert "Nothing was changed.\n" in text
        assert "b.c:1:" in text
        (project / "b.c").write_text("int b(void) { return 4; }\n", encoding="utf-8")
        result = build.result()
        # make had made a.o before it failed and does not make it again
        assert sorted(file.path.name for file in result.files) == ["a.o", "b.o"]


def test_an_object_that_changes_without_a_build_is_handed_on_at_once(project: Path) -> None:
    with building(project, "make") as build:
        (project / "a.o").write_bytes(b"1")
        (file,) = build.direct.get(timeout=20)
        assert file.data == b"1"
        assert build.results.empty()


def test_a_save_during_a_build_ends_its_whole_group_and_starts_it_anew(
    project: Path, gate: Callable[[], int]
) -> None:
    # the first run waits for ever, in a child of the shell as well; the second ends
    command = (
        "test -e second && { echo done > b.o; exit 0; };"
        " echo half > a.o; { sleep 1000 & echo $! > gate; }; sleep 1000"
    )
    with building(project, command) as build:
        (project / "b.c").write_text("int b(void) { return 5; }\n", encoding="utf-8")
        sleeper = gate()
        (project / "second").touch()
        (project / "a.c").write_text("int main(void) { return 6; }\n", encoding="utf-8")
        result = build.result()
        assert result.restarts == 1
        assert result.error is None
        assert set(result.sources) == {project / "a.c", project / "b.c"}
        assert {file.path.name for file in result.files} == {"a.o", "b.o"}
        assert not is_running(sleeper)


def is_running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rsplit(")", 1)[1].split()
    except FileNotFoundError:
        return False
    return state[0] != "Z"


def test_stopping_ends_a_running_build(project: Path, gate: Callable[[], int]) -> None:
    with building(project, "echo $$ > gate; sleep 1000") as build:
        build.runner.build_now()
        shell = gate()
    assert not is_running(shell)


def test_a_build_that_ignores_the_term_signal_is_killed(
    project: Path, gate: Callable[[], int]
) -> None:
    command = "trap '' TERM; echo $$ > gate; while :; do sleep 1000; done"
    with building(project, command) as build:
        build.runner.build_now()
        shell = gate()
    assert not is_running(shell)


def test_a_source_that_the_build_writes_with_equal_content_is_no_save(project: Path) -> None:
    command = "echo 'int g;' > gen.c; sync gen.c; gcc -c gen.c b.c"
    with building(project, command) as build:
        build.runner.build_now()
        first = build.result()
        assert first.restarts <= 1
        (project / "b.c").write_text("int b(void) { return 7; }\n", encoding="utf-8")
        second = build.result()
        assert (second.restarts, second.unsettled) == (0, ())


def test_a_source_that_every_build_changes_is_named_and_ends_the_restarts(
    project: Path,
) -> None:
    command = "date +%N$$ > stamp.c; read x < hold || true"
    os.mkfifo(project / "hold")
    (project / "stamp.c").write_text("0\n", encoding="utf-8")
    with building(project, command) as build:
        build.runner.build_now()
        for _ in range(MAX_RESTARTS + 1):
            build.starts.get(timeout=20)
        (project / "hold").write_text("go\n", encoding="utf-8")
        result = build.result()
        assert result.restarts == MAX_RESTARTS
        assert result.unsettled == (project / "stamp.c",)
        (project / "hold").write_text("go\n", encoding="utf-8")
        assert build.result().restarts == 0  # the last one, in case a person saved it
        build.watcher.sync()
        assert build.results.empty()


def test_a_command_that_cannot_start_says_so(tmp_path: Path) -> None:
    results: queue.SimpleQueue[BuildResult] = queue.SimpleQueue()
    gone = tmp_path / "gone"
    runner = BuildRunner("make", ["*.c"], gone, results.put, on_files=print, on_problem=print)
    runner.start(None)
    runner.build_now()
    error = results.get(timeout=20).error
    runner.stop()
    assert isinstance(error, BuildStartError)
    assert str(error) == (
        f"the build `make` could not be started in {gone}: No such file or directory. "
        "Nothing was changed."
    )


def test_a_build_has_the_environment_of_who_asked_for_it(tmp_path: Path) -> None:
    never = os.eventfd(0)
    with BuildChild('echo "$WHAT"', tmp_path, {"WHAT": "this"}) as child:
        assert child.wait(never) == 0
        assert child.output.text() == "this\n"
    os.close(never)


def test_a_silent_failure_and_a_signal_are_told_apart(project: Path) -> None:
    with building(project, "kill -SEGV $$") as build:
        build.runner.build_now()
        error = build.result().error
    assert "failed (signal 11, " in str(error)
    assert str(error).endswith("Nothing was changed. It printed nothing.")


def test_long_output_keeps_its_start_and_its_end() -> None:
    output = BoundedOutput(kept_bytes=10)
    for number in range(100):
        output.add(f"{number:02d}".encode())
    assert output.text() == "0001020304\n... 180 bytes left out ...\n9596979899"


def test_objects_older_than_their_sources_are_named(project: Path) -> None:
    (project / "a.o").write_bytes(b"old")
    os.utime(project / "a.o", (1, 1))
    with building(project, "gcc -c b.c") as build:
        (project / "a.c").write_text("int main(void) { return 8; }\n", encoding="utf-8")
        (stale,) = build.result().stale
    assert (stale.object, stale.source) == (project / "a.o", project / "a.c")
    assert "s older than" in str(stale)


def test_sources_pair_with_the_nearest_object_of_their_name(tmp_path: Path) -> None:
    def make(name: str, time: int) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        os.utime(path, (time, time))
        return path

    sources = [make(name, 10) for name in ("x/util.c", "y/util.c", "m.c", "n.c", "e.c", "h.h")]
    x, y, m, n = (
        make(name, time)
        for name, time in (
            ("out/x/util.o", 5),
            ("out/y/util.o", 20),
            ("prog-m.o", 7),
            ("out/n.c.o", 8),
        )
    )
    ambiguous = [make("p/e.o", 1), make("q/e.o", 1)]
    found = stale_objects(sources, [x, y, m, n, *ambiguous, make("h.o", 1)])
    assert [(item.object, item.seconds) for item in found] == [(x, 5.0), (m, 3.0), (n, 2.0)]


def test_sources_that_the_build_itself_creates_do_not_restart_it(project: Path) -> None:
    trial = "echo int g$n\\; > conftest.c; gcc -c conftest.c"
    command = f"for n in 1 2 3; do {trial}; done; make -s; rm -f conftest.*"
    with building(project, command) as build:
        (project / "b.c").write_text("int b(void) { return 5; }\n", encoding="utf-8")
        result = build.result()
        assert (result.status, result.restarts) == (0, 0)
