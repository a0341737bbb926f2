"""Instructions whose variable is out of reach: their other forms, disassembled."""

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


def around(name: str) -> str:
    """Return the register that carries the address."""
    return "rsi" if number(name) & 7 in (3, 7) else "rbx"


@pytest.mark.parametrize("name", WIDE + NARROW)
def test_a_load_of_any_register_goes_through_the_got_and_back(name: str) -> None:
    instruction = load(name, 0x8B)
    size = "qword" if name in WIDE else "dword"
    assert text(instruction) == [f"mov {name}, {size} ptr [rip]"]
    access = X86_64().far_access(instruction, len(instruction) - 4)
    assert access is not None
    assert len(access.site) == len(instruction)
    assert text(access.site)[0] == "jmp 5"
    free = around(name)
    assert text(access.thunk) == [
        "lea rsp, [rsp - 0x80]",
        f"push {free}",
        f"mov {free}, qword ptr [rip]",
        f"mov {name}, {size} ptr [{free}]",
        f"pop {free}",
        "lea rsp, [rsp + 0x80]",
        f"jmp {len(access.thunk):#x}",
    ]
    assert access.thunk_back == len(access.thunk) - 4


@pytest.mark.parametrize(
    ("code", "field", "operation"),
    [
        ("83 3d 00000000 07", 2, "cmp dword ptr [rbx], 7"),
        ("48 83 3d 00000000 00", 3, "cmp qword ptr [rsi], 0"),
        ("03 0d 00000000", 2, "add ecx, dword ptr [rbx]"),
        ("f2 0f 10 05 00000000", 4, "movsd xmm0, qword ptr [rbx]"),
        ("c5 fb 58 1d 00000000", 4, "vaddsd xmm3, xmm0, qword ptr [rsi]"),
        ("8a 3d 00000000", 2, "mov bh, byte ptr [rsi]"),
        ("f0 0f b1 15 00000000", 4, "lock cmpxchg dword ptr [rbx], edx"),
        ("66 c7 05 00000000 3412", 3, "mov word ptr [rbx], 0x1234"),
    ],
)
def test_any_operation_on_the_variable_is_done_elsewhere(
    code: str, field: int, operation: str
) -> None:
    instruction = bytes.fromhex(code)
    access = X86_64().far_access(instruction, field)
    assert access is not None
    assert len(access.site) == len(instruction)
    lines = text(access.thunk)
    assert len(lines) == 7
    assert lines[3].replace("rsi", "rbx") == operation.replace("rsi", "rbx")


@pytest.mark.parametrize("name", WIDE)
def test_taking_an_address_becomes_the_load_of_the_got_entry(name: str) -> None:
    access = X86_64().far_access(load(name, 0x8D), 3)
    assert access is not None
    assert text(access.site) == [f"mov {name}, qword ptr [rip]"]
    assert (access.thunk, access.site_field) == (b"", 3)


@pytest.mark.parametrize(("code", "name"), [("bf 00000000", "rdi"), ("41b9 00000000", "r9")])
def test_an_absolute_address_becomes_the_load_of_the_got_entry(code: str, name: str) -> None:
    instruction = bytes.fromhex(code)
    access = X86_64().far_access(instruction, len(instruction) - 4)
    assert access is not None
    assert len(access.site) == len(instruction)
    assert text(access.thunk) == [
        f"mov {name}, qword ptr [rip]",
        f"jmp {len(access.thunk):#x}",
    ]


@pytest.mark.parametrize(
    "code", ["ff3500000000", "8f0500000000", "ff1500000000", "8b2500000000"]
)
def test_what_uses_the_stack_has_no_other_form(code: str) -> None:
    assert X86_64().far_access(bytes.fromhex(code), 2) is None
