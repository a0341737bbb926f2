"""References into writable sections that are written as section symbol + addend."""

from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Final

import numpy as np

from reloader.arch.base import Architecture, Table
from reloader.elf.alike import of_tables
from reloader.elf.object import ObjectFile
from reloader.ids import I32, I64, Bool
from reloader.link.passes.operands import Code, How, Operand, field_widths
from reloader.link.passes.pair_variables import Variables

_STT_SECTION: Final = 3
_EXECINSTR: Final = 0x4  # SHF_EXECINSTR
_ALLOC: Final = 0x2  # SHF_ALLOC
_FIELD: Final = 4  # of a pc-relative operand


@dataclass(frozen=True, slots=True, eq=False)
class References:
    """(r,) columns: the section-symbol relocations of one object into its writable sections."""

    row: I64  # of ObjectFile.relocations
    source: I32  # section of the field
    field: I64  # its offset there
    section: I32  # section referred to
    addend: I64  # counted from that section's start
    pc: Bool
    plain: Bool  # S + A or S + A - P
    code: Bool  # the field is in an instruction


@of_tables
def references_of(file: ObjectFile, writable: Bool, arch: Architecture) -> References:
    """Return the section-symbol relocations of an object into some of its sections."""
    symbol = file.relocations["r_sym"].astype(np.int64)
    section = file.symbol_sections[symbol]
    chosen = (file.types()[symbol] == _STT_SECTION) & (section >= 0)
    chosen &= writable[np.maximum(section, 0)]
    flags = file.sections["sh_flags"][file.relocation_sections]
    chosen &= ((flags & _ALLOC) != 0) & (field_widths(file.relocations, arch) > 0)
    rows = chosen.nonzero()[0]
    kind = arch.kind_of_number[file.relocations["r_type"][rows]]
    kinds = arch.kinds[kind]
    plain = (kinds["table"] == Table.NONE) & ~kinds["branch"] & (kinds["width"] >= _FIELD)
    return References(
        row=rows,
        source=file.relocation_sections[rows],
        field=file.relocations["r_offset"][rows].astype(np.int64),
        section=section[rows],
        addend=file.relocations["r_addend"][rows]
        + file.symbols["st_value"][symbol[rows]].astype(np.int64),
        pc=kinds["pc"],
        plain=plain & _plain_kinds(arch)[kind],
        code=(flags[rows] & _EXECINSTR) != 0,
    )


@lru_cache
def _plain_kinds(arch: Architecture) -> Bool:
    """Return (k,) which kinds are the symbol's address, absolute or relative."""
    return np.isin(arch.kinds["formula"], ["S + A", "S + A - P"])


class Side:
    """One version of an object, with what its references mean found when asked."""

    def __init__(
        self, file: ObjectFile, variables: Variables, writable: Bool, arch: Architecture
    ) -> None:
        self.file = file
        self.variables = variables
        self.arch = arch
        self.writable = writable
        self._operands: dict[int, Operand] = {}
        self._by_field: dict[tuple[int, int], int] | None = None

    @cached_property
    def code(self) -> Code:
        """The decoded functions."""
        return Code(self.file, self.arch)

    @cached_property
    def references(self) -> References:
        """Every section-symbol reference to the variables."""
        return references_of(self.file, self.writable, self.arch)

    def operand(self, row: int) -> Operand:
        """Return how a reference uses its target."""
        known = self._operands.get(row)
        if known is None:
            table = self.references
            if not table.code[row]:
                word = table.plain[row] and not table.pc[row]
                known = Operand(How.WORD if word else How.UNKNOWN, 0)
            elif not table.plain[row]:
                known = Operand(How.ADDRESS, _FIELD)
            else:
                known = self.code.operand(int(table.source[row]), int(table.field[row]))
            self._operands[row] = known
        return known

    def target(self, row: int) -> int:
        """Return the offset in the data section that a reference means."""
        tail = self.operand(row).tail if self.references.pc[row] else 0
        return int(self.references.addend[row]) + tail

    def find(self, source: int, field: int) -> int | None:
        """Return the reference whose field is at an offset of a section."""
        if self._by_field is None:
            table = self.references
            places = zip(table.source.tolist(), table.field.tolist(), strict=True)
            self._by_field = {place: row for row, place in enumerate(places)}
        return self._by_field.get((source, field))

    @cached_property
    def guessed(self) -> I64:
        """(r,) targets as if no immediate followed: right for every `lea` and every word."""
        table = self.references
        return table.addend + np.where(table.pc & table.code, _FIELD, 0)
