"""Operands of an x86-64 instruction, numbered as LLVM's MCInst numbers them.

Capstone lists what an assembler writes; LLVM lists what its instruction tables say:

* memory is five operands: base, scale, index, displacement, segment;
* a register that is read and written stands twice, as result and as source;
* the short forms for the accumulator do not name it (`add $5, %eax` has one operand);
* a condition (jcc, setcc, cmovcc) is an operand at the end;
* a branch has its distance, not its target.

Immediates are read from the instruction's bytes: their sign is extended to the size of the
operation, and a 32-bit operation keeps 32 bits.
"""

from dataclasses import dataclass
from typing import Any, Final

import capstone
from capstone import x86

from reloader.arch.base import Architecture

LONGEST: Final = 15  # bytes of an instruction
_MEMORY: Final = 5  # operands of a memory reference
_SCALE, _DISPLACEMENT = 1, 3  # their places among them
# one-byte opcodes whose accumulator is implied: alu, test
_ACCUMULATOR: Final = frozenset(
    [base + form for base in range(0, 0x40, 8) for form in (4, 5)] + [0xA8, 0xA9]
)
_ABSOLUTE: Final = frozenset(range(0xA0, 0xA4))  # movabs between the accumulator and memory
_PORT: Final = frozenset([0xE4, 0xE5, 0xE6, 0xE7])  # in and out with an immediate
_UNSIGNED: Final = frozenset(["enter", "ret", "int", "in", "out"])
# string instructions: their registers are implied, and so many that LLVM lists
_STRINGS: Final = dict.fromkeys((0xA4, 0xA5, 0xA6, 0xA7), 3) | dict.fromkeys(
    (0xAA, 0xAB, 0xAE, 0xAF), 1
) | dict.fromkeys((0xAC, 0xAD), 2)  # fmt: skip
# legacy scalar forms keep the upper half of their result
_MERGING: Final = frozenset(
    ["cvtsi2sd", "cvtsi2ss", "cvtss2sd", "cvtsd2ss", "sqrtsd", "sqrtss", "rcpss", "rsqrtss",
     "roundsd", "roundss"]
)  # fmt: skip
_ONE_SHIFT: Final = frozenset(range(0xD0, 0xD4))  # by 1 and by %cl: the count is implied


@dataclass(frozen=True, slots=True)
class Instruction:
    """One decoded instruction."""

    size: int
    text: str
    operands: tuple[int | None, ...]  # signed immediates; None: a register


def decode(data: bytes, arch: Architecture) -> Instruction | None:
    """Return the instruction that bytes begin with, None if they are none."""
    disassembler: Any = capstone.Cs(*arch.capstone)
    disassembler.detail = True
    found: Any = next(disassembler.disasm(data[:LONGEST], 0, 1), None)
    if found is None:
        return None
    operands = _operands(found)
    return Instruction(found.size, f"{found.mnemonic} {found.op_str}".strip(), tuple(operands))


def _operands(found: Any) -> list[int | None]:  # noqa: ANN401 - capstone has no types
    opcode = _opcode(found)
    listed: list[Any] = list(found.operands)
    if opcode in _ABSOLUTE:
        return [_bytes_of(found, found.size - 8, 8, signed=False), None]
    if opcode in _PORT:
        return [_bytes_of(found, found.size - 1, 1, signed=False)]
    if opcode in _STRINGS:
        return [None] * _STRINGS[opcode]
    if opcode in _ACCUMULATOR:
        listed = listed[1:]
    if opcode in _ONE_SHIFT:
        listed = listed[:1]
    if _name(found) in {"xadd", "xchg"}:  # both exchange: the register comes first
        listed = sorted(listed, key=lambda operand: operand.type == x86.X86_OP_MEM)
    operands: list[int | None] = []
    for place, operand in enumerate(listed):
        operands += _one(found, operand)
        if place == 0 and _is_tied(found, operand, listed):
            operands.append(None)
    if (condition := _condition(found, opcode)) is not None:
        operands.append(condition)
    return operands


def _one(found: Any, operand: Any) -> list[int | None]:  # noqa: ANN401 - as above
    """Return what one of capstone's operands is to LLVM."""
    if operand.type == x86.X86_OP_MEM:
        memory: list[int | None] = [None] * _MEMORY
        memory[_SCALE] = int(operand.mem.scale)
        memory[_DISPLACEMENT] = int(operand.mem.disp)
        return memory
    if operand.type == x86.X86_OP_IMM:
        return [_immediate(found, operand)]
    return [None]


def _is_tied(found: Any, operand: Any, listed: list[Any]) -> bool:  # noqa: ANN401 - as above
    """Return whether the first operand, a register, is a source as well."""
    if operand.type != x86.X86_OP_REG:
        return False
    both = capstone.CS_AC_READ | capstone.CS_AC_WRITE
    name = _name(found)
    if len(listed) == 1 and name in {"push", "pop", "call", "jmp"}:
        return False
    if name.startswith("cmov") or name in _MERGING:
        return True
    return int(operand.access) & both == both


def _immediate(found: Any, operand: Any) -> int:  # noqa: ANN401 - as above
    groups = set(found.groups)
    if capstone.CS_GRP_BRANCH_RELATIVE in groups:
        size = found.imm_size
        return _bytes_of(found, found.imm_offset, size, signed=True)
    name = _name(found)
    if name == "enter":
        return int(operand.imm)
    size = found.imm_size or operand.size
    signed = name not in _UNSIGNED and not _is_selector(found)
    if size == operand.size and size in {2, 4}:
        signed = False
    return _bytes_of(found, found.imm_offset, size, signed=signed)


def _is_selector(found: Any) -> bool:  # noqa: ANN401 - as above
    """Return whether a byte immediate chooses lanes or a comparison: no number with a sign."""
    vector = range(x86.X86_REG_XMM0, x86.X86_REG_ZMM31 + 1)
    registers = [o.reg for o in found.operands if o.type == x86.X86_OP_REG]
    return any(register in vector for register in registers)


def _condition(found: Any, opcode: int) -> int | None:  # noqa: ANN401 - as above
    """Return the condition of jcc, setcc and cmovcc, whose low four bits are LLVM's number."""
    two = tuple(found.opcode[:2])
    if 0x70 <= opcode <= 0x7F:
        return opcode & 15
    if two[0] == 0x0F and two[1] >> 4 in {0x4, 0x8, 0x9}:
        return int(two[1]) & 15
    if two == (0x0F, 0xC2):  # cmpsd and its kind: the comparison, part of the name in assembly
        return int(found.bytes[found.size - 1])
    return None


def _name(found: Any) -> str:  # noqa: ANN401 - as above
    """Return the mnemonic without prefixes."""
    return str(found.mnemonic).rsplit(" ", 1)[-1]


def _opcode(found: Any) -> int:  # noqa: ANN401 - as above
    """Return a one-byte opcode, or -1."""
    first, second = int(found.opcode[0]), int(found.opcode[1])
    return -1 if first == 0x0F or second else first


def _bytes_of(found: Any, offset: int, size: int, *, signed: bool) -> int:  # noqa: ANN401 - as above
    data = bytes(found.bytes[offset : offset + size])
    return int.from_bytes(data, "little", signed=signed)
