"""Getting in: preloaded and injected, what is left behind, a daemon that dies halfway."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from reloader.errors.live import (
    AlreadyAttachedError,
    AttachError,
    HelloError,
    TargetGoneError,
    TargetMemoryError,
)
from reloader.ids import Addr, Region
from reloader.live import ptrace
from reloader.live.inject import adopt, attach
from reloader.live.maps import ARENA_NAME
from reloader.live.process import Process, reattach, start_time
from reloader.live.threads import list_threads
from stubs import layout
from tests.support.live import (
    compile_program,
    hear,
    prepare_spawn,
    running,
    say,
    until,
    until_blocked,
)

pytestmark = pytest.mark.live
PIE, FIXED = ("-pie", "-fPIE"), ("-no-pie", "-fno-pie")


def descriptors(pid: int) -> list[str]:
    return sorted(str(path.readlink()) for path in Path(f"/proc/{pid}/fd").iterdir())


def assert_works(process: Process) -> None:
    getpid, nothing, versioned = process.resolve([b"getpid", b"no_such", b"memcpy@GLIBC_2.2.5"])
    assert process.call(int(getpid)) == process.pid
    assert nothing == 0
    assert versioned
    process.synchronise()
    with process.stop() as stop:
        assert process.pid in stop.tids


@pytest.mark.parametrize("flags", [PIE, FIXED], ids=["pie", "fixed"])
def test_arena_is_within_reach_of_the_whole_executable(flags: tuple[str, ...]) -> None:
    with running([compile_program("worker", *flags)]) as child:
        hear(child)
        process = attach(child.pid)
        start, end = process.arena.span()
        low = process.channel.field("exe_start")
        high = process.channel.field("exe_end")
        assert max(high, end) - min(low, start) < 2**31 - (1 << 20)
        if flags == FIXED:
            assert end <= 2**31
        rows = [m for m in process.maps() if m.name == ARENA_NAME]
        assert [m.protection for m in rows] == ["rw-s", "r--s", "r-xp", "r--p", "rw-p"]
        process.close()


def test_attach_leaves_no_descriptor_and_a_second_thread_only() -> None:
    with running([compile_program("worker")]) as child:
        hear(child)
        before, counted = descriptors(child.pid), len(list_threads(child.pid))
        process = attach(child.pid)
        assert descriptors(child.pid) == before
        assert len(list_threads(child.pid)) == counted + 1
        assert_works(process)
        say(child)
        assert hear(child) == "41"
        process.close()


def test_attach_to_threads_that_spin_and_allocate() -> None:
    with running([compile_program("worker"), "4", "4"]) as child:
        hear(child)
        process = attach(child.pid)
        assert_works(process)
        say(child, "fork")
        assert hear(child) == "7"
        process.close()


def test_written_arena_bytes_are_what_the_target_sees() -> None:
    with running([compile_program("worker")]) as child:
        hear(child)
        process = attach(child.pid)
        for region in (Region.CODE, Region.RODATA, Region.DATA):
            held = process.arena.allocate(region, 4096)
            process.arena.view(held.addr, 4)[:] = np.frombuffer(b"abcd", np.uint8)
            assert process.read(held.addr, 4).tobytes() == b"abcd"
            if region == Region.DATA:
                process.write_data(held.addr, b"wxyz")
                assert process.read(held.addr, 4).tobytes() == b"wxyz"
                assert process.arena.view(held.addr, 4).tobytes() == b"abcd"
                process.discard([held])
                assert process.read(held.addr, 4).tobytes() == b"abcd"
        process.close()


def test_stopped_write_reaches_code_and_a_breakpoint_stays_private() -> None:
    with running([compile_program("worker")]) as child:
        spin = Addr(int(hear(child).split()[2], 16))
        process = attach(child.pid)
        held = process.arena.allocate(Region.CODE, 4096)
        old = process.read(spin, 4).tobytes()
        with process.stop() as stop:
            stop.write(spin, old)
            stop.write(held.addr, b"\xcc\x90")
        assert process.read(held.addr, 2).tobytes() == b"\xcc\x90"
        assert process.arena.view(held.addr, 2).tobytes() == b"\xcc\xcc"
        with pytest.raises(TargetMemoryError, match="cannot read 8 bytes at 0x10"):
            process.read(0x10, 8)
        process.close()


def test_program_counter_inside_a_signal_handlers_frame_is_found() -> None:
    with running([compile_program("worker")]) as child:
        spin = int(hear(child).split()[2], 16)
        process = attach(child.pid)
        say(child, "signal")
        assert hear(child) == "in handler"
        with process.stop() as stop:
            hidden = stop.program_counters()
            visible = stop.registers[:, ptrace.R_RIP]
        near = hidden[(hidden >= spin) & (hidden < spin + 200)]
        assert len(near) == 1
        assert near[0] not in visible
        process.close()


def spawned(
    argv: list[str], env: dict[str, str], program: str = ""
) -> tuple[subprocess.Popen[str], socket.socket]:
    words, full, child_fd, daemon_fd = prepare_spawn(argv, env, program)
    child = subprocess.Popen(
        words,
        env=full,
        pass_fds=[child_fd],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    os.close(child_fd)
    return child, socket.socket(fileno=daemon_fd)


def end(child: subprocess.Popen[str]) -> None:
    assert child.stdin is not None
    assert child.stdout is not None
    child.stdin.close()
    child.kill()
    child.wait()
    child.stdout.close()


def plain_environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}


def test_spawned_program_waits_for_release_and_shows_nothing_of_ours() -> None:
    child, sock = spawned([str(compile_program("worker"))], plain_environment())
    try:
        adopted = adopt(child.pid, sock)
        assert_works(adopted.process)  # before main
        adopted.release()
        assert hear(child).startswith("ready")
        say(child, "env")
        assert hear(child) == "0 -"
        assert [
            name for name in descriptors(child.pid) if "memfd" in name or "socket" in name
        ] == []
        adopted.process.close()
    finally:
        end(child)


def test_the_users_own_preload_is_restored_exactly() -> None:
    own = "/lib/x86_64-linux-gnu/libm.so.6 /lib/x86_64-linux-gnu/libdl.so.2"
    child, sock = spawned(
        [str(compile_program("worker"))], {**plain_environment(), "LD_PRELOAD": own}
    )
    try:
        adopted = adopt(child.pid, sock)
        adopted.release()
        hear(child)
        say(child, "env")
        assert hear(child) == f"1 {own}"
        adopted.process.close()
    finally:
        end(child)


def test_under_a_wrapper_the_named_program_is_the_target() -> None:
    path = compile_program("worker")
    child, sock = spawned(["sh", "-c", f"'{path}'; exit 9"], plain_environment(), path.name)
    try:
        adopted = adopt(child.pid, sock)
        assert adopted.process.pid != child.pid
        assert Path(f"/proc/{adopted.process.pid}/exe").readlink() == path
        adopted.release()
        assert hear(child).startswith("ready")
        adopted.process.close()
        assert child.stdin is not None
        child.stdin.close()
        assert child.wait(10) == 9
    finally:
        end(child)


def test_program_starts_without_us_when_the_daemon_is_gone() -> None:
    child, sock = spawned([str(compile_program("worker"))], plain_environment())
    sock.close()
    try:
        assert hear(child).startswith("ready")
    finally:
        end(child)


def test_program_that_never_reports_is_said_so() -> None:
    child, sock = spawned(["true"], plain_environment(), "another")
    try:
        with pytest.raises(HelloError, match="it ended, or ran on without the agent"):
            adopt(child.pid, sock)
        sock.close()
    finally:
        end(child)


def test_two_daemons_on_one_process_are_refused_and_a_later_one_takes_over() -> None:
    with running([compile_program("worker")]) as child:
        hear(child)
        process = attach(child.pid)
        held = process.arena.allocate(Region.DATA, 4096)
        process.arena.view(held.addr, 4)[:] = 5
        process.channel.set_field("daemon_pid", 1)
        process.channel.set_field("daemon_start", start_time(1))
        with pytest.raises(
            AlreadyAttachedError, match="already has a reloader daemon, process 1"
        ):
            reattach(child.pid)
        process.channel.set_field("daemon_start", 1)  # pid 1 is now somebody else
        later = reattach(child.pid)
        assert later.arena.view(held.addr, 4).tolist() == [5] * 4
        assert_works(later)
        later.close()
        os.close(process.memfd)


def test_holder_ends_with_the_target() -> None:
    with running([compile_program("worker")]) as child:
        hear(child)
        process = attach(child.pid)
        holder = process.channel.field("holder_pid")
        assert Path(f"/proc/{holder}/fd/{layout.HOLDER_FD}").exists()
        pidfd = os.pidfd_open(holder)
    os.waitid(os.P_PIDFD, pidfd, os.WEXITED)
    os.close(pidfd)
    with pytest.raises(TargetGoneError):
        process.resolve([b"malloc"])
    process.close()


def test_traced_process_is_refused_and_the_tracer_named() -> None:
    with running([compile_program("worker")]) as child:
        hear(child)
        code = (
            "import sys; sys.path.insert(0, '.');"
            "from reloader.live.threads import Tracee;"
            f"t = Tracee({child.pid}, {child.pid}); print('traced', flush=True); input()"
        )
        with running([sys.executable, "-c", code]) as tracer:
            assert hear(tracer) == "traced"
            with pytest.raises(AttachError) as refused:
                attach(child.pid)
            name = Path(f"/proc/{tracer.pid}/comm").read_text().strip()
            assert f"already traced by {name} (process {tracer.pid})" in str(refused.value)
        say(child)
        assert hear(child) == "41"


KILLED = """
import os, signal, sys
sys.path.insert(0, ".")
from reloader.live import inject, ptrace
left = int(sys.argv[2])
real = ptrace.ptrace
def counted(request, *rest):
    global left
    if request == ptrace.PTRACE_SYSCALL:
        left -= 1
        if left < 0:
            os.kill(os.getpid(), signal.SIGKILL)
    return real(request, *rest)
