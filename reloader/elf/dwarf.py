"""Debug information of an object file: where a variable is declared and what it looks like.

pyelftools reads the records, but its own relocation of a large object takes seconds (one Python
call a relocation), so the sections are relocated here, as arrays, and handed to it ready. What
an address in them refers to is found in the relocations again: an object's sections all start
at 0, so the number alone cannot tell `.data` from `.bss`.
"""

import zlib
from collections import OrderedDict
from collections.abc import Container
from dataclasses import dataclass
from io import BytesIO
from typing import Any, Final, cast

import numpy as np
from elftools.dwarf.dwarfinfo import DebugSectionDescriptor, DwarfConfig, DWARFInfo
from elftools.elf.enums import ENUM_RELOC_TYPE_AARCH64, ENUM_RELOC_TYPE_x64

from reloader.elf.object import COMMON, ObjectFile
from reloader.ids import I32, I64

# The absolute words that compilers put into debug sections, as bytes. By name: their numbers
# are in the architecture tables, which a reader does not see.
_WORDS: Final = {
    "R_X86_64_64": 8,
    "R_X86_64_32": 4,
    "R_X86_64_DTPOFF64": 8,
    "R_X86_64_DTPOFF32": 4,
    "R_AARCH64_ABS64": 8,
    "R_AARCH64_ABS32": 4,
}
_NUMBERS: Final = {
    62: ENUM_RELOC_TYPE_x64,
    183: ENUM_RELOC_TYPE_AARCH64,
}  # EM_X86_64, EM_AARCH64
_SECTIONS: Final = (
    "debug_info", "debug_aranges", "debug_abbrev", "debug_frame", "eh_frame", "debug_str",
    "debug_loc", "debug_ranges", "debug_line", "debug_pubtypes", "debug_pubnames", "debug_addr",
    "debug_str_offsets", "debug_line_str", "debug_loclists", "debug_rnglists", "debug_sup",
    "gnu_debugaltlink", "debug_types",
)  # fmt: skip
_COMPRESSED: Final = 0x800  # SHF_COMPRESSED
_CHDR_SIZE: Final = 24  # Elf64_Chdr
_ZLIB: Final = 1  # ELFCOMPRESS_ZLIB
_KEPT: Final = 32  # objects whose debug information stays in memory
_ADDR_SIZE: Final = 8


@dataclass(frozen=True, slots=True, eq=False)
class Pointers:
    """(r,) columns: what the relocated words of one debug section refer to, by their offset."""

    at: I64  # offset of the word in the debug section, ascending
    section: I32  # of the symbol: index, or one of the sentinels of `elf.object`
    offset: I64  # in that section; for COMMON the symbol's index

    def find(self, at: int) -> tuple[int, int] | None:
        """Return (section, offset) that a word refers to, None if it is no pointer."""
        row = int(np.searchsorted(self.at, at))
        if row == len(self.at) or int(self.at[row]) != at:
            return None
        return int(self.section[row]), int(self.offset[row])


@dataclass(frozen=True, slots=True, eq=False)
class DebugSections:
    """The debug sections of one object, unpacked and relocated."""

    data: dict[str, bytes]  # by name without a compression's `z`
    pointers: dict[str, Pointers]

    def info(self) -> DWARFInfo:
        """Return pyelftools' reader over the sections; it relocates nothing itself."""

        def section(name: str) -> DebugSectionDescriptor | None:
            data = self.data.get(name)
            if data is None:
                return None
            return DebugSectionDescriptor(BytesIO(data), name, None, len(data), 0)

        config = DwarfConfig(
            little_endian=True, machine_arch="x64", default_address_size=_ADDR_SIZE
        )
        return DWARFInfo(config, **{f"{name}_sec": section("." + name) for name in _SECTIONS})


def relocated_debug_sections(obj: ObjectFile) -> dict[str, bytes]:
    """Return the bytes of the `.debug_*` sections by name, unpacked and relocated.

    A section that is packed in a way this Python cannot unpack (zstd) is left out, as if the
    object had been compiled without it.
    """
    return debug_sections(obj).data


