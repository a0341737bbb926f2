"""Units are replaced only while the program is one process.

A unit is known to the runtime of the process that initialised it: a child that was forked
before shares the slots and, soon, the jumps that lead to it, and would crash in it. One that is
forked after has it in its copy of the memory. So children are waited for a moment, since most
only live until they call exec, and what is done at a safe point is refused there if the program
has forked since we looked (`reloader_own` in stubs/agent/agent.h).
"""

import time
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from typing import Final, TypeVar

from reloader.errors.base import ReloaderError
from reloader.errors.ocaml import BusyRuntimeError, ForkedError
from reloader.live.process import Process

PATIENCE_S: Final = 0.5  # for children that are about to call exec, or to end
LOOK_S: Final = 0.002
MOST_TRIES: Final = 50  # of a program that forks all the time
T = TypeVar("T")


def others_of(process: Process) -> list[int]:
    """Return the processes of a program besides the one that stands for all."""
    return [pid for pid in process.pids() if pid != process.pid]


def refuse_children(process: Process, patience_s: float = PATIENCE_S) -> None:
    """Wait until a program is one process.

    Raises:
        ForkedError: It is not in time.
    """
    end = time.monotonic() + patience_s
    while others := others_of(process):
        if time.monotonic() >= end:
            raise ForkedError(process.pid, others)
        time.sleep(LOOK_S)


@contextmanager
def unforked(process: Process, patience_s: float = PATIENCE_S) -> Generator[None]:
    """Let no safe point be used meanwhile before which a child was forked.

    Raises:
        ForkedError: There is a child.
    """
    leader = process.leader
    forks = leader.forks()  # before the look: a child that it misses is counted after this
    refuse_children(process, patience_s)
    leader.want_forks(forks)
    try:
        yield
    finally:
        with suppress(ReloaderError):  # it may have ended
            leader.want_forks(None)


def while_alone(process: Process, work: Callable[[], T]) -> T:
    """Do work at a safe point of a program that is one process there.

    Raises:
        ForkedError: It was not at any try.
        BusyRuntimeError: There was no safe point.
    """
    for _ in range(MOST_TRIES):
        forks = process.leader.forks()
        try:
            with unforked(process):
                return work()
        except BusyRuntimeError:
            if process.leader.forks() == forks:
                raise
    raise ForkedError(process.pid, [])