ptrace.ptrace = counted
inject.attach(int(sys.argv[1])).close()
"""


@pytest.mark.parametrize(
    "step", [1, 2, 3, 4, 5, 6, 9, 20, 60, 61, 62, 70, 100, 130, 131, 133, 135]
)
def test_program_survives_a_daemon_killed_inside_the_injection(step: int) -> None:
    with running([compile_program("worker")]) as child:
        hear(child)
        until_blocked(child.pid, 1)
        helper = subprocess.run(
            [sys.executable, "-c", KILLED, str(child.pid), str(step)], check=False
        )
        assert helper.returncode in {0, -signal.SIGKILL}
        say(child)
        assert hear(child) == "41"
        say(child, "fork")
        assert hear(child) == "7"
        until(lambda: not tracer_of(child.pid), "the tracer is gone")
        process = attach(child.pid)
        assert_works(process)
        process.close()
        assert not [name for name in descriptors(child.pid) if "memfd:reloader " in name]


def tracer_of(pid: int) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("TracerPid"))


def test_process_stopped_by_job_control_stays_stopped() -> None:
    with running([compile_program("worker")]) as child:
        hear(child)
        process = attach(child.pid)
        os.kill(child.pid, signal.SIGSTOP)
        os.waitid(os.P_PID, child.pid, os.WSTOPPED)
        with process.stop():
            pass
        until(lambda: Path(f"/proc/{child.pid}/stat").read_text().split()[2] == "T", "stopped")
        os.kill(child.pid, signal.SIGCONT)
        say(child)
        assert hear(child) == "41"
        process.close()
