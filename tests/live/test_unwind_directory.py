"""Unwinders find the tables of code in the arena: nothing is registered, the agent answers."""

import os
import socket
from collections.abc import Callable, Sequence

import numpy as np
import pytest

from reloader.ids import Region
from reloader.live.inject import adopt, attach
from reloader.live.process import Process
from stubs import layout
from tests.support.live import PROGRAMS, compile_text, hear, prepare_spawn, running, say

pytestmark = pytest.mark.live

ASKS = (PROGRAMS / "asks.c").read_text()
THROWS = (PROGRAMS / "throws.cc").read_text()


def publish(process: Process, rows: Sequence[tuple[int, int, int]]) -> None:
    words = np.array([len(rows), *(word for row in rows for word in row)], np.uint64)
    held = process.arena.allocate(Region.RODATA, words.nbytes)
    process.arena.view(held.addr, words.nbytes)[:] = words.view(np.uint8)
    process.arena.slots[layout.SLOT_UNWIND] = np.uint64(held.addr)


@pytest.mark.parametrize("linking", ["-Wl,-z,lazy", "-Wl,-z,now"])
def test_injected_agent_answers_for_the_arena_only(linking: str) -> None:
    with running([compile_text(ASKS, "asks", linking)]) as child:
        ask, covered = (int(word, 16) for word in hear(child).split())
        process = attach(child.pid)
        call: Callable[..., int] = process.call
        code = process.arena.allocate(Region.CODE, 8192).addr
        assert call(ask, code) == 0
        rows = [(code, code + 64, 0x1111), (code + 64, code + 96, 0x2222)]
        publish(process, rows)
        answers = [call(ask, code + at) for at in (0, 63, 64, 95, 96, 5000)]
        assert answers == [0x1111, 0x1111, 0x2222, 0x2222, 0, 0]
        assert call(ask, ask) not in {0, 0x1111, 0x2222}
        assert [call(covered, code + at) for at in (0, 95, 96)] == [1, 1, 0]
        assert call(covered, ask) == 1
        process.arena.slots[layout.SLOT_UNWIND] = np.uint64(0)
        assert call(ask, code) == 0
        process.close()


@pytest.mark.parametrize("flags", [(), ("-static-libgcc",)])
def test_throws_of_the_program_itself_are_caught_as_before(flags: tuple[str, ...]) -> None:
    path = compile_text(THROWS, "throws", *flags, "-lstdc++")
    with running([path]) as child:
        assert hear(child) == "ready"
        process = attach(child.pid)
        for number in range(3):
            say(child)
            assert hear(child) == f"caught {number}"
        process.close()


def test_throws_are_caught_under_a_preloaded_agent() -> None:
    path = compile_text(THROWS, "throws", "-lstdc++")
    argv, env, child_fd, daemon_fd = prepare_spawn([str(path)], os.environ)
    with running(argv, env=env, pass_fds=[child_fd]) as child:
        os.close(child_fd)
        adopted = adopt(child.pid, socket.socket(fileno=daemon_fd))
        adopted.release()
        assert hear(child) == "ready"
        say(child)
        assert hear(child) == "caught 0"
        adopted.process.close()
