"""What a relocated field of an instruction is: an access to that very address, or an address.

Needed where a reference is written as *section symbol + addend*. For a pc-relative field the
addend also holds the distance to the end of the instruction (an immediate may follow), so the
instruction has to be decoded. Functions are decoded once, fast and without details; details are
asked only for the instructions around the fields in question.
"""

from bisect import bisect_right
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Final

import capstone
import numpy as np
from capstone import x86
from numpy.typing import NDArray

from reloader.arch.base import Architecture
from reloader.elf.object import ObjectFile
from reloader.ids import I64, U8

_STT_FUNC: Final = 2
_LOOK_AHEAD: Final = 24  # instructions after an address was taken in which its use is sought


class How(IntEnum):
    """How a field refers to its target."""

    DIRECT = 0  # a memory operand without a register: the access is inside its variable
    ADDRESS = 1  # `lea`, an immediate: may point to the end of a variable
    INDEXED = 2  # displacement of a register: `a[i-1]` folded, may lie anywhere
    WORD = 3  # in data: a pointer
    UNKNOWN = 4  # not decoded; may mean anything


class Use(IntEnum):
    """What becomes of an address that an instruction puts into a register."""

    UNKNOWN = 0
    ACCESS = 1  # memory is read or written through it
    COMPARED = 2  # with another address: a loop's end or start


@dataclass(frozen=True, slots=True)
class Operand:
    """One relocated field."""

    how: How
    tail: int  # bytes from the field to the end of its instruction
    use: Use = Use.UNKNOWN
    reach: int = 0  # for ACCESS: where it goes, counted from the address


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
        self.full: Any = capstone.Cs(*arch.capstone)
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
            names: list[bytes] = [self.file.symbol_names[row] for row in rows[order].tolist()]
            ends = (value + size)[order]
            known = (list(map(int, value[order])), list(map(int, ends)), names)
            self._starts[section] = known
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
        if how != How.ADDRESS:
            return Operand(how, tail)
        if instruction.id == x86.X86_INS_CMP:
            return Operand(how, tail, Use.COMPARED)
        target = instruction.operands[0] if instruction.operands else None
        sets = instruction.id in {x86.X86_INS_LEA, x86.X86_INS_MOV, x86.X86_INS_MOVABS}
        if target is None or not sets or target.type != x86.X86_OP_REG:
            return Operand(how, tail)
        register = _stem(str(instruction.reg_name(target.reg)))
        return Operand(how, tail, *self.use(section, function, row + 1, register))

    def detail(self, section: int, function: Function, row: int) -> Any:  # noqa: ANN401  untyped library
        """Return capstone's full record of one decoded instruction."""
        at, size = function.at[row], function.size[row]
        code = self.plain(section)[at : at + size].tobytes()
        return next(iter(self.full.disasm(code, at)))

    def use(self, section: int, function: Function, row: int, register: str) -> tuple[Use, int]:
        """Return (use, reach) of an address that a register holds.

        Followed along the path on which no branch is taken, through copies to other
        registers, as far as one of them surely holds the address.
        """
        holding = {register}
        for index in range(row, min(row + _LOOK_AHEAD, len(function.at))):
            instruction = self.detail(section, function, index)
            found = _access(instruction, holding)
            if found is not None:
                return found
            if instruction.id in _COMPARES and len(_read(instruction) & holding) == 1:
                return Use.COMPARED, 0
            if instruction.group(x86.X86_GRP_CALL):
                holding &= _SURVIVE_CALLS
            elif instruction.id == x86.X86_INS_JMP or instruction.group(x86.X86_GRP_RET):
                break
            holding = _after(instruction, holding)
            if not holding:
                break
        return Use.UNKNOWN, 0


_COMPARES: Final = (x86.X86_INS_CMP, x86.X86_INS_SUB)
_SURVIVE_CALLS: Final = frozenset(
    {"b", "bp", "r12", "r13", "r14", "r15"}
)  # as `_stem` names them


def _stem(name: str) -> str:
    """Return one name for all parts of a general register: `a` for rax, eax, ax, al."""
    if name[:1] == "r" and name[1:2].isdigit():
        return name.rstrip("dwb")
    return name.lstrip("re").rstrip("lhx")


def _names(instruction: Any, registers: Any) -> set[str]:  # noqa: ANN401  untyped library
    return {_stem(str(instruction.reg_name(register))) for register in registers}


def _read(instruction: Any) -> set[str]:  # noqa: ANN401  untyped library
    return _names(instruction, instruction.regs_access()[0])


def _access(instruction: Any, holding: set[str]) -> tuple[Use, int] | None:  # noqa: ANN401
    """Return the access an instruction makes through one of some registers."""
    for operand in instruction.operands:
        if operand.type != x86.X86_OP_MEM or instruction.id == x86.X86_INS_LEA:
            continue
        memory, disp = operand.mem, int(operand.mem.disp)
        base = _names(instruction, [memory.base] if memory.base else [])
        index = _names(instruction, [memory.index] if memory.index else [])
        if base & holding and not index:
            return Use.ACCESS, disp
        if base & holding or (index & holding and memory.scale == 1):
            # `a[i-1]` is inside `a`, but looks like the array before it
            return (Use.ACCESS, disp) if disp >= 0 else (Use.UNKNOWN, 0)
    return None


def _after(instruction: Any, holding: set[str]) -> set[str]:  # noqa: ANN401
    """Return the registers that hold the address after an instruction."""
    left = holding - _names(instruction, instruction.regs_access()[1])
    if instruction.id == x86.X86_INS_MOV and len(instruction.operands) == 2:
        target, source = instruction.operands
        if target.type == source.type == x86.X86_OP_REG and target.size == 8:
            copied = _names(instruction, [source.reg]) & holding
            left |= _names(instruction, [target.reg]) if copied else set()
    return left


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
