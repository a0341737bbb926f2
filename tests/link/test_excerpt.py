"""Of an edited object only what changed is linked: what is taken, and when the whole is."""

import struct
from pathlib import Path

import numpy as np
import pytest

from reloader.elf.object import ObjectFile
from reloader.elf.read import read_object
from reloader.link import excerpt as module
from reloader.link.cut import Cut
from reloader.link.difference import differing_sections, same_shape
from reloader.live.objects import LiveObject
from tests.support.link import ARCH, Names, compile_object, link_first, live_after

SOURCE = """
int printf(const char *, ...);
static const int table[4] = {1, 2, 3, 4};
static int count = 7;
int level = 3;
__attribute__((noinline)) static int leaf(int n) { return n * 3; }
__attribute__((noinline)) static int reads_table(int n) { return table[n & 3] + count; }
int (*row)(int) = leaf;
int middle(int n) { return leaf(n) + 1; }
int outer(int n) { return middle(n) + reads_table(n) + row(n); }
int lonely(int n) { return n ? printf("lonely %d", level) : 0; }
int another(int n) { return n ? printf("another %d", n) : 0; }
int chooses(int n)
{
    switch (n & 15) {
    case 0: return 9; case 1: return n * 5; case 2: return n - 7; case 3: return 31;
    case 4: return n / 3; case 5: return n ^ 0x55; case 6: return ~n; default: return leaf(n);
    }
}
int has_static(int n) { static int calls; return calls += n; }
int has_static_too(int n) { static int calls = 4; return calls -= n; }
"""
FLAGS = ("-O2", "-ffunction-sections", "-fdata-sections", "-fPIC")


@pytest.fixture(autouse=True)
def small_objects_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LEAST_SECTIONS", 0)


@pytest.fixture
def live(tmp_path: Path) -> LiveObject:
    first = compile_object(tmp_path, "a.c", SOURCE, *FLAGS)
    return live_after(link_first([first], Names({b"printf": 0x1100_0000})))


def edited(folder: Path, *edits: tuple[str, str]) -> ObjectFile:
    """Return the next version, with parts of the source replaced."""
    text = SOURCE
    for old, new in edits:
        assert old in text
        text = text.replace(old, new)
    return compile_object(folder, "a.c", text, *FLAGS)


def excerpt(live: LiveObject, file: ObjectFile) -> Cut:
    cut = module.excerpt(live, file, ARCH)
    assert cut is not None
    return cut


def linked_again(cut: Cut) -> set[str]:
    """Return the code and constants whose relocations are in the excerpt."""
    names = cut.file.section_names
    rows: list[int] = np.unique(cut.file.relocation_sections).tolist()
    return {names[row].decode() for row in rows} - {".eh_frame"}


def test_only_the_edited_function_is_linked_again(tmp_path: Path, live: LiveObject) -> None:
    cut = excerpt(live, edited(tmp_path, ("leaf(n) + 1", "leaf(n) * 2 + 1")))
    assert linked_again(cut) == {".text.middle"}
    assert b"leaf" in cut.file.symbol_names
    assert b"lonely" not in cut.file.symbol_names


def test_callers_of_an_edited_static_function_are_left_alone(
    tmp_path: Path, live: LiveObject
) -> None:
    cut = excerpt(live, edited(tmp_path, ("n * 3", "n * 3000 + (n >> 2)")))
    assert b".text.leaf" in cut.file.section_names
    assert b".text.middle" not in cut.file.section_names
    assert b".data.rel.row" not in cut.file.section_names


def test_what_reads_an_edited_constant_is_linked_again(
    tmp_path: Path, live: LiveObject
) -> None:
    cut = excerpt(live, edited(tmp_path, ("{1, 2, 3, 4}", "{1, 2, 3, 5}")))
    assert linked_again(cut) == {".text.reads_table"}
    assert b".rodata.table" in cut.file.section_names


def test_a_jump_table_comes_with_its_function(tmp_path: Path, live: LiveObject) -> None:
    cut = excerpt(live, edited(tmp_path, ("n ^ 0x55", "n ^ 0x56")))
    assert ".text.chooses" in linked_again(cut)
    assert any(name.startswith(".rodata") for name in linked_again(cut))


def test_only_unwind_records_of_what_is_linked_are_taken(
    tmp_path: Path, live: LiveObject
) -> None:
    cut = excerpt(live, edited(tmp_path, ("leaf(n) + 1", "leaf(n) * 2 + 1")))
    frame = cut.file.section_bytes(cut.file.section_names.index(b".eh_frame")).tobytes()
    length = struct.unpack_from("<I", frame)[0] + 4
    following, back = struct.unpack_from("<II", frame, length)
    assert length + following + 4 == len(frame)  # one that is shared, and one of the function
    assert back == length + 4


