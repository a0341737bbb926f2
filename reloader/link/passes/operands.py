"""What a relocated field of an instruction is: an access to that very address, or an address.

Needed where a reference is written as *section symbol + addend*. For a pc-relative field the addend
also holds the distance to the end of the instruction (an immediate may follow), so the
instruction has to be decoded. Functions are decoded once, fast and without details; details are
asked only for the instructions around the fields in question.
"""

from bisect import bisect_right
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Final, cast

import capstone
import numpy as np
from capstone import x86
from numpy.typing import NDArray

from reloader.arch.base import Architecture
from reloader.elf.object import ObjectFile
from reloader.ids import I64, U8

_STT_FUNC: Final = 2
_LOOK_AHEAD: Final = 12  # instructions after a `lea` in which its use is looked for


class How(IntEnum):
    """How a field refers to its target."""

    DIRECT = 0  # a memory operand without a register: the access is inside its variable
    ADDRESS = 1  # `lea`, an immediate: may point to the end of a variable
    INDEXED = 2  # displacement of a register: `a[i-1]` folded, may lie anywhere
    WORD = 3  # in data: a pointer
    UNKNOWN = 4  # not decoded; may mean anything


@dataclass(frozen=True, slots=True)
class Operand:
    """One relocated field."""

    how: How
    tail: int  # bytes from the field to the end of its instruction
    # for ADDRESS: where the first access through the register goes, counted from it, if it shows
    reach: int | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Function:
    """The decoded instructions of one function."""

    name: bytes
    section: int
    start: int  # offset in the section
    at: list[int]  # offset of each instruction in the section
    size: list[int]
    shape: list[bytes]  # its bytes with relocated fields zeroed; a branch: its mnemonic

    def index_of(self, offset: int) -> int:
        """Return the instruction that holds a byte of the section, -1 if it was not decoded."""
        row = bisect_right(self.at, offset) - 1
        return row if row >= 0 and offset < self.at[row] + self.size[row] else -1


