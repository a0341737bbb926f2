"""LLVM's own ELF x86-64 linker tests, with `reloader link` in place of its tools."""

import re
import subprocess
from pathlib import Path

import pytest

from reloader.arch.x86_64 import X86_64
from reloader.linker.operands import decode
from tests.support.llvm import LlvmTest, llvm_tests, tool_folder

# Its checks demand what LLVM computes, not what is right: `call *f@GOTPCREL` becomes a direct
# call with f's address where the distance belongs. See the test after these.
WRONG = "JITLink/x86-64/ELF_got_plt_optimizations.s"
JITLINK = (
    "R_X86_64_16.s", "R_X86_64_32.s", "R_X86_64_8.s", "R_X86_64_GOTPC32.s",
    "R_X86_64_NONE.yaml", "R_X86_64_PC8.s", "absolute_relocations.s", "comdat.s",
    "common_var.s", "empty_section.s", "external_to_absolute_conversion.s",
    "got_plt_optimizations.s", "large_pic_relocations.s", "perf.s", "shndex.s",
    "small_pic_relocations.s", "weak_definitions.s",
)  # fmt: skip
RUNTIME_DYLD = (
    "ELF-large-pic-relocations.s", "ELF-relaxed.s", "ELF_STT_FILE.s", "ELF_STT_GNU_IFUNC.s",
    "ELF_x64-64_PC8_relocations.s", "ELF_x64-64_PIC_relocations.s",
    "ELF_x86-64_PIC-small-relocations.s", "ELF_x86-64_debug_frame.s", "ELF_x86-64_none.yaml",
)  # fmt: skip
NAMES = [
    *(f"JITLink/x86-64/ELF_{name}" for name in JITLINK),
    *(f"RuntimeDyld/X86/{name}" for name in RUNTIME_DYLD),
]


@pytest.mark.parametrize("name", NAMES)
def test_a_test_of_llvms_that_its_linker_passes_is_passed_here(
    name: str, tmp_path: Path
) -> None:
    test = named(name)
    assert test.run(tmp_path / "real", ours=False) == ""  # or this LLVM is not as it should be
    failure = test.run(tmp_path / "ours", ours=True)
    if test.name != WRONG:
        assert failure == ""
        return
    wrong = re.findall(r"Expression '(.*)' is false", failure)
    assert wrong == ["decode_operand(test_call_gotpcrelx, 0)[31:0] = extern_in_range32"] * 2
    assert "2 of 7 checks failed" in failure


def named(name: str) -> LlvmTest:
    return next(test for test in llvm_tests() if test.name == name)


def test_all_of_llvms_tests_that_run_in_a_release_build_are_here() -> None:
    assert [test.name for test in llvm_tests()] == NAMES


def test_a_call_through_the_got_that_llvm_relaxes_wrongly_reaches_its_function(
    tmp_path: Path,
) -> None:
    name = "test_call_gotpcrelx"
    right = f"decode_operand({name}, 0) = extern_in_range32 - next_pc({name})"
    source = named(WRONG).path
    text = re.sub(r"(# jitlink-check:).*", "", source.read_text(encoding="utf-8"))
    text += f"\n# jitlink-check: {right}\n"
    corrected = tmp_path / source.name
    corrected.write_text(text, encoding="utf-8")
    test = LlvmTest(corrected)
    assert test.run(tmp_path / "ours", ours=True) == ""
    assert "is false" in test.run(tmp_path / "real", ours=False)


CODE = """
#include <math.h>
#include <string.h>
struct s { short h; char c[30]; double d; unsigned long l; } g[9];
double mix(struct s *p, int n, float f, unsigned short w)
{
    double sum = p->d / 3 + (float)n * f;
    for (int i = 0; i < n; i++) {
        p[i].h = (short)(p[i].h & 0xf23f) | (w == 0x9001);
        p[i].l = p[i].l * 77 + (p[i].c[3] == 'x' ? 1UL << 40 : p[i].l >> 3);
        sum += sqrt(p[i].d) > 2.5 ? i : -(double)p[i].l;
        memset(p[i].c, 0, sizeof p[i].c);
    }
    __atomic_fetch_add(&g[1].l, 5, __ATOMIC_SEQ_CST);
    return n > 3 ? sum : (long)sum % 1000003;
}
int pick(int a, unsigned b) { switch (a) { case 1: return b * 9; case 2: return -7;
    case 3: return b / 10; case 4: return (char)b;
    case 9: return a < (int)b; default: return 0x7fffffff ^ b; } }
"""


@pytest.mark.parametrize("flags", [("-O2",), ("-O0", "-fno-pic"), ("-O3", "-mavx2", "-mfma")])
def test_operands_of_compiled_code_are_those_of_llvms_disassembler(
    flags: tuple[str, ...], tmp_path: Path
) -> None:
    (tmp_path / "code.c").write_text(CODE)
    for command in (
        ["gcc", "-c", *flags, "code.c", "-o", "code.o"],
        ["objcopy", "-O", "binary", "-j", ".text", "code.o", "code.bin"],
    ):
        subprocess.run(command, cwd=tmp_path, check=True)
    code = (tmp_path / "code.bin").read_bytes()
    wanted = instructions_of_llvm(code)
    at = 0
    for mnemonic, operands in wanted:
        found = decode(code[at : at + 15], X86_64())
        assert found is not None
        assert found.operands == operands, (mnemonic, found)
        at += found.size
    assert at == len(code)
    assert len(wanted) > 100


def instructions_of_llvm(code: bytes) -> list[tuple[str, tuple[int | None, ...]]]:
    """Return LLVM's name and operands of every instruction, prefixes left out."""
    command = [tool_folder(ours=False) / "llvm-mc", "-disassemble", "-triple=x86_64",
               "--show-inst", "-mattr=+avx2,+fma"]  # fmt: skip
    text = " ".join(f"0x{byte:02x}" for byte in code)
    shown = subprocess.run(
        command, input=text, capture_output=True, text=True, check=True
    ).stdout
    found: list[tuple[str, tuple[int | None, ...]]] = []
    for part in shown.split("<MCInst #")[1:]:
        name = part.split()[1].rstrip(">")
        operands = re.findall(r"<MCOperand (Reg|Imm):(-?\d+)>", part)
        if not name.endswith("_PREFIX"):
            values = tuple(int(v) if kind == "Imm" else None for kind, v in operands)
            found.append((name, values))
    return found
