"""The daemon as clients see it: a real process, real sockets, a small engine."""

import json
import os
import select
import signal
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Generator
from pathlib import Path

import pytest

from reloader.client import Client
from reloader.errors.daemon import (
    DaemonStartError,
    NoDaemonError,
    RemoteError,
    UntrustedPlaceError,
)
from reloader.wire.project import Project, check_private, find_project, start_time_of
from reloader.wire.protocol import Channel, Reply, Request
from reloader.wire.start import connect
from tests.support.daemon import DAEMON, fake_project, start_fake


@pytest.fixture
def project(
    tmp_path: Path,
    own_sockets: Path,  # noqa: ARG001 - for what it does
) -> Generator[Project]:
    folder = tmp_path / "game"
    folder.mkdir()
    with fake_project(folder) as made:
        yield made


@pytest.fixture
def client(project: Project) -> Generator[Client]:
    with Client(start_fake(project), project) as made:
        yield made


def _ended(pid: int) -> None:
    """Wait for a process that is not our child."""
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    assert select.select([fd], [], [], 30)[0]
    os.close(fd)


def test_a_client_starts_the_daemon_and_a_second_finds_it(project: Project) -> None:
    with Client(start_fake(project), project) as first:
        pid = first.status()["daemon"]
        with Client(start_fake(project), project) as second:
            assert second.status()["daemon"] == pid


def test_clients_that_start_at_once_get_one_daemon(project: Project) -> None:
    pids: list[int] = []

    def ask() -> None:
        with Client(start_fake(project), project) as client:
            daemon = client.status()["daemon"]
            assert daemon
            pids.append(daemon["pid"])

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(pids) == 4
    assert len(set(pids)) == 1


def test_the_daemon_is_in_a_session_of_its_own_with_no_descriptor_of_ours(
    project: Project,
) -> None:
    read_end, write_end = os.pipe()
    os.set_inheritable(write_end, True)  # noqa: FBT003 - the os module's own signature
    with Client(start_fake(project), project) as client:
        daemon = client.status()["daemon"]
        assert daemon
        os.close(write_end)
        assert os.read(read_end, 1) == b""  # the daemon holds no copy
        assert os.getsid(daemon["pid"]) != os.getsid(0)
        assert Path(f"/proc/{daemon['pid']}/fd/0").readlink() == Path("/dev/null")
    os.close(read_end)


def test_socket_and_folders_are_this_users_alone(project: Project, client: Client) -> None:
    del client
    info = project.daemon()
    assert info
    path = Path(info.socket)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert stat.S_IMODE(project.state.stat().st_mode) == 0o700


def test_a_killed_daemon_is_replaced(project: Project) -> None:
    with Client(start_fake(project), project) as client:
        first = client.status()["daemon"]
    assert first
    os.kill(first["pid"], signal.SIGKILL)
    _ended(first["pid"])
    with Client(start_fake(project), project) as client:
        second = client.status()["daemon"]
    assert second
    assert second["pid"] != first["pid"]


def test_a_pid_used_again_is_not_taken_for_the_daemon(project: Project) -> None:
    project.prepare()
    start = start_time_of(os.getpid())
    assert start
    stale = {"pid": os.getpid(), "start_time": start + 1, "socket": "/nonexistent"}
    (project.state / "daemon.json").write_text(json.dumps(stale))
    assert project.daemon() is None
    with Client(start_fake(project), project) as client:
        assert client.status()["daemon"]


def test_stop_ends_it_and_closes_the_engine(project: Project) -> None:
    with Client(start_fake(project), project) as client:
        pid = client.stop()
    assert start_time_of(pid) is None
    assert (project.folder / "closed").exists()
    assert project.daemon() is None
    assert not project.socket.exists()
    with pytest.raises(NoDaemonError, match="no daemon is running"):
        Client.open(project, start=False)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_as_stop_does(project: Project, number: signal.Signals) -> None:
    with Client(start_fake(project), project) as client:
        daemon = client.status()["daemon"]
        assert daemon
        os.kill(daemon["pid"], number)
        assert client.next_event() is None
        _ended(daemon["pid"])
    assert (project.folder / "closed").exists()


