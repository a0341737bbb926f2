"""x86-64 instructions that reach a variable by 4 bytes, for a variable that is farther away.

`lea x(%rip), %reg` becomes the load of a GOT entry, in place. Every other instruction needs
more room, so it becomes a jump to code of its own, which ends with a jump back. There the
operand's address is loaded into a register that the instruction does not use; its value is
kept on the stack, below the red zone. `push`, `pop`, `lea` and `mov` leave the flags alone.
"""

from typing import Final

from reloader.arch.base import FarAccess
from reloader.arch.x86_64_kinds import kind

FAR_KINDS: Final = (kind("PC32"), kind("32"))
_GOTPCREL: Final = kind("GOTPCREL")
_WIDTH: Final = 4  # bytes of a field
_LEA, _JUMP, _STACK = 0x8D, b"\xe9", (0x8F, 0xFF)  # 8f pop; ff push, call, jmp
_DOWN: Final = bytes.fromhex("488d642480")  # lea -0x80(%rsp), %rsp
_UP: Final = bytes.fromhex("488da42480000000")  # lea 0x80(%rsp), %rsp
_RSP, _RBX, _RSI = 4, 3, 6
_CMPXCHG16B: Final = 0xC7
_NOP: Final = b"\x90"


def far_access(instruction: bytes, field: int) -> FarAccess | None:
    """Return another form of an instruction whose operand is at an offset in it, or None."""
    modrm, opcode = instruction[field - 1], instruction[field - 2]
    rex = instruction[0] & 0x0F if instruction[0] & 0xF0 == 0x40 else 0
    if field + _WIDTH == len(instruction) and modrm & 0xF8 == 0xB8 and field <= 2:
        return _address(instruction, modrm & 7, rex & 1)
    if modrm & 0xC7 != 0x05 or field < 2 or len(instruction) < 6:
        return None
    register = modrm >> 3 & 7
    if opcode == _LEA and rex & 8:
        site = instruction[: field - 2] + b"\x8b" + instruction[field - 1 :]
        return FarAccess(site, field, _GOTPCREL)
    if opcode in _STACK or opcode == _LEA or (register == _RSP and not rex & 4):
        return None
    if opcode == _CMPXCHG16B and register == 1:  # uses %rbx itself
        return None
    # without REX, byte instructions call 7 %bh
    free = _RSI if register in (_RBX, 7) else _RBX
    load = _DOWN + bytes([0x50 | free, 0x48, 0x8B, 0x05 | free << 3])
    operation = instruction[: field - 1] + bytes([register << 3 | free])
    operation += instruction[field + _WIDTH :]
    after = bytes([0x58 | free]) + _UP
    return _elsewhere(len(instruction), load, operation + after)


def _address(instruction: bytes, register: int, extended: int) -> FarAccess | None:
    """`mov $x, %reg`, as code with fixed addresses has it: its address is the GOT entry."""
    load = bytes([0x48 | extended << 2, 0x8B, 0x05 | register << 3])
    return _elsewhere(len(instruction), load, b"")


def _elsewhere(size: int, load: bytes, after: bytes) -> FarAccess:
    """Return the jump to code that loads a GOT entry, goes on, and jumps back."""
    site = (_JUMP + bytes(_WIDTH)).ljust(size, _NOP)
    thunk = load + bytes(_WIDTH) + after + _JUMP + bytes(_WIDTH)
    return FarAccess(site, 1, _GOTPCREL, thunk, len(load), len(thunk) - _WIDTH)
