"""Two daemons that want one process at the same moment: one gets it, the other is told."""

import fcntl
import os
import sys
from contextlib import ExitStack
from pathlib import Path
from subprocess import Popen

import pytest

from reloader.errors.live import AttachError
from reloader.live.claim import alone_with
from reloader.live.inject import attach
from tests.support.live import compile_program, hear, running, say

pytestmark = pytest.mark.live
ROUNDS = 50

# Beside a process as soon as the other racer is as far: both spin on one shared word.
RACER = """
import mmap, os, sys
from pathlib import Path
sys.path.insert(0, ".")
from reloader.errors.base import ReloaderError
from reloader.session.session import Session
root, me = Path(sys.argv[1]), int(sys.argv[2])
page = memoryview(mmap.mmap(os.open(sys.argv[3], os.O_RDWR), 4096))
print("ready", flush=True)
for turn, line in enumerate(sys.stdin, 1):
    pid = int(line)
    session = None
    page[me] = turn
    while page[1 - me] != turn:
        pass
    try:
        session = Session.attach(pid, root, [])
        print("won", flush=True)
    except ReloaderError as error:
        print(repr(str(error)), flush=True)
    sys.stdin.readline()
    if session:
        session.close()
    print("left", flush=True)
"""


def race(racers: list[Popen[str]], pid: int) -> None:
    for racer in racers:
        say(racer, str(pid))
    said = [hear(racer) for racer in racers]
    assert said.count("won") == 1, said
    winner = racers[said.index("won")]
    assert f"already has a reloader daemon, process {winner.pid}." in "".join(said)
    for racer in racers:
        say(racer)
    assert [hear(racer) for racer in racers] == ["left", "left"]


def test_of_two_daemons_in_the_same_moment_one_wins_and_is_named_to_the_other(
    tmp_path: Path,
) -> None:
    page = tmp_path / "page"
    page.write_bytes(bytes(4096))
    with ExitStack() as stack:
        racers: list[Popen[str]] = []
        for me in range(2):
            root = tmp_path / str(me)
            root.mkdir()
            words = [sys.executable, "-c", RACER, root, str(me), page]
            racers.append(stack.enter_context(running(words)))
        assert [hear(racer) for racer in racers] == ["ready", "ready"]
        for _ in range(ROUNDS // 2):
            with running([compile_program("worker")]) as child:
                hear(child)
                race(racers, child.pid)  # who brings the agent in
                race(racers, child.pid)  # who takes over from a daemon that has ended
                say(child)
                assert hear(child) == "41"


def test_a_daemon_that_does_not_come_to_an_end_with_entering_is_waited_for_in_vain() -> None:
    with running([compile_program("worker")]) as child:
        hear(child)
        other = os.open(f"/proc/{child.pid}/mem", os.O_RDONLY)
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(AttachError) as refused, alone_with(child.pid, 0.01):
            pass
        assert "another reloader daemon has been entering it for 0.01 s" in str(refused.value)
        os.close(other)
        attach(child.pid).close()
