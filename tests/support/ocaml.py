"""OCaml programs for tests: two compilers, separate compilation as by a makefile, one process.

The programs answer a line on stdin with a line on stdout, after `ready`. Both compilers see
every folder, so that a build may happen anywhere.
"""

import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Self

from tests.support.talk import Talking

ROOT = Path(__file__).resolve().parents[2]
PROGRAMS = ROOT / "tests" / "programs" / "ocaml"
VERSIONS = ("4.13", "5.3")
# @check: without it dune makes no .cmt of a native program's modules that have an interface
DUNE_TARGETS = ("@check", "./main.exe")
PACKAGES = {
    "waits": ("unix",),
    "threads": ("threads.posix",),
    "server": ("cohttp-lwt-unix",),
}


class CompileError(Exception):
    """The compiler refused; the text is what it wrote."""


@dataclass(frozen=True)
class Compiler:
    """One installed OCaml.

    Attributes:
        family: The version as tests name it, `4.13` or `5.3`.
        version: The exact version.
        bin: The folder of its commands.
        root: Where its files are: `/`, or the Debian 13 root.
        where: The folder of its standard library.
    """

    family: str
    version: str
    bin: Path
    root: Path
    where: Path

    @property
    def command(self) -> list[str]:
        """The compiler as one types it."""
        return [str(self.bin / "ocamlfind"), "ocamlopt"]

    @property
    def environment(self) -> dict[str, str]:
        """An environment in which plain `ocamlfind`, `ocamlopt` and `dune` are this one's."""
        return {**os.environ, "PATH": f"{self.bin}:{os.environ['PATH']}"}

    @property
    def multicore(self) -> bool:
        """Whether the runtime has domains and effects."""
        return self.family.startswith("5.")

    def run(self, *command: str, cwd: Path) -> str:
        """Run a command in this compiler's environment; return what it printed.

        Raises:
            CompileError: It failed.
        """
        done = subprocess.run(
            command, cwd=cwd, env=self.environment, capture_output=True, text=True, check=False
        )
        if done.returncode != 0:
            raise CompileError(done.stderr + done.stdout)
        return done.stdout


@cache
def compiler_of(family: str) -> Compiler:
    """Return an installed compiler, making the Debian 13 root for 5.3 if it is not there.

    Args:
        family: One of `VERSIONS`.
    """
    root, folder = Path("/"), Path("/usr/bin")
    if family == "5.3":
        subprocess.run([ROOT / "tools" / "ocaml53.sh"], check=True, capture_output=True)
        root, folder = ROOT / ".work" / "trixie", ROOT / ".work" / "ocaml53" / "bin"
    version, where = (
        subprocess.run(
            [folder / "ocamlopt", option], check=True, capture_output=True, text=True
        ).stdout.strip()
        for option in ("-version", "-where")
    )
    assert version.startswith(family), version
    return Compiler(family, version, folder, root, Path(where))


