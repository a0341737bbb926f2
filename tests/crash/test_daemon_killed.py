"""The daemon is killed between every two steps of a reload, and inside the flip."""

import subprocess
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from reloader.reload import STEPS
from state.errors import StateError
from tests.support.faults import INSIDE, Orders, check_consistency, run_daemon
from tests.support.road import MAIN, Program, attached, reload

PARTS = """
static int count;
__attribute__((noipa)) int first(int n) { return n + %(add)d; }
__attribute__((noipa)) int second(int n) { return n * %(times)d; }
int answer(int n) { count++; return first(n) * 1000000 + second(n) * 1000 + count; }
"""
KILLED = -9
FLIPPED = {"record", "after_first_slot", "after_all_slots", "after_first_jump"}
MOMENTS = [*STEPS, *(name for name in INSIDE if name != "after_constructors")]


def text(add: int, times: int) -> str:
    return PARTS % {"add": add, "times": times}


def expected(add: int, times: int, count: int, n: int = 3) -> int:
    return (n + add) * 1_000_000 + n * times * 1000 + count


@pytest.fixture
def program(tmp_path: Path) -> Iterator[Program]:
    made = Program(tmp_path, ["-O2", "-falign-functions=16"])
    made.compile(main=MAIN, parts=text(1, 2))
    made.link()
    made.start()
    assert made.ask(3) == expected(1, 2, 1)
    yield made
    assert made.stop() == 0


def orders(program: Program, reloads: list[list[str]], kill: str) -> Orders:
    assert program.process is not None
    return Orders(
        program.process.pid, str(program.folder), str(program.folder / "*.o"), reloads, kill
    )


def crash(program: Program, pairs: list[tuple[int, int]], kill: str) -> None:
    """Have a daemon reload versions of parts.c and end itself in the last one."""
    copies: list[str] = []
    for number, (add, times) in enumerate(pairs):
        (path,) = program.compile(parts=text(add, times))
        copies.append(str(path.rename(path.with_name(f"version-{number}"))))
    (watched,) = program.compile(parts=text(1, 2))
    plan = orders(program, [[str(watched)]] * len(pairs), kill)
    plan.copies = copies
    status, _ = run_daemon(plan)
    assert status == KILLED


def take_over(program: Program, old: tuple[int, int], new: tuple[int, int], kill: str) -> None:
    """Check the program, attach again, check the books, and reload once more."""
    live = new if kill in FLIPPED else old
    with attached(program) as session:
        check_consistency(session)
        assert program.ask(3) == expected(*live, 2)
        said = " ".join(session.notes)
        (path,) = program.compile(parts=text(*new))
        outcome = reload(session, path)
        assert outcome.error == ""
        assert outcome.state == ("unchanged" if kill in FLIPPED else "live")
        if kill not in {"link", "journal"}:
            assert "the daemon ended" in said
        assert program.ask(3) == expected(*new, 3)
        (path,) = program.compile(parts=text(7, 8))
        assert reload(session, path).state == "live"
        assert program.ask(3) == expected(7, 8, 4)
        check_consistency(session)
        session.retiring.attempt()
        check_consistency(session)
    assert program.ask(3) == expected(7, 8, 5)


@pytest.mark.parametrize("kill", MOMENTS)
def test_killed_in_a_first_reload(program: Program, kill: str) -> None:
    crash(program, [(3, 4)], kill)
    take_over(program, (1, 2), (3, 4), kill)


@pytest.mark.parametrize("kill", [*STEPS, "after_first_slot"])
def test_killed_in_a_later_reload(program: Program, kill: str) -> None:
    crash(program, [(3, 4), (5, 6)], kill)
    take_over(program, (3, 4), (5, 6), kill)


@pytest.mark.parametrize("kill", MOMENTS)
def test_killed_where_one_function_has_its_jump_and_another_gets_it(
    program: Program, kill: str
) -> None:
    crash(program, [(3, 2), (5, 6)], kill)
    take_over(program, (3, 2), (5, 6), kill)


