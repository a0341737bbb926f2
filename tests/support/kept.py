"""What a kept object says its functions are, compared with what runs; for the checker.

ELF is read with pyelftools and code with capstone: nothing here is shared with the linker.
"""

from dataclasses import dataclass, field
from io import BytesIO
from typing import Any, Final, cast

import capstone
from elftools.elf.elffile import ELFFile

# bytes that a relocation's place may change: from, to, relative to r_offset
_WIDE: Final = {1: (0, 8), 24: (0, 8), 25: (0, 8)}  # R_X86_64_64, PC64, GOTOFF64
_RELAXED: Final = {41: (-2, 4), 42: (-3, 4)}  # GOTPCRELX, REX_GOTPCRELX: the opcode too
_CAPSTONE: Final = cast("Any", capstone)


@dataclass(slots=True)
class Kept:
    """A kept object: its sections' bytes, and which of them a linker changes."""

    content: dict[tuple[str, int], tuple[bytes, bytearray]] = field(
        default_factory=dict[tuple[str, int], tuple[bytes, bytearray]]
    )  # by name and row: bytes, 1 where they may differ
    functions: dict[str, list[tuple[tuple[str, int], int]]] = field(
        default_factory=dict[str, list[tuple[tuple[str, int], int]]]
    )  # by name: section and offset

    @classmethod
    def read(cls, data: bytes) -> "Kept":
        """Read an ELF object."""
        found, elf = cls(), cast("Any", ELFFile(BytesIO(data)))
        rows: dict[int, tuple[str, int]] = {}
        for row, section in enumerate(elf.iter_sections()):
            if section["sh_flags"] & 2 and section["sh_type"] != "SHT_NOBITS":
                rows[row] = (section.name, row)
                found.content[rows[row]] = section.data(), bytearray(section["sh_size"])
        for section in elf.iter_sections():
            if section["sh_type"] == "SHT_RELA" and section["sh_info"] in rows:
                may = found.content[rows[section["sh_info"]]][1]
                for entry in section.iter_relocations():
                    _mark(may, entry["r_offset"], entry["r_info_type"])
            if section["sh_type"] == "SHT_SYMTAB":
                for symbol in section.iter_symbols():
                    if symbol["st_info"]["type"] == "STT_FUNC" and symbol["st_shndx"] in rows:
                        place = rows[symbol["st_shndx"]], symbol["st_value"]
                        found.functions.setdefault(symbol.name, []).append(place)
        return found

    def function(self, name: str, size: int) -> list[tuple[bytes, bytearray]]:
        """Return what a function may be: local ones of one name may be several."""
        found: list[tuple[bytes, bytearray]] = []
        for section, offset in self.functions.get(name, []):
            data, may = self.content[section]
            found.append((data[offset : offset + size], may[offset : offset + size]))
        return found


def _mark(may: bytearray, offset: int, kind: int) -> None:
    """Say that a relocation changes bytes."""
    low, high = _WIDE.get(kind) or _RELAXED.get(kind) or (0, 4)
    low = max(offset + low, 0)
    may[low : offset + high] = b"\1" * (min(offset + high, len(may)) - low)


def _relative(data: bytes) -> list[int]:
    """Return where instructions hold a distance: to data, or to a branch's end."""
    decoder = _CAPSTONE.Cs(_CAPSTONE.CS_ARCH_X86, _CAPSTONE.CS_MODE_64)
    decoder.detail = True
    places: list[int] = []
    for one in decoder.disasm(data, 0):
        if "rip" in one.op_str:
            places.append(one.address + one.disp_offset)
        branch = one.group(_CAPSTONE.CS_GRP_JUMP) or one.group(_CAPSTONE.CS_GRP_CALL)
        if branch and one.imm_size == 4:
            places.append(one.address + one.imm_offset)
    return places


def same_code(data: bytes, may: bytearray, live: bytes) -> bool:
    """Return whether live code is an object's, what is relative to its place aside."""
    may = bytearray(may)
    if data != live:
        for at in _relative(data):
            may[at : at + 4] = b"\1\1\1\1"
    pairs = zip(data, live, may, strict=True)
    return all(may_differ or old == new for old, new, may_differ in pairs)