class Code:
    """The code sections of one object, decoded function by function when asked."""

    def __init__(self, file: ObjectFile, arch: Architecture) -> None:
        self.file = file
        self.arch = arch
        self.lite = capstone.Cs(*arch.capstone)
        self.full = capstone.Cs(*arch.capstone)
        self.full.detail = True
        self._starts: dict[int, tuple[list[int], list[int], list[bytes]]] = {}
        self._plain: dict[int, U8] = {}
        self._functions: dict[tuple[int, int], Function] = {}

    def function_at(self, section: int, offset: int) -> Function:
        """Return the function that holds a byte of a section, decoded."""
        starts, ends, names = self.starts(section)
        row = bisect_right(starts, offset) - 1
        start, name = (starts[row], names[row]) if row >= 0 else (0, b"")
        end = starts[row + 1] if row + 1 < len(starts) else len(self.plain(section))
        if row >= 0 and ends[row] > offset:
            end = ends[row]
        return self.decode(section, start, end, name)

    def named(self, name: bytes) -> Function | None:
        """Return the decoded function of a name, None if the object has none or several."""
        rows = [
            row
            for row, found in enumerate(self.file.symbol_names)
            if found == name and int(self.file.symbol_sections[row]) > 0
        ]
        if len(rows) != 1:
            return None
        symbol: Any = self.file.symbols[rows[0]]
        section, start = int(self.file.symbol_sections[rows[0]]), int(symbol["st_value"])
        return self.function_at(section, start)

    def starts(self, section: int) -> tuple[list[int], list[int], list[bytes]]:
        """Return (starts, ends, names) of the functions of a section, ascending."""
        known = self._starts.get(section)
        if known is None:
            rows = self.file.defined_in(section)
            rows = rows[self.file.types()[rows] == _STT_FUNC]
            value = self.file.symbols["st_value"][rows].astype(np.int64)
            size = self.file.symbols["st_size"][rows].astype(np.int64)
            order = np.lexsort((size, value))
            names = [self.file.symbol_names[row] for row in rows[order].tolist()]
            ends = (value + size)[order]
            known = self._starts[section] = (value[order].tolist(), ends.tolist(), names)
        return known

    def plain(self, section: int) -> U8:
        """Return a section's bytes with every relocated field zeroed."""
        known = self._plain.get(section)
        if known is None:
            known = self.file.section_bytes(section).copy()
            rows = self.file.relocations[self.file.relocation_sections == section]
            width = field_widths(rows, self.arch)
            at = rows["r_offset"].astype(np.int64)
            for size in np.unique(width[width > 0]).tolist():
                known[at[width == size, None] + np.arange(size)] = 0
            self._plain[section] = known
        return known

    def decode(self, section: int, start: int, end: int, name: bytes) -> Function:
        """Return the instructions between two offsets of a section."""
        known = self._functions.get((section, start))
        if known is not None:
            return known
        code = self.plain(section)[start:end].tobytes()
        at: list[int] = []
        sizes: list[int] = []
        shapes: list[bytes] = []
        for address, size, mnemonic, _ in self.lite.disasm_lite(code, start):
            at.append(address)
            sizes.append(size)
            branch = mnemonic[0] == "j" or mnemonic == "call"
            raw = code[address - start : address - start + size]
            shapes.append(mnemonic.encode() if branch else raw)
        found = self._functions[section, start] = Function(
            name, section, start, at, sizes, shapes
        )
        return found

    def operand(self, section: int, field: int) -> Operand:
        """Return what the field at an offset of a code section is."""
        function = self.function_at(section, field)
        row = function.index_of(field)
        if row < 0:
            return Operand(How.UNKNOWN, 4)
        instruction = self.detail(section, function, row)
        tail = function.at[row] + function.size[row] - field
        inner = field - function.at[row]
        how = _how(instruction, inner)
        if how != How.ADDRESS or instruction.id != x86.X86_INS_LEA:
            return Operand(how, tail)
        register = int(instruction.operands[0].reg)
        return Operand(how, tail, self.reach(section, function, row + 1, register))

    def detail(self, section: int, function: Function, row: int) -> Any:  # noqa: ANN401  untyped library
        """Return capstone's full record of one decoded instruction."""
        at, size = function.at[row], function.size[row]
        code = self.plain(section)[at : at + size].tobytes()
        return cast("Any", next(iter(self.full.disasm(code, at))))

    def reach(self, section: int, function: Function, row: int, register: int) -> int | None:
        """Return the distance of the first access through a register that a `lea` has set.

        An access at or after the address is inside the variable that starts there, one before it
        inside the variable that ends there. Followed only as far as the register surely holds
        the address: up to the next branch, call or overwriting.
        """
        for index in range(row, min(row + _LOOK_AHEAD, len(function.at))):
            instruction = self.detail(section, function, index)
            for operand in instruction.operands:
                if operand.type != x86.X86_OP_MEM or instruction.id == x86.X86_INS_LEA:
                    continue
                base, index, disp = operand.mem.base, operand.mem.index, int(operand.mem.disp)
                if register == base and not index:
                    return disp
                if register == base or (register == index and operand.mem.scale == 1):
                    return disp if disp >= 0 else None  # `a[i-1]` is inside `a`
            if any(instruction.group(g) for g in _LEAVES) or _writes(instruction, register):
                return None
        return None


_LEAVES: Final = (x86.X86_GRP_CALL, x86.X86_GRP_JUMP, x86.X86_GRP_RET)


def _writes(instruction: Any, register: int) -> bool:  # noqa: ANN401  untyped library
    _, written = instruction.regs_access()
    name = str(instruction.reg_name(register))
    own = {register} | {reg for reg in written if _same(str(instruction.reg_name(reg)), name)}
    return any(reg in own for reg in written)


def _same(one: str, other: str) -> bool:
    """Return whether two names mean parts of one general register: `eax`, `rax`; `r8d`, `r8`."""

    def stem(name: str) -> str:
        if name[:1] == "r" and name[1:2].isdigit():
            return name.rstrip("dwb")
        return name.lstrip("re").rstrip("lhx")

    return stem(one) == stem(other)


def _how(instruction: Any, inner: int) -> How:  # noqa: ANN401  untyped library
    """Return how an instruction uses the field at a byte of it."""
    if inner == instruction.imm_offset and instruction.imm_size:
        return How.ADDRESS
    for operand in instruction.operands:
        if operand.type != x86.X86_OP_MEM:
            continue
        memory = operand.mem
        if memory.index or memory.base not in (0, x86.X86_REG_RIP):
            return How.INDEXED
        return How.ADDRESS if instruction.id == x86.X86_INS_LEA else How.DIRECT
    # `movabs addr, %rax` has its address where an immediate stands
    return How.ADDRESS


def field_widths(rows: NDArray[np.void], arch: Architecture) -> I64:
    """Return the bytes each relocation patches."""
    number = rows["r_type"].astype(np.int64)
    known = arch.kind_of_number
    kind = known[np.minimum(number, len(known) - 1)]
    width = arch.kinds["width"][np.maximum(kind, 0)].astype(np.int64)
    return np.where((kind >= 0) & (number < len(known)), width, 0)
