"""What runs inside, and what must hold in every process: constructors, threads, refusals."""

import os
import signal
import socket
import subprocess
from pathlib import Path

import pytest

from reloader.config import Config, HooksConfig
from reloader.ids import Addr
from reloader.live.member import Member
from reloader.live.stopped_family import stopped_family
from reloader.live.threads import list_threads
from reloader.session.session import Session
from stubs import layout
from tests.support.family import PART, Family, family, until_gone
from tests.support.live import until
from tests.support.road import attached, reload

CALLS = """
int extra(int);
static int total = 40;
int answer(int n) { total += n; return extra(total); }
"""
EXTRA = """
static int set = 3;
__attribute__((constructor)) static void begin(void) { set += 100; }
int extra(int n) { return set * 1000 + n; }
"""
THREADED = PART.replace("static int", "static __thread int own = 6;\nstatic int").replace(
    "return total * 10", "own += n; return own * 1000 + total"
)


CALLS_THREADED = """
static __thread int own = 6;
int extra(int);
static int total = 40;
int answer(int n) { total += n; own += n; return extra(total) + own; }
"""


def loaded(program: Family, session: Session, **texts: str) -> str:
    """Compile objects and load them as one; return the refusal, or ""."""
    paths = [str(path) for path in program.compile(**texts)]
    outcome = session.reload_files(paths, named=True)
    assert outcome.state == "live" or outcome.error
    return outcome.error or ""


def test_constructors_run_once_in_each_process(tmp_path: Path) -> None:
    with family(tmp_path, 2) as (program, session):
        assert not loaded(program, session, part=CALLS, extra=EXTRA)
        assert [program.at(index, index) for index in range(3)] == [103040, 103041, 103042]
        program.fork(3)
        assert program.at(3) == 103040
        # the agent's thread was needed for that; the new child has none again
        counts = [len(list_threads(pid)) for pid in session.process.pids()]
        assert counts == [2, 2, 2, 1]


def test_a_constructor_that_runs_while_its_process_forks_runs_afresh_in_the_child(
    tmp_path: Path,
) -> None:
    with family(tmp_path, 1) as (program, session):
        call = Member.call_catching

        def forked_meanwhile(
            self: Member, function: int, *arguments: int
        ) -> tuple[int, str | None]:
            result = call(self, function, *arguments)
            if self.pid == session.process.pid and len(session.process.pids()) == 2:
                program.fork(2)  # it has run the constructor, and that is not noted yet
            return result

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Member, "call_catching", forked_meanwhile)
            assert not loaded(program, session, part=CALLS, extra=EXTRA)
        assert [program.at(index) for index in range(3)] == [103040] * 3


def test_new_thread_local_variables_have_their_initial_value_in_every_thread_of_all(
    tmp_path: Path,
) -> None:
    with family(tmp_path, 2) as (program, session):
        assert program.tell(2, "t") == 0
        assert not loaded(program, session, part=THREADED)
        assert [program.at(index, index) for index in range(3)] == [6040, 7041, 8042]
        program.fork(3)
        assert program.at(3, 1) == 7041


@pytest.mark.parametrize("step", ["link", "journal", "write", "initialise", "flip", "record"])
def test_a_child_that_is_forked_at_any_step_is_right(tmp_path: Path, step: str) -> None:
    with family(tmp_path, 1) as (program, session):

        def fork_there(now: str) -> None:
            if now == step:
                program.fork(2, parent=1)

        session.before_step = fork_there
        assert not loaded(program, session, part=CALLS_THREADED, extra=EXTRA)
        assert [program.at(index) for index in range(3)] == [103046] * 3


def test_a_child_that_is_forked_between_our_list_and_the_stop_stands_still_too(
    tmp_path: Path,
) -> None:
    with family(tmp_path, 1) as (program, session):
        pids: list[int] = []

        def members() -> list[Member]:
            found = session.process.members()
            if not pids:
                pids.append(program.fork(2, parent=1))
            return found

        with stopped_family(members) as stop:
            assert pids[0] in stop.tids
            assert [part.tids[0] for part in stop.parts] == session.process.pids()


