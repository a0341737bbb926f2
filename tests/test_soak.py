"""A short soak: what `make soak` does for hours."""

from pathlib import Path

from reloader.session.session import Session
from tests.soak.chaos import Chaos
from tests.soak.kills import Killer
from tests.support.checker import check
from tests.support.road import MAIN, Program, attached, reload

SEED = 5
KILLS, STEPS = 12, 20  # few: the soak itself does hundreds
PART = """
static const char *const names[] = {"a", "b"};
static int count = %(first)d;
%(helper)s
int answer(int n) { count++; return n * %(times)d + (names[n & 1][0] == 'b') + count%(use)s; }
"""
HELPER = "static int __attribute__((noinline)) help(int n) { return n + count; }"


def text(times: int, *, helper: bool = True) -> str:
    use = " - help(n)" if helper else ""
    return PART % {"first": 0, "helper": HELPER * helper, "times": times, "use": use}


def started(folder: Path) -> Program:
    program = Program(folder, ["-O2", "-g"])
    program.compile(main=MAIN, part=text(10))
    program.link()
    program.start()
    return program


def pid_of(program: Program) -> int:
    assert program.process is not None
    return program.process.pid


def test_daemons_killed_at_random_instants_harm_nobody(tmp_path: Path) -> None:
    report = Killer(tmp_path, SEED).run(KILLS)
    assert report.problems == []
    assert report.kills == KILLS


def test_chaos_for_a_while_leaves_program_and_books_whole(tmp_path: Path) -> None:
    steps = iter(range(STEPS))
    chaos = Chaos(tmp_path, SEED)
    report = chaos.run(lambda: next(steps, None) is not None)
    assert report.problems == []
    assert {act.__name__ for _, act in chaos.actions} <= report.done.keys()


def test_the_checker_agrees_with_what_reloads_rollbacks_and_later_daemons_leave(
    tmp_path: Path,
) -> None:
    program = started(tmp_path)
    for base in (10, 20):
        with attached(program) as session:
            for times in range(base + 1, base + 4):
                (path,) = program.compile(part=text(times, helper=times % 2 == 0))
                assert reload(session, path).state == "live"
                assert check(pid_of(program), tmp_path) == []
                session.retiring.attempt()
                assert check(pid_of(program), tmp_path) == []
            assert session.rollback(None).state == "live"
            assert check(pid_of(program), tmp_path) == []
    assert check(pid_of(program), tmp_path) == []
    assert program.stop() == 0


def test_the_checker_sees_each_kind_of_damage(tmp_path: Path) -> None:
    program = started(tmp_path)
    with attached(program) as session:
        (path,) = program.compile(part=text(11))
        assert reload(session, path).state == "live"
        assert check(pid_of(program), tmp_path) == []
        assert "leads to" in damaged_slot(session, program)
        assert "not empty" in stray_bytes(session, program)
        assert "not the code" in damaged_code(session, program)
        assert "held twice" in held_twice(session, program)
        assert check(pid_of(program), tmp_path) == []
    assert program.stop() == 0


def found(program: Program) -> str:
    return " ".join(check(pid_of(program), program.folder))


def damaged_slot(session: Session, program: Program) -> str:
    """What is found when a slot leads somewhere else."""
    slots = session.process.arena.slots
    before = slots[16]
    slots[16] = before + slots.dtype.type(1)
    said = found(program)
    slots[16] = before
    return said


def stray_bytes(session: Session, program: Program) -> str:
    """What is found when there is something in memory that nobody holds."""
    arena = session.process.arena
    place = arena.allocate(2, 1)
    arena.view(place.addr, 1)[:] = 1
    said = found(program)
    arena.free(place)
    return said


def damaged_code(session: Session, program: Program) -> str:
    """What is found when code is not that of the object."""
    arena = session.process.arena
    byte = arena.view(int(arena.slots[16]), 1)
    byte ^= 0x40
    said = found(program)
    byte ^= 0x40
    return said


def held_twice(session: Session, program: Program) -> str:
    """What is found when two rows have the same memory."""
    row = next(iter(session.program.ledger.rows.values()))
    place = row.allocation
    session.journal.record_memory([row])
    said = found(program)
    with session.store.transaction() as conn:
        conn.execute(
            "DELETE FROM allocations WHERE id=(SELECT max(id) FROM allocations WHERE addr=?)",
            (place.addr,),
        )
    return said
