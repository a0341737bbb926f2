"""A daemon ends, or cannot write, while it gives memory back."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from reloader.ids import Region
from state.errors import StateError
from tests.support.checker import check
from tests.support.road import MAIN, Program, attached, reload

PART = """
static int count;
int answer(int n) { count++; return n * %d + count; }
"""


@pytest.fixture
def program(tmp_path: Path) -> Iterator[Program]:
    made = Program(tmp_path)
    made.compile(main=MAIN, part=PART % 10)
    made.link()
    made.start()
    yield made
    assert made.stop() == 0


def found(program: Program) -> list[str]:
    assert program.process is not None
    return check(program.process.pid, program.folder)


def test_memory_stays_ours_until_it_is_written_down_that_it_is_not(
    program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    with attached(program) as session:
        for times in (20, 30):
            (path,) = program.compile(part=PART % times)
            assert reload(session, path).state == "live"

        def full(target: int, addrs: Sequence[int]) -> int:
            action = f"write {len(addrs)} rows of {target}"
            raise StateError(action, program.folder, "no space", "Free some")

        with monkeypatch.context() as patch:
            patch.setattr(session.store.ledger, "mark_freed", full)
            with pytest.raises(StateError, match="no space"):
                session.retiring.attempt()
        assert found(program) == []
        assert session.retiring.attempt().freed_size > 0
        assert found(program) == []
        assert program.ask(3) == 91


def test_what_a_killed_daemon_left_in_free_memory_is_emptied_in_the_process_too(
    program: Program,
) -> None:
    assert program.process is not None
    with attached(program) as session:
        (path,) = program.compile(part=PART % 20)
        assert reload(session, path).state == "live"
        place = session.process.arena.allocate(Region.DATA, 1)
        session.process.arena.view(place.addr, 4)[:] = 7
    memory = Path(f"/proc/{program.process.pid}/mem")
    with memory.open("r+b", buffering=0) as file:
        file.seek(place.addr)
        file.write(b"copy")  # a page of the process's own, as if it had used the variable
        assert any("not empty" in text for text in found(program))
        with attached(program) as session:
            assert found(program) == []
            file.seek(place.addr)
            assert file.read(4) == bytes(4)
            (path,) = program.compile(part=PART % 30)
            assert reload(session, path).state == "live"
            assert found(program) == []
