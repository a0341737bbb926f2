"""What gdb finds of reloaded code: names of addresses, frames, and places for breakpoints."""

import resource
from collections.abc import Iterator
from pathlib import Path

import pytest

from reloader.session.session import Session
from tests.support.gdb import entries, frames, gdb, pid_of
from tests.support.road import MAIN, Program, attached, reload

PARTS = """
__attribute__((noipa)) static int inner(int n, int *seen)
{
    *seen = n + %d;
    return *seen * 2;
}
int answer(int n)
{
    int seen = 0, twice = inner(n, &seen);
    return twice + seen;
}
"""


@pytest.fixture
def program(tmp_path: Path) -> Iterator[Program]:
    made = Program(tmp_path)
    made.compile(main=MAIN, parts=PARTS % 1)
    made.link()
    made.start()
    yield made
    assert made.stop() == 0


def address(session: Session, name: str) -> int:
    """Return where the live body of a function is."""
    rows = session.program.slot_owners()
    slot = next(slot for slot, owner in rows.items() if owner == name)
    return int(session.program.target.arena.slots[slot])


def test_an_address_in_new_code_has_its_functions_name(program: Program) -> None:
    with attached(program) as session:
        assert reload(session, *program.compile(parts=PARTS % 5)).state == "live"
        at = address(session, "inner")
        said = gdb(pid_of(program.process), f"info symbol {at + 1:#x}")
        assert "inner + 1 in section .text of" in said
        assert program.ask(1) == 18


def test_a_program_without_memory_for_names_is_reloaded_and_the_report_says_it(
    program: Program,
) -> None:
    with attached(program) as session:
        objects = program.compile(parts=PARTS % 5)
        pid = pid_of(program.process)
        _, most = resource.prlimit(pid, resource.RLIMIT_AS)
        resource.prlimit(pid, resource.RLIMIT_AS, (1 << 20, most))  # less than it has
        outcome = reload(session, *objects)
        assert outcome.state == "live"
        (note,) = (note for note in outcome.notes if "debuggers" in note)
        assert note.startswith("debuggers do not know the new functions: process")
        assert "Cannot allocate memory" in note
        assert program.ask(1) == 18


def test_a_breakpoint_by_name_is_hit_in_new_code_and_its_frames_have_names(
    program: Program,
) -> None:
    with attached(program) as session:
        assert reload(session, *program.compile(parts=PARTS % 5)).state == "live"
        at = address(session, "inner")
        # the first hit is the jump that stands where the function was linked
        commands = ["break inner", "feed", "continue", "continue", "bt", "print/x $pc"]
        said = gdb(pid_of(program.process), *commands)
        assert frames(said)[-3:] == ["inner", "answer", "main"], said
        assert f"$1 = {at:#x}" in said
        assert program.line() == str(7 + 5 + 2 * (7 + 5))
        assert program.ask(1) == 18


def test_symbols_go_with_the_code_also_under_a_later_daemon(program: Program) -> None:
    with attached(program) as session:
        for number in range(2, 6):
            assert reload(session, *program.compile(parts=PARTS % number)).state == "live"
    with attached(program) as session:
        assert entries(gdb(pid_of(program.process), "maint info jit")) > 2
        assert reload(session, *program.compile(parts=PARTS % 9)).state == "live"
        session.retiring.collect()
        session.retiring.attempt()
        code = [
            row for row in session.program.ledger.rows.values() if not row.allocation.region
        ]
        assert 1 <= len(code) <= 2
        assert entries(gdb(pid_of(program.process), "maint info jit")) == len(code)
        assert program.ask(1) == 30