@dataclass
class Build(Talking):
    """Sources, objects and an executable in a folder, and at most one process of it.

    As a context it ends the process with the block.

    Attributes:
        compiler: What compiles it.
        folder: Where everything is; it may hold sources already.
        opaque: Whether units hide their code from each other, as in dune's dev profile.
        packages: What ocamlfind links in.
        link_flags: More for the last link.
        name: Where the program is, below the folder.
        greeting: The first line that the program wrote.
        process: The program that `start` started.
    """

    compiler: Compiler
    folder: Path
    opaque: bool = True
    packages: Sequence[str] = ()
    link_flags: Sequence[str] = ()
    name: str = "program"
    greeting: str = ""
    process: subprocess.Popen[str] | None = None

    @property
    def executable(self) -> Path:
        """The program."""
        return self.folder / self.name

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()

    def write(self, texts: Mapping[str, str]) -> None:
        """Write sources: file name -> text."""
        for name, text in texts.items():
            (self.folder / name).write_text(text)

    def build(self) -> list[Path]:
        """Compile every source in dependency order and link; return the units' objects."""
        interfaces, sources, stubs = (
            sorted(path.name for path in self.folder.glob(pattern))
            for pattern in ("*.mli", "*.ml", "*.c")
        )
        ordered = self._find("ocamldep", "-sort", *interfaces, *sources).split()
        for name in (*stubs, *ordered):
            self.compile(name)
        units = [Path(name) for name in ordered if name.endswith(".ml")]
        self._link(
            [*(f"{Path(name).stem}.o" for name in stubs), *(f"{u.stem}.cmx" for u in units)]
        )
        return [self.folder / f"{unit.stem}.o" for unit in units]

    def compile(self, name: str) -> Path:
        """Compile one file, as a makefile's rule does; return the object of a unit.

        Raises:
            CompileError: The compiler's text. It deletes the object that was there.
        """
        flags = ["-g", "-bin-annot", *(["-opaque"] if self.opaque else [])]
        if name.endswith(".c"):
            flags = ["-g"]
        self._find("ocamlopt", *self._packages(), *flags, "-c", name)
        return (self.folder / name).with_suffix(".o")

    def edit(self, name: str, old: str, new: str) -> Path:
        """Replace a text that occurs once in a source and compile that file alone."""
        text = (self.folder / name).read_text()
        assert text.count(old) == 1, f"{old!r} occurs {text.count(old)} times in {name}"
        (self.folder / name).write_text(text.replace(old, new))
        return self.compile(name)

    def start(
        self,
        *arguments: str,
        command: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
        stderr: int | None = None,
    ) -> int:
        """Start the program, below `command` if given; return the pid once it greeted."""
        self.process = subprocess.Popen(
            [*command, str(self.executable), *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            cwd=self.folder,
            env=environment,
        )
        self.greeting = self.line()
        assert self.greeting.startswith(("ready", "listening")), self.greeting
        return self.process.pid

    def ask(self, text: str) -> str:
        """Send a line, return the answer."""
        self.say(text)
        return self.line()

    def end(self) -> int:
        """End the process by a signal, as one ends a server; return its exit status."""
        if self.process is not None:
            self.process.terminate()
        return self.stop()

    def _packages(self) -> list[str]:
        if not self.packages:
            return []
        threads = {"threads.posix", "cohttp-lwt-unix"}.intersection(self.packages)
        return ["-package", ",".join(self.packages), *(["-thread"] if threads else [])]

    def _link(self, inputs: Sequence[str]) -> None:
        packages = [*self._packages(), "-linkpkg"] if self.packages else []
        self._find("ocamlopt", "-g", *packages, *self.link_flags, *inputs, "-o", self.name)

    def _find(self, *words: str) -> str:
        return self.compiler.run(self.compiler.command[0], *words, cwd=self.folder)


def build(
    compiler: Compiler,
    folder: Path,
    sources: Mapping[str, str] | str,
    *,
    opaque: bool = True,
    packages: Sequence[str] = (),
) -> Build:
    """Build a program from texts, or one of `tests/programs/ocaml` by its name."""
    made = Build(compiler, folder, opaque, packages)
    if isinstance(sources, str):
        made.packages = PACKAGES.get(sources, packages)
        shutil.copytree(PROGRAMS / sources, folder, dirs_exist_ok=True)
        if sources == "kinds":
            made.write({"large.ml": large(4500)})
    else:
        made.write(sources)
    made.build()
    return made


def dune_build(compiler: Compiler, folder: Path) -> Path:
    """Build what is in a folder with dune's dev profile; return the executable."""
    compiler.run(str(compiler.bin / "dune"), "build", *DUNE_TARGETS, cwd=folder)
    return folder / "_build" / "default" / "main.exe"


def large(elements: int, times: int = 1) -> str:
    """Return a unit whose static data is a table of so many structured constants."""
    rows = (f'  ("key {n}", {n * times}, [{n}; {n + 1}]);' for n in range(elements))
    return "\n".join(
        (
            "let table = [|",
            *rows,
            "|]",
            "let lookup n =",
            "  let _, value, numbers = table.(n) in",
            "  value + List.length numbers",
        )
    )