@pytest.mark.parametrize("kill", sorted(FLIPPED))
def test_before_anybody_takes_over_each_function_is_old_or_new(
    program: Program, kill: str
) -> None:
    crash(program, [(3, 2), (5, 6)], kill)
    for count in range(2, 5):
        answer = program.ask(3)
        assert answer in {expected(add, times, count) for add in (3, 5) for times in (2, 6)}


def test_what_cannot_be_finished_is_taken_back(program: Program) -> None:
    crash(program, [(3, 4)], "after_all_slots")
    with breakpoint_at(program, "second"), attached(program) as session:
        check_consistency(session)
        assert "the program holds the bytes" in " ".join(session.notes)
        assert session.program.generation == 0
    assert program.ask(3) == expected(1, 2, 2)
    with attached(program) as session:
        (path,) = program.compile(parts=text(3, 4))
        assert reload(session, path).state == "live"
        assert program.ask(3) == expected(3, 4, 3)
        check_consistency(session)


@contextmanager
def breakpoint_at(program: Program, function: str) -> Generator[None]:
    """Put a trap on a function's first byte, as a debugger does."""
    assert program.process is not None
    names = subprocess.run(
        ["/usr/bin/nm", program.executable], capture_output=True, text=True, check=True
    ).stdout
    line = next(line for line in names.splitlines() if line.endswith(f" T {function}"))
    pid = program.process.pid
    maps = Path(f"/proc/{pid}/maps").read_text("utf-8").splitlines()
    first = next(row for row in maps if row.endswith(str(program.executable)))
    at = int(first.split("-", 1)[0], 16) + int(line.split()[0], 16)
    with Path(f"/proc/{pid}/mem").open("r+b", buffering=0) as memory:
        memory.seek(at)
        before = memory.read(1)
        memory.seek(at)
        memory.write(b"\xcc")
        try:
            yield
        finally:
            memory.seek(at)
            memory.write(before)


WITH_CONSTRUCTOR = """
extern int (*hook)(int);
static int times = 50;
static int extra(int n) { return n * times; }
__attribute__((constructor)) static void begin(void) { hook = extra; }
"""
HOOKED = """
int (*hook)(int);
int answer(int n) { return hook ? hook(n) : n; }
"""


@pytest.fixture
def hooked(tmp_path: Path) -> Iterator[Program]:
    made = Program(tmp_path, ["-O2", "-falign-functions=16"])
    made.compile(main=MAIN, parts=HOOKED)
    made.link()
    made.compile(extra=WITH_CONSTRUCTOR)
    made.start()
    assert made.ask(3) == 3
    yield made
    assert made.stop() == 0


def test_what_a_constructor_has_told_of_stays_when_the_daemon_dies(hooked: Program) -> None:
    extra = str(hooked.folder / "extra.o")
    status, _ = run_daemon(orders(hooked, [[extra]], "after_constructors"))
    assert status == KILLED
    assert hooked.ask(3) == 150
    for numbers in ((1, 2), (3, 4)):
        with attached(hooked) as session:
            check_consistency(session)
            for number in numbers:
                (path,) = hooked.compile(parts=HOOKED.replace(": n", f": n + {number}"))
                assert reload(session, path).state == "live"
                session.retiring.attempt()
            check_consistency(session)
        assert hooked.ask(3) == 150


def test_what_a_constructor_has_told_of_stays_when_a_later_step_fails(hooked: Program) -> None:
    extra = str(hooked.folder / "extra.o")
    reason = ("test", hooked.folder, "it was asked to fail", "Go on")
    with attached(hooked) as session:

        def fail(step: str) -> None:
            if step == "flip":
                raise StateError(*reason)

        session.before_step = fail
        outcome = session.reload_files([extra], named=True)
        assert outcome.state == "failed"
        assert hooked.ask(3) == 150
        check_consistency(session)
        session.before_step = lambda _: None
        (path,) = hooked.compile(parts=HOOKED.replace(": n", ": -n"))
        assert reload(session, path).state == "live"
        session.retiring.attempt()
        check_consistency(session)
        assert hooked.ask(3) == 150
    with attached(hooked) as session:
        check_consistency(session)
        assert hooked.ask(3) == 150
