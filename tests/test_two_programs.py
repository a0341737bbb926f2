"""One daemon beside two programs: what fails in one is no matter of the other."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from reloader.server.engine import WatchOptions
from reloader.server.sessions import Sessions
from reloader.session.session import Session
from reloader.wire.protocol import Event
from state.errors import StateError
from tests.support.road import MAIN, Program

FULL = "the disk is full"
PART = "int answer(int n) { return n + %d; }\n"


class Host:
    """A daemon that does its work when a test says so."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.events: list[Event] = []
        self.count = 0

    def post(self, work: Callable[[], object]) -> None:
        """Leave it: tests call what is to be done."""

    def files_changed(self, paths: frozenset[str]) -> None:
        """Leave it, as above."""

    def emit(self, event: Event) -> None:
        self.events.append(event)

    def progress(self, text: str) -> None:
        """Tell nobody."""

    def targets_changed(self, count: int) -> None:
        self.count = count


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


@pytest.fixture
def engine(host: Host) -> Iterator[Sessions]:
    made = Sessions(host.folder, host)
    yield made
    made.close()


@pytest.fixture
def programs(tmp_path: Path) -> Iterator[list[Program]]:
    made: list[Program] = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        program = Program(tmp_path / name)
        program.compile(main=MAIN, part=PART % 1)
        program.link()
        program.start()
        made.append(program)
    yield made
    for program in made:
        program.stop()


def full_disk(folder: Path) -> Callable[..., None]:
    def fail(*_: object) -> None:
        raise StateError(action="write", path=folder, reason=FULL, remedy="Make room")

    return fail


def enter(engine: Sessions, programs: list[Program]) -> list[Session]:
    """Attach to each, with superseded memory to give back."""
    sessions: list[Session] = []
    for program in programs:
        assert program.process is not None
        watch = WatchOptions(watch=(str(program.folder / "*.o"),))
        number = engine.attach(program.process.pid, watch)["session"]
        session = engine._programs[number].session  # pyright: ignore[reportPrivateUsage]
        assert session is not None
        session.program.past.keep = 0
        for value in (2, 3):
            (part,) = program.compile(part=PART % value)
            assert session.reload_files([str(part)]).state == "live"
        retirer = session.retiring.retirer
        retirer._youngest = retirer._oldest = 0.0  # pyright: ignore[reportPrivateUsage]
        sessions.append(session)
    return sessions


def test_memory_of_one_is_given_back_though_the_other_cannot_be_looked_at(
    engine: Sessions, host: Host, programs: list[Program], monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = enter(engine, programs)

    monkeypatch.setattr(first.retiring, "attempt", full_disk(host.folder))
    assert second.retiring.retirer.waiting
    engine._retire()  # pyright: ignore[reportPrivateUsage]
    assert not second.retiring.retirer.waiting
    warnings = [event.data["text"] for event in host.events if event.kind == "warning"]
    assert any("old code stays for now" in str(text) for text in warnings)


def test_an_attempt_that_fails_waits_longer_each_time(
    engine: Sessions, programs: list[Program], monkeypatch: pytest.MonkeyPatch
) -> None:
    first, _ = enter(engine, programs)

    monkeypatch.setattr(first.process, "members", full_disk(engine.host.folder))
    waits: list[float] = []
    for _ in range(3):
        with pytest.raises(StateError):
            first.retiring.attempt()
        waits.append(first.retiring.due() - time.monotonic())
    assert waits[0] < waits[1] < waits[2]
    monkeypatch.undo()


def test_a_program_whose_end_cannot_be_written_down_is_left_all_the_same(
    engine: Sessions, host: Host, programs: list[Program], monkeypatch: pytest.MonkeyPatch
) -> None:
    enter(engine, programs)

    monkeypatch.setattr(engine.store.targets, "end", full_disk(host.folder))
    attended = next(iter(engine._programs.values()))  # pyright: ignore[reportPrivateUsage]
    programs[0].stop()
    engine._ended(attended)  # pyright: ignore[reportPrivateUsage]
    assert host.count == 1
    assert [event.data["reason"] for event in host.events if event.kind == "ended"] == [
        "the program ended"
    ]
    engine._ended(attended)  # pyright: ignore[reportPrivateUsage]  # told twice: no matter
    assert len(engine.targets()) == 1
