"""`reloader run FILE.o LIB.a`: a program without an executable, reloadable from the start."""

import subprocess
from collections.abc import Generator
from pathlib import Path

import pytest

from reloader.commands.host_command import host_command
from stubs.build import build
from tests.support.daemon import CLI
from tests.support.linker import (
    HELLO,
    archive,
    compile_to,
    lua_words,
    run,
    sqlite_words,
)


@pytest.fixture(scope="module", autouse=True)
def agent() -> None:
    build()


@pytest.fixture
def project(
    tmp_path: Path,
    own_sockets: Path,  # noqa: ARG001 - for what it does
) -> Generator[Path]:
    """A folder with a daemon of its own, which ends with the test."""
    folder = tmp_path / "game"
    folder.mkdir()
    yield folder
    subprocess.run([*CLI, "stop"], cwd=folder, capture_output=True, check=False)


def test_run_takes_objects_in_place_of_a_program(project: Path) -> None:
    compile_to(project, "hello.c", HELLO)
    done = run(project, "hello.o", "--", "one", "--two")
    assert done.stdout == "first\nsecond\none --two 1\natexit\ndestructor\n"
    assert done.returncode == 43
    assert "hello.o" in done.stderr


def test_run_of_objects_that_do_not_link_says_why_and_ends_with_1(project: Path) -> None:
    compile_to(project, "main.c", "int gone(void); int main(void) { return gone(); }")
    done = run(project, "main.o")
    assert done.returncode == 1
    assert "gone is not defined anywhere" in done.stderr
    compile_to(project, "lib.c", "int lib(void) { return 1; }")
    done = run(project, "lib.o")
    assert done.returncode == 1
    assert "main: no linked object defines it" in done.stderr


def test_run_of_lua_and_of_sqlites_shell_works_from_their_objects(project: Path) -> None:
    (project / "t.lua").write_text("print(string.format('%d', 6 * 7)) os.exit(5)")
    done = run(project, "--quiet", *lua_words(), "--", "t.lua")
    assert (done.stdout, done.returncode) == ("42\n", 5), done.stderr
    done = run(project, "--quiet", *sqlite_words(), stdin="select 6 * 7;\n")
    assert (done.stdout, done.returncode) == ("42\n", 0), done.stderr


MAIN = """
#include <stdio.h>
int answer(int);
int main(void) { int n; setvbuf(stdout, NULL, _IOLBF, 0);
    while (scanf("%d", &n) == 1) printf("%d\\n", answer(n)); return 0; }
"""
ANSWER = "static int calls; int answer(int n) { return n %s 2 + 100 * ++calls; }"


def test_objects_and_archive_members_reload_in_a_program_without_executable(
    project: Path,
) -> None:
    compile_to(project, "main.c", MAIN)
    compile_to(project, "answer.c", ANSWER % "+")
    archive(project, "all.a", "answer.o")
    process = subprocess.Popen(
        [*CLI, "run", "main.o", "all.a"], cwd=project, text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    with process:
        assert process.stdin
        assert process.stdout

        def ask() -> int:
            assert process.stdin
            assert process.stdout
            process.stdin.write("10\n")
            process.stdin.flush()
            return int(process.stdout.readline())

        assert ask() == 112
        compile_to(project, "answer.c", ANSWER % "*")
        archive(project, "new.a", "answer.o")
        (project / "new.a").rename(project / "all.a")
        waited = [*CLI, "wait", "--generation", "2", "--timeout", "20"]
        subprocess.run(waited, cwd=project, check=True, capture_output=True)
        assert ask() == 220  # new code, and `calls` went on
        process.stdin.close()
        assert process.wait(20) == 0


def test_words_before_the_dashes_are_inputs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    compile_to(tmp_path, "main.c", "int main(void) { return 0; }")
    archive(tmp_path, "all.a", "main.o")
    command = host_command(["main.o", "all.a", "-lm", "-Llib", "--", "-l", "x.o"])
    assert command is not None
    here = str(tmp_path)
    assert command.words == (f"{here}/main.o", f"{here}/all.a", "-lm", f"-L{here}/lib")
    assert command.watch == (f"{here}/main.o", f"{here}/all.a")
    assert command.argv == ("main.o", "-l", "x.o")
    assert host_command(["/bin/true", "main.o"]) is None
    assert host_command(["none.o"]) is None
