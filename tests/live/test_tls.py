"""Thread-local variables that a reload brings: right in main, in old and in new threads."""

import os
import socket
import subprocess
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import pytest

from reloader.live.inject import adopt
from reloader.session.session import Session
from state.store import Store
from tests.support.live import prepare_spawn
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
int answer(int n)
{
    counted += n;
    zeroed++;
    return counted * 1000 + (int)zeroed * 100 + text[1] - 'a' + *pointer;
}
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
        argv,
        env=env,
        pass_fds=[theirs],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
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


def test_what_does_not_fit_is_refused_with_both_numbers(tmp_path: Path) -> None:
    program = program_of(tmp_path, "gcc -O2")
    program.compile(main=THREADED, added=FIRST)
    program.link()
    text = "__thread int many[SIZE]; int answer(int n) { return many[n] += n + 1; }"
    try:
        with entered(program, "attach") as session:
            outcome = reload(session, *program.compile(added=text.replace("SIZE", "257")))
            assert (outcome.state, outcome.code) == ("refused", "thread-room")
            assert outcome.error == (
                "new thread-local variables need 1028 bytes in every thread, and of the room "
                "for them 1024 of 1024 bytes are free. Nothing was changed. Make them smaller "
                "or plain variables, or start the program under `reloader run`, which "
                "has room for 4096 bytes."
            )
            assert session.process.thread_room.used() == 0
            assert program.ask(11) == 1
            outcome = reload(session, *program.compile(added=text.replace("SIZE", "256")))
            assert (outcome.state, outcome.error) == ("live", "")
            assert (program.ask(11), program.ask(11), program.ask(1)) == (2, 4, 2)
            outcome = reload(session, *program.compile(added=text.replace("SIZE", "200")))
            assert (outcome.state, outcome.code) == ("refused", "data-layout")
            assert "many has 1024 bytes in the program, 800 in the new object" in outcome.error
            assert "--reinit many" in outcome.error
    finally:
        program.stop()


def test_room_of_a_variable_that_went_is_used_again(tmp_path: Path) -> None:
    program = program_of(tmp_path, "gcc -O2")
    program.compile(main=THREADED, added=FIRST)
    program.link()
    text = "__thread int NAME[150] = {7}; int answer(int n) { return NAME[n] += n + 1; }"
    try:
        with entered(program, "attach") as session:
            for name in ("one", "two", "three", "four"):
                outcome = reload(session, *program.compile(added=text.replace("NAME", name)))
                assert (outcome.state, outcome.error) == ("live", "")
                assert (program.ask(0), program.ask(10), program.ask(11)) == (8, 8, 2)
                outcome = reload(session, *program.compile(added=FIRST))
                assert (outcome.state, outcome.error) == ("live", "")
                for _ in range(50):
                    session.retiring.attempt()
                    if not session.retiring.superseded():
                        break
                assert not session.retiring.superseded()
    finally:
        program.stop()


def test_a_variable_is_started_anew_where_the_user_says_so(tmp_path: Path) -> None:
    program = program_of(tmp_path, "gcc -O2")
    text = "static __thread int own = 1; int answer(int n) { return own += n; }"
    program.compile(main=THREADED, added=text)
    program.link()
    try:
        with entered(program, "attach") as session:
            assert (program.ask(5), program.ask(15)) == (6, 6)
            outcome = reload(
                session, *program.compile(added=text.replace("own += n", "own -= n"))
            )
            assert (outcome.state, outcome.error) == ("live", "")
            assert (program.ask(5), program.ask(15)) == (1, 1)
            outcome = reload(session, *program.compile(added=text.replace("= 1", "= 100")))
            assert any("every thread keeps its value" in note for note in outcome.notes)
            edited = program.compile(added=text.replace("= 1", "= 200"))
            outcome = reload(session, *edited, reinit=["own"])
            assert (outcome.state, outcome.error) == ("live", "")
            assert (program.ask(5), program.ask(15)) == (205, 205)
    finally:
        program.stop()


LIBRARY = "__thread int of_library = 30; int bump(void) { return ++of_library; }"
USER = "int bump(void); int answer(int n) { return bump() + n; }"
DIRECT = """
extern __thread int of_library;
int bump(void);
int answer(int n) { of_library += 100; return bump() + n; }
"""


@pytest.mark.parametrize("flags", ["gcc -O2", "gcc -O2 -fPIC", "gcc -O0 -fno-pie -no-pie"])
def test_variables_of_libraries_are_those_of_each_thread(tmp_path: Path, flags: str) -> None:
    program = program_of(tmp_path, flags)
    (tmp_path / "library.c").write_text(LIBRARY)
    command = ["gcc", "-shared", "-fPIC", "-O2", "library.c", "-o", "liblibrary.so"]
    subprocess.run(command, cwd=tmp_path, check=True)
    program.compile(main=THREADED, user=USER)
    program.link_flags += ["-L.", "-Wl,-rpath," + str(tmp_path)]
    program.link("main.o", "user.o", "-llibrary")
    try:
        with entered(program, "attach") as session:
            assert program.ask(1) == 32
            outcome = reload(session, *program.compile(user=DIRECT))
            assert (outcome.state, outcome.error) == ("live", "")
            assert (program.ask(1), program.ask(11), program.ask(1)) == (133, 132, 234)
            assert program.ask(100) == 2
            assert program.ask(21) == 132
    finally:
        program.stop()
