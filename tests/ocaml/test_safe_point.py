"""The moment at which units are replaced: reached in every way of waiting, without a signal."""

import os
import signal
import socket
from pathlib import Path

import pytest

from reloader.errors.live import AgentBusyError
from reloader.errors.ocaml import BusyRuntimeError
from reloader.hosts.caml import runtime
from tests.support.caml_runtime import entered, entered_late, version
from tests.support.ocaml import Build, Compiler, build, compiler_of

pytestmark = pytest.mark.live

FIELDS = (0, 1)  # version, count
SLOW = 'let () = print_string "slow "; Unix.sleepf 0.15; print_endline "initialiser"\n'


@pytest.fixture(scope="module")
def waits(compiler: Compiler, tmp_path_factory: pytest.TempPathFactory) -> Build:
    return build(compiler, tmp_path_factory.mktemp("waits"), "waits", packages=["unix"])


@pytest.fixture(scope="module")
def second(waits: Build) -> Path:
    return version(waits, "part", "  1\n", "  2\n")


@pytest.fixture(scope="module")
def slow(waits: Build) -> Path:
    return version(waits, "part", "  1\n", "  2\n", SLOW)


@pytest.mark.parametrize("way", ["select", "read", "system", "accept"])
def test_a_blocked_program_gets_new_code_and_its_call_does_not_fail(
    waits: Build, second: Path, way: str
) -> None:
    with entered(waits, way) as live:
        port = int(waits.line()) if way == "accept" else 0
        _, done = live.swap(second, FIELDS)
        assert done.by_thread
        if port:
            socket.create_connection(("127.0.0.1", port)).close()
            assert waits.line() == "version 2 1"
        else:
            assert waits.ask("go") == "version 2 1"


@pytest.mark.parametrize("way", ["sleep", "allocating", "compacting", "computing"])
def test_a_busy_program_gets_new_code(waits: Build, second: Path, way: str) -> None:
    with entered(waits, way) as live:
        live.swap(second, FIELDS)
        assert waits.line() == "version 2 2"


@pytest.mark.parametrize("way", ["sleep", "allocating"])
def test_an_initialiser_that_prints_and_sleeps_is_not_disturbed_by_the_program(
    waits: Build, slow: Path, way: str
) -> None:
    with entered(waits, way) as live:
        live.swap(slow, FIELDS)
        assert waits.line() == "slow initialiser"
        assert waits.line() == "version 2 2"


@pytest.mark.parametrize("way", ["allocating", "computing"])
def test_a_busy_program_that_is_entered_late_gets_new_code(
    waits: Build, second: Path, way: str
) -> None:
    with entered_late(waits, way) as live:
        live.swap(second, FIELDS)
        assert waits.line() == "version 2 2"


@pytest.mark.parametrize("way", ["read", "select", "system", "sleep"])
def test_a_blocked_program_that_is_entered_late_gets_new_code_at_once(
    waits: Build, second: Path, way: str
) -> None:
    with entered_late(waits, way) as live:
        _, done = live.swap(second, FIELDS)
        if way == "sleep":
            assert waits.line() == "version 2 2"
        else:
            assert done.by_thread
            assert waits.ask("go") == "version 2 1"


def test_a_c_function_that_keeps_the_runtime_is_not_taken_for_one_that_lets_go(
    waits: Build, second: Path
) -> None:
    with entered_late(waits, "holding") as live:
        live.runtime.limit_ms = 50
        with pytest.raises(BusyRuntimeError):
            live.swap(second, FIELDS)
        assert waits.ask("go") == "version 1 1"


def test_a_c_function_that_keeps_the_runtime_is_waited_for_and_given_up(
    waits: Build, second: Path
) -> None:
    with entered(waits, "holding") as live:
        live.runtime.limit_ms = 50
        with pytest.raises(BusyRuntimeError) as caught:
            live.swap(second, FIELDS)
        assert "the reload waited 50 ms for a point" in str(caught.value)
        assert "Nothing was changed." in str(caught.value)
        assert waits.ask("go") == "version 1 1"  # what was given up never runs
        live.runtime.limit_ms = 10_000
        live.swap(second, FIELDS)


def test_a_program_that_was_stopped_does_not_do_what_nobody_waits_for(
    waits: Build, second: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with entered(waits, "read") as live:
        monkeypatch.setattr(runtime, "_SLACK", 0.0)
        live.runtime.limit_ms = live.runtime.patience_ms = 50
        os.kill(live.process.pid, signal.SIGSTOP)
        with pytest.raises(AgentBusyError):
            live.swap(second, FIELDS)
        os.kill(live.process.pid, signal.SIGCONT)
        assert waits.ask("go") == "version 1 1"


def test_a_swap_that_nobody_waits_for_any_more_is_undone(
    waits: Build, slow: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with entered(waits, "read") as live:
        monkeypatch.setattr(runtime, "_SLACK", 0.0)
        live.runtime.limit_ms, live.runtime.patience_ms = 100, 0  # SLOW takes longer
        with pytest.raises(AgentBusyError):
            live.swap(slow, FIELDS)
        assert waits.line() == "slow initialiser"
        assert waits.ask("go") == "version 1 1"


@pytest.mark.parametrize("way", ["busy", "idle"])
def test_a_program_with_threads_gets_new_code(
    compiler: Compiler, tmp_path: Path, way: str
) -> None:
    program = build(compiler, tmp_path, "threads", packages=["threads.posix"])
    with entered(program, way) as live:
        for number in range(2, 6):
            live.swap(
                version(program, "part", "version () = 1", f"version () = {number}"), (0,)
            )
            assert program.ask("version") == str(number)
            assert program.ask("step") == "1"


def test_no_domain_sees_half_of_a_swap(tmp_path: Path) -> None:
    program = build(compiler_of("5.3"), tmp_path, "domains")
    with entered(program) as live:
        for number in range(2, 8):
            live.swap(version(program, "part", "identity 1", f"identity {number}"), (0, 1, 2))
            assert program.ask(f"reached {number}") == "reached"
        assert program.ask("mixed") == "0"
