"""The command line as a user types it: output, exit codes, texts."""

import json
import os
import pty
import select
import signal
import subprocess
import sys
from collections.abc import Generator
from pathlib import Path

import pytest

from reloader.cli import VERBS
from reloader.client import Client
from reloader.commands import show
from reloader.wire.project import Project
from tests.support.daemon import CLI, cli, fake_project, start_fake


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


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help_with_an_example(tmp_path: Path, verb: str) -> None:
    done = cli(Project(tmp_path), verb, "--help")
    assert done.returncode == 0
    assert "Example: " in done.stdout
    assert f"reloader {verb}" in done.stdout.partition("Example: ")[2]
    assert "--json" in done.stdout
    assert list(tmp_path.iterdir()) == []  # asking for help leaves nothing


def test_owner_tells_object_section_line_generation_and_stub(project: Project) -> None:
    done = cli(project, "owner", "draw")
    assert done.returncode == 0
    assert done.stdout == (
        "draw\n"
        "  kind        function\n"
        "  object      /p/hud.o\n"
        "  section     .text+0x40\n"
        "  source      hud.c:41\n"
        "  generation  2 (live)\n"
        "  address     0x401140\n"
        "  size        64\n"
        "  stub        0x7f0000000100\n"
        "  slot        16\n"
    )


@pytest.mark.parametrize(
    "arguments",
    [
        ["status"],
        ["objects"],
        ["history"],
        ["memory"],
        ["generations"],
        ["owner", "draw"],
        ["why", "hud.o"],
        ["check", "hud.o"],
        ["load", "hud.o"],
        ["unload", "hud.o"],
        ["remap", "hud.o"],
        ["rollback", "1"],
        ["doctor"],
        ["attach", "1"],
    ],
)
def test_json_is_json_and_nothing_else(project: Project, arguments: list[str]) -> None:
    done = cli(project, *arguments, "--json")
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout) is not None


def test_load_reports_what_became_live_and_history_has_it(project: Project) -> None:
    done = cli(project, "load", "build/hud.o")
    assert done.stdout == "hud.o live: draw, score (2 functions) in 3.1 ms\n"
    rows = json.loads(cli(project, "history", "--json").stdout)
    # the daemon is told the whole path: it stands in another folder
    assert rows[0]["objects"] == [str(project.folder / "build" / "hud.o")]
    table = cli(project, "history").stdout.splitlines()
    assert table[0].split() == [
        *("GENERATION", "WHEN", "OUTCOME", "OBJECTS"),
        *("FUNCTIONS", "MS", "STOP_US", "ERROR"),
    ]
    assert "draw, score" in table[1]
    assert "\x1b" not in "".join(table)


def test_a_refusal_is_status_1_with_the_reason_on_stderr(project: Project) -> None:
    done = cli(project, "load", "bad.o")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        f"reloader: {project.folder}/bad.o: not an object. Nothing was changed.\n"
    )


def test_a_refusal_under_json_is_json_too(project: Project) -> None:
    done = cli(project, "load", "bad.o", "--json")
    assert done.returncode == 1
    assert json.loads(done.stdout)["error"]["code"] == "not-loadable"


def test_check_of_a_bad_object_is_status_1_with_every_reason(project: Project) -> None:
    done = cli(project, "check", "hud.o", "bad.o")
    assert done.returncode == 1
    assert "hud.o: would load; changes draw" in done.stdout
    assert "bad.o: would be refused\n  undefined: pow" in done.stdout


def test_doctor_with_an_error_is_status_1(project: Project) -> None:
    assert cli(project, "doctor", "./static").returncode == 1
    assert cli(project, "doctor").returncode == 0


def test_a_misspelt_verb_is_status_2_and_names_the_nearest(tmp_path: Path) -> None:
    done = cli(Project(tmp_path), "ownr", "draw")
    assert done.returncode == 2
    assert "reloader: no such verb `ownr`. Did you mean `owner`?" in done.stderr


def test_wrong_usage_is_status_2(tmp_path: Path) -> None:
    done = cli(Project(tmp_path), "load")
    assert done.returncode == 2
    assert "Usage: reloader load" in done.stderr
    assert "reloader: Missing argument 'FILE...'" in done.stderr


