"""Archives: members, the symbol index, and a member as an ObjectFile.

A member is named as `ar t` shows it; the second member of the same name is `name:2`, since
two objects of different folders may share a file name and both must stay apart; what rustc
draws anew in a name for each build is left out (`stable_names.py`). Members of a thin archive
are files relative to the archive's folder.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np

from reloader.elf.ar import (
    BSD_INDEX,
    INDEX,
    LONG_NAMES,
    THIN_MAGIC,
    Entry,
    is_archive,
    is_special,
    read_entries,
    read_entry,
)
from reloader.elf.batch import read_batch
from reloader.elf.constants import EM_X86_64
from reloader.elf.object import UNDEFINED, ObjectFile
from reloader.elf.read import read_object, snapshot
from reloader.elf.stable_names import METADATA, stable_member
from reloader.errors.base import Place
from reloader.errors.objects import (
    ArchiveError,
    ArchiveIndexError,
    EmptyFileError,
    NotElfError,
    ObjectError,
)
from reloader.ids import NO_ROW, U8

BSD_LONG: Final = b"#1/"


class Member(NamedTuple):
    """One object of an archive."""

    name: str  # unique in the archive: `util.o`, then `util.o:2`
    offset: int  # of its bytes in the archive; in the file `source` for a thin archive
    size: int  # bytes
    source: str = ""  # absolute path of a thin archive's member, else ""


@dataclass(frozen=True, slots=True, eq=False)
class Archive:
    """An archive as an immutable snapshot; thin members are read when they are asked for."""

    path: str
    data: U8
    members: list[Member]
    symbols: dict[bytes, int]  # defined global name -> row of `members` that defines it first
    row_of_name: dict[str, int] = field(default_factory=dict[str, int])

    def content(self, row: int) -> U8:
        """Return the bytes of a member.

        Raises:
            ArchiveError: A thin archive's member cannot be read.
        """
        member = self.members[row]
        if not member.source:
            return self.data[member.offset : member.offset + member.size]
        try:
            data = Path(member.source).read_bytes()
        except OSError as error:
            text = f"the thin archive's member {member.source} cannot be read: {error.strerror}"
            raise ArchiveError(Place(self.path), text) from error
        raw = snapshot(data)
        return raw[member.offset : member.offset + member.size] if member.offset else raw

    def object(self, row: int, *, machine: int = EM_X86_64) -> ObjectFile:
        """Return a member as an object.

        Raises:
            ObjectError: The member cannot be read as one.
        """
        name = self.members[row].name
        return read_object(self.path, self.content(row), name, machine=machine)

    def objects(self, *, machine: int = EM_X86_64) -> list[ObjectFile]:
        """Return all members as objects.

        Raises:
            ObjectError: One cannot be read as such.
        """
        if not any(member.source for member in self.members):
            places = [(member.name, member.offset, member.size) for member in self.members]
            return read_batch(self.path, self.data, places, machine)
        return [self.object(row, machine=machine) for row in range(len(self.members))]


def read_archive(path: str, data: bytes | U8) -> Archive:
    """Return an archive's members and symbol index.

    Args:
        path: Absolute path of the archive; thin members are looked up relative to its folder.
        data: The whole archive.

    Raises:
        ObjectError: It is no archive, is cut short, or its names or index are broken.
    """
    raw = snapshot(data)
    text = raw.tobytes()
    if not text:
        raise EmptyFileError(Place(path))
    if not is_archive(text):
        raise NotElfError(Place(path), text[:4])
    entries = read_entries(text, path)
    table = next((e for e in entries if e.name == LONG_NAMES), None)
    long_names = text[table.start : table.start + table.size] if table else b""
    members: list[Member] = []
    rows: dict[int, int] = {}  # file offset of a member's header -> its row
    seen: dict[str, int] = {}
    indices = [e for e in entries if e.name in INDEX or e.name.startswith(BSD_INDEX)]
    for entry in entries:
        if is_special(entry.name):
            continue
        member = read_member(text, entry, long_names, path)
        if member.name.endswith(METADATA):
            rows[entry.header] = NO_ROW
            continue
        if member.name.startswith(BSD_INDEX.decode()):
            indices.append(Entry(BSD_INDEX, entry.header, member.offset, member.size))
            continue
        rows[entry.header] = len(members)
        members.append(numbered(member, seen))
    symbols: dict[bytes, int] = {}
    for entry in indices[:1]:
        symbols = read_index(text, entry, rows, path)
    symbols = {name: row for name, row in symbols.items() if row != NO_ROW}
    names = {member.name: row for row, member in enumerate(members)}
    archive = Archive(path, raw, members, symbols, names)
    if not indices:
        archive.symbols.update(index_members(archive))
    return archive


def index_members(archive: Archive) -> dict[bytes, int]:
    """Return the symbol index that `ranlib` would make."""
    found: dict[bytes, int] = {}
    for row in range(len(archive.members)):
        try:
            member = archive.object(row)
        except ObjectError:
            continue
        shared = (member.bindings() != 0) & (member.symbol_sections != UNDEFINED)
        for symbol in np.flatnonzero(shared).tolist():
            found.setdefault(member.symbol_names[symbol], row)
    return found


def numbered(member: Member, seen: dict[str, int]) -> Member:
    """Return the member, its name made unique by how many of that name came before."""
    name = stable_member(member.name)
    count = seen.get(name, 0) + 1
    seen[name] = count
    if count > 1:
        name = f"{name}:{count}"
    if name == member.name:
        return member
    return Member(name, member.offset, member.size, member.source)


def read_member(text: bytes, entry: Entry, long_names: bytes, path: str) -> Member:
    """Return an ordinary member with its full name.

    Raises:
        ArchiveError: Its long name is not in the archive.
    """
    name, start, size = entry.name, entry.start, entry.size
    if name.startswith(BSD_LONG) and name[3:].isdigit():
        length = int(name[3:])
        if length > size:
            problem = f"a member's name takes {length} bytes of its {size}"
            raise ArchiveError(Place(path, offset=entry.header), problem)
        name, start, size = (
            text[start : start + length].rstrip(b"\0"),
            start + length,
            size - length,
        )
        return Member(decoded(name), start, size)
    origin = 0
    if name[:1] == b"/":
        name, origin = long_name(name, long_names, Place(path, offset=entry.header))
    elif name.endswith(b"/"):
        name = name[:-1]
    if text[:8] != THIN_MAGIC:
        return Member(decoded(name), start, size)
    return thin_member(decoded(name), origin, size, path)


def decoded(name: bytes) -> str:
    """Return a file name as Python shows it; bytes that are no UTF-8 survive."""
    return name.decode(errors="surrogateescape")


def long_name(name: bytes, table: bytes, place: Place) -> tuple[bytes, int]:
    """Return the name that `/offset` or `/offset:origin` stands for, and the origin.

    Raises:
        ArchiveError: It is no offset into the name table.
    """
    digits, _, origin = name[1:].partition(b":")
    offset = int(digits) if digits.isdigit() else len(table)
    if offset >= len(table) or (origin and not origin.isdigit()):
        problem = f"the member name {name!r} is not in a name table of {len(table)} bytes"
        raise ArchiveError(place, problem)
    end = table.find(b"\n", offset)
    found = table[offset : len(table) if end < 0 else end]
    return found.removesuffix(b"/"), int(origin or b"0")


def thin_member(name: str, origin: int, size: int, path: str) -> Member:
    """Return a thin archive's member: a file, or a member of an archive beside it.

    Raises:
        ArchiveError: The archive that holds it cannot be read.
    """
    source = Path(path).parent / name
    if not origin:
        return Member(name, 0, size, str(source))
    # `origin` is where the member's header stands in the inner archive
    try:
        inner = source.read_bytes()
    except OSError as error:
        text = f"the thin archive's member {source} cannot be read: {error.strerror}"
        raise ArchiveError(Place(path), text) from error
    entry = read_entry(inner, origin, str(source))
    return Member(f"{name}:{origin}", entry.start, entry.size, str(source))


def read_index(text: bytes, entry: Entry, rows: dict[int, int], path: str) -> dict[bytes, int]:
    """Return the symbol index: name -> member row; the first definition counts.

    Raises:
        ArchiveIndexError: It is cut short or points at no member.
    """
    body = text[entry.start : entry.start + entry.size]
    if entry.name.startswith(BSD_INDEX):
        offsets, names = bsd_index(body, path)
    else:
        offsets, names = gnu_index(body, 8 if entry.name == INDEX[1] else 4, path)
    # a name that several members define: the last assignment wins in a dict, so go backwards
    pairs = zip(reversed(names), reversed(offsets), strict=True)
    try:
        return {name: rows[offset] for name, offset in pairs}
    except KeyError as error:
        problem = f"its symbol index points at byte {error.args[0]:#x}, where no member begins"
        raise ArchiveIndexError(Place(path), problem) from error


def gnu_index(body: bytes, width: int, path: str) -> tuple[list[int], list[bytes]]:
    """Return the header offset and the name of each entry of a `/` or `/SYM64/` member.

    Raises:
        ArchiveIndexError: The count does not fit the member's size.
    """
    count = int.from_bytes(body[:width], "big")
    strings = width + count * width
    if len(body) < width or strings > len(body):
        problem = f"its symbol index has {len(body)} bytes where {count} entries need {strings}"
        raise ArchiveIndexError(Place(path), problem)
    offsets = np.frombuffer(body, f">u{width}", count, width).tolist()
    names = body[strings:].split(b"\0")[:count]
    if body[strings:].count(b"\0") < count:
        problem = f"its symbol index has {body[strings:].count(0)} names for {count} entries"
        raise ArchiveIndexError(Place(path), problem)
    return offsets, names


def bsd_index(body: bytes, path: str) -> tuple[list[int], list[bytes]]:
    """Return the header offset and the name of each entry of a `__.SYMDEF` member.

    Raises:
        ArchiveIndexError: Its two tables do not fit its size.
    """
    size = int.from_bytes(body[:4], "little")
    strings = 4 + size + 4
    if size % 8 or strings > len(body):
        problem = f"its symbol index has {len(body)} bytes and announces a table of {size}"
        raise ArchiveIndexError(Place(path), problem)
    table = np.frombuffer(body, "<u4", size // 4, 4).reshape(-1, 2)
    text = body[strings:]
    ends = [text.find(b"\0", start) for start in table[:, 0].tolist()]
    if any(end < 0 for end in ends):
        raise ArchiveIndexError(Place(path), "a name of its symbol index has no end")
    starts = table[:, 0].tolist()
    names = [text[a:b] for a, b in zip(starts, ends, strict=True)]
    return table[:, 1].tolist(), names
