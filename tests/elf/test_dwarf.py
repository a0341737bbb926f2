"""Debug information read by arrays equals what pyelftools reads with its own relocation."""

from io import BytesIO
from pathlib import Path

import pytest
from elftools.elf.elffile import ELFFile

from reloader.elf.dwarf import relocated_debug_sections
from reloader.elf.layout import is_array, variable_layout
from reloader.elf.object import COMMON, ObjectFile
from reloader.elf.scopes import scopes_of, variable_scopes
from tests.support.data import assemble, compile_c

SOURCE = """
extern void use(void *);
typedef unsigned long word;
struct inner { short a; char b[3]; };
struct cfg { const char *name; struct inner in[2]; word flags : 3, more : 5; union { int i;
float f; } u; }; struct cfg cfg; static volatile int plain = 3; static int **far; int
grid[2][3]; static inline int bump(int d) { static int x; static int y = 4; x += d; y ^= x;
use(&y); return x; } int f(int v) { plain++; use(&far); use(&grid); return bump(v) + bump(v +
1); } int (*keep)(int) = bump; int two(int v) { { static int x; x += v; use(&x); } { static int
x = 3; use(&x); } return v; }
"""
FLAGS = [
    ("-g",),
    ("-g", "-O2"),
    ("-gdwarf-4", "-O2"),
    ("-g", "-O2", "-gz"),
    ("-g3",),
    ("-g", "-O2", "-ffunction-sections", "-fdata-sections"),
    ("-g", "-fcommon"),
]


def at(file: ObjectFile, name: str) -> tuple[int, int]:
    row = file.symbol_names.index(name.encode())
    section = int(file.symbol_sections[row])
    return section, row if section == COMMON else int(file.symbols["st_value"][row])


@pytest.mark.parametrize("flags", FLAGS, ids=" ".join)
def test_relocated_sections_are_those_of_pyelftools(
    tmp_path: Path, flags: tuple[str, ...]
) -> None:
    file = compile_c(tmp_path, SOURCE, *flags).file
    info = ELFFile(BytesIO(file.data.tobytes())).get_dwarf_info(relocate_dwarf_sections=True)
    ours = relocated_debug_sections(file)
    for name in ("debug_info", "debug_line", "debug_str", "debug_abbrev", "debug_line_str"):
        theirs = getattr(info, f"{name}_sec")
        if theirs is None:
            assert f".{name}" not in ours
            continue
        theirs.stream.seek(0)
        assert ours[f".{name}"] == theirs.stream.read()


@pytest.mark.parametrize("flags", FLAGS, ids=" ".join)
def test_static_locals_know_their_function(tmp_path: Path, flags: tuple[str, ...]) -> None:
    file = compile_c(tmp_path, SOURCE, *flags).file
    scopes = variable_scopes(file)
    assert scopes[at(file, "plain")] == ("plain",)
    assert scopes[at(file, "cfg")] == ("cfg",)
    names = {name.decode() for name in file.symbol_names} - {"a.c"}
    numbered = sorted(scopes[at(file, name)] for name in names if name[1:2] == ".")
    assert numbered == [("bump", "x"), ("bump", "y"), ("two", "x"), ("two", "x")]
    blocks = {scope.blocks for scope in scopes_of(file).values() if scope.path == ("two",)}
    assert len(blocks) == 2


@pytest.mark.parametrize("flags", FLAGS, ids=" ".join)
def test_a_layout_names_members_with_offset_and_size(
    tmp_path: Path, flags: tuple[str, ...]
) -> None:
    file = compile_c(tmp_path, SOURCE, *flags).file
    layout = variable_layout(file, *at(file, "cfg"))
    assert layout is not None
    assert (layout.type, layout.size) == ("struct cfg", 32)
    assert [str(member).split(maxsplit=2) for member in layout.members] == [
        ["+0", "8", "const char * name"],
        ["+8", "12", "struct inner[2] in"],
        ["+20", "8", "word flags"],
        ["+20", "8", "word more"],
        ["+24", "4", "union {...} u"],
    ]
    grid = variable_layout(file, *at(file, "grid"))
    assert grid is not None
    assert (grid.type, grid.size, grid.members) == ("int[2][3]", 24, ())
    far = variable_layout(file, *at(file, "far"))
    assert far is not None
    assert (far.type, far.size) == ("int **", 8)


