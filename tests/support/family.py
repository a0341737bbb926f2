"""A program of several processes, each of which answers at a socket of its own."""

import os
import signal
import socket
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path

from reloader.session.session import Session
from tests.support.live import PROGRAMS, until
from tests.support.road import Program, attached

PART = """
static int total = 40;
int answer(int n) { total += n; return total * 10; }
"""


class Family(Program):
    """The program of tests/live/programs/family.c around an object that changes."""

    def __init__(self, folder: Path, part: str = PART) -> None:
        super().__init__(folder, ["-O2", "-g"], ["-Wl,--no-as-needed", "-lstdc++"])
        self.compile(main=(PROGRAMS / "family.c").read_text(), part=part)
        self.link()
        self.forked: list[int] = []

    def connect(self, index: int, text: str) -> socket.socket:
        """Send a process one line; the answer can be read from what is returned."""
        sock = socket.socket(socket.AF_UNIX)
        sock.connect(str(self.folder / f"p{index}"))
        sock.sendall(text.encode() + b"\n")
        return sock

    def tell(self, index: int, text: str) -> int:
        """Send a process one line and return its answer, a number."""
        with self.connect(index, text) as sock, sock.makefile() as answer:
            return int(answer.readline())

    def at(self, index: int, number: int = 0) -> int:
        """Call the function that changes in one process."""
        return self.tell(index, f"a {number}")

    def fork(self, index: int, parent: int = 0) -> int:
        """Fork a process; return its number."""
        pid = self.tell(parent, f"f {index}")
        self.forked.append(pid)
        return pid

    def go_on_as(self, index: int, parent: int) -> int:
        """Fork a process and end its parent; return its number."""
        pid = self.tell(parent, f"d {index}")
        self.forked.append(pid)
        return pid

    def end(self) -> None:
        """End every process."""
        for pid in self.forked:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if self.process is not None:
            self.process.kill()
        self.stop()


@contextmanager
def family(
    folder: Path, children: int = 0, part: str = PART
) -> Generator[tuple[Family, Session]]:
    """A running program with a session beside it, and some children forked after that."""
    program = Family(folder, part)
    try:
        program.start()
        with attached(program) as session:
            for index in range(1, children + 1):
                program.fork(index)
            yield program, session
    finally:
        program.end()


def is_gone(pid: int) -> bool:
    """Return whether a process has ended, be it that nobody asked for its status."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text("utf-8", "replace")
    except OSError:
        return True
    return text[text.rindex(")") + 2] in "ZX"


def until_gone(pid: int) -> None:
    """Wait for a process's end."""
    until(lambda: is_gone(pid), f"process {pid} has ended")
