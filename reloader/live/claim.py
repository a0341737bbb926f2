"""One daemon at a time: locks of the kernel, which end with whoever holds them.

A process without an agent has no place of ours where a word could be exchanged, and its numbers
may be used again. But its `/proc/PID/mem` is one file for all who may trace it, only they can
open it, and it is this process's for ever: `alone_with` locks that while somebody enters. Whose
a process is after that stands in the arena's header; `alone_in` locks the arena's file while
that is looked at and changed, since any process of a family leads there.
"""

import contextlib
import fcntl
import os
import time
from collections.abc import Generator
from typing import Final

from reloader.errors.live import AttachError

WAIT_SECONDS: Final = 20.0  # as long as a call inside the process may take
LOOK_SECONDS: Final = 1e-3


def _lock(fd: int, limit: float) -> bool:
    end = time.monotonic() + limit
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > end:
                return False
            time.sleep(LOOK_SECONDS)
        else:
            return True


@contextlib.contextmanager
def alone_with(pid: int, limit: float = WAIT_SECONDS) -> Generator[None]:
    """Be the only one that enters a process, after whoever does so now.

    Who may not open its memory is let through: it cannot enter, and is told why elsewhere.

    Raises:
        AttachError: Another one has been entering it all the time.
    """
    try:
        fd = os.open(f"/proc/{pid}/mem", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        yield
        return
    try:
        if not _lock(fd, limit):
            text = f"another reloader daemon has been entering it for {limit:g} s"
            raise AttachError(pid, [f"{text}. Wait until it has finished, or end it"])
        yield
    finally:
        os.close(fd)


@contextlib.contextmanager
def alone_in(arena: int) -> Generator[None]:
    """Be the only one that looks at whose an arena is; nobody does that for long.

    Args:
        arena: A descriptor of its file. It is opened anew: the holder keeps a duplicate, and
            with it would keep the lock of a daemon that was killed here.
    """
    fd = os.open(f"/proc/self/fd/{arena}", os.O_RDWR | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)
