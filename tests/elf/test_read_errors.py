"""Each way an object can be wrong, with the whole text of its error."""

import struct
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from reloader.elf.object import ObjectFile
from reloader.elf.read import read_object
from reloader.errors.base import ReloaderError
from reloader.errors.objects import ObjectError
from tests.support.elf import compiled, replaced

SOURCE = """
extern int other(const char *); static int n;
int f(int x) { return other("text") + x + n++; }
"""
TAIL = " Nothing was changed. "
AGAIN = "Build the object again."
WRITTEN = "It was cut short or is still being written: build it again."
COMPILER = "Build it with the compiler that built the running program."


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return compiled(tmp_path_factory.mktemp("object"), SOURCE, "-O1")


def text_of(data: bytes) -> str:
    """Return the whole text of the refusal."""
    with pytest.raises(ObjectError) as caught:
        read_object("/p/hud.o", data)
    assert caught.value.code
    return str(caught.value)


def header_offset(data: bytes, name: bytes, field: int) -> int:
    """Return the file offset of a field of a section's header."""
    found = read_object("/p/hud.o", data)
    return (
        int.from_bytes(data[0x28:0x30], "little") + 64 * found.section_names.index(name) + field
    )


def section_offset(found: ObjectFile, name: bytes) -> int:
    """Return the file offset of a section's bytes."""
    return int(found.sections["sh_offset"][found.section_names.index(name)])


def test_an_empty_file_is_named_so() -> None:
    wait = "Wait until the compiler has written it, or build it again."
    assert text_of(b"") == f"/p/hud.o: the file is empty.{TAIL}{wait}"


def test_a_file_that_ends_in_its_header_is_truncated(data: bytes) -> None:
    expected = "/p/hud.o: the ELF header ends at byte 0x40, but the file ends at 0x20."
    assert text_of(data[:32]) == f"{expected}{TAIL}{WRITTEN}"


def test_a_file_without_its_section_header_table_is_truncated(data: bytes) -> None:
    whole, cut = len(data), len(data) - 1
    expected = (
        f"the section header table ends at byte {whole:#x}, but the file ends at {cut:#x}."
    )
    assert text_of(data[:-1]) == f"/p/hud.o: {expected}{TAIL}{WRITTEN}"


def test_a_text_file_is_not_elf() -> None:
    expected = "the file begins with 23 69 6e 63, an ELF object with 7f 45 4c 46."
    hint = "Only ELF objects (.o) and archives of them (.a) can be loaded."
    assert text_of(b"#include <stdio.h>") == f"/p/hud.o: {expected}{TAIL}{hint}"


def test_a_big_endian_object_names_both_byte_orders(data: bytes) -> None:
    expected = "its byte order is big-endian, the program's is little-endian."
    assert text_of(replaced(data, 5, 2, 1)) == f"/p/hud.o: {expected}{TAIL}{COMPILER}"


def test_a_32_bit_object_names_both_word_sizes(tmp_path: Path) -> None:
    thirty_two = compiled(tmp_path, "ret", "-m32", suffix=".s")
    expected = "its word size in bits is 32, the program's is 64."
    assert text_of(thirty_two) == f"/p/hud.o: {expected}{TAIL}{COMPILER}"


def test_another_processor_names_both_numbers(data: bytes) -> None:
    expected = "its processor (e_machine) is 183, the program's is 62."
    assert text_of(replaced(data, 18, 183, 2)) == f"/p/hud.o: {expected}{TAIL}{COMPILER}"


@pytest.mark.parametrize(
    ("flags", "kind"), [(["-shared"], "a shared object"), (["-no-pie"], "an executable")]
)
def test_linked_files_are_named_for_what_they_are(
    tmp_path: Path, flags: list[str], kind: str
) -> None:
    source, target = tmp_path / "a.c", tmp_path / "a"
    source.write_text("int main(void) { return 0; }")
    command = ["gcc", *flags, str(source), "-o", str(target)]
    subprocess.run(command, check=True)
    hint = "Give the .o files it was linked from (made with `-c`)."
    expected = f"/p/hud.o: this is {kind}, not a relocatable object.{TAIL}{hint}"
    assert text_of(target.read_bytes()) == expected


