"""What a daemon endures: full disks, no descriptors, odd files, people who come and go."""

import json
import os
import resource
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from reloader.client import Client
from reloader.errors.daemon import RemoteError
from reloader.server import log
from reloader.wire.project import Project
from tests.support.daemon import CLI
from tests.support.road import MAIN, Program

NOBODY = 65534
PART = "int answer(int n) { return n + %d; }\n"


@pytest.fixture
def program(tmp_path: Path) -> Iterator[Program]:
    made = Program(tmp_path)
    made.compile(main=MAIN, part=PART % 1)
    made.link()
    made.start()
    yield made
    assert made.stop() == 0


@pytest.fixture
def client(program: Program) -> Iterator[Client]:
    """A real daemon, beside nothing yet."""
    with Client.open(Project(program.folder)) as found:
        yield found
        found.stop()


def attach(client: Client, program: Program) -> None:
    assert program.process is not None
    client.attach(program.process.pid, watch=[str(program.folder / "*.o")])


def daemon_of(client: Client) -> int:
    info = client.project.daemon()
    assert info is not None
    return info.pid


def entries(folder: Path) -> int:
    return sum(1 for _ in folder.iterdir())


def command(folder: Path, *words: str, shell: str = "") -> subprocess.CompletedProcess[str]:
    """Run a verb, through a shell with redirections if there are any."""
    line = [*CLI, *words]
    if shell:
        line = ["/bin/sh", "-c", f'"$@" {shell}', "sh", *line]
    return subprocess.run(line, cwd=folder, capture_output=True, text=True, check=False)


def test_a_fifo_of_an_objects_name_holds_up_nobody(client: Client, program: Program) -> None:
    os.mkfifo(program.folder / "pipe.o")
    attach(client, program)
    assert client.status()["targets"][0]["objects"] == 2


def test_a_file_whose_name_is_no_text_is_named_and_stops_nothing(
    client: Client, program: Program
) -> None:
    odd = program.folder / os.fsdecode(b"caf\xe9.o")
    odd.write_bytes((program.folder / "part.o").read_bytes())
    attach(client, program)
    assert client.status()["targets"][0]["objects"] == 2
    answer = client.load([str(odd)])
    assert answer["outcome"] == "refused"
    assert "it has a name that is no UTF-8" in (answer["error"] or "")
    done = subprocess.run(
        [*CLI, "load", str(odd)], cwd=program.folder, capture_output=True, check=False
    )
    assert done.returncode == 1
    assert b"caf\xe9.o refused" in done.stderr
    (part,) = program.compile(part=PART % 2)
    assert client.wait(client.load([str(part)])["generation"] or 1, 10.0)["generation"]
    assert program.ask() == 2


def test_a_strangers_object_is_pulled_in_by_no_reference(
    client: Client, program: Program
) -> None:
    if os.geteuid():
        pytest.fail("this test needs to be root: it gives a file away")
    (evil,) = program.compile(evil="int evil(void) { return 666; }")
    os.chown(evil, NOBODY, NOBODY)
    attach(client, program)
    (part,) = program.compile(part="int evil(void); int answer(int n) { return n + evil(); }")
    answer = client.load([str(part)])
    assert answer["outcome"] == "refused"
    assert "evil is not defined anywhere" in (answer["error"] or "")
    assert program.ask() == 1


def test_who_is_left_and_entered_again_costs_nothing(client: Client, program: Program) -> None:
    attach(client, program)
    here = Path(f"/proc/{daemon_of(client)}")

    def held() -> tuple[int, int, int]:
        maps = (here / "maps").read_text()
        return entries(here / "fd"), entries(here / "task"), maps.count("memfd")

    before = held()
    for _ in range(4):
        client.detach()
        attach(client, program)
    wait_until(lambda: held() <= before)


def test_a_process_that_cannot_be_entered_costs_nothing(client: Client) -> None:
    fds = Path(f"/proc/{daemon_of(client)}/fd")
    counts: list[int] = []
    for _ in range(5):
        with pytest.raises(RemoteError):
            client.attach(1 << 30, build="true", source=["*.c"])
        counts.append(entries(fds))
    assert counts[0] == counts[-1]


