"""`reloader run`: the program has the terminal, the signals, and gives its status."""

import os
import pty
import select
import signal
import subprocess
from collections.abc import Generator
from pathlib import Path

import pytest

from reloader.client import Client
from reloader.errors.daemon import AgentMissingError, ProgramError
from reloader.wire.project import Project
from reloader.wire.spawn import AGENT, agent_environment, find_program
from stubs.build import build
from tests.support.daemon import CLI, fake_project, start_fake


@pytest.fixture(scope="module", autouse=True)
def agent() -> None:
    build()


@pytest.fixture
def project(
    tmp_path: Path,
    own_sockets: Path,  # noqa: ARG001 - for what it does
) -> Generator[Project]:
    folder = tmp_path / "game"
    folder.mkdir()
    with fake_project(folder) as made:
        start_fake(made).close()
        yield made


def _run(
    project: Project, *arguments: str, env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*CLI, "run", *arguments],
        cwd=project.folder,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, **(env or {})},
    )


def test_output_and_status_are_the_programs(project: Project) -> None:
    done = _run(project, "--", "sh", "-c", "echo out; echo err >&2; exit 7")
    assert (done.returncode, done.stdout) == (7, "out\n")
    assert "err\n" in done.stderr


def test_standard_input_is_the_programs(project: Project) -> None:
    command = [*CLI, "run", "--quiet", "--", "cat"]
    done = subprocess.run(
        command, cwd=project.folder, input=b"typed", capture_output=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, b"typed", b"")


def test_a_program_killed_by_a_signal_gives_128_and_its_number(project: Project) -> None:
    assert _run(project, "--", "sh", "-c", "kill -SEGV $$").returncode == 128 + 11


def test_what_happens_is_told_on_stderr_unless_quiet(project: Project) -> None:
    line = "[reloader] beside cat (pid "
    assert line in _run(project, "--", "cat", "/dev/null").stderr
    assert _run(project, "--quiet", "--", "cat", "/dev/null").stderr == ""


def test_nothing_of_ours_is_in_the_programs_environment_or_descriptors(
    project: Project,
) -> None:
    done = _run(project, "--", "/usr/bin/env", env={"LD_PRELOAD": ""})
    ours = [line for line in done.stdout.splitlines() if "RELOADER" in line]
    assert ours == []
    assert "LD_PRELOAD=\n" in done.stdout
    listing = _run(project, "--", "ls", "/proc/self/fd").stdout.split()
    assert [int(fd) for fd in listing] == [0, 1, 2, 3]  # 3: the folder itself, read by ls


def test_pipes_break_in_the_program_as_they_do_without_us(project: Project) -> None:
    # Python ignores SIGPIPE; a program that inherited that would print an error
    done = _run(project, "--quiet", "--", "sh", "-c", "yes | head -n 1; echo done")
    assert (done.stdout, done.stderr) == ("y\ndone\n", "")


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("./nothing", "no such file"),
        ("no-such-program", "no such file on the PATH"),
        ("./plain", "it is not executable"),
    ],
)
def test_a_program_that_cannot_run_is_named(project: Project, name: str, reason: str) -> None:
    (project.folder / "plain").touch()
    done = _run(project, "--", name)
    text = f"reloader: cannot run {name}: {reason}. Nothing was started.\n"
    assert (done.returncode, done.stderr) == (1, text)


def test_a_file_the_kernel_refuses_is_our_error_not_a_status(project: Project) -> None:
    broken = project.folder / "broken"
    broken.write_bytes(b"\x7fELF nonsense")
    broken.chmod(0o755)
    done = _run(project, "--", "./broken")
    assert done.returncode == 1
    assert "cannot run ./broken: Exec format error. Nothing was started." in done.stderr


def test_a_missing_option_value_is_wrong_usage(project: Project) -> None:
    assert _run(project, "--watch").returncode == 2


def test_options_after_the_program_are_its_own(project: Project) -> None:
    assert _run(project, "--quiet", "echo", "--watch", "x").stdout == "--watch x\n"