def test_arrays_are_told_from_scalars(tmp_path: Path) -> None:
    file = compile_c(tmp_path, SOURCE, "-g", "-O0").file
    answers = {
        name: is_array(file, *at(file, name)) for name in ("cfg", "plain", "far", "grid")
    }
    assert answers == {"cfg": True, "plain": False, "far": False, "grid": True}


def test_an_object_without_debug_information_says_nothing(tmp_path: Path) -> None:
    file = compile_c(tmp_path, SOURCE, "-O2").file
    assert relocated_debug_sections(file) == {}
    assert variable_scopes(file) == {}
    assert variable_layout(file, *at(file, "cfg")) is None
    assert is_array(file, *at(file, "cfg")) is None


def test_damaged_debug_information_is_taken_for_none(tmp_path: Path) -> None:
    whole = compile_c(tmp_path, SOURCE, "-g", "-O2").file
    data = whole.data.copy()
    section = whole.section_names.index(b".debug_abbrev")
    start = int(whole.sections["sh_offset"][section])
    data[start : start + int(whole.sections["sh_size"][section])] = 0xFF
    from reloader.elf.read import read_object  # noqa: PLC0415

    assert variable_scopes(read_object("damaged.o", data)) == {}


# what clang 14 -g -O2 writes for `static int x; int f(void) { static int y; return x++ + y++;
# }`, shortened: addresses are indices into .debug_addr, and records name no siblings
CLANG = """
	.text
	.globl f
	.type f,@function
f:	movl x(%rip), %eax
	addl f.y(%rip), %eax
	ret
	.size f, .-f
	.type x,@object
	.local x
	.comm x,4,4
	.type f.y,@object
	.data
f.y:	.long 7
	.size f.y, 4
	.section .debug_abbrev,"",@progbits
	.byte 1,17,1,37,8,19,5,3,8,115,23,0,0     # unit: producer, language, name, addr_base
	.byte 2,52,0,3,8,73,19,2,24,0,0           # variable: name, type, location
	.byte 3,36,0,3,8,62,11,11,11,0,0          # base type: name, encoding, size
	.byte 4,46,1,17,27,18,6,3,8,0,0           # function: low_pc (addrx), high_pc, name
	.byte 0
	.section .debug_info,"",@progbits
.Lu:	.long .Lend - .Lver
.Lver:	.short 5
	.byte 1, 8
	.long 0
	.byte 1
	.asciz "clang"
	.short 12
	.asciz "a.c"
	.long 8
	.byte 2
	.asciz "x"
	.long .Lint - .Lu
	.byte 2, 0xa1, 1
.Lint:	.byte 3
	.asciz "int"
	.byte 5, 4
	.byte 4
	.byte 0
	.long 13
	.asciz "f"
	.byte 2
	.asciz "y"
	.long .Lint - .Lu
	.byte 2, 0xa1, 2
	.byte 0
	.byte 0
.Lend:
	.section .debug_addr,"",@progbits
	.long 28
	.short 5
	.byte 8, 0
	.quad f, x, f.y
"""


def test_clangs_indexed_addresses_are_followed(tmp_path: Path) -> None:
    file = assemble(tmp_path, CLANG).file
    assert variable_scopes(file) == {at(file, "x"): ("x",), at(file, "f.y"): ("f", "y")}
    layout = variable_layout(file, *at(file, "f.y"))
    assert layout is not None
    assert (layout.type, layout.size) == ("int", 4)
