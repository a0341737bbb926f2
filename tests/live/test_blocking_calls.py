"""No system call of the program may fail because of us, across attach and stops."""

import subprocess

import pytest

from reloader.live.inject import attach
from tests.support.live import compile_program, hear, running, say, until_blocked

pytestmark = pytest.mark.live

EXPECTED = {
    "read": "1 -", "poll": "1 -", "poll_endless": "1 -", "ppoll": "1 -", "select": "1 -",
    "epoll_wait": "1 -", "epoll_endless": "1 -", "epoll_pwait": "1 -", "eventfd": "8 -",
    "timerfd": "8 -", "nanosleep": "0 -", "clock_nanosleep": "0 -", "clock_absolute": "0 -",
    "futex": "0 -", "futex_timed": "0 -", "sem_wait": "0 -", "accept": "0 -",
    "accept_timeout": "0 -", "recv": "1 -", "recv_timeout": "1 -", "recvmsg": "1 -",
    "sigwaitinfo": "12 -", "pause": "-1 EINTR", "sigsuspend": "-1 EINTR", "semop": "0 -",
    "semtimedop": "0 -", "msgrcv": "8 -", "wait4": "0 -", "waitid": "0 -", "flock": "0 -",
    "inotify": "0 -", "open_fifo": "0 -",
}  # fmt: skip


def finish(child: subprocess.Popen[str], count: int) -> dict[str, str]:
    say(child)
    lines = [hear(child) for _ in range(count)]
    assert child.wait(20) == 0
    return dict(line.split(" ", 1) for line in lines)


def test_no_blocking_call_notices_attach_and_stops() -> None:
    with running([compile_program("blocked")]) as child:
        count = int(hear(child).split()[0])
        until_blocked(child.pid, count + 1)
        process = attach(child.pid)
        for _ in range(5):
            with process.stop() as stop:
                assert len(stop.tids) == count + 2  # and the agent's
            process.synchronise()
        process.close()
        assert finish(child, count) == EXPECTED


def test_the_program_itself_expects_the_same_without_us() -> None:
    with running([compile_program("blocked")]) as child:
        count = int(hear(child).split()[0])
        until_blocked(child.pid, count + 1)
        assert finish(child, count) == EXPECTED