def test_terminate_is_passed_on_and_interrupt_is_left_to_the_program(
    project: Project,
) -> None:
    script = "trap 'echo term; exit 3' TERM; echo ready; while :; do :; done"
    with subprocess.Popen(
        [*CLI, "run", "--quiet", "--", "sh", "-c", script],
        cwd=project.folder,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as client:
        assert client.stdout
        assert client.stdout.readline() == "ready\n"
        client.send_signal(signal.SIGINT)  # to us alone: the terminal would send it to both
        client.send_signal(signal.SIGTERM)
        assert client.stdout.readline() == "term\n"
        assert client.wait(30) == 3


def test_a_killed_daemon_leaves_the_program_running(project: Project) -> None:
    info = project.daemon()
    assert info
    with subprocess.Popen(
        [*CLI, "run", "--", "cat"],
        cwd=project.folder,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as client:
        assert client.stderr
        assert "beside cat" in client.stderr.readline()
        os.kill(info.pid, signal.SIGKILL)
        assert client.stderr.readline() == (
            "[reloader] the daemon ended; the program runs on\n"
        )
        out, _ = client.communicate("still here", timeout=30)
        assert (client.returncode, out) == (0, "still here")


def test_events_of_another_session_are_not_shown(project: Project) -> None:
    with subprocess.Popen(
        [*CLI, "run", "--", "cat"],
        cwd=project.folder,
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as client:
        assert client.stderr
        assert "beside cat" in client.stderr.readline()
        with Client.open(project, start=False) as other:
            other.attach(os.getpid())  # session 2: not for this client
            other.load(["hud.o"])  # the small engine's reloads are all of session 1
        line = client.stderr.readline()
        client.communicate("")
    assert line == "[reloader] hud.o live: draw, score (2 functions) in 3.1 ms\n"


def test_ctrl_c_from_a_terminal_reaches_the_program_once(project: Project) -> None:
    script = "trap 'echo int; exit 4' INT; echo ready; while :; do :; done"
    pid, master = pty.fork()
    if pid == 0:
        os.chdir(project.folder)
        command = [*CLI, "run", "--quiet", "--", "sh", "-c", script]
        os.execv(command[0], command)  # noqa: S606 - our own command
    _until(master, b"ready")
    os.write(master, b"\x03")
    _until(master, b"int")
    _, status = os.waitpid(pid, 0)
    os.close(master)
    assert os.waitstatus_to_exitcode(status) == 4


def test_a_program_that_stops_stops_us_and_goes_on_with_us(project: Project) -> None:
    with subprocess.Popen(
        [*CLI, "run", "--quiet", "--", "sh", "-c", "kill -STOP $$; echo on; exit 5"],
        cwd=project.folder,
        stdout=subprocess.PIPE,
        text=True,
    ) as client:
        _, status = os.waitpid(client.pid, os.WUNTRACED)
        assert os.WIFSTOPPED(status)
        client.send_signal(signal.SIGCONT)  # what a shell's `fg` does
        assert client.stdout
        assert client.stdout.readline() == "on\n"
        assert client.wait(30) == 5


def _until(master: int, text: bytes) -> None:
    shown = b""
    while text not in shown:
        assert select.select([master], [], [], 30)[0], shown
        shown += os.read(master, 4096)


def test_the_users_own_preload_stays_behind_the_agent() -> None:
    env = agent_environment({"LD_PRELOAD": "a.so b.so", "X": "1"}, 205, 42, "game")
    assert env == {
        "X": "1",
        "LD_PRELOAD": f"{AGENT}:a.so b.so",
        "RELOADER_FD": "205",
        "RELOADER_DAEMON_PID": "42",
        "RELOADER_PROGRAM": "game",
    }
    assert agent_environment({}, 205, 42, None)["LD_PRELOAD"] == str(AGENT)


def test_a_program_is_found_as_a_shell_finds_it(tmp_path: Path) -> None:
    first, second = tmp_path / "a", tmp_path / "b"
    for folder in (first, second):
        folder.mkdir()
        (folder / "game").touch()
    (second / "game").chmod(0o755)
    path = f"{first}:{second}"
    assert find_program("game", {"PATH": path}) == str(second / "game")
    with pytest.raises(ProgramError):
        find_program("game", {"PATH": str(first)})


def test_a_missing_agent_says_how_to_compile_it() -> None:
    text = str(AgentMissingError(AGENT))
    assert text.endswith("Nothing was started. Compile it with `python -m stubs.build`.")