def debug_sections(obj: ObjectFile) -> DebugSections:
    """Return the debug sections of an object; the last few objects' are remembered."""
    found = _cache.get(obj.digest)
    if found is None:
        found = _cache[obj.digest] = _read(obj)
        while len(_cache) > _KEPT:
            _cache.popitem(last=False)
    return found


_cache: OrderedDict[str, DebugSections] = OrderedDict()


def some_debug_sections(obj: ObjectFile, names: Container[str]) -> DebugSections:
    """Return some of the debug sections of an object, by name; nothing is remembered."""
    known = _cache.get(obj.digest)
    return known if known is not None else _read(obj, names)


def _read(obj: ObjectFile, names: Container[str] | None = None) -> DebugSections:
    data: dict[str, bytes] = {}
    pointers: dict[str, Pointers] = {}
    widths = _widths(obj.machine)
    for section, raw in enumerate(obj.section_names):
        if not raw.startswith((b".debug_", b".zdebug_")) or obj.group_sections[section]:
            continue  # a COMDAT type unit has sections of the same names: not the object's own
        packed = raw.startswith(b".z")
        name = raw.decode().replace(".zdebug_", ".debug_")
        if names is not None and name not in names:
            continue
        content = _unpack(obj, section, gnu=packed)
        if content is None:
            continue
        image = np.frombuffer(bytearray(content), np.uint8)
        if name not in data:
            pointers[name] = _relocate(obj, section, image, widths)
            data[name] = image.tobytes()
    return DebugSections(data, pointers)


def _widths(machine: int) -> I32:
    """Return the byte width of a debug section's word by relocation number; 0: left alone."""
    numbers = cast("dict[str, Any]", _NUMBERS.get(machine, {}))
    rows = {int(numbers[name]): width for name, width in _WORDS.items() if name in numbers}
    table = np.zeros(max(rows, default=0) + 2, np.int32)
    for number, width in rows.items():
        table[number] = width
    return table


def _unpack(obj: ObjectFile, section: int, *, gnu: bool) -> bytes | None:
    raw = obj.section_bytes(section).tobytes()
    try:
        if gnu:  # `ZLIB`, then the size as eight bytes, big-endian
            return zlib.decompress(raw[12:])
        header: Any = obj.sections[section]
        if not int(header["sh_flags"]) & _COMPRESSED:
            return raw
        kind = int.from_bytes(raw[:4], "little")
        return zlib.decompress(raw[_CHDR_SIZE:]) if kind == _ZLIB else None
    except zlib.error:
        return None


def _relocate(obj: ObjectFile, section: int, image: np.ndarray, widths: I32) -> Pointers:
    """Apply the relocations of one debug section and return what they refer to."""
    rows = obj.relocations[obj.relocation_sections == section]
    if not len(rows):
        return Pointers(np.zeros(0, np.int64), np.zeros(0, np.int32), np.zeros(0, np.int64))
    width = widths[np.minimum(rows["r_type"], len(widths) - 1)]
    at = rows["r_offset"].astype(np.int64)
    usable = (width > 0) & (at + width <= len(image))
    rows, at, width = rows[usable], at[usable], width[usable]
    order = np.argsort(at, kind="stable")
    rows, at, width = rows[order], at[order], width[order]
    symbol = rows["r_sym"].astype(np.int64)
    value = obj.symbols["st_value"][symbol].astype(np.int64) + rows["r_addend"]
    for size in (4, 8):
        chosen = np.flatnonzero(width == size)
        fields = value[chosen].astype("<i8").view(np.uint8).reshape(-1, 8)[:, :size]
        image[at[chosen, None] + np.arange(size)] = fields
    where = obj.symbol_sections[symbol]
    return Pointers(at, where, np.where(where == COMMON, symbol, value))