def test_a_daemon_without_descriptors_goes_on(client: Client, program: Program) -> None:
    attach(client, program)
    info = client.project.daemon()
    assert info is not None
    used = entries(Path(f"/proc/{info.pid}/fd"))
    _, most = resource.prlimit(info.pid, resource.RLIMIT_NOFILE)
    resource.prlimit(info.pid, resource.RLIMIT_NOFILE, (used + 4, most))
    callers = [socket.socket(socket.AF_UNIX) for _ in range(12)]
    for caller in callers:
        caller.connect(info.socket)
    assert len(client.status()["targets"]) == 1
    for caller in callers:
        caller.close()
    resource.prlimit(info.pid, resource.RLIMIT_NOFILE, (most, most))
    assert command(program.folder, "status").returncode == 0


def test_a_log_that_cannot_be_written_stops_nothing(client: Client, program: Program) -> None:
    attach(client, program)
    pid, path = daemon_of(client), client.project.log
    with path.open("r+b") as file:
        file.truncate(1 << 22)  # larger than all else that is written meanwhile
    _, most = resource.prlimit(pid, resource.RLIMIT_FSIZE)
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (1 << 22, most))
    (part,) = program.compile(part=PART % 2)
    client.load([str(part)])
    assert program.ask() == 2
    assert client.history()[-1]["outcome"] == "live"
    assert path.stat().st_size == 1 << 22


def test_the_log_of_a_long_run_is_put_aside_when_it_is_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log, "_ROTATE_SIZE", 2000)
    path = tmp_path / "log.jsonl"
    logger = log.set_up(path)
    for number in range(100):
        logger.info(log.Name.RELOAD, number=number)
    assert path.stat().st_size < 2200
    assert json.loads(path.read_text().splitlines()[-1])["number"] == 99
    assert {file.name for file in tmp_path.iterdir()} == {"log.jsonl", "log.jsonl.1"}


OUT_OF_RANGE: list[tuple[str, dict[str, Any], str]] = [
    ("history", {"limit": 0}, "`limit` is 0, it must be at least 1"),
    ("history", {"limit": -1}, "`limit` is -1, it must be at least 1"),
    ("wait", {"timeout": float("nan")}, "`timeout` is nan, it must be 0 or more"),
    ("wait", {"timeout": -1.0}, "`timeout` is -1.0, it must be 0 or more"),
    ("attach", {"pid": 1 << 70}, "has ended"),
    ("rollback", {"generation": 1 << 70}, "is not kept"),
    ("owner", {"what": "0x" + "f" * 30}, "no object, executable or library"),
]


def test_a_number_out_of_range_is_no_defect(client: Client, program: Program) -> None:
    attach(client, program)
    for verb, values, problem in OUT_OF_RANGE:
        with pytest.raises(RemoteError, match=problem) as caught:
            raise RemoteError(code="refused", text=client.call(verb, **values)["error"])
        assert caught.value.code != "defect"


def test_numbers_without_bound_mean_all_and_for_ever(client: Client, program: Program) -> None:
    attach(client, program)
    (part,) = program.compile(part=PART % 2)
    number = client.load([str(part)])["generation"] or client.history()[0]["generation"]
    assert len(client.history(1 << 70)) == 1
    for seconds in (1e300, float("inf")):
        assert client.wait(number, seconds)["generation"] == number
    with pytest.raises(RemoteError) as caught:
        client.wait(number + 9, 0.0)
    assert caught.value.code == "timeout"
    assert [row["level"] for row in client.doctor("²")] == ["error"]


def test_a_folder_that_cannot_hold_state_is_named(tmp_path: Path) -> None:
    done = command(Path("/proc"), "run", "--", "/bin/true")
    assert done.returncode == 1
    assert done.stderr == (
        "reloader: /proc/.reloader: No such file or directory. Nothing was changed. Start it"
        " in a folder that is yours.\n"
    )
    gone = tmp_path / "gone"
    gone.mkdir()
    line = ["/bin/sh", "-c", 'cd "$0" && rmdir "$0" && exec "$@"', str(gone), *CLI, "status"]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "the working directory is gone" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("shell", ["<&- >&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_descriptors_change_no_status(tmp_path: Path, shell: str) -> None:
    with Client.open(Project(tmp_path)) as client:
        client.stop()
    done = command(tmp_path, "run", "--quiet", "--", "/bin/true", shell=shell)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert command(tmp_path, "stop", shell=shell).returncode == 0


def wait_until(true: Callable[[], bool]) -> None:
    """Wait for what a thread of the daemon does soon."""
    end = time.monotonic() + 10
    while not true():
        assert time.monotonic() < end
        time.sleep(0.01)
