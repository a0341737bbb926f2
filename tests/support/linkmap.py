"""ld's map file: where the linker put each input section."""

import re
from dataclasses import dataclass
from pathlib import Path

# ` .text   0x0000000000004a10   0x5e3 lapi.o`, a long name alone on the line before
_LINE = re.compile(r"^ ([^\s*(]\S*)\s+0x([0-9a-f]+)\s+0x([0-9a-f]+) (\S.*)$", re.MULTILINE)
_MEMBER = re.compile(r"^.*\((.*)\)$")


@dataclass(frozen=True, slots=True)
class LinkMap:
    """(object's file name, section name) -> addresses, in the object's order."""

    placed: dict[tuple[str, str], list[int]]
    discarded: dict[tuple[str, str], int]  # how many of that name were dropped


def read_link_map(path: Path) -> LinkMap:
    """Read the placements of a map written by GNU ld."""
    text = re.sub(r"^( \S+)\n +0x", r"\1 0x", path.read_text(), flags=re.MULTILINE)
    dropped, _, placed = text.partition("Linker script and memory map")
    found = LinkMap({}, {})
    for name, addr, size, source in _LINE.findall(placed):
        if int(size, 16):
            found.placed.setdefault((_object(source), name), []).append(int(addr, 16))
    for name, _, size, source in _LINE.findall(dropped):
        if int(size, 16):
            key = (_object(source), name)
            found.discarded[key] = found.discarded.get(key, 0) + 1
    return found


def _object(source: str) -> str:
    member = _MEMBER.match(source)
    return Path(member[1] if member else source).name
