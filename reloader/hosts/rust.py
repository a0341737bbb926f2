"""Rust: what new code may need of the standard library that the program was linked without.

rustc leaves every function that nothing calls out of a program, its own and those of the
standard library. An edit that calls `Vec::reserve` for the first time, or subtracts where
nothing was subtracted before, needs one of them. `core` and `alloc` are functions and constants
only, so that they can be pulled from their archives like any others. `std` has variables of its
own, of which there must not be two: what is missing of it is not pulled.
"""

import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from reloader.elf.image import Image
from reloader.elf.object import ObjectFile
from reloader.errors.linking import UndefinedSymbolsError
from reloader.live.host import Library, Plain

SYMBOL: Final = b"rust_eh_personality"  # in every program that may panic
_SECONDS: Final = 10.0  # of rustc
_PULLED: Final = ("libcore-*.rlib", "liballoc-*.rlib", "libcompiler_builtins-*.rlib")


class Rust(Plain):
    """Rust's objects are ELF's; names that are missing may be the standard library's."""

    name = "Rust"

    def __init__(self, image: Image) -> None:
        """Remember which program it is."""
        self.folder = Path(image.path).parent

    def libraries(self) -> list[Library]:
        """Return the archives of the toolchain that builds where the program lies."""
        folder = toolchain_folder(self.folder)
        if folder is None:
            return []
        found = [path for glob in _PULLED for path in sorted(folder.glob(glob))]
        return [Library(path, stateless=True) for path in found]

    def explained(
        self,
        error: UndefinedSymbolsError,
        objects: Sequence[ObjectFile],  # noqa: ARG002  the protocol's
    ) -> UndefinedSymbolsError:
        """Say how such names come into the program."""
        remedy = (
            "The linker leaves out what nothing calls: build the program with RUSTFLAGS="
            "'-C link-dead-code' and restart it (docs/rust.md)."
        )
        return UndefinedSymbolsError(error.rows, remedy)


def toolchain_folder(project: Path) -> Path | None:
    """Return where the standard library is that rustc uses in a folder, or None."""
    try:
        done = subprocess.run(
            ["rustc", "--print", "target-libdir"],  # noqa: S607 - the user's own
            cwd=project,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=True,
            timeout=_SECONDS,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return Path(done.stdout.strip())
