"""The other forms of instructions whose variable is out of reach, read back by a disassembler."""

import capstone
import pytest

from reloader.arch.x86_64 import X86_64

WIDE = ["rax", "rcx", "rdx", "rbx", "rbp", "rsi", "rdi", *(f"r{n}" for n in range(8, 16))]
NARROW = ["eax", "ecx", "edx", "ebx", "ebp", "esi", "edi", *(f"r{n}d" for n in range(8, 16))]


def number(name: str) -> int:
    names = ["ax", "cx", "dx", "bx", "sp", "bp", "si", "di"]
    return int(name.strip("rd")) if name[1].isdigit() else names.index(name[1:])


def load(name: str, opcode: int) -> bytes:
    row = number(name)
    rex = 0x40 | (8 if name in WIDE else 0) | (4 if row > 7 else 0)
    prefix = bytes([rex]) if rex != 0x40 else b""
    return prefix + bytes([opcode, 5 | (row & 7) << 3]) + bytes(4)


def text(code: bytes) -> list[str]:
    lines = capstone.Cs(*X86_64.capstone).disasm_lite(code, 0)
    return [f"{mnemonic} {operands}".strip() for _, _, mnemonic, operands in lines]


@pytest.mark.parametrize(("wide", "name"), list(zip(WIDE * 2, WIDE + NARROW, strict=True)))
def test_a_load_of_any_register_goes_through_the_got_and_back(wide: str, name: str) -> None:
    instruction = load(name, 0x8B)
    size = "qword" if name in WIDE else "dword"
    assert text(instruction) == [f"mov {name}, {size} ptr [rip]"]
    access = X86_64().far_access(instruction)
    assert access is not None
    assert len(access.site) == len(instruction)
    assert text(access.site) == ["jmp 5", "nop"]
    first, second, third = text(access.thunk)
    assert first == f"mov {wide}, qword ptr [rip]"
    assert second == f"mov {name}, {size} ptr [{wide}]"
    assert third == f"jmp {len(access.thunk):#x}"
    assert access.thunk_back == len(access.thunk) - 4


@pytest.mark.parametrize("name", WIDE)
def test_taking_an_address_becomes_the_load_of_the_got_entry(name: str) -> None:
    access = X86_64().far_access(load(name, 0x8D))
    assert access is not None
    assert text(access.site) == [f"mov {name}, qword ptr [rip]"]
    assert (access.thunk, access.site_field) == (b"", 3)


@pytest.mark.parametrize(
    "code", ["893d00000000", "83 3d 00 00 00 00 00", "f20f100500000000", "ff3500000000"]
)
def test_other_instructions_have_no_other_form(code: str) -> None:
    assert X86_64().far_access(bytes.fromhex(code)) is None