def test_a_process_that_is_killed_under_a_stop_is_forgotten(tmp_path: Path) -> None:
    with family(tmp_path, 2) as (program, session):
        first, killed, other = session.process.pids()
        entry = Addr(session.program.image.load_bias + 64)  # of the program headers
        old = session.process.read(entry, 8).tobytes()
        with session.process.stop() as stop:
            os.kill(killed, signal.SIGKILL)
            (part,) = (part for part in stop.parts if part.tids[0] == killed)
            until(lambda: part.read(entry, 8) == b"", "its memory is gone")
            stop.write(entry, b"12345678")
        assert session.process.pids() == [first, other]
        for member in session.process.members():
            assert member.read(entry, 8).tobytes() == b"12345678" != old
        assert [program.at(0), program.at(2)] == [400, 400]


def test_a_process_that_cannot_be_patched_leaves_all_as_they_were(tmp_path: Path) -> None:
    with family(tmp_path, 2) as (program, session):
        other = session.process.pids()[2]
        (entry,) = session.process.resolve([b"answer"]).tolist() or [0]
        entry = (
            entry
            or session.program.image.symtab.addr[
                session.program.image.symtab.name.index(b"answer")
            ]
        )
        with Path(f"/proc/{other}/mem").open("r+b", buffering=0) as memory:
            memory.seek(int(entry))
            before = memory.read(1)
            memory.seek(int(entry))
            memory.write(b"\xcc")
            (part,) = program.compile(part=PART.replace("* 10", "* 100"))
            outcome = reload(session, part)
            assert outcome.state == "refused"
            assert outcome.error is not None
            assert "the program holds the bytes cc" in outcome.error
            memory.seek(int(entry))
            memory.write(before)
        assert [program.at(index) for index in range(3)] == [400] * 3
        assert reload(session, part).state == "live"
        assert [program.at(index) for index in range(3)] == [4000] * 3


def test_a_daemon_that_comes_after_the_first_process_ended_goes_on(tmp_path: Path) -> None:
    program = Family(tmp_path)
    try:
        program.start()
        with attached(program) as session:
            first, child = session.process.pid, program.fork(1)
            (part,) = program.compile(part=PART.replace("* 10", "* 100"))
            assert reload(session, part).state == "live"
        program.go_on_as(2, parent=0)
        until_gone(first)
        memory = session.process.leader.header["holder_pid"][0]
        assert Path(f"/proc/{memory}/fd/{layout.HOLDER_FD}").exists()  # for who may not more
        again = Session.attach(child, root=tmp_path, watch=[str(tmp_path / "*.o")])
        try:
            assert again.program.generation == 1
            (part,) = program.compile(part=PART.replace("* 10", "* 1000"))
            outcome = reload(again, part)
            assert outcome.state == "live", outcome.error
            assert [program.at(1), program.at(2)] == [40000, 40000]
        finally:
            again.close()
    finally:
        program.end()


WAITS = """
#include <unistd.h>
static int total = 40;
int answer(int n)
{
    char byte;
    static int ready;
    if (n > 1000) total -= read(n - 1000, &byte, 1);
    return (total += n % 1000) * 10 + ready;
}
"""


def test_a_library_that_only_the_first_process_has_is_refused_by_name(tmp_path: Path) -> None:
    with family(tmp_path, 2) as (program, session):
        (tmp_path / "extra.c").write_text("int extra(int n) { return n + 1; }\n")
        command = ["gcc", "-shared", "-fPIC", "-o", "extra.so", "extra.c"]
        subprocess.run(command, cwd=tmp_path, check=True)
        assert program.tell(0, "l") == 0
        assert program.tell(1, "l") == 0
        refusal = loaded(program, session, part=CALLS)
        first, _, without = session.process.pids()
        assert f"extra: process {first} has {tmp_path}/extra.so, process {without}" in refusal
        assert [program.at(index) for index in range(3)] == [400] * 3


