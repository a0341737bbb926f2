"""The OCaml programs that other tests reload work by themselves, on both compilers."""

import re
import shutil
import socket
import subprocess
from pathlib import Path

import pytest

from tests.support.http_load import Load
from tests.support.ocaml import (
    PROGRAMS,
    CompileError,
    Compiler,
    build,
    compiler_of,
    dune_build,
)


def test_the_counter_answers_and_keeps_state(compiler: Compiler, tmp_path: Path) -> None:
    program = build(compiler, tmp_path, "counter")
    pid = program.start()
    assert Path(f"/proc/{pid}/exe").resolve() == program.executable
    asked = ["bump 2", "alias 3", "table 1", "partial 1", "functor 1", "include 1", "packed 4"]
    answers = [program.ask(text) for text in asked]
    assert answers == ["2", "5", "6", "6", "15", "1009", "1013"]
    asked = ["seen a", "seen a", "same", "guarded 7", "guarded 101", "name", "total"]
    answers = [program.ask(text) for text in asked]
    assert answers == ["1", "2", "true", "7", "limit 101", "first", "1013"]
    assert program.stop() == 0


def test_one_unit_compiles_again_and_a_typing_error_deletes_its_object(
    compiler: Compiler, tmp_path: Path
) -> None:
    program = build(compiler, tmp_path, "counter")
    before = (tmp_path / "counter.o").read_bytes()
    others = (tmp_path / "main.o").stat().st_mtime_ns
    again = program.edit("counter.ml", '"first"', '"second"')
    assert again.read_bytes() != before
    assert (tmp_path / "main.o").stat().st_mtime_ns == others
    with pytest.raises(CompileError, match=r"Unbound value .?totl"):
        program.edit("counter.ml", "  !total\n", "  !totl\n")
    assert not again.exists()
    assert program.edit("counter.ml", "  !totl\n", "  !total\n").exists()


@pytest.mark.parametrize("way", ["select", "read", "system"])
def test_a_program_that_waits_for_a_line_goes_on_when_one_comes(
    compiler: Compiler, tmp_path: Path, way: str
) -> None:
    program = build(compiler, tmp_path, "waits")
    program.start(way)
    assert program.ask("go") == "version 1 1"
    assert program.stop() == 0


def test_a_program_that_waits_for_a_connection_or_in_c_goes_on(
    compiler: Compiler, tmp_path: Path
) -> None:
    program = build(compiler, tmp_path, "waits")
    program.start("accept")
    socket.create_connection(("127.0.0.1", int(program.line()))).close()
    assert program.line() == "version 1 1"
    assert program.stop() == 0
    program.start("holding")
    assert program.ask("go") == "version 1 1"
    assert program.stop() == 0


@pytest.mark.parametrize("way", ["busy", "idle"])
def test_threads_run_beside_the_one_that_answers(
    compiler: Compiler, tmp_path: Path, way: str
) -> None:
    program = build(compiler, tmp_path, "threads")
    pid = program.start(way)
    assert len(list(Path(f"/proc/{pid}/task").iterdir())) >= 3
    assert [program.ask("step"), program.ask("steps")] == ["1", "true"]
    assert program.stop() == 0


def test_busy_domains_and_suspended_fibers_answer(tmp_path: Path) -> None:
    (tmp_path / "domains").mkdir()
    program = build(compiler_of("5.3"), tmp_path / "domains", "domains")
    program.start()
    assert [program.ask("reached 1"), program.ask("mixed")] == ["reached", "0"]
    assert program.stop() == 0
    (tmp_path / "effects").mkdir()
    program = build(compiler_of("5.3"), tmp_path / "effects", "effects")
    program.start()
    asked = ["start a", "step", "start b", "step", "step", "step"]
    answers = [program.ask(text) for text in asked]
    assert answers == ["1", "", "2", "", "old a 6", "old b 6"]
    assert program.stop() == 0


def test_every_kind_of_unit_is_in_one_program(compiler: Compiler, tmp_path: Path) -> None:
    program = build(compiler, tmp_path, "kinds")
    program.start()
    expected = {
        "old-object": "round of 1 12 1",
        "new-object 3": "new of 1 27",
        "words": "fig pear apple",
        "best": "4",
        "eval 4": "5",
        "plug double 4": "8",
        "lazy": "5050",
        "large 4499": "4501",
        "greet you": "hello you",
        "both 9": "21",
    }
    assert {text: program.ask(text) for text in expected} == expected
    assert program.stop() == 0


@pytest.mark.parametrize("builder", ["dune", "ocamlfind"])
def test_the_server_remembers_its_visitors(
    compiler: Compiler, tmp_path: Path, builder: str
) -> None:
    if builder == "dune":
        shutil.copytree(PROGRAMS / "server", tmp_path, dirs_exist_ok=True)
        executable = dune_build(compiler, tmp_path)
    else:
        executable = build(compiler, tmp_path, "server").executable
    with subprocess.Popen([executable], stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        found = re.fullmatch(r"listening (\d+)\n", server.stdout.readline())
        assert found is not None
        with Load(int(found.group(1))) as load:
            load.until("home, version one", 100)
            load.until("stats", 50)
            result = load.stop()
        server.terminate()
        assert server.wait(10) == 0
    assert result.failures == []
    assert set(result.titles) == {"home, version one", "stats"}
