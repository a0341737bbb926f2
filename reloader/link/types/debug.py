"""Whether two versions of an object describe their types in the same bytes.

Most edits change what a function does and no type, and where no line moved either the debug
information is the very same: then nothing has to be read.
"""

from typing import Final

import numpy as np

from reloader.elf.object import ObjectFile
from reloader.elf.type_reader import type_table
from reloader.ids import NO_ROW

_PARTS: Final = (b".debug_info", b".debug_abbrev", b".debug_str", b".debug_str_offsets")


def tells(file: ObjectFile) -> bool:
    """Return whether an object has debug information, packed or not."""
    return b".debug_info" in file.section_names or (
        b".zdebug_info" in file.section_names and type_table(file).known
    )


def same_types(old: ObjectFile, new: ObjectFile) -> bool:
    """Return whether the debug information of two versions is equal."""
    for name in _PARTS:
        befores, afters = sections_called(old, name), sections_called(new, name)
        if len(befores) != len(afters):
            return False
        for before, after in zip(befores, afters, strict=True):
            if not np.array_equal(old.section_bytes(before), new.section_bytes(after)):
                return False
            if name != b".debug_abbrev" and not same_pointers(old, before, new, after):
                return False
    return True


def same_pointers(old: ObjectFile, before: int, new: ObjectFile, after: int) -> bool:
    """Return whether two sections have the same relocations."""
    olds = old.relocations[old.relocation_sections == before]
    news = new.relocations[new.relocation_sections == after]
    if len(olds) != len(news) or not all(
        np.array_equal(olds[column], news[column])
        for column in ("r_offset", "r_addend", "r_type")
    ):
        return False
    if old.section_names != new.section_names:
        return False
    one, other = olds["r_sym"], news["r_sym"]
    return np.array_equal(
        old.symbol_sections[one], new.symbol_sections[other]
    ) and np.array_equal(old.symbols["st_value"][one], new.symbols["st_value"][other])


def sections_called(file: ObjectFile, name: bytes) -> list[int]:
    """Return the sections of a name: type units have sections of their own."""
    if file.section_names.count(name) == 1:
        return [file.section_names.index(name)]
    return [row for row, known in enumerate(file.section_names) if known == name]


def section_called(file: ObjectFile, name: bytes) -> int:
    """Return the first section of a name, or NO_ROW."""
    names = file.section_names
    return names.index(name) if name in names else NO_ROW