def test_a_core_dump_and_an_unknown_type_are_named(data: bytes) -> None:
    assert "this is a core dump, not a" in text_of(replaced(data, 16, 4, 2))
    assert "this is a file of e_type 9, not a" in text_of(replaced(data, 16, 9, 2))


def test_a_section_past_the_end_names_both_ends(data: bytes) -> None:
    at = header_offset(data, b".text", 0x20)
    bad = replaced(data, at, 0x10000, 8)
    start = section_offset(read_object("/p/hud.o", data), b".text")
    expected = (
        f"section 1 ends at byte {start + 0x10000:#x}, but the file ends at {len(data):#x}."
    )
    assert text_of(bad) == f"/p/hud.o: {expected}{TAIL}{WRITTEN}"


def test_a_section_whose_end_wraps_around_is_past_the_end(data: bytes) -> None:
    bad = replaced(data, header_offset(data, b".text", 0x18), 2**64 - 8, 8)
    assert "section 1 ends at byte 0x1000000" in text_of(bad)


def test_section_headers_of_another_size_are_refused(data: bytes) -> None:
    expected = "a section header has 40 bytes where entries of 64 are due."
    assert text_of(replaced(data, 0x3A, 40, 2)) == f"/p/hud.o: {expected}{TAIL}{AGAIN}"


def test_symbols_of_another_size_are_refused(data: bytes) -> None:
    bad = replaced(data, header_offset(data, b".symtab", 0x38), 16, 8)
    expected = "the symbol table has 16 bytes where entries of 24 are due."
    assert text_of(bad) == f"/p/hud.o: {expected}{TAIL}{AGAIN}"


def test_relocations_of_another_size_are_refused(data: bytes) -> None:
    bad = replaced(data, header_offset(data, b".rela.text", 0x38), 12, 8)
    expected = "relocation table 2 has 12 bytes where entries of 24 are due."
    assert text_of(bad) == f"/p/hud.o: {expected}{TAIL}{AGAIN}"


def test_half_a_relocation_at_the_end_of_a_table_is_refused(data: bytes) -> None:
    bad = replaced(data, header_offset(data, b".rela.text", 0x20), 25, 8)
    assert "relocation table 2 has 25 bytes where entries of 24 are due" in text_of(bad)


def test_an_alignment_that_is_no_power_of_two_is_refused(data: bytes) -> None:
    bad = replaced(data, header_offset(data, b".text", 0x30), 12, 8)
    expected = "/p/hud.o section 1: its alignment is 12, not a power of two."
    assert text_of(bad) == f"{expected}{TAIL}{AGAIN}"


def test_a_missing_symbol_string_table_is_named(data: bytes) -> None:
    bad = replaced(data, header_offset(data, b".symtab", 0x28), 1, 4)
    assert text_of(bad) == f"/p/hud.o: the symbols' string table is missing.{TAIL}{AGAIN}"


def test_a_missing_section_name_table_is_named(data: bytes) -> None:
    expected = "/p/hud.o: the section name table is missing."
    assert text_of(replaced(data, 0x3E, 1, 2)) == f"{expected}{TAIL}{AGAIN}"


def test_a_section_name_table_that_does_not_exist_names_both_numbers(data: bytes) -> None:
    count = len(read_object("/p/hud.o", data).section_names)
    expected = f"the ELF header refers to section 999, but there are {count}."
    assert text_of(replaced(data, 0x3E, 999, 2)) == f"/p/hud.o: {expected}{TAIL}{AGAIN}"


