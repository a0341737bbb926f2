"""A program under the daemon, on screen: what it says, what is saved, what is asked.

Every claim that is printed is checked; the first that does not hold raises `DemoError`.
"""

import difflib
import json
import queue
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
RELOADER = [sys.executable, "-m", "reloader"]
PATIENCE = 30.0  # seconds that anything may take on a busy machine


class DemoError(Exception):
    """Something that was promised did not happen."""


class Show:
    """The program under the daemon, and what it says."""

    def __init__(self, folder: Path, edits: Path, source: str) -> None:
        """Build the program and start it with `reloader run`.

        Args:
            folder: Its sources and makefile; the program has the folder's name.
            edits: Where edited sources are.
            source: The glob of the sources, as `--source` takes it.
        """
        self.folder = folder
        self.edits = edits
        self.lines: queue.Queue[str] = queue.Queue()
        self.reports: queue.Queue[str] = queue.Queue()
        subprocess.run(["make", "-s"], cwd=folder, check=True)
        name = f"./{folder.name}"
        command = ["run", "--build", "make -s", "--source", source, "--", name]
        say(f"$ reloader run --build 'make -s' --source '{source}' -- {name}")
        self.child = subprocess.Popen(
            [*RELOADER, *command],
            cwd=folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for stream, lines in (
            (self.child.stdout, self.lines),
            (self.child.stderr, self.reports),
        ):
            threading.Thread(target=pump, args=(stream, lines), daemon=True).start()

    def tick(self, pattern: str) -> re.Match[str]:
        """Wait for a line of the program that matches; print it and return the match."""
        return self._until(self.lines, pattern, "    ")

    def report(self, pattern: str) -> re.Match[str]:
        """Wait for a line of the daemon that matches; print what comes up to it."""
        return self._until(self.reports, pattern, "  ", show_all=True)

    def _until(
        self, lines: "queue.Queue[str]", pattern: str, indent: str, *, show_all: bool = False
    ) -> re.Match[str]:
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                line = lines.get(timeout=max(deadline - time.monotonic(), 0.01))
            except queue.Empty:
                message = f"nothing like {pattern!r} within {PATIENCE:g} s"
                raise DemoError(message) from None
            match = re.search(pattern, line)
            if show_all or match:
                say(indent + line)
            if match:
                return match

    def save(self, edit: str, source: str) -> None:
        """Put an edited source in place, as an editor would, and show what changed."""
        old = (self.folder / source).read_text()
        new = (self.edits / edit).read_text()
        say(f"\nsaved {source}:")
        changes = difflib.unified_diff(old.splitlines(), new.splitlines(), n=0, lineterm="")
        for line in list(changes)[2:]:
            if not line.startswith("@@"):
                say(f"    {line}")
        (self.folder / source).write_text(new)

    def restore(self, edit: str, source: str) -> None:
        """Put an edited source in place without a word."""
        (self.folder / source).write_text((self.edits / edit).read_text())

    def ask(self, *words: str) -> Any:  # noqa: ANN401 - whatever the verb answers
        """Run a verb; show its text, and return its JSON."""
        say(f"\n$ reloader {' '.join(words)}")
        done = subprocess.run(
            [*RELOADER, *words], cwd=self.folder, check=True, capture_output=True, text=True
        )
        for line in done.stdout.rstrip().splitlines():
            say(f"    {line}")
        return self.json(*words)

    def json(self, *words: str) -> Any:  # noqa: ANN401 - whatever the verb answers
        """Return the JSON of a verb."""
        done = subprocess.run(
            [*RELOADER, *words, "--json"], cwd=self.folder, check=True, capture_output=True
        )
        return json.loads(done.stdout)

    def end(self) -> None:
        """End the program as a user would and see that its status is passed on."""
        target = self.json("status")["targets"][0]
        subprocess.run(["kill", "-TERM", str(target["pid"])], check=True)
        self.tick("done after")
        expect("exit status", self.child.wait(PATIENCE), 0)

    def clean_up(self) -> None:
        """Leave nothing running."""
        subprocess.run([*RELOADER, "stop"], cwd=self.folder, check=False, capture_output=True)
        if self.child.poll() is None:
            self.child.kill()
            self.child.wait()


@contextmanager
def playing(program: Path, edits: Path, source: str) -> Generator[Show]:
    """Copy a program to a folder of its own and run it there; on failure show what was said."""
    with tempfile.TemporaryDirectory(prefix="reloader-demo-") as place:
        folder = Path(place) / program.name
        shutil.copytree(program, folder)
        show = Show(folder, edits, source)
        try:
            yield show
        except (DemoError, subprocess.CalledProcessError) as error:
            say(f"\nthe demo failed: {error}")
            while not show.reports.empty():
                say(f"  {show.reports.get()}")
            raise
        finally:
            show.clean_up()


def pump(stream: Any, lines: "queue.Queue[str]") -> None:  # noqa: ANN401 - a text stream
    """Move lines from a pipe to a queue."""
    for line in stream:
        lines.put(line.rstrip("\n"))


def say(text: str) -> None:
    """Print at once, also into a pipe."""
    print(text, flush=True)  # noqa: T201 - a demo talks


def expect(what: str, found: object, wanted: object) -> None:
    """Check a claim."""
    if found != wanted:
        message = f"{what}: {found!r}, expected {wanted!r}"
        raise DemoError(message)