def test_a_daemon_that_refuses_to_start_says_why_to_the_client(project: Project) -> None:
    (project.folder / "refuse-to-open").touch()
    with pytest.raises(RemoteError, match=r"not an object. Nothing was changed") as caught:
        start_fake(project)
    assert caught.value.code == "not-loadable"


def test_a_daemon_that_dies_at_once_shows_its_last_lines(project: Project) -> None:
    command = [sys.executable, "-c", "raise SystemExit('libfoo is missing')"]
    with pytest.raises(DaemonStartError) as caught:
        connect(project, command=command)
    assert str(caught.value) == (
        f"the daemon for {project.folder} did not start: it ended before it was ready. "
        "Nothing was changed.\n    libfoo is missing"
    )


def test_a_refusal_reaches_the_client_with_its_code_and_text(client: Client) -> None:
    with pytest.raises(RemoteError) as caught:
        client.load(["/p/bad.o"])
    assert caught.value.code == "not-loadable"
    assert str(caught.value) == "/p/bad.o: not an object. Nothing was changed."


def test_a_defect_is_told_and_logged_and_the_daemon_goes_on(
    project: Project, client: Client
) -> None:
    with pytest.raises(RemoteError, match="ZeroDivisionError: wheel fell off") as caught:
        client.load(["crash.o"])
    assert caught.value.code == "defect"
    lines = [json.loads(line) for line in project.log.read_text().splitlines()]
    (defect,) = [line for line in lines if line["event"] == "defect"]
    assert "fell off" in defect["exception"]
    assert "Traceback" in defect["exception"]
    assert client.load(["a.o"])["outcome"] == "live"


def test_queries_are_answered_while_a_reload_runs(project: Project, client: Client) -> None:
    os.mkfifo(project.folder / "wait.o")
    results: list[str] = []
    worker = threading.Thread(target=lambda: results.append(client.load(["wait.o"])["outcome"]))
    with Client(start_fake(project), project) as other:
        other.subscribe()
        worker.start()
        # opening the pipe for writing waits until the engine stands in its reload
        with (project.folder / "wait.o").open("wb") as pipe:
            daemon = other.status()["daemon"]
            assert daemon
            assert daemon["busy"] == "load"
            assert other.owner("draw")[0]["line"] == "hud.c:41"
            pipe.write(b"go")
        worker.join()
        event = other.next_event()
    assert results == ["live"]
    assert event
    assert event.kind == "reload"


def test_stop_during_a_reload_finishes_it_and_refuses_what_waits(
    project: Project, client: Client
) -> None:
    os.mkfifo(project.folder / "wait.o")
    outcomes: list[str] = []

    def load(user: Client, path: str) -> None:
        try:
            outcomes.append(user.load([path])["outcome"])
        except RemoteError as error:
            outcomes.append(error.code)

    with (
        Client(start_fake(project), project) as other,
        Client(start_fake(project), project) as third,
    ):
        first = threading.Thread(target=load, args=(client, "wait.o"))
        first.start()
        with (project.folder / "wait.o").open("wb") as pipe:
            second = threading.Thread(target=load, args=(other, "a.o"))
            second.start()
            _until_queued(third)
            third.call("stop")
            pipe.write(b"go")
        first.join()
        second.join()
    assert sorted(outcomes) == ["live", "stopping"]


def _until_queued(client: Client) -> None:
    while True:
        daemon = client.status()["daemon"]
        assert daemon
        if daemon["queued"]:
            return


def test_wait_returns_when_its_generation_is_decided(project: Project, client: Client) -> None:
    client.load(["a.o"])
    assert client.wait(generation=1)["generation"] == 1
    got: list[int] = []
    with Client(start_fake(project), project) as other:
        waiter = threading.Thread(
            target=lambda: got.append(other.wait(generation=2)["generation"])
        )
        waiter.start()
        client.load(["b.o"])
        waiter.join()
    assert got == [2]


