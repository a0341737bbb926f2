"""Who uses a function or a type, asked only when it changed."""

from bisect import bisect_right
from functools import lru_cache
from pathlib import PurePosixPath
from typing import Final

import numpy as np

from reloader.elf.lines import unit_files
from reloader.elf.object import UNDEFINED, ObjectFile
from reloader.elf.scopes import BROKEN
from reloader.elf.types import TypeTable
from reloader.ids import NO_ROW
from reloader.link.types.debug import section_called

_FUNCTION: Final = 2  # STT_FUNC


def callers(file: ObjectFile, name: str) -> list[str]:
    """Return `main.o (loop, stop)` if an object uses a function that others define."""
    try:
        symbol = file.symbol_names.index(name.encode())
    except ValueError:
        return []
    if int(file.symbol_sections[symbol]) != UNDEFINED:
        return []
    rows = np.flatnonzero(file.relocations["r_sym"] == symbol)
    types = file.types()
    names: dict[str, None] = {}
    for row in rows.tolist():
        section, at = int(file.relocation_sections[row]), int(file.relocations["r_offset"][row])
        start, size = file.symbols["st_value"], file.symbols["st_size"]
        inside = (file.symbol_sections == section) & (types == _FUNCTION)
        inside &= (start <= np.uint64(at)) & (np.uint64(at) < start + size)
        found: list[int] = np.flatnonzero(inside).tolist()
        names |= {file.symbol_names[user].decode("utf-8", "replace"): None for user in found}
    if not len(rows):
        return []
    return [f"{file.name} ({', '.join(names)})" if names else file.name]


def mentions(file: ObjectFile, name: str) -> bool:
    """Return whether a name may stand in an object's debug information, without reading it."""
    parts = [section_called(file, part) for part in (b".debug_str", b".debug_info")]
    if NO_ROW in parts:
        return any(part.startswith(b".zdebug") for part in file.section_names)
    headers = file.sections["sh_flags"]
    packed = any(int(headers[part]) & 0x800 for part in parts)  # SHF_COMPRESSED
    word = name.rpartition("::")[2].encode()
    return packed or any(word in file.section_bytes(part).tobytes() for part in parts)


def is_private(file: ObjectFile, table: TypeTable, at: int) -> bool:
    """Return whether a type is declared in the object's own source, not in a header."""
    record = table.types[at]
    unit = bisect_right([end for end, _ in table.units], at)
    files = _files(file)
    if unit >= len(files) or not 0 <= record.file < len(files[unit]):
        return False
    declared, source = files[unit][record.file], table.units[unit][1]
    return bool(declared) and PurePosixPath(declared).name == PurePosixPath(source).name


@lru_cache(maxsize=64)
def _files(file: ObjectFile) -> list[list[str]]:
    try:
        return unit_files(file)
    except BROKEN:
        return []
