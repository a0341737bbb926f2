"""read_object against pyelftools, on what gcc and gas really write."""

import mmap
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from elftools.elf.elffile import ELFFile
from elftools.elf.relocation import RelocationSection
from elftools.elf.sections import SymbolTableSection

from reloader.elf.object import ABSOLUTE, COMMON, UNDEFINED
from reloader.elf.read import read_object
from tests.support.elf import compiled, compiled_object

SOURCE = """
#include <stdio.h>
static int count; int shared = 4; int common_one; extern int outside;
__thread int each = 3;
static const char *const names[] = {"one", "two", "three"};
static int helper(int x) { count += x; return printf("%d %s\\n", count, names[x % 3]); }
__attribute__((weak)) int weak_one(int x) { return x + outside; }
int entry(int x)
{
    switch (x) {
    case 0: return helper(1);
    case 1: return weak_one(7);
    case 2: return each++;
    case 3: return puts("world");
    case 4: return shared;
    case 5: return helper(66);
    }
    return 0;
}
"""
SPECIAL = {"SHN_UNDEF": UNDEFINED, "SHN_ABS": ABSOLUTE, "SHN_COMMON": COMMON}
FLAGS = [
    ("-O0",),
    ("-O1", "-fcommon"),
    ("-O2", "-g"),
    ("-O2", "-fPIC", "-ffunction-sections", "-fdata-sections"),
    ("-O2", "-fno-pie", "-g", "-gz"),
]


def check_against_oracle(data: bytes) -> None:
    """Compare every table of our reader with pyelftools."""
    found = read_object("/p/unit.o", data)
    oracle = ELFFile(BytesIO(data))
    sections = list(oracle.iter_sections())
    assert found.section_names == [section.name.encode() for section in sections]
    for column in ("sh_flags", "sh_offset", "sh_size", "sh_link", "sh_info", "sh_entsize"):
        assert found.sections[column].tolist() == [section[column] for section in sections]
    for symtab in (s for s in sections if isinstance(s, SymbolTableSection)):
        symbols = list(symtab.iter_symbols())
        assert found.symbols["st_value"].tolist() == [symbol["st_value"] for symbol in symbols]
        assert found.symbols["st_size"].tolist() == [symbol["st_size"] for symbol in symbols]
        homes = [SPECIAL.get(str(one["st_shndx"]), one["st_shndx"]) for one in symbols]
        assert found.symbol_sections.tolist() == homes
        rows = zip(found.symbol_names, symbols, found.symbol_sections.tolist(), strict=True)
        for name, symbol, home in rows:
            if symbol["st_info"]["type"] == "STT_SECTION":
                assert name == found.section_names[home]
            else:
                assert name == symbol.name.encode()
    relocations: list[tuple[int, int, int, int, int]] = []
    for table in (s for s in sections if isinstance(s, RelocationSection)):
        relocations += [
            (
                table["sh_info"],
                one["r_offset"],
                one["r_info_type"],
                one["r_info_sym"],
                one["r_addend"],
            )
            for one in table.iter_relocations()
        ]
    columns = [
        found.relocation_sections.tolist(),
        *(
            found.relocations[name].tolist()
            for name in ("r_offset", "r_type", "r_sym", "r_addend")
        ),
    ]
    assert list(zip(*columns, strict=True)) == relocations


@pytest.mark.parametrize("flags", FLAGS, ids=" ".join)
def test_every_table_agrees_with_pyelftools(tmp_path: Path, flags: tuple[str, ...]) -> None:
    check_against_oracle(compiled(tmp_path, SOURCE, *flags))


def test_an_object_without_symbols_has_one_null_symbol(tmp_path: Path) -> None:
    compiled(tmp_path, "int x;")
    data = (tmp_path / "unit.o").read_bytes()
    start = int.from_bytes(data[0x28:0x30], "little")
    found = read_object("/p/unit.o", data)
    # turn the symbol table into an ordinary section
    row = found.section_names.index(b".symtab")
    at = start + 64 * row + 4
    bare = read_object("/p/unit.o", data[:at] + b"\x01\0\0\0" + data[at + 4 :])
    assert bare.symbol_names == [b""]
    assert bare.symbol_sections.tolist() == [UNDEFINED]


