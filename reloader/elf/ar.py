"""The member headers of an archive: where each member's bytes are and what it is called.

The System V format (`ar(5)`): a magic line, then for each member a 60-byte text header and its
bytes, padded to two. GNU keeps long names in the member `//`, as `/offset`; BSD puts them in
front of the member's bytes, as `#1/length`. A *thin* archive has the headers alone; its
members are files beside it.
"""

from typing import Final, NamedTuple

from reloader.errors.base import Place
from reloader.errors.objects import ArchiveError, TruncatedError

MAGIC: Final = b"!<arch>\n"
THIN_MAGIC: Final = b"!<thin>\n"
HEADER_SIZE: Final = 60
INDEX: Final = (b"/", b"/SYM64/")  # members that hold the symbol index, 32- and 64-bit
BSD_INDEX: Final = b"__.SYMDEF"
LONG_NAMES: Final = b"//"


class Entry(NamedTuple):
    """One member header."""

    name: bytes  # as it stands in the header, trailing spaces removed
    header: int  # file offset of the header
    start: int  # file offset of the first byte after it
    size: int  # bytes of the member


def is_archive(data: bytes) -> bool:
    """Return whether the bytes begin like an archive."""
    return data[:8] in (MAGIC, THIN_MAGIC)


def read_entries(data: bytes, path: str) -> list[Entry]:
    """Return every member header, the index and name table included.

    Args:
        data: The whole archive, which begins with one of the two magics.
        path: For errors.

    Raises:
        TruncatedError: A header or member lies past the end of the file.
        ArchiveError: A header is not one.
    """
    thin = data[:8] == THIN_MAGIC
    entries: list[Entry] = []
    at = len(MAGIC)
    while at < len(data):
        entry = read_entry(data, at, path)
        entries.append(entry)
        stored = not thin or is_special(entry.name)
        end = entry.start + (entry.size if stored else 0)
        if end > len(data):
            raise TruncatedError(Place(path), f"the member at {at:#x}", end, len(data))
        at = end + end % 2
    return entries


def read_entry(data: bytes, at: int, path: str) -> Entry:
    """Return the header at a file offset.

    Raises:
        TruncatedError: It is cut short.
        ArchiveError: It lacks its end mark or its size is no number.
    """
    start = at + HEADER_SIZE
    if start > len(data):
        raise TruncatedError(Place(path), "a member header", start, len(data))
    if data[at + 58 : start] != b"`\n":
        found = data[at + 58 : start].hex(" ")
        text = f"a member header ends with {found} instead of 60 0a"
        raise ArchiveError(Place(path, offset=at), text)
    digits = data[at + 48 : at + 58].rstrip(b" ")
    if not digits.isdigit():
        text = f"a member's size is {digits!r}, not a number"
        raise ArchiveError(Place(path, offset=at), text)
    return Entry(data[at : at + 16].rstrip(b" "), at, start, int(digits))


def is_special(name: bytes) -> bool:
    """Return whether a member is the archive's own: a symbol index or the name table."""
    return name in INDEX or name == LONG_NAMES or name.startswith(BSD_INDEX)
