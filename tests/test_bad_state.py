"""A full disk, a vanished state folder, and the real daemon under bad input."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from reloader.errors.session import StateLostError
from reloader.session.outcome import Outcome
from reloader.session.session import Session
from state.errors import StateError
from tests.support.checker import check
from tests.support.elf import compiled
from tests.support.faults import books, check_consistency
from tests.support.road import MAIN, Program, attached

ROOT = Path(__file__).resolve().parent.parent

UNTOUCHED = "Nothing was changed."

PART = """
static int count;
extern int printf(const char *, ...);
int answer(int n) { count++; if (n < 0) printf("text"); return n * %d + count; }
"""


def has(outcome: Outcome, *words: str) -> None:
    for word in words:
        assert word in outcome.error


def cut(data: bytes) -> bytes:
    return data[: len(data) * 2 // 3]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MiB, where the user may make one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["/usr/bin/mount", "-t", "tmpfs", "-o", "size=1m", "none", str(folder)]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.fail("this test needs to be root in a namespace: run it under `unshare -rm`")
    yield folder
    subprocess.run(["/usr/bin/umount", str(folder)], check=True)


@contextmanager
def read_only(folder: Path) -> Generator[None]:
    """Let nothing in a folder be changed; files that are open for it stay so."""
    for option in ("bind", "remount,bind,ro"):
        command = ["/usr/bin/mount", "-o", option, str(folder), str(folder)]
        subprocess.run(command, check=True)
    try:
        yield
    finally:
        subprocess.run(["/usr/bin/umount", str(folder)], check=True)


def fill(folder: Path) -> Path:
    """Leave no room on a file system."""
    path = folder / "filler"
    with path.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            return path


def test_a_full_disk_stops_reloading_before_anything_changes(small_disk: Path) -> None:
    program = Program(small_disk.parent)
    program.compile(main=MAIN, part=PART % 10)
    program.link()
    pid = program.start()
    state = small_disk / "project"
    state.mkdir()
    session = Session.attach(pid, state, [str(program.folder / "part.o")])
    before = books(session)
    filler = fill(small_disk)
    program.compile(part=PART % 20)
    outcome = session.reload_files([str(program.folder / "part.o")])
    assert (outcome.state, outcome.code) == ("failed", "state")
    has(outcome, str(state), "the disk is full", "Free some space", UNTOUCHED)
    assert books(session) == before
    assert program.ask(3) == 31
    filler.unlink()
    outcome = session.reload_files([str(program.folder / "part.o")])
    assert (outcome.state, outcome.error) == ("live", "")
    assert program.ask(3) == 62
    check_consistency(session)
    session.close()
    assert check(pid, state) == []  # the database is whole, too
    assert program.stop() == 0


def test_a_disk_that_fills_up_during_a_reload_owes_the_record(small_disk: Path) -> None:
    program = Program(small_disk.parent)
    program.compile(main=MAIN, part=PART % 10)
    program.link()
    pid = program.start()
    state = small_disk / "project"
    state.mkdir()
    part = str(program.folder / "part.o")
    session = Session.attach(pid, state, [part])
    fillers: list[Path] = []

    def before(step: str) -> None:
        if step == "record":
            fillers.append(fill(small_disk))

    session.before_step = before
    program.compile(part=PART % 20)
    outcome = session.reload_files([part])
    session.before_step = lambda _: None
    assert (outcome.state, outcome.error) == ("live", "")
    assert "could not be written down" in " ".join(outcome.notes)
    assert program.ask(3) == 61
    program.compile(part=PART % 30)
    outcome = session.reload_files([part])
    assert (outcome.state, outcome.code) == ("failed", "state")
    assert UNTOUCHED in outcome.error
    assert program.ask(3) == 62
    fillers[0].unlink()
    assert session.reload_files([part]).state == "live"
    assert program.ask(3) == 93
    check_consistency(session)
    states = [row.state for row in session.store.query.history(session.target, limit=9)]
    assert states[:2] == ["live", "live"]
    session.close()
    assert check(pid, state) == []
    assert program.stop() == 0


def test_the_state_folder_may_vanish_under_a_session(tmp_path: Path) -> None:
    program = Program(tmp_path)
    program.compile(main=MAIN, part=PART % 10)
    program.link()
    pid = program.start()
    with attached(program) as session:
        shutil.rmtree(tmp_path / ".reloader")
        before = books(session)
        (path,) = program.compile(part=PART % 20)
        outcome = session.reload_files([str(path)])
        assert (outcome.state, outcome.error) == ("live", "")
        note = next(note for note in outcome.notes if "deleted" in note)
        assert str(tmp_path / ".reloader") in note
        assert books(session) != before
        assert program.ask(3) == 61
    with pytest.raises(StateLostError, match="Start the daemon in the project folder"):
        Session.attach(pid, tmp_path, [str(path)])
    assert program.ask(3) == 62
    assert program.stop() == 0


def test_a_project_that_may_not_be_written_is_refused_before_the_program_is_entered(
    tmp_path: Path,
) -> None:
    program = Program(tmp_path)
    program.compile(main=MAIN, part=PART % 10)
    program.link()
    pid = program.start()
    project = tmp_path / "project"
    project.mkdir()
    with read_only(project):
        with pytest.raises(StateError) as refused:
            Session.attach(pid, project, [])
        assert str(refused.value) == (
            f"{project}/.reloader: cannot make the state folder: Read-only file system. Nothing"
            " was recorded. Make it writable for this user."
        )
        said = verb(project, "attach", str(pid), "--watch", "*.o")
        assert (
            "Read-only file system. Nothing was changed. Start it in a folder that is" in said
        )
    Session.attach(pid, project, []).close()
    assert program.ask(3) == 31
    with read_only(project):
        with pytest.raises(StateError) as refused:
            Session.attach(pid, project, [])
        assert str(refused.value) == (
            f"{project}/.reloader/state.db: cannot open it: its folder is read-only"
            " (SQLITE_CANTOPEN). Nothing was recorded. Check that the folder exists and is"
            " writable for this user."
        )
    assert program.ask(3) == 32
    assert program.stop() == 0


def test_a_state_folder_that_becomes_read_only_stops_what_needs_a_new_file_there(
    tmp_path: Path,
) -> None:
    program = Program(tmp_path, ["-O2", "-g"])
    program.compile(main=MAIN, part=PART % 10)
    program.link()
    pid = program.start()
    large = "const char much[] = {[99999] = 1}; static __attribute__((used)) int hint = %d;"
    with attached(program) as session:
        part = str(program.folder / "part.o")
        before = books(session)
        with read_only(tmp_path / ".reloader"):
            program.compile(part=PART % 20 + large % 1)
            outcome = session.reload_files([part])
            assert (outcome.state, outcome.code) == ("failed", "state")
            has(outcome, "cannot save an object snapshot: Read-only file system", UNTOUCHED)
            assert books(session) == before
            assert program.ask(3) == 31
            program.compile(part=PART % 30)  # is small: it goes into the file that is open
            assert session.reload_files([part]).state == "live"
            assert program.ask(3) == 92
        program.compile(part=PART % 40 + large % 2)
        outcome = session.reload_files([part])
        assert (outcome.state, outcome.error) == ("live", "")
        assert program.ask(3) == 123
        check_consistency(session)
    assert check(pid, tmp_path) == []
    assert program.stop() == 0


def verb(folder: Path, *words: str) -> str:
    """Run the command in a project folder; return what it wrote."""
    done = subprocess.run(
        [sys.executable, "-m", "reloader", *words],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout + done.stderr


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Program]:
    """A program under a real daemon."""
    program = Program(tmp_path, ["-O2", "-falign-functions=16"])
    program.compile(main=MAIN, part=PART % 10)
    program.link()
    pid = program.start()
    assert "beside program" in verb(tmp_path, "attach", str(pid), "--watch", "*.o")
    yield program
    verb(tmp_path, "stop")
    assert program.stop() == 0


def test_a_file_saved_a_hundred_times_in_a_second_ends_with_its_last_version(
    daemon: Program,
) -> None:
    aside = daemon.folder / "aside"
    aside.mkdir()
    versions = [compiled(aside, PART % times, "-O2") for times in (20, 30, 40)]
    part, part_new = daemon.folder / "part.o", daemon.folder / "part.new"
    for save in range(99):
        part_new.write_bytes(versions[save % 2])
        part_new.rename(part)
    part.write_bytes(versions[2])
    count, times = 0, 0
    while times != 40:  # each answer is of one version, to the end
        count += 1
        times, rest = divmod(daemon.ask(1000) - count, 1000)
        assert rest == 0
        assert times in {10, 20, 30, 40}
    rows = json.loads(verb(daemon.folder, "history", "--json"))
    assert {row["outcome"] for row in rows} <= {"live", "unchanged"}
    assert rows[0]["outcome"] == "live"
    assert daemon.ask(1000) == 40_000 + count + 1


def test_the_command_tells_the_whole_text_and_fails(daemon: Program) -> None:
    bad = daemon.folder / "bad.txt"
    bad.write_bytes(b"")
    for word in ("load", "check"):
        said = verb(daemon.folder, word, str(bad))
        assert "bad.txt: the file is empty. Nothing was changed." in said
    part = daemon.folder / "part.o"
    data = part.read_bytes()
    bad.write_bytes(cut(data))
    assert "ends at" in verb(daemon.folder, "load", str(bad))
    assert daemon.ask(3) == 31


def test_the_daemon_lives_on_when_its_program_is_killed(daemon: Program) -> None:
    process = daemon.process
    assert process is not None
    process.kill()
    daemon.stop()
    said = verb(daemon.folder, "load", "part.o")
    assert "has ended" in said or "no program is under the daemon" in said
    pid = daemon.start()
    assert "beside program" in verb(daemon.folder, "attach", str(pid), "--watch", "*.o")
    daemon.compile(part=PART % 20)
    verb(daemon.folder, "load", "part.o")
    assert daemon.ask(3) == 61
