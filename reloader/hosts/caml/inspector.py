"""Inspector: a co-process that reads what the compiler wrote about a unit.

It is started with the first question and again if it died; a question costs one to two
milliseconds for a small unit, which a question sent ahead lets pass with other work.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

from reloader.errors.ocaml import MissingInterfaceError, UnitUnreadableError
from reloader.hosts.caml.compiler import Compiler, inspector_program
from reloader.hosts.caml.units import UnitInfo, unit_from_json

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType

ATTEMPTS: Final = 2  # a co-process that somebody ended is started once more


@dataclass(frozen=True, slots=True)
class UnitFiles:
    """Where a unit's compiled files lie."""

    object_name: str  # as shown to people
    folder: Path  # where the compiler ran, which its load path is relative to
    interface: Path  # .cmi
    typed: Path | None  # .cmt
    optimised: Path | None  # .cmx, or the .cmxa of the archive


def find_unit_files(path: Path, member: str = "") -> UnitFiles:
    """Return the files beside an object: in its folder, or where dune puts them.

    Args:
        path: The object, or the archive.
        member: The archive's member.

    Raises:
        MissingInterfaceError: There is no .cmi.
    """
    stem = Path(member or path.name).stem
    folders = _folders(path, member)
    interface = _first(folders, stem, ".cmi")
    name = f"{path}({member})" if member else str(path)
    if interface is None:
        raise MissingInterfaceError(name, [str(folder / f"{stem}.cmi") for folder in folders])
    optimised = _first(folders, stem, ".cmx")
    library = path.with_suffix(".cmxa")
    if optimised is None and member and library.is_file():
        optimised = library
    return UnitFiles(
        name, build_folder(path), interface, _first(folders, stem, ".cmt"), optimised
    )


def _folders(path: Path, member: str) -> list[Path]:
    folder = path.parent
    folders = [folder]
    if folder.name == "native":  # dune: .main.eobjs/native/foo.o, .main.eobjs/byte/foo.cmi
        folders.append(folder.parent / "byte")
    if member:  # dune: lib.a, .lib.objs/byte/foo.cmi
        objects = folder / f".{path.stem}.objs"
        folders += [objects / "byte", objects / "native"]
    return folders


def _first(folders: list[Path], stem: str, suffix: str) -> Path | None:
    for folder in folders:
        # `Foo.cmi` from foo.ml is possible; dune and ocamlopt keep the source's own case
        file = folder / (stem + suffix)
        if file.is_file():
            return file
    return None


def build_folder(path: Path) -> Path:
    """Return where the compiler ran: dune's `_build/default`, else the object's folder."""
    parts = path.parts
    if "_build" in parts and (at := parts.index("_build")) + 2 < len(parts):
        return Path(*parts[: at + 2])
    return path.parent


def question(files: UnitFiles) -> list[str]:
    """Return the words by which the reader is asked for a unit."""
    typed, optimised = str(files.typed or ""), str(files.optimised or "")
    return ["unit", str(files.folder), str(files.interface), typed, optimised]


def is_askable(words: Sequence[str]) -> bool:
    """Return whether words can be sent: tabs part them, and a line end ends them."""
    return not any(c in word for word in words for c in "\t\n")


def line_of(words: Sequence[str]) -> str:
    """Return words as they are sent."""
    return "\t".join(words) + "\n"


class Inspector:
    """Questions to a compiler's own reader."""

    def __init__(self, compiler: Compiler, cache: Path | None = None) -> None:
        """Find the reader, building it if this compiler has none yet.

        Args:
            compiler: Whose files are read.
            cache: Where readers are kept; None: the user's cache folder.

        Raises:
            CompilerLibrariesError: The compiler's libraries are not installed.
            InspectorBuildError: The reader does not compile.
        """
        self.compiler = compiler
        self.program = inspector_program(compiler, cache)
        self.process: subprocess.Popen[str] | None = None  # None: not started, or it ended
        self._ahead = ""  # a question whose answer was not fetched yet

    def __enter__(self) -> Self:
        """Nothing is started before the first question."""
        return self

    def __exit__(
        self,
        _type: type[BaseException] | None,
        _error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        """End the co-process."""
        self.close()

    def unit(self, files: UnitFiles) -> UnitInfo:
        """Return what a unit is.

        Raises:
            UnitUnreadableError: A file is damaged, or another compiler's.
        """
        return unit_from_json(self._ask(files.object_name, question(files)))

    def ask_ahead(self, files: UnitFiles) -> None:
        """Send the question of `unit`, which will be asked soon."""
        words = question(files)
        if not self._ahead and is_askable(words):
            line = line_of(words)
            self._ahead = line if self._send(line) else ""

    def about(self) -> dict[str, Any]:
        """Return the reader's compiler: version, where, interface checksum of Stdlib."""
        return self._ask(str(self.program), ["about"])

    def close(self) -> None:
        """End the co-process; the next question starts another one."""
        process, self.process = self.process, None
        self._ahead = ""
        if process is None:
            return
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()
        process.wait()

    def _ask(self, about: str, words: list[str]) -> dict[str, Any]:
        if not is_askable(words):
            raise UnitUnreadableError(about, "path", "its path has a tab or a line end")
        line = line_of(words)
        for _ in range(ATTEMPTS):
            answer = self._exchange(line)
            if answer:
                found: dict[str, Any] = json.loads(answer)
                if "error" in found:
                    raise UnitUnreadableError(about, found["error"], found["text"])
                return found
            self.close()
        raise UnitUnreadableError(about, "crash", "its compiled files end the reader")

    def _exchange(self, line: str) -> str:
        """Return the answer to one line, "" if the co-process ended."""
        ahead, self._ahead = self._ahead, ""
        if ahead and (answer := self._receive()) and ahead == line:
            return answer
        return self._receive() if self._send(line) else ""

    def _send(self, line: str) -> bool:
        process = self.process
        if process is None:
            # our own program, built by the user's compiler
            process = self.process = subprocess.Popen(  # noqa: S603
                [str(self.program)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                env={**os.environ, "OCAMLLIB": self.compiler.where},
            )
        if process.stdin is None:
            return False
        try:
            process.stdin.write(line)
            process.stdin.flush()
        except BrokenPipeError:
            return False
        return True

    def _receive(self) -> str:
        process = self.process
        if process is None or process.stdout is None:
            return ""
        answer = process.stdout.readline()
        return answer if answer.endswith("\n") else ""
