"""What is linked: objects, the archive members they pull in, and shared libraries to load.

Members are pulled as a linker does it: one that defines a strong name which is still undefined,
whatever the C library has, in the order in which archives were given. Unlike `ld`, the archives
are searched again until nothing new comes, so their order on the command line does not matter.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from reloader.elf.ar import is_archive
from reloader.elf.archive import Archive, read_archive
from reloader.elf.object import ObjectFile
from reloader.elf.read import read_object
from reloader.errors.linker import InputError, LibraryNotFoundError
from reloader.live.inputs import defined_names, wanted_names

SYSTEM_FOLDERS: Final = (
    "/usr/local/lib", "/lib/x86_64-linux-gnu", "/usr/lib/x86_64-linux-gnu", "/lib64",
    "/usr/lib64", "/lib", "/usr/lib",
)  # fmt: skip
_ELF: Final = b"\x7fELF"
_ET_DYN: Final = 3
# an ld script in place of a library: GROUP ( /lib/libm.so.6 AS_NEEDED ( ... ) )
_SCRIPT: Final = re.compile(r"(?:GROUP|INPUT)\s*\((.*)\)", re.DOTALL)
_PATH: Final = re.compile(r"/[^\s()]+\.(?:so[.\d]*|a)(?=[\s()])")


@dataclass(slots=True)
class Inputs:
    """Everything named on the command line, read."""

    objects: list[ObjectFile] = field(default_factory=list[ObjectFile])
    archives: list[Archive] = field(default_factory=list[Archive])
    libraries: list[str] = field(default_factory=list[str])  # shared ones, to be loaded

    def add(self, path: Path) -> None:
        """Read a file and put it where it belongs.

        Raises:
            InputError: It cannot be read, or is none that a linker takes.
            ObjectError: It is a damaged object or archive.
        """
        data = read_bytes(path)
        full = str(path.absolute())
        if is_archive(data):
            self.archives.append(read_archive(full, data))
        elif data[:4] == _ELF and int.from_bytes(data[16:18], "little") == _ET_DYN:
            self.libraries.append(full)
        elif data[:4] != _ELF and (script := _SCRIPT.search(data[:4096].decode("latin-1"))):
            for name in _PATH.findall(script[1] + " "):
                self.add(Path(name))
        else:
            self.objects.append(read_object(full, data))

    def all_objects(self, wanted: Sequence[bytes] = ()) -> list[ObjectFile]:
        """Return the objects and every member that they, or the wanted names, pull in."""
        return pull_members(self.objects, self.archives, wanted)


def read_bytes(path: Path) -> bytes:
    """Return a file's content.

    Raises:
        InputError: Says why not.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        reason = f"cannot be read: {error.strerror or error}"
        raise InputError(str(path), reason) from error


def read_inputs(
    files: Sequence[str], libraries: Sequence[str] = (), folders: Sequence[str] = ()
) -> Inputs:
    """Read files, and the libraries of `-l` from the folders of `-L` and the system's."""
    found = Inputs()
    for name in files:
        found.add(Path(name))
    for name in libraries:
        found.add(find_library(name, folders))
    return found


def find_library(name: str, folders: Sequence[str]) -> Path:
    """Return the file that `-l NAME` means, a shared library before an archive.

    Raises:
        LibraryNotFoundError: Names the folders that were searched.
    """
    places = [*folders, *SYSTEM_FOLDERS]
    for folder in places:
        for ending in (".so", ".a"):
            path = Path(folder) / f"lib{name}{ending}"
            if path.is_file():
                return path
    raise LibraryNotFoundError(name, places)


def pull_members(
    objects: Sequence[ObjectFile], archives: Sequence[Archive], wanted: Sequence[bytes] = ()
) -> list[ObjectFile]:
    """Return the objects with the archive members that they need, directly or not."""
    pulled = list(objects)
    if not archives:
        return pulled
    taken: set[tuple[int, int]] = set()
    defined: set[bytes] = set()
    todo = list(wanted)
    for file in pulled:
        defined |= defined_names(file)
    for file in pulled:
        todo += sorted(wanted_names(file))
    asked: set[bytes] = set()
    while todo:
        name = todo.pop(0)
        if name in asked or name in defined:
            continue
        asked.add(name)
        place = _member_of(archives, name)
        if place is None or place in taken:
            continue
        taken.add(place)
        member = archives[place[0]].object(place[1])
        pulled.append(member)
        defined |= defined_names(member)
        todo += sorted(wanted_names(member))
    return pulled


def _member_of(archives: Sequence[Archive], name: bytes) -> tuple[int, int] | None:
    """Return (archive, member) that defines a name first."""
    for place, archive in enumerate(archives):
        row = archive.symbols.get(name)
        if row is not None:
            return place, row
    return None
