"""The command itself, as a user types it: real daemon, real program, real files."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.road import MAIN, Program

ROOT = Path(__file__).resolve().parent.parent
RELOADER = [sys.executable, "-m", "reloader"]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT)}

TEXT = """
static int total = 40;
int answer(int n) { total += n; return total * 10; }
"""


class Project:
    """A folder with a program that answers lines, and the command to use on it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.program = Program(folder, ["-O2", "-g"])
        self.program.compile(main=MAIN, part=TEXT)
        self.program.link()

    def run(self, *options: str) -> None:
        """Start the program under the daemon."""
        command = [*RELOADER, "run", *options, "--", "./program"]
        self.program.process = subprocess.Popen(
            command,
            cwd=self.folder,
            env=ENVIRONMENT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self.program.line() == "ready"

    def verb(self, *words: str, status: int = 0) -> str:
        """Run a verb; return what it wrote."""
        done = subprocess.run(
            [*RELOADER, *words],
            cwd=self.folder,
            env=ENVIRONMENT,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == status, done.stderr + done.stdout
        return done.stdout + done.stderr

    def json(self, *words: str) -> Any:  # noqa: ANN401 - whatever the verb answers
        """Run a verb; return its answer."""
        return json.loads(self.verb(*words, "--json"))

    def edit(self, old: str, new: str) -> None:
        """Compile an edited version; it is in place when this returns."""
        self.program.compile(part=TEXT.replace(old, new))

    def settled(self, generation: int) -> dict[str, Any]:
        """Wait for an attempt."""
        return self.json("wait", "--generation", str(generation), "--timeout", "20")

    def end(self) -> int:
        """End the program by closing its input; return the command's status."""
        assert self.program.process is not None
        assert self.program.process.stderr is not None
        with self.program.process.stderr:
            return self.program.stop()

    def target(self) -> dict[str, Any]:
        return self.json("status")["targets"][0]


@pytest.fixture
def project(tmp_path: Path) -> Iterator[Project]:
    made = Project(tmp_path)
    yield made
    if made.program.process is not None:
        if made.program.process.stderr is not None:
            made.program.process.stderr.close()
        made.program.stop()
    made.verb("stop")


def test_a_saved_object_is_live_and_the_exit_status_is_the_programs(project: Project) -> None:
    project.run()
    assert project.program.ask(2) == 420
    project.edit("* 10", "* 100")
    row = project.settled(1)
    assert (row["outcome"], row["functions"]) == ("live", ["answer"])
    assert project.program.ask(0) == 4200
    assert project.end() == 0


def test_attach_detach_and_attach_again_keep_everything(project: Project) -> None:
    pid = project.program.start()
    assert "beside program" in project.verb("attach", str(pid))
    project.edit("* 10", "* 100")
    assert project.settled(1)["outcome"] == "live"
    assert project.program.ask(2) == 4200
    project.verb("detach")
    project.edit("* 10", "* 1000")
    assert project.program.ask(0) == 4200
    project.verb("attach", str(pid))
    project.verb("load", "part.o")
    assert project.program.ask(0) == 42000
    outcomes = [row["outcome"] for row in project.json("history")]
    assert outcomes == ["live", "live"]


def test_a_killed_daemon_harms_nobody_and_the_next_goes_on(project: Project) -> None:
    pid = project.program.start()
    project.verb("attach", str(pid))
    project.edit("* 10", "* 100")
    project.settled(1)
    os.kill(project.json("status")["daemon"]["pid"], signal.SIGKILL)
    assert project.program.ask(2) == 4200
    project.verb("attach", str(pid))
    project.edit("* 10", "* 7")
    assert project.settled(2)["outcome"] == "live"
    assert project.program.ask(0) == 294


def test_owner_knows_names_addresses_and_what_was_meant(project: Project) -> None:
    project.run()
    row = project.json("owner", "answer")[0]
    assert (row["kind"], row["generation"], row["line"]) == ("function", 0, "part.c:3")
    by_addr = project.json("owner", hex(row["addr"] + 1))[0]
    assert (by_addr["name"], by_addr["distance"]) == ("answer", 1)
    assert "Did you mean answer?" in project.verb("owner", "answr", status=1)
    assert "libc" in str(project.json("owner", "puts")[0]["object"])
    project.edit("* 10", "* 100")
    project.settled(1)
    row = project.json("owner", "answer")[0]
    assert (row["generation"], row["live"]) == (1, True)
    assert project.json("owner", hex(row["stub_addr"]))[0]["name"] == "answer"


def test_check_changes_nothing_and_says_every_reason(project: Project) -> None:
    project.run()
    assert "part.o is what is live" in project.verb("check", "part.o")
    project.program.compile(other="int nowhere(int); int twice(int n) { return nowhere(n); }")
    text = project.verb("check", "other.o", status=1)
    assert "nowhere" in text
    assert project.json("history")[0]["outcome"] == "refused"
    assert project.program.ask(2) == 420


def test_roll_back_and_unload_return_to_earlier_code_with_todays_state(
    project: Project,
) -> None:
    project.run()
    project.edit("* 10", "* 100")
    project.settled(1)
    project.edit("* 10", "* 1000")
    project.settled(2)
    assert project.program.ask(2) == 42000
    project.verb("rollback", "1")
    assert project.program.ask(1) == 4300
    project.verb("unload", "part.o")
    assert project.program.ask(1) == 440
    assert "is not kept" in project.verb("rollback", "99", status=1)


def test_a_new_object_is_pulled_in_by_a_new_reference(project: Project) -> None:
    project.run()
    project.program.compile(helper="int helper(int n) { return n * 7; }")
    text = TEXT.replace("total * 10", "helper(total)")
    project.program.compile(part="int helper(int);" + text)
    rows = project.json("wait", "--generation", "2", "--timeout", "20")
    assert rows["outcome"] == "live"
    assert sorted(Path(name).name for name in rows["objects"]) == ["helper.o", "part.o"]
    assert project.program.ask(2) == 294


def test_a_changed_archive_member_is_the_unit_that_reloads(project: Project) -> None:
    folder = project.folder
    project.program.compile(
        one="int one(void) { return 1; }", two="int two(void) { return 2; }"
    )
    project.program.compile(part="int one(void); int answer(int n) { return one() + n; }")

    def archive() -> None:
        (folder / "new.a").unlink(missing_ok=True)
        command = ["/usr/bin/ar", "rcs", "new.a", "one.o", "two.o"]
        subprocess.run(command, cwd=folder, check=True)
        (folder / "new.a").rename(folder / "lib.a")

    archive()
    project.program.link("main.o", "part.o", "lib.a")
    (folder / "one.o").rename(folder / "one.kept")
    (folder / "two.o").rename(folder / "two.kept")
    project.run("--watch", "*.a", "--watch", "*.o")
    assert project.program.ask(1) == 2
    for name in ("one", "two"):
        (folder / f"{name}.kept").rename(folder / f"{name}.o")
    project.program.compile(one="int two(void); int one(void) { return 10 + two(); }")
    archive()
    row = project.json("wait", "--generation", "2", "--timeout", "20")
    assert row["outcome"] == "live"
    assert project.program.ask(1) == 13


def test_the_same_file_saved_a_hundred_times_ends_with_its_last_content(
    project: Project,
) -> None:
    project.run()
    versions: list[bytes] = []
    for factor in (3, 5):
        project.edit("* 10", f"* {factor}")
        versions.append((project.folder / "part.o").read_bytes())
    for turn in range(101):
        (project.folder / "part.tmp").write_bytes(versions[turn % 2])
        (project.folder / "part.tmp").rename(project.folder / "part.o")
    deadline = 100
    while project.program.ask(0) != 120 and deadline:
        deadline -= 1
        project.verb("status")
    assert project.program.ask(0) == 120
    assert len(project.json("history", "--limit", "500")) <= 110


def test_a_program_keeps_its_own_environment(project: Project) -> None:
    text = "#include <stdlib.h>\n#include <string.h>\n"
    text += 'int answer(int n) { const char *p = getenv("LD_PRELOAD");'
    text += ' return n + (p ? 100 : 0) + (getenv("RELOADER_FD") ? 200 : 0); }'
    project.program.compile(part=text)
    project.program.link("main.o", "part.o")
    project.run()
    assert project.program.ask(1) == 1


def test_status_and_doctor_and_why_read_well_in_a_pipe(project: Project) -> None:
    project.run()
    assert "program" in project.verb("status")
    assert "nothing stands in the way" in project.verb("doctor", "./program")
    assert "nothing holds" in project.verb("why", "part.o")
    assert "part.o" in project.verb("objects")
