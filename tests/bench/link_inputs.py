"""Large inputs for the linker: real and generated objects, built once, kept in `.work/bench`.

Generated ones are assembled, not compiled: half a million relocations take the assembler a
second. An input is made anew when its recipe's text changes.
"""

import hashlib
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Final

from tests.support.programs import build_sqlite
from tests.support.sources import ROOT

FOLDER: Final = ROOT / ".work" / "bench"
SECTIONS: Final = ("-ffunction-sections", "-fdata-sections")
_PLAIN: Final = "int sqlite3_libversion_number(void){ return SQLITE_VERSION_NUMBER; }"
_MARKER: Final = 0x5EED0000
_MARKED: Final = f"int sqlite3_libversion_number(void){{ return {_MARKER:#x}; }}"
_NO_STACK: Final = '.section .note.GNU-stack,"",@progbits\n'
_FEATURES: Final = (  # of Debian's package: the object has then the 2 MB that people load
    "COLUMN_METADATA", "DBSTAT_VTAB", "FTS3", "FTS3_PARENTHESIS", "FTS3_TOKENIZER", "FTS4",
    "FTS5", "GEOPOLY", "JSON1", "LOAD_EXTENSION", "MATH_FUNCTIONS", "PREUPDATE_HOOK", "RTREE",
    "SESSION", "STAT4", "STMTVTAB", "UNLOCK_NOTIFY",
)  # fmt: skip


def sqlite(name: str, *flags: str) -> Path:
    """Return sqlite's amalgamation, compiled -O2 -fPIC and some more flags."""
    target = FOLDER / f"{name}.o"
    text = (build_sqlite().folder / "sqlite3.c").read_text("utf-8")
    assert _PLAIN in text
    features = [f"-DSQLITE_ENABLE_{name}" for name in _FEATURES]
    command = ("gcc", "-O2", "-fPIC", *features, *flags)
    _made(target, command, ".c", text.replace(_PLAIN, _MARKED))
    return target


class Edits:
    """Versions of sqlite in which one function returns another number each time."""

    def __init__(self, path: Path) -> None:
        """Take a compiled object as the pattern."""
        self.pattern = path.read_bytes()
        assert self.pattern.count(struct.pack("<BI", 0xB8, _MARKER)) == 1

    def content(self, number: int) -> bytes:
        """Return a version."""
        mark = struct.pack("<BI", 0xB8, _MARKER)
        return self.pattern.replace(mark, struct.pack("<BI", 0xB8, _MARKER + number))


def many_functions(count: int) -> Path:
    """Return functions in own sections: of 20,000, with their tables, 460,000 relocations."""
    return _assembled(f"functions-{count}", _functions_text(count))


