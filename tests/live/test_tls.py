"""Thread-local variables that a reload brings: right in main, in old and in new threads."""

import os
import socket
import subprocess
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import pytest

from reloader.live.inject import adopt, prepare_spawn
from reloader.session import Session
from state.store import Store
from tests.support.road import Program, attached, reload
from tests.support.thread_local import THREADED

pytestmark = pytest.mark.live

FIRST = "int answer(int n) { return n; }"
ADDED = """
static int target[4] = {1, 2, 3, 4};
__thread int counted = 40;
static __thread long zeroed;
static __thread volatile char text[8] = "abc";
static __thread int *volatile pointer = &target[2];
int answer(int n) { counted += n; zeroed++; return counted * 1000 + (int)zeroed * 100 + text[1] - 'a' + *pointer; }
"""
FLAGS = [
    "gcc -O2", "gcc -O0", "gcc -O2 -fPIC", "gcc -O0 -fPIC -fno-plt", "gcc -O2 -fno-pie -no-pie",
    "gcc -O2 -fPIC -ftls-model=initial-exec", "gcc -O2 -fPIC -ftls-model=local-dynamic",
    "gcc -O2 -fPIC -mtls-dialect=gnu2", "gcc -O1 -ffunction-sections -fdata-sections",
    "gcc -O2 -fcommon", "clang -O2", "clang -O2 -fPIC", "clang -O0 -fno-pie -no-pie",
]  # fmt: skip


def program_of(folder: Path, flags: str) -> Program:
    compiler, *words = flags.split()
    link = [word for word in words if word == "-no-pie"]
    return Program(folder, [w for w in words if w != "-no-pie"], link, compiler)


@contextmanager
def entered(program: Program, way: str) -> Generator[Session]:
    """Start a program and open a session: `attach` beside it, `run` started with it."""
    if way == "attach":
        program.start()
        with attached(program) as session:
            yield session
        return
    argv, env, theirs, ours = prepare_spawn([str(program.executable)], os.environ)
    program.process = subprocess.Popen(
        argv, env=env, pass_fds=[theirs], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    os.close(theirs)
    adopted = adopt(program.process.pid, socket.socket(fileno=ours))
    watched = [(str(path), path.read_bytes()) for path in sorted(program.folder.glob("*.o"))]
    store = Store.open(program.folder / ".reloader")
    session = Session.open(adopted.process, store, watched, how="run")
    session.owns_store = True
    adopted.release()
    assert program.line() == "ready"
    try:
        yield session
    finally:
        session.close()


@pytest.mark.parametrize("way", ["attach", "run"])
@pytest.mark.parametrize("flags", FLAGS)
def test_new_variables_are_right_in_every_thread(tmp_path: Path, flags: str, way: str) -> None:
    program = program_of(tmp_path, flags)
    program.compile(main=THREADED, added=FIRST)
    program.link()
    try:
        with entered(program, way) as session:
            assert program.ask(100) == 2
            outcome = reload(session, *program.compile(added=ADDED))
            assert (outcome.state, outcome.error) == ("live", "")
            assert {"counted", "zeroed", "text", "pointer"} <= set(outcome.new_variables)
            assert program.ask(100) == 3
            # thread 0 is main, 1 and 2 are older than the variables, 3 is younger
            for thread in (0, 10, 20, 30):
                assert program.ask(thread + 2) == 42104
            for thread in (0, 10, 20, 30):
                assert program.ask(thread + 1) == 43204
            edited = ADDED.replace("counted += n", "counted += 2 * n")
            outcome = reload(session, *program.compile(added=edited))
            assert (outcome.state, outcome.error) == ("live", "")
            assert program.ask(100) == 4
            for thread in (0, 10, 20, 30):
                assert program.ask(thread + 1) == 45304
            assert program.ask(41) == 42104
        assert program.ask(11) == 47404
        with attached(program) as session:
            edited = ADDED.replace("counted += n", "counted += 3 * n")
            outcome = reload(session, *program.compile(added=edited))
            assert (outcome.state, outcome.error) == ("live", "")
            assert program.ask(11) == 50504
            assert session.process.thread_room.used() == 32
    finally:
        program.stop()