def test_the_whole_is_described_again_when_its_part_is_live(
    tmp_path: Path, live: LiveObject
) -> None:
    file = edited(tmp_path, ("leaf(n) + 1", "leaf(n) * 2 + 1"))
    cut = excerpt(live, file)
    part = live_after(link_first([cut.file], Names({b"printf": 0x1100_0000})))
    whole = cut.widened(part)
    assert whole.file is file
    middle = file.section_names.index(b".text.middle")
    own = cut.file.section_names.index(b".text.middle")
    assert whole.section_addr[middle] == part.section_addr[own]
    others = np.setdiff1d(np.arange(len(file.sections)), cut.sections)
    assert (whole.section_addr[others] == live.section_addr[others]).all()
    left = np.setdiff1d(np.arange(len(file.symbols)), cut.symbols)
    assert (whole.symbol_addr[left] == live.symbol_addr[left]).all()
    assert whole.data is live.data


@pytest.mark.parametrize(
    "edit",
    [
        ("int level = 3;", "int level = 3; int added = 2;"),
        ("int level = 3;", "long level = 3;"),
        ("int outer", "int fresh(int n) { return n; }\nint outer"),
        ("n * 3", "n * 3 + reads_level()"),
        ("return calls += n", "return calls += n + 1"),
        ("static int count = 7", "static int count[2] = {7}"),
    ],
    ids=["variable", "size", "function", "undefined", "static local", "array"],
)
def test_the_whole_is_linked_where_a_part_is_not_certain(
    tmp_path: Path, live: LiveObject, edit: tuple[str, str]
) -> None:
    more = [("+ count", "+ count[0]")] if "count[2]" in edit[1] else []
    text = [("static const", "int reads_level(void);\nstatic const")]
    more += text if "reads_level" in edit[1] else []
    assert module.excerpt(live, edited(tmp_path, edit, *more), ARCH) is None


def test_an_object_in_one_section_is_linked_as_a_whole(tmp_path: Path) -> None:
    texts = SOURCE, SOURCE.replace("n * 3", "n * 5")
    first, second = (compile_object(tmp_path, "a.c", text, "-O2") for text in texts)
    before = live_after(link_first([first], Names({b"printf": 0x1100_0000})))
    assert module.excerpt(before, second, ARCH) is None


def test_equal_versions_have_no_excerpt(tmp_path: Path, live: LiveObject) -> None:
    assert module.excerpt(live, edited(tmp_path), ARCH) is None


def test_sections_that_moved_in_the_file_are_still_equal(
    tmp_path: Path, live: LiveObject
) -> None:
    file = edited(tmp_path, ("leaf(n) + 1", "(leaf(n) ^ 0x1234567) * 0x7654321 + 1"))
    assert same_shape(live.file, file)
    offsets = live.file.sections["sh_offset"], file.sections["sh_offset"]
    assert (offsets[0] != offsets[1]).sum() > 5
    differ = np.flatnonzero(differing_sections(live.file, file)).tolist()
    assert {file.section_names[row] for row in differ} <= {b".text.middle", b".eh_frame"}


def test_a_relocation_that_names_another_symbol_is_a_difference(
    tmp_path: Path, live: LiveObject
) -> None:
    file = edited(tmp_path, ("(*row)(int) = leaf", "(*row)(int) = reads_table"))
    differ = np.flatnonzero(differing_sections(live.file, file)).tolist()
    assert {file.section_names[row] for row in differ} == {b".data.rel.local.row"}


def test_overlapping_sections_count_as_different(live: LiveObject) -> None:
    data = bytearray(live.file.data.tobytes())
    names = live.file.section_names
    table = struct.unpack_from("<Q", data, 40)[0]
    rows = [names.index(name) for name in (b".text.middle", b".text.outer")]
    start = live.file.sections["sh_offset"][rows[0]]
    struct.pack_into("<Q", data, table + 64 * rows[1] + 24, int(start) + 4)
    file = read_object(live.file.path, bytes(data))
    differ = differing_sections(live.file, file)
    assert differ[rows].all()


def test_names_of_the_live_version_are_shared_where_they_are_the_same(
    tmp_path: Path, live: LiveObject
) -> None:
    data = edited(tmp_path, ("n * 3", "n * 4")).data.tobytes()
    file = read_object(live.file.path, data, like=live.file)
    assert file.symbol_names is live.file.symbol_names
    assert file.section_names is live.file.section_names
    data = edited(tmp_path, ("lonely(", "lonesome(")).data.tobytes()
    file, alone = read_object(live.file.path, data, like=live.file), read_object("a.o", data)
    assert file.symbol_names == alone.symbol_names
    assert file.section_names == alone.section_names
