"""A small real program, compiled from texts, running, with a session attached to it.

The program answers a line on stdin with a line on stdout, so that a test sees behaviour without
waiting for anything.
"""

import subprocess
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path

from reloader.session.outcome import Outcome
from reloader.session.session import Session
from tests.support.talk import Talking

MAIN = """
#include <stdio.h>
#include <stdlib.h>
int answer(int);
int main(void)
{
    char line[64];
    setvbuf(stdout, NULL, _IOLBF, 0);
    puts("ready");
    while (fgets(line, sizeof line, stdin))
        printf("%d\\n", answer(atoi(line)));
    return 0;
}
"""
# its answer tells which version ran, and how often it was called
PARTS = """
static int count;
__attribute__((noipa)) int first(int n) { return n + %d; }
int answer(int n) { count++; return first(n) * 100 + count; }
"""


class Program(Talking):
    """Sources, objects and an executable in a folder, and at most one process of it."""

    def __init__(
        self,
        folder: Path,
        flags: Sequence[str] = ("-O2",),
        link_flags: Sequence[str] = (),
        cc: str = "gcc",
    ) -> None:
        self.folder = folder
        self.flags = list(flags)
        self.link_flags = list(link_flags)
        self.cc = cc
        self.executable = folder / "program"

    def compile(self, **texts: str) -> list[Path]:
        """Write NAME.c for each text and compile it to NAME.o."""
        objects: list[Path] = []
        for name, text in texts.items():
            source, obj = self.folder / f"{name}.c", self.folder / f"{name}.o"
            source.write_text(text)
            command = [self.cc, *self.flags, "-c", source.name, "-o", f"{name}.tmp"]
            subprocess.run(command, cwd=self.folder, check=True)
            (self.folder / f"{name}.tmp").rename(obj)
            objects.append(obj)
        return objects

    def link(self, *inputs: str) -> Path:
        """Link inputs (all objects if none are named) to the executable."""
        names = inputs or tuple(sorted(path.name for path in self.folder.glob("*.o")))
        command = [self.cc, *self.link_flags, *names, "-o", "program", "-pthread"]
        subprocess.run(command, cwd=self.folder, check=True)
        return self.executable

    def start(self, *arguments: str) -> int:
        """Start the program; return its pid once it has said `ready`."""
        self.process = subprocess.Popen(
            [str(self.executable), *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=self.folder,
        )
        assert self.line() == "ready"
        return self.process.pid

    def ask(self, number: int = 0) -> int:
        """Send a number, return the answer."""
        self.say(str(number))
        return int(self.line())


@contextmanager
def counting(folder: Path) -> Generator[Program]:
    """Build and start a program of `PARTS`; it has to end well with the block."""
    program = Program(folder, ["-O2", "-falign-functions=16"])
    program.compile(main=MAIN, parts=PARTS % 1)
    program.link()
    program.start()
    yield program
    assert program.stop() == 0


@contextmanager
def attached(program: Program, watch: str = "*.o") -> Generator[Session]:
    """Attach a session to the running program, its state in the program's folder."""
    assert program.process is not None
    session = Session.attach(
        program.process.pid, root=program.folder, watch=[str(program.folder / watch)]
    )
    try:
        yield session
    finally:
        session.close()


def reload(session: Session, *objects: Path, reinit: Sequence[str] = ()) -> Outcome:
    """Reload objects and return what came of it, refusals included."""
    return session.reload_files([str(path) for path in objects], reinit=frozenset(reinit))
