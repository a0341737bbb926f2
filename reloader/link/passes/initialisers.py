"""Which kept variables have another initial value in the new version.

Their live value stays, so the new initialiser has no effect: the user should know. Bytes are
compared with relocated fields set to zero, and those fields by what they refer to: a name, the
text of a string, or a place.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

import numpy as np

from reloader.arch.base import Architecture
from reloader.elf.object import COMMON, ObjectFile
from reloader.ids import I32, I64, U8, U64
from reloader.link.passes.initial_values import surely_equal
from reloader.link.passes.operands import field_widths
from reloader.link.passes.pair_variables import Names, base_name
from reloader.link.passes.references import Side

_STT_SECTION: Final = 3
_STRINGS: Final = 0x30  # SHF_MERGE | SHF_STRINGS


@dataclass(frozen=True, slots=True)
class InitialiserChange:
    """A kept variable whose initial value differs between the versions."""

    object: str
    name: str
    addr: int  # where its live value is
    size: int
    old: bytes  # initial bytes, relocated fields zero
    new: bytes
    old_targets: tuple[tuple[int, str], ...] = ()  # (offset in the variable, what it points to)
    new_targets: tuple[tuple[int, str], ...] = ()


class _Initials:
    """The initial values of one version's variables."""

    def __init__(self, side: Side) -> None:
        self.side, self.file = side, side.file
        self.plain: dict[int, U8] = {}
        section = side.file.relocation_sections
        rows = np.flatnonzero(side.writable[section])
        key = _key(section[rows], side.file.relocations["r_offset"][rows].astype(np.int64))
        order = np.argsort(key, kind="stable")
        self.rows, self.key = rows[order], key[order]

    def value(self, row: int) -> bytes:
        """Return the initial bytes of a variable, relocated fields zero."""
        table = self.side.variables
        section, start = int(table.section[row]), int(table.offset[row])
        size = int(table.size[row])
        if section == COMMON:
            return bytes(size)
        return self.content(section)[start : start + size].tobytes().ljust(size, b"\0")

    def content(self, section: int) -> U8:
        """Return a section's bytes, relocated fields zero."""
        if section not in self.plain:
            self.plain[section] = zeroed(self.file, section, self.side.arch)
        return self.plain[section]

    def targets(self, row: int) -> tuple[tuple[int, str], ...]:
        """Return what each relocated field of a variable refers to."""
        table = self.side.variables
        if int(table.section[row]) == COMMON or not len(self.key):
            return ()
        low = _key(table.section[row : row + 1], table.offset[row : row + 1])[0]
        first, last = np.searchsorted(self.key, [low, low + int(table.size[row])])
        places = (self.key[first:last] - low).tolist()
        rows = self.rows[first:last].tolist()
        return tuple(
            (place, target_text(self.file, at)) for place, at in zip(places, rows, strict=True)
        )


@lru_cache(maxsize=8)
def _initials(side: Side) -> _Initials:
    return _Initials(side)


def _key(section: I32, offset: I64) -> I64:
    return (section.astype(np.int64) << 40) | offset


def zeroed(file: ObjectFile, section: int, arch: Architecture) -> U8:
    """Return a section's bytes with every relocated field zero."""
    content = file.section_bytes(section).copy()
    rows = file.relocations[file.relocation_sections == section]
    width = field_widths(rows, arch)
    at = rows["r_offset"].astype(np.int64)
    for size in np.unique(width[width > 0]).tolist():
        content[at[width == size, None] + np.arange(size)] = 0
    return content


def target_text(file: ObjectFile, relocation: int) -> str:
    """Return what a relocation refers to, in words that two versions of an object share."""
    row: Any = file.relocations[relocation]
    symbol, addend = int(row["r_sym"]), int(row["r_addend"])
    section = int(file.symbol_sections[symbol])
    if int(file.types()[symbol]) != _STT_SECTION or section < 0:
        return _text(base_name(file.symbol_names[symbol]), addend)
    headers: Any = file.sections
    if int(headers["sh_flags"][section]) & _STRINGS == _STRINGS:
        content = file.section_bytes(section).tobytes()
        return repr(content[addend : content.find(b"\0", addend)].decode("utf-8", "replace"))
    own = file.defined_in(section)
    own = own[file.types()[own] != _STT_SECTION]
    start = file.symbols["st_value"][own].astype(np.int64)
    size = file.symbols["st_size"][own].astype(np.int64)
    around = np.flatnonzero((start <= addend) & (addend < start + np.maximum(size, 1)))
    if len(around):
        at = int(around[0])
        return _text(base_name(file.symbol_names[int(own[at])]), addend - int(start[at]))
    return _text(file.section_names[section], addend)


def _text(name: bytes, addend: int) -> str:
    text = name.decode("utf-8", "replace")
    return f"&{text}{addend:+#x}" if addend else f"&{text}"


def changed_initialisers(
    old: Side, new: Side, old_row: I32, addr: U64, names: Names
) -> list[InitialiserChange]:
    """Return the kept variables whose initial value differs.

    Args:
        old: The live version.
        new: The version to load.
        old_row: (v,) the live version's variable that each new one continues, or NO_ROW.
        addr: (v,) its live address.
        names: How the new variables are called.
    """
    changes: list[InitialiserChange] = []
    rows = np.flatnonzero(old_row >= 0)
    rows = rows[~surely_equal(old, new, old_row[rows], rows)]
    if not len(rows):
        return changes
    before, after = _initials(old), _initials(new)
    for row in rows.tolist():
        past = int(old_row[row])
        values = before.value(past), after.value(row)
        targets = before.targets(past), after.targets(row)
        if values[0] != values[1] or targets[0] != targets[1]:
            name, size = names.shown(row), int(new.variables.size[row])
            place = new.file.name, name, int(addr[row]), size
            changes.append(InitialiserChange(*place, *values, *targets))
    return changes