def test_more_than_65280_sections_have_their_symbols_and_relocations(tmp_path: Path) -> None:
    count = 65400
    lines = [f'.section .t{i},"a"\nv{i}: .byte 0' for i in range(count)]
    lines.append('.section .last,"aw"\n.quad v65399\n.quad v0\n')
    data = compiled(tmp_path, "\n".join(lines), suffix=".s")
    found = read_object("/p/unit.o", data)
    assert len(found.section_names) > 0xFF00
    symbol = found.symbol_names.index(b"v65399")
    home = int(found.symbol_sections[symbol])
    assert found.section_names[home] == b".t65399"
    last = found.relocations[found.relocation_sections == found.section_names.index(b".last")]
    assert [found.symbol_names[row] for row in last["r_sym"].tolist()] == [b".t65399", b".t0"]


def test_tables_that_do_not_follow_each_other_are_gathered_in_file_order(
    tmp_path: Path,
) -> None:
    data = compiled(tmp_path, SOURCE, "-O1", "-ffunction-sections")
    found = read_object("/p/unit.o", data)
    start = int.from_bytes(data[0x28:0x30], "little")
    # move each relocation table to the end of the file, in reverse, at odd distances
    moved = bytearray(data)
    tables = np.flatnonzero(found.sections["sh_type"] == 4)
    for row in tables[::-1].tolist():
        moved += b"\xcc" * (row % 7)
        at = start + 64 * row + 0x18
        moved[at : at + 8] = len(moved).to_bytes(8, "little")
        moved += found.section_bytes(row).tobytes()
    again = read_object("/p/unit.o", bytes(moved))
    assert again.relocations.tobytes() == found.relocations.tobytes()
    assert again.relocation_sections.tolist() == found.relocation_sections.tolist()
    check_against_oracle(bytes(moved))


def test_comdat_groups_have_members_and_a_signature(tmp_path: Path) -> None:
    text = """
    .section .text.f,"axG",@progbits,f,comdat
    .globl f
    f: ret
    .section .rodata.f,"aG",@progbits,f,comdat
    .byte 1
    .section .plain,"aG",@progbits,mygroup
    .byte 2
    """
    found = compiled_object(tmp_path, text, suffix=".s")
    members = {
        name: int(group)
        for name, group in zip(found.section_names, found.group_sections, strict=True)
        if int(group)
    }
    assert set(members) == {b".text.f", b".rodata.f", b".plain"}
    assert found.group_signatures == {members[b".text.f"]: b"f"}
    assert members[b".rodata.f"] == members[b".text.f"] != members[b".plain"]


def test_tail_merged_names_are_whole(tmp_path: Path) -> None:
    found = compiled_object(tmp_path, ".globl barfoo, foo, o\nbarfoo: foo: o: ret", suffix=".s")
    assert {b"barfoo", b"foo", b"o"} <= set(found.symbol_names)


def test_name_key_and_digest_name_the_object(tmp_path: Path) -> None:
    data = compiled(tmp_path, "int x;")
    member = read_object("/p/lib.a", data, "unit.o")
    assert member.name == "/p/lib.a(unit.o)"
    assert member.key == ("/p/lib.a", "unit.o")
    assert len(member.digest) == 32
    assert member.digest == read_object("/p/unit.o", data).digest
    assert member.digest != read_object("/p/unit.o", data + b"\0").digest


def test_the_snapshot_does_not_follow_the_file(tmp_path: Path) -> None:
    data = compiled(tmp_path, SOURCE, "-O1")
    with (tmp_path / "unit.o").open("r+b") as file:
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_WRITE) as mapped:
            found = read_object("/p/unit.o", mapped)
            mapped[:64] = bytes(64)
        assert found.data.tobytes() == data
    assert not found.data.flags.writeable
    copied = np.frombuffer(data, np.uint8).copy()
    kept = read_object("/p/unit.o", copied)
    copied[:] = 0
    assert kept.data.tobytes() == data


def test_section_bytes_are_empty_for_zero_filled_sections(tmp_path: Path) -> None:
    found = compiled_object(tmp_path, "static int big[1000]; int *get(void) { return big; }")
    assert len(found.section_bytes(found.section_names.index(b".bss"))) == 0
    assert len(found.section_bytes(found.section_names.index(b".text"))) > 0
