"""What cannot be bound for certain is refused, with the whole text people need."""

from pathlib import Path

import numpy as np
import pytest

from reloader.errors.data import (
    AmbiguousReferenceError,
    AmbiguousVariableError,
    DataLayoutError,
    DataUnplacedError,
)
from reloader.ids import NO_ADDR
from reloader.live.objects import DataMap, LiveObject
from tests.support.data import bind, compile_c, live_object, place, wrong_references

SIZES = """
struct cfg { int id; char tag[4]; double weight; } cfg = {1, "a", 2};
int table[4];
int f(int i) { return table[i] + cfg.id; }
"""


def test_a_changed_size_shows_both_layouts_and_the_way_out(tmp_path: Path) -> None:
    old = compile_c(tmp_path / "old", SIZES, "-g")
    grown = SIZES.replace("int id;", "int id, more; long count;").replace(
        "table[4]", "table[6]"
    )
    new = compile_c(tmp_path / "new", grown.replace('{1, "a", 2}', "{1}"), "-g")
    with pytest.raises(DataLayoutError) as caught:
        bind(old, new)
    path = tmp_path / "new" / "a.o"
    assert str(caught.value) == (
        f"{path}: cfg has 16 bytes in the program, 32 in the new object\n"
        "    in the program: struct cfg    in the new object: struct cfg\n"
        "    +0    4    int id             +0    4    int id\n"
        "    +4    4    char[4] tag      * +4    4    int more\n"
        "    +8    8    double weight    * +8    8    long int count\n"
        "                                * +16   4    char[4] tag\n"
        "                                * +24   8    double weight\n"
        f"{path}: table has 16 bytes in the program, 24 in the new object\n"
        "    in the program: int[4]    in the new object: int[6]\n"
        "Nothing was changed. Restore the size, or start these variables anew, losing the live "
        "value: reloader load --reinit cfg --reinit table FILE"
    )


def test_a_changed_size_without_debug_information_shows_the_numbers(tmp_path: Path) -> None:
    old = compile_c(tmp_path / "old", SIZES)
    new = compile_c(tmp_path / "new", SIZES.replace("table[4]", "table[6]"))
    with pytest.raises(DataLayoutError) as caught:
        bind(old, new)
    path = tmp_path / "new" / "a.o"
    assert str(caught.value) == (
        f"{path}: table has 16 bytes in the program, 24 in the new object\n"
        "Nothing was changed. Restore the size, or start this variable anew, losing the live "
        "value: reloader load --reinit table FILE"
    )
    row = caught.value.rows[0]
    assert (row.name, row.live_size, row.new_size) == ("table", 16, 24)


TWO = (
    "int f(int i) { { static int x = 1; x += i; i = x; } "
    "{ static int x = 2; x += i; return x; } }"
)
THREE = TWO.replace("{ { static", "{ { static int x = 3; x ^= i; i += x; } { static")


def test_static_locals_of_one_function_that_cannot_be_told_apart_are_refused(
    tmp_path: Path,
) -> None:
    old, new = (
        compile_c(tmp_path / str(i), text, "-O2") for i, text in enumerate((TWO, THREE))
    )
    with pytest.raises(AmbiguousVariableError) as caught:
        bind(old, new)
    assert str(caught.value) == (
        f"{tmp_path / '1' / 'a.o'}: x.0, x.1 in the program and x.0, x.1, x.2 in the new "
        "object are all called x; which one continues which is not certain\n"
        "Nothing was changed. Compile with -g, which says in which function each one is, give "
        "them different names, or start them anew, losing the live values: "
        "reloader load --reinit x FILE"
    )


def test_ambiguous_static_locals_can_be_started_anew(tmp_path: Path) -> None:
    old, new = (
        compile_c(tmp_path / str(i), text, "-O2") for i, text in enumerate((TWO, THREE))
    )
    graph, report = bind(old, new, "x")
    place(graph)
    assert wrong_references(graph, new) == []
    assert sorted(report.reinitialised) == ["x.0", "x.1", "x.2"]
    assert report.reinit_unused == []