def test_an_unterminated_string_table_is_named(data: bytes) -> None:
    found = read_object("/p/hud.o", data)
    row = found.section_names.index(b".strtab")
    last = section_offset(found, b".strtab") + int(found.sections["sh_size"][row]) - 1
    expected = "/p/hud.o: the string table does not end with a zero byte."
    assert text_of(replaced(data, last, 65, 1)) == f"{expected}{TAIL}{AGAIN}"


def test_a_name_past_its_string_table_names_both_numbers(data: bytes) -> None:
    found = read_object("/p/hud.o", data)
    size = int(found.sections["sh_size"][found.section_names.index(b".strtab")])
    bad = replaced(data, section_offset(found, b".symtab") + 24 * 2, 0x7000, 4)
    expected = f"the name of symbol 2 is at 0x7000 in a string table of {size:#x} bytes."
    assert text_of(bad) == f"/p/hud.o: {expected}{TAIL}{AGAIN}"


def test_a_relocation_past_its_section_names_section_and_offset(data: bytes) -> None:
    found = read_object("/p/hud.o", data)
    size = int(found.sections["sh_size"][found.section_names.index(b".text")])
    bad = replaced(data, section_offset(found, b".rela.text"), size + 16, 8)
    expected = f"a relocation lies past the section's end at {size:#x}."
    assert text_of(bad) == f"/p/hud.o .text+{size + 16:#x}: {expected}{TAIL}{AGAIN}"


def test_a_relocation_of_an_unknown_symbol_names_both_numbers(data: bytes) -> None:
    found = read_object("/p/hud.o", data)
    at, offset = section_offset(found, b".rela.text"), int(found.relocations["r_offset"][0])
    count = len(found.symbols)
    expected = f"a relocation refers to symbol 500, but there are {count}."
    bad = replaced(data, at + 12, 500, 4)
    assert text_of(bad) == f"/p/hud.o .text+{offset:#x}: {expected}{TAIL}{AGAIN}"


def test_a_symbol_of_an_unknown_section_names_both_numbers(data: bytes) -> None:
    found = read_object("/p/hud.o", data)
    bad = replaced(data, section_offset(found, b".symtab") + 24 * 2 + 6, 777, 2)
    expected = f"symbol 2 refers to section 777, but there are {len(found.sections)}."
    assert text_of(bad) == f"/p/hud.o: {expected}{TAIL}{AGAIN}"


@pytest.mark.parametrize(("field", "value"), [(8, 1 << 63), (16, (1 << 64) - 1), (16, 0x4000)])
def test_a_symbol_past_its_section_names_both_ends(data: bytes, field: int, value: int) -> None:
    found = read_object("/p/hud.o", data)
    row = int(np.flatnonzero(found.symbol_sections >= 0)[-1])
    own, size = found.symbols[row], int(found.sections["sh_size"][found.symbol_sections[row]])
    bad = replaced(data, section_offset(found, b".symtab") + 24 * row + field, value, 8)
    end = value + int(own["st_size"] if field == 8 else own["st_value"])
    expected = f"symbol {row} ends at {end:#x}, past its section's end at {size:#x}."
    assert text_of(bad) == f"/p/hud.o: {expected}{TAIL}{AGAIN}"


def test_a_symbol_of_a_reserved_section_is_refused(data: bytes) -> None:
    found = read_object("/p/hud.o", data)
    bad = replaced(data, section_offset(found, b".symtab") + 24 * 2 + 6, 0xFF33, 2)
    assert "symbol 2 refers to section 65331, but there are" in text_of(bad)


def test_extended_indices_without_their_table_are_refused(data: bytes) -> None:
    found = read_object("/p/hud.o", data)
    bad = replaced(data, section_offset(found, b".symtab") + 24 * 2 + 6, 0xFFFF, 2)
    wanted = 4 * len(found.symbols)
    expected = (
        f"the extended section index table has 0 bytes where entries of {wanted} are due."
    )
    assert text_of(bad) == f"/p/hud.o: {expected}{TAIL}{AGAIN}"


