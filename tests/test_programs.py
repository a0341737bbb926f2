"""One daemon beside several programs, and beside programs of several processes."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from reloader.client import Client
from reloader.commands.show import status
from reloader.errors.daemon import RemoteError
from reloader.wire.project import Project
from tests.support.family import PART, Family, until_gone
from tests.support.live import until


@pytest.fixture
def client(tmp_path: Path) -> Iterator[Client]:
    with Client.open(Project(tmp_path)) as found:
        yield found
        found.stop()


@pytest.fixture
def programs(tmp_path: Path) -> Iterator[list[Family]]:
    made: list[Family] = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        made.append(Family(tmp_path / name))
        made[-1].start()
    yield made
    for program in made:
        program.end()


def attach(client: Client, program: Family) -> int:
    """Let the daemon go beside a program; return the session's number."""
    assert program.process is not None
    answer = client.attach(program.process.pid, watch=[str(program.folder / "*.o")])
    return answer["session"]


def test_one_daemon_serves_several_programs(
    client: Client, programs: list[Family], tmp_path: Path
) -> None:
    one, two = programs
    numbers = [attach(client, program) for program in programs]
    two.fork(1)
    two.compile(part=PART.replace("* 10", "* 100"))
    with Client.open(Project(tmp_path), target=str(numbers[1])) as second:
        answer = second.wait(generation=1, timeout=20.0)
    assert (answer["session"], answer["outcome"]) == (numbers[1], "live")
    assert [one.at(0), two.at(0), two.at(1)] == [400, 4000, 4000]
    with pytest.raises(RemoteError, match="program"):
        client.history()
    with Client.open(Project(tmp_path), target=str(numbers[0])) as first:
        assert first.history() == []
        one.compile(part=PART.replace("* 10", "* 7"))
        assert first.wait(generation=1, timeout=20.0)["outcome"] == "live"
    assert [one.at(0), two.at(0)] == [280, 4000]


def test_a_server_that_goes_into_the_background_is_followed_to_its_last_process(
    client: Client, programs: list[Family]
) -> None:
    server = programs[0]
    attach(client, server)
    assert server.process is not None
    front = server.process.pid
    worker = server.fork(1)
    shown = status(client.status())
    assert f"program: 2 processes; with it: {worker}" in shown
    behind = server.go_on_as(2, parent=0)
    until_gone(front)

    def targets() -> list[list[int]]:
        return [target["processes"] for target in client.status()["targets"]]

    until(lambda: targets() == [[worker, behind]], "another process stands for all")
    server.compile(part=PART.replace("* 10", "* 100"))
    assert client.wait(generation=1, timeout=20.0)["outcome"] == "live"
    assert [server.at(1), server.at(2)] == [4000, 4000]
    for pid in (worker, behind):
        os.kill(pid, signal.SIGKILL)
    until(lambda: targets() == [], "no program is left")
