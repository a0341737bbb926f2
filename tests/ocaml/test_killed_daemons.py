"""The daemon is killed inside a reload of a unit; process and books agree afterwards."""

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from reloader.hosts.ocaml import Ocaml
from reloader.ids import Addr, SlotId
from tests.support.checker import check
from tests.support.faults import Orders, run_daemon
from tests.support.ocaml import Build, Compiler, build
from tests.support.ocaml_project import session_of

KILLED = -9
MOMENTS = {  # and whether the unit is swapped by then
    "write": False,
    "before_units_swap": False,
    "after_first_word": True,
    "record": True,
}


@pytest.fixture
def program(compiler: Compiler, tmp_path: Path) -> Iterator[Build]:
    with build(compiler, tmp_path, "counter") as made:
        made.start()
        with session_of(made):  # the state knows it from here
            pass
        yield made


def wrong(program: Build) -> list[str]:
    """What does not agree between the process and the books."""
    assert program.process is not None
    return check(program.process.pid, program.folder)


def edited(program: Build, times: int) -> Path:
    """Compile a version of the unit that counts so many times as much."""
    text = (program.folder / "counter.ml").read_text()
    line = next(line for line in text.splitlines() if line.startswith("  total := "))
    return program.edit("counter.ml", line, f"  total := !total + ({times} * by);")


def counted(program: Build) -> set[int]:
    """What one call counts, by each way to the function."""
    totals = [
        int(program.ask(way)) for way in ("total", "bump 1", "alias 1", "table 1", "eta 1")
    ]
    return {after - before for before, after in pairwise(totals)}


def test_killed_daemons_leave_units_old_or_new_and_the_next_one_knows_which(
    program: Build,
) -> None:
    assert program.process is not None
    live = 1
    for times, (moment, swapped) in enumerate(MOMENTS.items(), 2):
        path = str(edited(program, times))
        watch = str(program.folder / "*.o")
        pid, folder = program.process.pid, str(program.folder)
        status, _ = run_daemon(Orders(pid, folder, watch, [[path]], moment))
        assert status == KILLED
        live = times if swapped else live
        with session_of(program) as session:
            assert wrong(program) == []
            assert counted(program) == {live}, moment
            outcome = session.reload_files([path])
            assert outcome.state == ("unchanged" if swapped else "live"), moment
            assert counted(program) == {times}
            live = times
            session.retiring.attempt()
            assert wrong(program) == []
    assert program.stop() == 0


def test_the_checker_sees_damage_to_blocks_and_slots_of_units(program: Build) -> None:
    with session_of(program) as session:
        for times in (2, 3):
            assert session.reload_files([str(edited(program, times))]).state == "live"
        assert wrong(program) == []
        arena, host = session.process.arena, session.program.host
        assert isinstance(host, Ocaml)
        unit = next(row for row in host.units.values() if row.info.name == "Counter")
        (bump,) = (slot for slot in unit.faces[0].slots if slot.path == "bump")
        field = Addr(unit.faces[0].block + 8 * bump.chain[0])
        before = session.process.read(field, 8).tobytes()
        session.process.write_data(field, (1).to_bytes(8, "little"))
        assert "bump at" in " ".join(wrong(program))
        session.process.write_data(field, before)
        slot = SlotId(min(unit.slots))
        code = int(arena.slots[slot])
        for elsewhere in (arena.stub_addr(slot), arena.span()[1] - 4096):
            arena.slots[slot] = elsewhere
            assert "which is no live version's" in " ".join(wrong(program))
        arena.slots[slot] = code
        assert wrong(program) == []
    assert program.stop() == 0
