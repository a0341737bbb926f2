"""Which objects a set of changed files means.

A plain object is its own unit. Of an archive those members count whose content changed. An
object that the program was not linked with takes part only if something that is reloaded refers
to it (as a linker pulls archive members), or if the user named it.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from reloader.elf.ar import is_archive
from reloader.elf.archive import Archive, read_archive
from reloader.elf.object import UNDEFINED, ObjectFile
from reloader.elf.read import read_object
from reloader.errors.base import ReloaderError
from reloader.errors.baseline import NotOfThisProgramError
from reloader.errors.session import UnknownObjectError
from reloader.link.passes.resolve import GOT_NAME
from reloader.live.host import Library
from reloader.live.program import Key, Program

STB_LOCAL, STB_WEAK = 0, 2
MADE_BY_LINKER: Final = frozenset({GOT_NAME})  # and so in no object


@dataclass(slots=True)
class Inputs:
    """What was found in some files."""

    objects: list[ObjectFile] = field(default_factory=list[ObjectFile])  # to be reloaded
    strangers: list[ObjectFile] = field(
        default_factory=list[ObjectFile]
    )  # unknown to the program
    equal: list[str] = field(default_factory=list[str])  # same content as what is live


@dataclass(slots=True)
class Shelf:
    """Objects at hand that are not in the program: what a new reference can pull in."""

    objects: dict[Key, ObjectFile] = field(default_factory=dict[Key, ObjectFile])
    archives: dict[str, Archive] = field(default_factory=dict[str, Archive])
    libraries: list[Library] = field(default_factory=list[Library])  # not opened so far
    # names that come with a member of a library, by its path
    along: dict[str, frozenset[bytes]] = field(default_factory=dict[str, frozenset[bytes]])
    stateless: set[str] = field(default_factory=set[str])  # paths of libraries

    def put(self, file: ObjectFile) -> None:
        """Keep an object; its newer version replaces an older one."""
        self.objects[file.key] = file

    def provider(self, name: bytes, loaded: Iterable[Key]) -> ObjectFile | None:
        """Return an object that defines a global name and is not loaded."""
        keys = set(loaded)
        for file in self.objects.values():
            if file.key not in keys and name in defined_names(file):
                return file
        for archive in self.opened():
            row = archive.symbols.get(name)
            if row is not None and (archive.path, archive.members[row].name) not in keys:
                return archive.object(row)
        return None

    def opened(self) -> Iterator[Archive]:
        """Yield the archives, each opened when its turn comes."""
        yield from self.archives.values()
        while self.libraries:
            library = self.libraries.pop(0)
            with suppress(OSError, ReloaderError):  # then it defines nothing
                archive = read_archive(str(library.path), library.path.read_bytes())
                self.archives[archive.path] = archive
                self.along[archive.path] = library.along
                if library.stateless:
                    self.stateless.add(archive.path)
                yield archive


def read_files(
    files: Sequence[tuple[str, bytes]], program: Program | None = None
) -> tuple[list[ObjectFile], list[Archive]]:
    """Read finished files: plain objects, and archives not yet opened further.

    Args:
        files: (path, content).
        program: It may have, or have had, these very versions.

    Raises:
        RefusedError: One of them is not what a linker takes.
    """
    plain = [(path, data) for path, data in files if not is_archive(data)]
    if program is None:
        objects = [read_object(path, data) for path, data in plain]
    else:
        objects = [program.cache.read(*file, live=program.objects) for file in plain]
    archives = [read_archive(path, data) for path, data in files if is_archive(data)]
    return objects, archives


def choose(  # noqa: PLR0913 - each has one sentence below
    program: Program,
    objects: Sequence[ObjectFile],
    archives: Sequence[Archive],
    *,
    named: bool,
    again: bool = False,
    refused: dict[Key, str],
) -> Inputs:
    """Sort objects into those to reload, those without change, and strangers.

    Args:
        program: What is live.
        objects: Plain objects.
        archives: Their members are compared with what is live, by content.
        named: The user named these files: strangers are loaded too, but not archive members.
        again: Objects without change are to be reloaded as well.
        refused: Objects of the program's build that differ from what runs, with the reason.

    Raises:
        NotOfThisProgramError: One of them is such an object.
    """
    found = Inputs()
    every = [*objects, *(file for archive in archives for file in members(program, archive))]
    for file in {file.key: file for file in every}.values():  # a file may be named twice
        live = program.objects.get(file.key)
        if file.key in refused:
            raise NotOfThisProgramError(file.name, refused[file.key])
        if live is not None and live.file.digest == file.digest and not again:
            found.equal.append(file.name)
        elif live is not None or (named and not file.member):
            found.objects.append(file)
        else:
            found.strangers.append(file)
    return found


def members(program: Program, archive: Archive) -> list[ObjectFile]:
    """Return the members of an archive that the program has."""
    return [
        program.cache.read(archive.path, archive.content(row), member.name, program.objects)
        for row, member in enumerate(archive.members)
        if (archive.path, member.name) in program.objects
    ]


def defined_names(file: ObjectFile) -> set[bytes]:
    """Return the global names that an object defines."""
    rows = np.flatnonzero((file.bindings() != STB_LOCAL) & (file.symbol_sections != UNDEFINED))
    return {file.symbol_names[row] for row in rows.tolist()}


def wanted_names(file: ObjectFile) -> set[bytes]:
    """Return the names that an object must find elsewhere; weak ones need not be found."""
    bindings = file.bindings()
    wanted = (bindings != STB_LOCAL) & (bindings != STB_WEAK)
    rows = np.flatnonzero(wanted & (file.symbol_sections == UNDEFINED))
    return {file.symbol_names[row] for row in rows.tolist()} - MADE_BY_LINKER


def pull(program: Program, objects: Sequence[ObjectFile], shelf: Shelf) -> list[ObjectFile]:
    """Return the objects with those from the shelf that they refer to, directly or not."""
    pulled = list(objects)
    if not (shelf.objects or shelf.archives or shelf.libraries):
        return pulled
    defined = set[bytes]().union(*(defined_names(file) for file in pulled))
    asked: set[bytes] = set()
    todo = list(pulled)
    while todo:
        file = todo.pop()
        wanted = wanted_names(file) | shelf.along.get(file.path, frozenset())
        names = sorted(wanted - defined - asked)
        asked.update(names)
        known = program.index.find(names)
        for name in (name for name, found in zip(names, known.found, strict=True) if not found):
            keys = [*program.objects, *(file.key for file in pulled)]
            provider = shelf.provider(name, keys)
            if provider is not None and not is_there(program, provider, shelf):
                pulled.append(provider)
                todo.append(provider)
                defined |= defined_names(provider)
    return pulled


def is_there(program: Program, file: ObjectFile, shelf: Shelf) -> bool:
    """Return whether a program has a library's object, of which not all names are known.

    Then a stripped one hides them; a second copy of, say, a runtime's variables is the end.
    """
    if file.path not in shelf.along or file.path in shelf.stateless:
        return False
    return bool(program.index.find(sorted(defined_names(file))).found.any())


def refuse_strangers(found: Inputs, pulled: Sequence[ObjectFile]) -> None:
    """Refuse a set of files of which nothing is or becomes part of the program.

    Raises:
        UnknownObjectError: Names the strangers.
    """
    taken = {file.key for file in pulled}
    left = [file.name for file in found.strangers if file.key not in taken]
    if left and not pulled and not found.equal:
        raise UnknownObjectError(left)