THROWS = """
#include <stdexcept>
static int total = 40;
static __attribute__((noinline)) int checked(int n)
{
    if (n > 5) throw std::out_of_range("more than five");
    return n;
}
extern "C" int answer(int n)
{
    try {
        total += checked(n);
    } catch (const std::out_of_range &) {
        return -1;
    }
    return total;
}
"""


def test_exceptions_are_caught_in_new_code_of_every_process(tmp_path: Path) -> None:
    with family(tmp_path, 2) as (program, session):
        (tmp_path / "part.cc").write_text(THROWS)
        command = ["g++", "-O2", "-c", "part.cc", "-o", "part.o"]
        subprocess.run(command, cwd=tmp_path, check=True)
        outcome = reload(session, tmp_path / "part.o")
        assert outcome.state == "live", outcome.error
        assert [program.at(index, 6) for index in range(3)] == [-1, -1, -1]
        assert [program.at(index, 5) for index in range(3)] == [45, 45, 45]


HOOKED = """
static int total = 40;
int prepared, refused;
int prepare(unsigned generation) { prepared += generation; return refused; }
int answer(int n) { refused = n; return total + prepared; }
"""


def test_hooks_run_once_in_each_process_and_any_one_can_say_no(tmp_path: Path) -> None:
    with family(tmp_path, 2, HOOKED) as (program, session):
        session.configure(Config(hooks=HooksConfig(before_function="prepare")), tmp_path)
        assert not loaded(
            program, session, part=HOOKED.replace("return total", "return 1 + total")
        )
        assert [program.at(index) for index in range(3)] == [42, 42, 42]
        program.at(2, 9)
        other = session.process.pids()[2]
        refusal = loaded(
            program, session, part=HOOKED.replace("return total", "return 5 + total")
        )
        assert f"returned 9, not 0 in process {other}" in refusal
        assert [program.at(index) for index in range(3)] == [44, 44, 44]


def until_reading(pid: int) -> None:
    """Wait until a process is in its read()."""
    until(lambda: Path(f"/proc/{pid}/syscall").read_text().startswith("0 "), "it reads")


def test_old_code_waits_for_the_process_that_still_runs_it(tmp_path: Path) -> None:
    with family(tmp_path, 2) as (program, session):
        (part,) = program.compile(part=WAITS.replace("* 10", "* 20"))
        assert reload(session, part).state == "live"
        # descriptors 3 and 4: the listener, and the connection, which says no more
        with program.connect(1, "a 1004") as sock, sock.makefile() as answer:
            until_reading(session.process.pids()[1])
            (part,) = program.compile(part=WAITS.replace("* 10", "* 30"))
            assert reload(session, part).state == "live"
            report = session.retiring.attempt()
            where = " ".join(holder.where for holder in report.holders)
            assert f"process {session.process.pids()[1]}: " in where
            (pinned,) = {item.held.generation for item in session.retiring.why(None)}
            assert pinned == 1
            sock.shutdown(socket.SHUT_WR)
            assert int(answer.readline()) == 880  # in the old code, to its end
        assert program.at(1) == 1320
        report = session.retiring.attempt()
        assert report.outcome == "freed"
        assert not session.retiring.superseded()
        assert [program.at(index) for index in range(3)] == [1200, 1320, 1200]


def test_memory_that_is_reused_holds_nothing_of_what_a_child_wrote_there(
    tmp_path: Path,
) -> None:
    text = "static int %s[2000] = {7};\n" + PART.replace(
        "return total * 10", "%s[0] += n; return %s[0]"
    )
    with family(tmp_path, 2) as (program, session):
        for name in ("first", "second", "third"):
            (part,) = program.compile(part=text % (name, name, name))
            outcome = reload(session, part)
            assert outcome.state == "live", outcome.error
            assert [program.at(index, index + 1) for index in range(3)] == [8, 9, 10]
            session.retiring.attempt()