def test_static_locals_in_blocks_of_one_function_are_paired_by_their_block(
    tmp_path: Path,
) -> None:
    edited = TWO.replace("return x", "return -x")
    old, new = (
        compile_c(tmp_path / str(i), text, "-g") for i, text in enumerate((TWO, edited))
    )
    graph, report = bind(old, new)
    place(graph)
    assert wrong_references(graph, new) == []
    assert report.kept == ["f.x", "f.x"]
    assert report.initialiser_changes() == []


# `right` follows the end of `left` only in the new version; the function uses both
APART = """
extern void use(void *, void *);
static char left[32] = "l"; static long middle[2] = {1}; static char right[32] = "r";
void f(void) { use(left, left + 32); middle[0]++; }
void g(void) { use(right, 0); }
"""


def test_a_new_reference_between_two_kept_variables_is_refused(tmp_path: Path) -> None:
    new_text = APART.replace("static long middle[2] = {1};", "").replace(" middle[0]++;", "")
    new_text = new_text.replace("use(right, 0)", "use(left, right)")
    old = compile_c(tmp_path / "old", APART, "-O0")
    new = compile_c(tmp_path / "new", new_text, "-O0")
    with pytest.raises(AmbiguousReferenceError) as caught:
        bind(old, new)
    path = tmp_path / "new" / "a.o"
    text = str(caught.value)
    places = [row.place.offset for row in caught.value.rows]
    names = [row.function for row in caught.value.rows]
    assert set(names) <= {"f", "g"}
    lines = [
        f"{path} .text+{offset:#x}: the reference in {name} to .data+0x20 "
        "may mean right or left"
        for offset, name in zip(places, names, strict=True)
    ]
    remedy = (
        "The variables of that section moved apart, so the two readings lead to different "
        f"addresses. Nothing was changed. Build {path} with -fdata-sections, which gives "
        "each variable a section of its own, and reload it."
    )
    assert text == "\n".join([*lines, remedy])


def test_data_sections_make_the_same_edit_certain(tmp_path: Path) -> None:
    new_text = APART.replace("static long middle[2] = {1};", "").replace(" middle[0]++;", "")
    new_text = new_text.replace("use(right, 0)", "use(left, right)")
    old = compile_c(tmp_path / "old", APART, "-O0", "-fdata-sections")
    new = compile_c(tmp_path / "new", new_text, "-O0", "-fdata-sections")
    graph, _ = bind(old, new)
    place(graph)
    assert wrong_references(graph, new) == []


def test_a_variable_in_use_whose_place_is_not_known_is_refused(tmp_path: Path) -> None:
    source = "static int hidden; int f(void) { return hidden++; }"
    old = compile_c(tmp_path / "old", source, "-O2")
    new = compile_c(tmp_path / "new", source.replace("hidden++", "++hidden"), "-O2")
    with pytest.raises(DataUnplacedError) as caught:
        bind(without_data(live_object(old.file)), new)
    assert str(caught.value) == (
        f"{tmp_path / 'new' / 'a.o'}: the address of hidden (.bss) in the program is "
        "not known\n"
        "Nothing was changed. Attach to a program with its symbol table, or start them anew, "
        "losing the live values: reloader load --reinit hidden FILE"
    )


def test_a_variable_that_was_never_loaded_is_new(tmp_path: Path) -> None:
    old = compile_c(tmp_path / "old", "static int unused; int f(void) { return 1; }", "-O0")
    new = compile_c(
        tmp_path / "new", "static int unused; int f(void) { return unused++; }", "-O0"
    )
    graph, report = bind(without_data(live_object(old.file)), new)
    place(graph)
    assert wrong_references(graph, new) == []
    assert report.new == ["unused"]


def without_data(live: LiveObject) -> LiveObject:
    """Return a live object whose writable sections were not found."""
    none = np.zeros(0, np.uint64)
    symbol_addr = live.symbol_addr.copy()
    symbol_addr[live.file.types() == 1] = NO_ADDR
    data = DataMap(none.astype(np.int32), none, none, none)
    return LiveObject(
        live.file, live.generation, live.section_addr, symbol_addr, live.symbol_slot, data
    )
