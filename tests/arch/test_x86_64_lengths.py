"""Lengths of instructions, beside what the disassembler says of the same bytes."""

import shutil
from pathlib import Path

import capstone
import numpy as np
import pytest

from reloader.arch.x86_64 import X86_64
from reloader.ids import U8
from tests.support.link import compile_object

ARCH = X86_64()
FORMS = """
.text
nop; ret $8; enter $16, $1; int $3; hlt; leave
movabs $0x1122334455667788, %rax; mov $1, %eax; mov $1, %ax; movabs 0x1122334455667788, %al
addr32 mov 8(%eax), %ebx; testb $1, (%rax); testw $1, 4(%rax); testl $1, 400(%rax,%rbx,4)
notq (%rip); negb 1(%rsp); mul %rcx; imul $3, %rax, %rbx; imul $300, %rax, %rbx
lock cmpxchg16b (%rdi); rep stosq; repne scasb; xchg %ax, %ax; data16 nop
jmp .; je .; call .; jmp *%rax; call *8(%rip); notrack jmp *%rdi; loop .; jrcxz .
push $1; push $1000; push %r15; pushw $5; cpuid; syscall; ud2; endbr64
bt $3, %rax; shld $3, %rax, (%rbx); shrd %cl, %rax, %rbx; bswap %r9; popcnt %rax, %rbx
movdqa %xmm0, 16(%rsp); pshufd $1, %xmm0, %xmm1; pshufb %xmm0, %xmm1; palignr $2, %xmm0, %xmm1
cmpps $1, %xmm0, %xmm1; psrlq $2, %xmm3; pinsrw $1, %eax, %xmm0; roundsd $1, %xmm0, %xmm1
vmovaps %ymm0, 32(%rax,%r9,2); vpshufd $1, %ymm0, %ymm9; vzeroupper; vpermq $1, %ymm0, %ymm1
vfmadd213pd (%rax), %ymm1, %ymm2; vinserti128 $1, %xmm0, %ymm1, %ymm2; andn %rax, %rbx, %rcx
rorx $3, %rax, %rbx; vaddps 64(%rax), %zmm1, %zmm2; vpternlogd $1, %zmm0, %zmm1, %zmm2
vmovdqu64 0x12345(%rax), %zmm17; vcmppd $1, %zmm0, %zmm1, %k1; kmovq %k1, %rax; fldl 8(%rax)
vpermb %zmm0, %zmm1, %zmm2; fnstcw (%rsp); crc32q %rax, %rbx; prefetcht0 (%rax); mfence
"""


def decoded(code: bytes) -> list[tuple[int, int]]:
    """Return (offset, length) of each instruction, as the disassembler sees them."""
    decoder = capstone.Cs(*ARCH.capstone)
    return [(at, size) for at, size, _, _ in decoder.disasm_lite(code, 0)]


def text_of(folder: Path, source: str) -> U8:
    """Assemble and return the code."""
    file = compile_object(folder, "forms.s", source)
    return file.section_bytes(file.section_names.index(b".text"))


def test_every_kind_of_instruction_has_its_length(tmp_path: Path) -> None:
    code = text_of(tmp_path, FORMS)
    rows = decoded(code.tobytes())
    assert sum(size for _, size in rows) == len(code)
    lengths = ARCH.instruction_lengths(code)
    assert [int(lengths[at]) for at, _ in rows] == [size for _, size in rows]


@pytest.mark.parametrize("program", ["python3", "gdb", "clang"])
def test_a_length_from_any_byte_of_a_program_is_right_or_not_known(program: str) -> None:
    path = shutil.which(program)
    assert path is not None
    data = np.fromfile(path, np.uint8)
    # whatever these bytes are: code, tables, text
    start = len(data) // 3
    code = data[start : start + 60_000]
    lengths = ARCH.instruction_lengths(code)
    decoder, text = capstone.Cs(*ARCH.capstone), code.tobytes()
    for at in range(0, len(code) - 16, 7):
        found = next(decoder.disasm_lite(text[at : at + 15], 0, 1), None)
        if found is not None:
            assert int(lengths[at]) in (0, found[1]), (text[at : at + 15].hex(), found)


def test_a_near_branch_with_a_size_prefix_is_not_surely_known() -> None:
    code = np.frombuffer(bytes.fromhex("66e811223344 6648e811223344"), np.uint8)
    lengths = ARCH.instruction_lengths(code)
    assert int(lengths[0]) == 0
    assert int(lengths[6]) == 7


def test_what_may_be_an_amd_xop_instruction_is_not_surely_known() -> None:
    code = np.frombuffer(bytes.fromhex("8f440408"), np.uint8)
    assert int(ARCH.instruction_lengths(code)[0]) == 0
