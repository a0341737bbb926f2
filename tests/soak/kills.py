"""The daemon is killed at random instants; the next one's books must be what the process is.

The daemons are forked from here, so that one costs no start of Python. Each attaches, which
settles what the one before left, waits until the independent checker has looked at process and
books, then reloads, rolls back and retires in a loop until it is killed. Every fourth is killed
while it attaches.
"""

import gc
import os
import random
import signal
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from reloader.session.session import Session
from tests.soak.program import PARTS, Loaded
from tests.support.checker import check

_A_PROGRAM: Final = 25  # kills for which one lives: its first redirects are hit too
_LONGEST_S: Final = 0.06  # from the first reload to the kill
_ATTACH_S: Final = 0.25
_COPIES: Final = 6  # versions of each object


@dataclass(slots=True)
class Report:
    """What came of it."""

    kills: int = 0
    in_the_middle: int = 0  # left a transaction for the next daemon to settle
    programs: int = 0
    problems: list[str] = field(default_factory=list[str])


def daemon(
    program: Loaded,
    project: Path,
    copies: list[tuple[str, bytes]],
    pipes: tuple[int, int],
    seed: int,
) -> None:
    """Be a daemon, until killed."""
    chance = random.Random(seed)  # noqa: S311 - to be repeatable is what it is for
    tell, told = pipes
    assert program.process is not None
    session = Session.attach(program.process.pid, project, [str(program.folder / "*.o")])
    notes = " ".join(session.notes).encode()
    os.write(tell, len(notes).to_bytes(4, "little") + notes)
    if not os.read(told, 1):
        return
    while True:
        picked = chance.sample(copies, chance.randint(1, 3))
        session.reload_contents(list(dict(picked).items()), time.monotonic())
        if chance.random() < 0.2:
            session.rollback(None)
        if chance.random() < 0.4:
            session.retiring.attempt()


class Killer:
    """Programs and daemons, one after the other, by one seed."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder = folder
        self.random = random.Random(seed)  # noqa: S311 - to be repeatable
        self.report = Report()
        gc.freeze()

    def run(self, kills: int) -> Report:
        """Kill so many daemons."""
        while self.report.kills < kills and not self.report.problems:
            folder = Path(tempfile.mkdtemp(dir=self.folder))
            program = Loaded(folder, self.random)
            copies = self.copies(program)
            program.start()
            self.report.programs += 1
            try:
                for _ in range(min(_A_PROGRAM, kills - self.report.kills)):
                    self.kill_one(program, copies)
                self.look(program, copies)
            finally:
                status = program.stop()
            if status:
                self.report.problems.append(f"the program ended with {status}")
        return self.report

    def copies(self, program: Loaded) -> list[tuple[str, bytes]]:
        """Return versions of the objects; the first ones stay in their places."""
        made: list[tuple[str, bytes]] = []
        for which in range(PARTS):
            path = program.folder / f"part{which}.o"
            first = path.read_bytes()
            versions = (program.edit(which, n).read_bytes() for n in range(1, _COPIES + 1))
            made += [(str(path), content) for content in versions]
            path.write_bytes(first)
        return made

    def kill_one(self, program: Loaded, copies: list[tuple[str, bytes]]) -> None:
        """Start a daemon and kill it at some instant."""
        in_attach = self.random.random() < 0.25
        pid, hear, say = self.start(program, copies)
        if in_attach:
            time.sleep(self.random.uniform(0, _ATTACH_S))
        else:
            self.inspect(program, hear)
            os.write(say, b"g")
            time.sleep(self.random.uniform(0, _LONGEST_S))
        self.end(pid, hear, say)
        self.report.kills += 1
        if not program.is_well():
            self.report.problems.append(f"kill {self.report.kills}: the program has ended")

    def look(self, program: Loaded, copies: list[tuple[str, bytes]]) -> None:
        """Let one more daemon settle, and check."""
        pid, hear, say = self.start(program, copies)
        self.inspect(program, hear)
        self.end(pid, hear, say)

    def inspect(self, program: Loaded, hear: int) -> None:
        """Wait until a daemon has attached, and check."""
        size = int.from_bytes(os.read(hear, 4), "little")
        said = os.read(hear, size) if size else b""
        self.report.in_the_middle += b"daemon ended" in said
        assert program.process is not None
        for which in range(PARTS):
            program.live(which)
        found = check(program.process.pid, program.folder)
        place = f"kill {self.report.kills}, {program.folder}"
        self.report.problems += [f"{place}: {text}" for text in found]

    def start(self, program: Loaded, copies: list[tuple[str, bytes]]) -> tuple[int, int, int]:
        """Fork a daemon; return its pid and our ends of its pipes."""
        hear, tell = os.pipe()
        told, say = os.pipe()
        seed = self.random.getrandbits(32)
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                os.close(hear)
                os.close(say)
                daemon(program, program.folder, copies, (tell, told), seed)
                status = 0
            except BaseException:  # noqa: BLE001 - a forked process must not go on above
                import traceback  # noqa: PLC0415

                (program.folder / "daemon.out").write_text(traceback.format_exc())
            finally:
                os._exit(status)
        os.close(tell)
        os.close(told)
        return pid, hear, say

    def end(self, pid: int, hear: int, say: int) -> None:
        """Kill a daemon; one that had ended by itself is a problem."""
        os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
        os.close(hear)
        os.close(say)
        if not os.WIFSIGNALED(status):
            self.report.problems.append(f"a daemon ended by itself: {status}")