def test_wait_past_its_timeout_names_the_newest_attempt(client: Client) -> None:
    client.load(["a.o"])
    with pytest.raises(RemoteError) as caught:
        client.wait(generation=9, timeout=0.01)
    assert caught.value.code == "timeout"
    assert str(caught.value) == (
        "waited 0.01 s for generation 9; the newest attempt is generation 1. "
        "Give more time with --timeout."
    )


def test_the_daemon_ends_some_time_after_its_last_program(
    project: Project, client: Client
) -> None:
    daemon = client.status()["daemon"]
    assert daemon
    client.attach(os.getpid())
    client.detach()
    client.close()
    _ended(daemon["pid"])
    assert (project.folder / "closed").exists()


def test_a_client_that_never_reads_is_let_go_and_holds_nothing_up(
    project: Project, client: Client
) -> None:
    deaf = start_fake(project)
    deaf.send(Request("subscribe"))
    deaf.receive()
    for _ in range(40):
        for _ in range(100):
            client.channel.send(Request("load", {"paths": ["a" * 400]}))
        for _ in range(100):
            assert isinstance(client.channel.receive(), Reply)
    assert client.status()["daemon"]
    deaf.close()


def test_nonsense_on_the_socket_ends_that_connection_only(
    project: Project, client: Client
) -> None:
    info = project.daemon()
    assert info
    with socket.socket(socket.AF_UNIX) as rude:
        rude.connect(info.socket)
        rude.sendall(b"GET ")  # a length of 1.1 GB
        assert rude.recv(10) == b""
    assert client.status()["daemon"]


@pytest.mark.parametrize(
    ("request_", "code", "text"),
    [
        (Request("fly"), "request", "fly: this daemon knows no such verb"),
        (Request("load", {"paths": "a.o"}), "request", "`paths` must be list, it is 'a.o'"),
        (Request("load", {"paths": [1]}), "request", "`paths` must be a list of str"),
        (Request("attach", {"pid": True}), "request", "`pid` must be int, it is True"),
        (Request("spawn", {"env": {}, "path": "", "cwd": ""}), "request", "one descriptor"),
        (Request("history", {"limit": 1}, 99), "version", "Run `reloader stop`"),
        (Request("owner", {"what": "huge"}), "protocol", "the limit is"),
    ],
)
def test_a_wrong_request_is_refused_with_its_reason(
    client: Client, request_: Request, code: str, text: str
) -> None:
    client.channel.send(request_)
    reply = client.channel.receive()
    assert isinstance(reply, Reply)
    assert reply.error
    assert reply.error.code == code
    assert text in reply.error.text


def test_a_folder_that_others_may_enter_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    with pytest.raises(UntrustedPlaceError) as caught:
        check_private(tmp_path)
    assert str(caught.value) == (
        f"{tmp_path}: other users have access to it (mode 0755). Nothing was changed. "
        f"Run `chmod 700 {tmp_path}`."
    )


def test_a_planted_link_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path)
    with pytest.raises(UntrustedPlaceError, match="it is not a folder"):
        check_private(tmp_path / "link")


def test_the_project_is_the_nearest_folder_that_has_state(tmp_path: Path) -> None:
    deep = tmp_path / "src" / "ui"
    deep.mkdir(parents=True)
    assert find_project(deep).folder == deep
    Project(tmp_path).prepare()
    assert find_project(deep).folder == tmp_path


def test_the_client_imports_nothing_heavy() -> None:
    code = (
        "import sys, reloader.cli, reloader.client, reloader.commands.look,"
        " reloader.commands.run, reloader.commands.change, reloader.commands.control;"
        "print(*sorted(m for m in ('numpy','structlog','sqlite_utils','sqlite3','rich',"
        "'elftools','capstone','watchdog','asyncio') if m in sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == ""


def test_the_fake_daemon_takes_the_real_ones_arguments(project: Project) -> None:
    project.prepare()
    done = subprocess.run(
        [*DAEMON, "--help"], capture_output=True, text=True, check=True, cwd=project.folder
    )
    assert "--ready-fd" in done.stdout


def test_channel_close_is_enough_for_the_daemon_to_forget_a_client(
    project: Project, client: Client
) -> None:
    other: Channel = start_fake(project)
    other.close()
    assert client.load(["a.o"])["outcome"] == "live"