def test_a_relocation_table_of_an_unknown_section_names_both_numbers(data: bytes) -> None:
    bad = replaced(data, header_offset(data, b".rela.text", 0x2C), 99, 4)
    assert "relocation table 2 refers to section 99, but there are" in text_of(bad)


def test_a_relocation_table_with_another_symbol_table_is_refused(data: bytes) -> None:
    symtab = read_object("/p/hud.o", data).section_names.index(b".symtab")
    bad = replaced(data, header_offset(data, b".rela.text", 0x28), 1, 4)
    expected = "relocation table 2 uses section 1 as its symbol table, the object's is section "
    assert text_of(bad) == f"/p/hud.o: {expected}{symtab}.{TAIL}{AGAIN}"


def test_two_symbol_tables_are_refused(data: bytes) -> None:
    bad = replaced(data, header_offset(data, b".comment", 4), 2, 4)
    assert " are both symbol tables." in text_of(bad)


def test_relocations_without_addends_are_refused(data: bytes) -> None:
    bad = replaced(data, header_offset(data, b".rela.text", 4), 9, 4)
    hint = "Build it without unusual relocation options (such as -Wa,--crel)."
    expected = "its relocations are SHT_REL, this processor's objects use SHT_RELA."
    assert text_of(bad) == f"/p/hud.o .rela.text: {expected}{TAIL}{hint}"


def test_relocations_without_addends_of_unloaded_sections_are_no_reason_to_refuse(
    data: bytes,
) -> None:
    bad = replaced(data, header_offset(data, b".rela.text", 4), 9, 4)
    symtab = read_object("/p/hud.o", data).section_names.index(b".symtab")
    start = int.from_bytes(bad[0x28:0x30], "little")
    moved = replaced(bad, start + 64 * 2 + 0x2C, symtab, 4)
    assert b".text" in read_object("/p/hud.o", moved).section_names


def test_relocation_tables_that_overlap_are_refused(data: bytes) -> None:
    found = read_object("/p/hud.o", data)
    start = int.from_bytes(data[0x28:0x30], "little")
    bad = data
    size = len(data) // 24 // 2 * 24
    for name in (b".rela.text", b".rela.eh_frame", b".comment"):
        row = found.section_names.index(name)
        header = struct.pack(
            "<IQQQQIIQQ", 4, 0, 0, 0, size, found.section_names.index(b".symtab"), 1, 8, 24
        )
        at = start + 64 * row + 4
        bad = bad[:at] + header + bad[at + len(header) :]
    hint = f"the relocation tables claim {3 * size} bytes together, at most {len(data)} can be."
    assert text_of(bad) == f"/p/hud.o: {hint}{TAIL}{AGAIN}"


def test_names_that_overlap_to_more_than_the_file_are_refused() -> None:
    # 3000 symbols whose names are all tails of one long string
    count = 3000
    symbols = b"".join(struct.pack("<IBBHQQ", 1 + row, 0, 0, 1, 0, 0) for row in range(count))
    strings = b"\0" + b"a" * 30000 + b"\0"
    names = b"\0.s\0"
    body = strings + names + symbols
    header = struct.pack("<4sBB10xHHIQQQIHHHHHH", b"\x7fELF", 2, 1, 1, 62, 1, 0, 0,
                         64 + len(body), 0, 64, 0, 0, 64, 4, 2)  # fmt: skip
    at = 64
    table = bytes(64)
    for kind, size, link, entry in ((3, len(strings), 0, 0), (3, len(names), 0, 0),
                                    (2, len(symbols), 1, 24)):  # fmt: skip
        table += struct.pack("<IIQQQQIIQQ", 0, kind, 0, 0, at, size, link, 0, 1, entry)
        at += size
    assert "the symbol names claim 85471500 bytes together" in text_of(header + body + table)


