"""The project's OCaml compiler, and our reader of its files, built once with it.

.cmi, .cmt and .cmx are private to a compiler: only its own libraries read them. So a small
program, stubs/ocaml, is compiled with it and kept in the user's cache folder.
"""

from __future__ import annotations

import hashlib
import os
import shlex
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import stubs
from reloader.errors.ocaml import (
    CompilerLibrariesError,
    InspectorBuildError,
    NoCompilerError,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

SOURCES: Final = Path(stubs.__file__).resolve().parent / "ocaml"
DEFAULTS: Final = (("ocamlfind", "ocamlopt"), ("ocamlopt",))
# one file for each family of compilers' libraries, the newest first
FAMILIES: Final = ("compat_5_3.ml", "compat_4_13.ml")
MODULES: Final = ("json.ml", "owned.ml", "kinds.ml", "slots.ml", "unit.ml", "inspect.ml")


@dataclass(frozen=True, slots=True)
class Compiler:
    """An `ocamlopt`, with the flags it always needs."""

    command: tuple[str, ...]
    version: str
    where: str  # the standard library's folder
    flambda: bool
    assembler: str  # command line that it assembles with

    def run(self, folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
        """Run it in a folder; what it prints is in `stdout`."""
        return _run([*self.command, *words], folder)


def find_compiler(command: str = "") -> Compiler:
    """Return the compiler of a command, or the one that is installed.

    Raises:
        NoCompilerError: None answers.
    """
    candidates = [tuple(shlex.split(command))] if command else DEFAULTS
    problem = ""
    for words in candidates:
        if shutil.which(words[0]) is None:
            problem = problem or f"there is no {words[0]}"
            continue
        done = _run([*words, "-config"], Path.cwd())
        facts = dict(line.split(": ", 1) for line in done.stdout.splitlines() if ": " in line)
        if done.returncode == 0 and "standard_library" in facts:
            return Compiler(
                words,
                facts["version"],
                facts["standard_library"],
                facts.get("flambda") == "true",
                facts.get("asm", "as"),
            )
        problem = done.stdout.strip()
    raise NoCompilerError([shlex.join(words) for words in candidates], problem)


def cache_folder() -> Path:
    """Return the user's folder for what can be made again."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "reloader" / "ocaml"


def inspector_program(compiler: Compiler, cache: Path | None = None) -> Path:
    """Return the program that reads this compiler's files; it is built if it is not there.

    Raises:
        CompilerLibrariesError: The compiler's libraries are not installed.
        InspectorBuildError: It does not compile.
    """
    folder = cache or cache_folder()
    sources = [path.read_text(encoding="utf-8") for path in sorted(SOURCES.glob("*.ml"))]
    program = folder / f"inspect-{compiler.version}-{compiler_digest(compiler, *sources)}"
    if not program.exists():
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        _build(compiler, program)
    return program


def build_in(
    folder: Path, compiler: Compiler, words: Sequence[str]
) -> subprocess.CompletedProcess[str]:
    """Compile in a folder with the user's flags out of the way."""
    return compiler.run(folder, "-w", "-a", *words)


def compiler_digest(compiler: Compiler, *texts: str) -> str:
    """Return a name for what is made by a compiler of some texts."""
    digest = hashlib.blake2b(digest_size=8)
    for text in (compiler.version, compiler.where, *compiler.command, *texts):
        digest.update(text.encode() + b"\0")
    return digest.hexdigest()


def _build(compiler: Compiler, program: Path) -> None:
    """Build beside the program and rename, so that nobody starts half a file."""
    if not (Path(compiler.where) / "compiler-libs" / "ocamlcommon.cmxa").exists():
        raise CompilerLibrariesError(compiler.version, compiler.where)
    with tempfile.TemporaryDirectory(dir=program.parent, prefix="build-") as name:
        folder = Path(name)
        for source in MODULES:
            shutil.copyfile(SOURCES / source, folder / source)
        families = FAMILIES if compiler.version >= "5" else FAMILIES[::-1]
        output = ""
        for family in families:
            shutil.copyfile(SOURCES / family, folder / "compat.ml")
            done = build_in(
                folder,
                compiler,
                ["-I", "+compiler-libs", "ocamlcommon.cmxa", "compat.ml", *MODULES, "-o", "it"],
            )
            if done.returncode == 0:
                (folder / "it").replace(program)
                return
            output = output or done.stdout
    raise InspectorBuildError(compiler.version, output)


def _run(words: Sequence[str], folder: Path) -> subprocess.CompletedProcess[str]:
    # OCAMLPARAM would change what is compiled
    environment = {key: value for key, value in os.environ.items() if key != "OCAMLPARAM"}
    # the command is the user's own compiler
    return subprocess.run(  # noqa: S603
        words,
        cwd=folder,
        env={**environment, "LC_ALL": "C.UTF-8"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
