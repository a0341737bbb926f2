"""Source lines for people: found lazily, in the debug information of one object."""

from reloader.elf.lines import LineTable
from reloader.elf.object import ObjectFile


def source_line(file: ObjectFile, section: int, offset: int) -> str:
    """Return `hud.c:41` for a place in an object, "" where it has no line information."""
    return LineTable.of(file).find(section, offset)