def test_without_a_daemon_status_says_so_and_starts_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    done = cli(Project(tmp_path), "status")
    assert (done.returncode, done.stdout) == (0, "no daemon is running\n")
    assert cli(Project(tmp_path), "status", "--json").stdout.split() == [
        *("{", '"daemon":', "null,", '"targets":', "[]", "}")
    ]
    assert cli(Project(tmp_path), "stop").returncode == 1
    assert not (tmp_path / ".reloader").exists()


def test_stop_returns_when_the_daemon_is_gone(project: Project) -> None:
    info = project.daemon()
    assert info
    done = cli(project, "stop")
    assert done.stdout == f"daemon {info.pid} ended\n"
    assert not info.is_alive()


def test_a_closed_pipe_is_no_traceback(project: Project) -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)
    done = subprocess.run(
        [*CLI, "owner", "draw"],
        cwd=project.folder,
        stdout=write_end,
        stderr=subprocess.PIPE,
        check=False,
    )
    os.close(write_end)
    assert (done.returncode, done.stderr) == (1, b"")


def test_ctrl_c_is_130_and_quiet(project: Project) -> None:
    os.mkfifo(project.folder / "wait.o")
    command = [*CLI, "load", "wait.o"]
    with subprocess.Popen(
        command, cwd=project.folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as child:
        with (project.folder / "wait.o").open("wb"):  # opens once the engine reads it
            child.send_signal(signal.SIGINT)
            out, err = child.communicate(timeout=30)
        assert (child.returncode, out, err) == (130, b"", b"")


def test_a_long_wait_is_shown_on_a_terminal_only(project: Project) -> None:
    os.mkfifo(project.folder / "wait.o")
    master, slave = pty.openpty()
    with subprocess.Popen(
        [*CLI, "load", "wait.o"],
        cwd=project.folder,
        stdout=subprocess.PIPE,
        stderr=slave,
        env={**os.environ, "TERM": "xterm"},
    ) as child:
        os.close(slave)
        with (project.folder / "wait.o").open("wb"):
            shown = b""
            while b"loading wait.o" not in shown:
                assert select.select([master], [], [], 30)[0]
                shown += os.read(master, 4096)
        assert child.wait(30) == 0
    os.close(master)


def test_a_terminal_gets_a_table_with_the_same_cells(project: Project) -> None:
    cli(project, "load", "hud.o")
    master, slave = pty.openpty()
    with subprocess.Popen(
        [*CLI, "history"],
        cwd=project.folder,
        stdout=slave,
        stderr=slave,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "120"},
    ) as child:
        os.close(slave)
        shown = b""
        while b"draw" not in shown:
            assert select.select([master], [], [], 30)[0]
            shown += os.read(master, 4096)
        child.wait(30)
    os.close(master)
    assert "─".encode() in shown


def test_the_typed_client_speaks_every_verb(project: Project) -> None:
    with Client.open(project, start=False) as client:
        assert client.attach(os.getpid(), watch=["*.o"])["pid"] == os.getpid()
        assert client.status()["targets"][0]["pid"] == os.getpid()
        assert client.objects()[0]["baseline"] == "matched"
        assert client.memory()["live_size"] == 4096
        assert client.check(["x.o"])[0]["ok"]
        assert client.load(["x.o"], reinit=["n"])["generation"] == 1
        assert client.unload("x.o")["kind"] == "unload"
        assert client.rollback()["kind"] == "rollback"
        assert len(client.history(2)) == 2
        assert len(client.generations()) == 3
        assert client.wait()["generation"] == 3
        assert client.why("x.o")[0]["kind"] == "stack"
        assert client.doctor()[0]["level"] == "ok"
        assert client.detach()["pid"] == os.getpid()


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (4096, "4.0 KiB"),
        (5 << 20, "5.0 MiB"),
        (3 << 30, "3.0 GiB"),
    ],
)
def test_sizes_are_shown_as_people_read_them(value: int, text: str) -> None:
    assert show.size(value) == text


def test_many_names_are_cut_short() -> None:
    assert show.shorten(list("abcdefg")) == "a, b, c, d, e and 2 more"


def test_the_module_runs_as_a_program() -> None:
    done = subprocess.run(
        [sys.executable, "-c", "from reloader.cli import run_cli; run_cli(['--help'])"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "attach" in done.stdout
