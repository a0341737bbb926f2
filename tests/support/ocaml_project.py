"""An OCaml program under the real command: run, edit, compile one unit, ask what came of it."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from reloader.session.session import Session
from tests.support.ocaml import DUNE_TARGETS, PROGRAMS, ROOT, Build, Compiler, build, dune_build

RELOADER = [sys.executable, "-m", "reloader"]


class Project:
    """A folder with a built program, and the command to use on it."""

    def __init__(self, program: Build) -> None:
        self.program = program
        self.folder = program.folder
        self.environment = {
            **os.environ,
            "PATH": program.compiler.environment["PATH"],
            "PYTHONPATH": str(ROOT),
        }
        self.attempts = 0

    def run(self, *arguments: str, options: Sequence[str] = ()) -> None:
        """Start the program under the daemon."""
        command = [*RELOADER, "run", *options, "--"]
        self.program.start(
            *arguments, command=command, environment=self.environment, stderr=subprocess.PIPE
        )

    def attach(self, *arguments: str) -> None:
        """Start the program alone, then attach to it."""
        self.verb("attach", str(self.program.start(*arguments)))

    def report(self, text: str) -> str:
        """Wait for a line of the daemon that holds a text; return the lines up to it."""
        assert self.program.process is not None
        assert self.program.process.stderr is not None
        lines: list[str] = []
        for line in self.program.process.stderr:
            lines.append(line)
            if text in line:
                return "".join(lines)
        message = f"{text!r} was not said: {lines}"
        raise AssertionError(message)

    def verb(self, *words: str, status: int = 0) -> str:
        """Run a verb; return what it wrote."""
        done = self._verb(*words)
        assert done.returncode == status, done.stderr + done.stdout
        return done.stdout + done.stderr

    def json(self, *words: str) -> Any:  # noqa: ANN401 - whatever the verb answers
        """Run a verb; return its answer."""
        return json.loads(self.verb(*words, "--json"))

    def settled(self) -> dict[str, Any]:
        """Wait for the attempt that the latest saves lead to."""
        self.attempts += 1
        words = ("wait", "--generation", str(self.attempts), "--timeout", "20", "--json")
        return json.loads(self._verb(*words).stdout)

    def save(self, name: str, old: str, new: str) -> dict[str, Any]:
        """Edit a source, compile it alone, and wait for what comes of it."""
        self.program.edit(name, old, new)
        return self.settled()

    def refusal(self, name: str, old: str, new: str) -> str:
        """Edit and compile a source whose object must be refused; return the text."""
        row = self.save(name, old, new)
        assert row["outcome"] == "refused", row
        text = str(row["error"])
        assert "Nothing was changed" in text
        return text

    def close(self) -> None:
        """End the daemon, if it has not ended with its program."""
        self._verb("stop")

    def _verb(self, *words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*RELOADER, *words],
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
        )


@contextmanager
def server_of(compiler: Compiler, folder: Path) -> Generator[Project]:
    """Build the server with dune, and run it so that a save builds and reloads."""
    shutil.copytree(PROGRAMS / "server", folder, dirs_exist_ok=True)
    executable = dune_build(compiler, folder).relative_to(folder)
    program = Build(compiler, folder, name=str(executable))
    made = Project(program)
    build_command = f"{compiler.bin / 'dune'} build {' '.join(DUNE_TARGETS)}"
    objects = str(executable.parent / ".main.eobjs" / "native" / "*.o")
    try:
        made.run(options=["--build", build_command, "--source", "*.ml", "--watch", objects])
        yield made
    finally:
        program.end()
        made.close()


@contextmanager
def project_of(
    compiler: Compiler,
    folder: Path,
    sources: Mapping[str, str] | str,
    *,
    opaque: bool = True,
) -> Generator[Project]:
    """Build a program as `build` does; end it and its daemon with the block."""
    made = Project(build(compiler, folder, sources, opaque=opaque))
    try:
        yield made
    finally:
        made.program.stop()
        made.close()


@contextmanager
def session_of(program: Build, ocaml: str = "", watch: str = "*.o") -> Generator[Session]:
    """Attach to a running program, with the settings of its compiler and some more."""
    assert program.process is not None
    command = " ".join(program.compiler.command)
    (program.folder / "reloader.toml").write_text(f'[ocaml]\ncompiler = "{command}"\n{ocaml}')
    session = Session.attach(
        program.process.pid, root=program.folder, watch=[str(program.folder / watch)]
    )
    try:
        yield session
    finally:
        session.close()