def _functions_text(count: int) -> str:
    parts = [_NO_STACK]
    for row in range(count):
        calls = "".join(f"call f{(row * 7 + k * 131) % count}@PLT\n" for k in range(18))
        loads = "".join(
            f"movq v{(row + k) % max(count // 8, 1)}@GOTPCREL(%rip), %rax\n" for k in range(2)
        )
        parts.append(
            f'.section .text.f{row},"ax",@progbits\n.globl f{row}\n.type f{row},@function\n'
            f"f{row}:\n.cfi_startproc\n{calls}{loads}leaq .Lc(%rip), %rdi\n"
            f"leaq .Lc+4(%rip), %rsi\nret\n.cfi_endproc\n.size f{row}, .-f{row}\n"
        )
    parts += [
        f'.section .data.v{row},"aw",@progbits\n.globl v{row}\n.type v{row},@object\n'
        f".size v{row}, 8\nv{row}: .quad {row}\n"
        for row in range(max(count // 8, 1))
    ]
    parts.append('.section .rodata,"a",@progbits\n.Lc: .zero 64\n')
    return "".join(parts)


def one_section(relocations: int) -> Path:
    """Return one section with so many calls of 1000 functions in it."""
    each = relocations // 1000
    calls = [f"call g{row}@PLT\n" for row in range(1000)]
    parts = [_NO_STACK, ".text\n"]
    for row in range(1000):
        parts.append(f".globl g{row}\n.type g{row},@function\ng{row}:\n")
        parts += [calls[(row + k) % 1000] for k in range(each)]
        parts.append(f"ret\n.size g{row}, .-g{row}\n")
    return _assembled(f"one-section-{relocations}", "".join(parts))


def call_cycle(count: int) -> Path:
    """Return static functions in own sections, each calling the next, the last the first."""
    parts = [_NO_STACK]
    parts += [
        f'.section .text.s{row},"ax",@progbits\n.type s{row},@function\ns{row}:\n'
        f"call s{(row + 1) % count}\nret\n.size s{row}, .-s{row}\n"
        for row in range(count)
    ]
    parts.append(".text\n.globl enter\n.type enter,@function\nenter: jmp s0\n")
    parts.append(".size enter, .-enter\n")
    return _assembled(f"cycle-{count}", "".join(parts))


def archive(members: int) -> Path:
    """Return an archive of small members, each of which calls the next two."""
    target = FOLDER / f"archive-{members}.a"
    key = _key(_member_text(7, members))
    stamp = target.with_suffix(".key")
    if target.exists() and stamp.exists() and stamp.read_text("utf-8") == key:
        return target
    folder = FOLDER / f"archive-{members}"
    folder.mkdir(parents=True, exist_ok=True)
    objects: list[str] = []
    for row in range(members):
        objects.append(f"m{row}.o")
        text = _member_text(row, members).encode()
        command = ("as", "-o", folder / objects[-1], "-")
        subprocess.run(command, input=text, check=True)
    target.unlink(missing_ok=True)
    command = ("ar", "rcs", target, *objects)
    subprocess.run(command, cwd=folder, check=True)
    stamp.write_text(key, "utf-8")
    return target


def members_of(path: Path) -> list[Path]:
    """Return the members of a generated archive as files: llvm-jitlink is given them so."""
    folder = path.with_suffix("")
    return [folder / f"m{row}.o" for row in range(int(path.stem.split("-")[1]))]


def _member_text(row: int, members: int) -> str:
    parts = [_NO_STACK]
    for part in range(4):
        to = [f"m{(row + k) % members}_{(part + k) % 4}" for k in (1, 2)]
        parts.append(
            f'.section .text.m{row}_{part},"ax",@progbits\n.globl m{row}_{part}\n'
            f".type m{row}_{part},@function\nm{row}_{part}:\n.cfi_startproc\n"
            f"leaq .Ls{part}(%rip), %rdi\nmovq d{row}@GOTPCREL(%rip), %rax\n"
            f"call {to[0]}@PLT\ncall {to[1]}@PLT\nincl c(%rip)\nret\n.cfi_endproc\n"
            f".size m{row}_{part}, .-m{row}_{part}\n"
            f'.section .rodata.str1.1,"aMS",@progbits,1\n.Ls{part}: .string "text {part}"\n'
        )
    parts.append(f".data\n.globl d{row}\n.type d{row},@object\n.size d{row}, 8\n")
    parts.append(f"d{row}: .quad m{row}_0\n.local c\n.comm c,4,4\n")
    return "".join(parts)


def comdats(classes: int = 750) -> Path:
    """Return C++ templates: thousands of COMDAT sections, some 38,000 relocations."""
    text = """
#include <map>
#include <string>
#include <vector>
template <int N> struct Box {
    virtual ~Box() {}
    virtual int get(int n) {
        total += n; return names.size() ? N + n : twice(n) + twice(n + 1);
    }
    virtual void put(const std::string &s) { names.push_back(s + "put"); count[s] += N; }
    static int twice(int n) { return n > N ? Box<N / 2>::twice(n - 1) + shared : 2 * n; }
    int total = 0; static inline int shared = N;
    std::vector<std::string> names; std::map<std::string, int> count;
};
template <> struct Box<0> { static int twice(int n) { return n; } };
"""
    text += "".join(
        f'int use{n}(int n) {{ Box<{n}> b; b.put("{n}"); return b.get(n); }}\n'
        for n in range(1, classes + 1)
    )
    target = FOLDER / f"comdats-{classes}.o"
    _made(target, ("g++", "-O1", "-fPIC"), ".cc", text)
    return target


def _assembled(name: str, text: str) -> Path:
    target = FOLDER / f"{name}.o"
    _made(target, ("gcc",), ".s", text)
    return target


def _key(*words: str) -> str:
    return hashlib.blake2b("\n".join(words).encode(), digest_size=8).hexdigest()


def _made(target: Path, command: tuple[str, ...], suffix: str, text: str) -> None:
    """Compile a text into an object unless the same recipe has done so before."""
    stamp, key = target.with_suffix(".key"), _key(*command, text)
    if target.exists() and stamp.exists() and stamp.read_text("utf-8") == key:
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    source = target.with_suffix(suffix)
    source.write_text(text, "utf-8")
    subprocess.run([*command, "-c", source, "-o", target], check=True)
    stamp.write_text(key, "utf-8")


SQLITE: Final[dict[str, Callable[[], Path]]] = {
    "sqlite": lambda: sqlite("sqlite"),
    "sqlite-sections": lambda: sqlite("sqlite-sections", *SECTIONS),
    "sqlite-g": lambda: sqlite("sqlite-g", "-g"),
}