def test_slim_lto_objects_of_gcc_are_named(tmp_path: Path) -> None:
    hint = "Build the program without -flto."
    slim = compiled(tmp_path, SOURCE, "-O1", "-flto", "-fno-fat-lto-objects")
    expected = "it holds only gcc's intermediate code (.gnu.lto_*), no machine code."
    assert text_of(slim) == f"/p/hud.o: {expected}{TAIL}{hint}"
    fat = compiled(tmp_path, SOURCE, "-O1", "-flto", "-ffat-lto-objects")
    assert b"f" in read_object("/p/hud.o", fat).symbol_names


def test_llvm_bitcode_is_named() -> None:
    expected = "/p/hud.o: it holds only LLVM bitcode, no machine code."
    assert text_of(b"BC\xc0\xde" + bytes(60)).startswith(expected)


def with_group(change: Callable[[bytes, int], bytes], folder: Path) -> bytes:
    """Return an object whose only group's header and bytes were changed."""
    text = '.section .text.f,"axG",@progbits,f,comdat\n.globl f\nf: ret'
    data = compiled(folder, text, suffix=".s")
    found = read_object("/p/hud.o", data)
    row = found.section_names.index(b".group")
    return change(data, int.from_bytes(data[0x28:0x30], "little") + 64 * row)


def test_groups_that_name_what_does_not_exist_are_refused(tmp_path: Path) -> None:
    def lost_signature(data: bytes, header: int) -> bytes:
        return replaced(data, header + 0x2C, 400, 4)

    def lost_member(data: bytes, header: int) -> bytes:
        start = int.from_bytes(data[header + 0x18 : header + 0x20], "little")
        return replaced(data, start + 4, 300, 4)

    def no_flags(data: bytes, header: int) -> bytes:
        return replaced(data, header + 0x20, 0, 8)

    assert "group 1 refers to symbol 400, but there are" in text_of(
        with_group(lost_signature, tmp_path)
    )
    assert "group 1 refers to section 300, but there are" in text_of(
        with_group(lost_member, tmp_path)
    )
    assert "group 1 has 0 bytes where entries of 4 are due" in text_of(
        with_group(no_flags, tmp_path)
    )


def is_read_or_refused(data: bytes) -> bool:
    """Return whether the object is read with all its names, or refused with a whole text."""
    try:
        found = read_object("/p/hud.o", data)
    except ReloaderError as error:
        return "Nothing was changed." in str(error)
    return len(found.symbol_names) == len(found.symbols)


@settings(
    max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    edits=st.lists(
        st.tuples(
            st.integers(0, 2**16), st.integers(0, 2**64 - 1), st.sampled_from([1, 2, 4, 8])
        ),
        min_size=1,
        max_size=6,
    ),
    cut=st.integers(0, 2**16),
)
def test_changed_bytes_never_raise_anything_but_our_own_errors(
    data: bytes, edits: list[tuple[int, int, int]], cut: int
) -> None:
    changed = data
    for at, value, width in edits:
        changed = replaced(changed, at % (len(data) - 8), value % 2 ** (8 * width), width)
    for bad in (changed, changed[: cut % len(data)]):
        assert is_read_or_refused(bad)


@settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    section=st.integers(0, 11),
    field=st.sampled_from([0, 4, 8, 0x18, 0x20, 0x28, 0x2C, 0x30, 0x38]),
    value=st.one_of(st.integers(0, 64), st.integers(0, 2**64 - 1)),
)
def test_changed_section_headers_never_raise_anything_but_our_own_errors(
    data: bytes, section: int, field: int, value: int
) -> None:
    start = int.from_bytes(data[0x28:0x30], "little")
    width = 4 if field in {0, 4, 0x28, 0x2C} else 8
    bad = replaced(data, start + 64 * section + field, value % 2 ** (8 * width), width)
    assert is_read_or_refused(bad)
