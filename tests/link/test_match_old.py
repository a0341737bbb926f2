"""match_old: what an edit changes, and that everything else is left where it is."""

from pathlib import Path

import numpy as np
import pytest

from reloader.arch.x86_64 import X86_64
from reloader.ids import NO_ADDR, Region
from reloader.link.build import build_graph
from reloader.link.passes.functions import mark_functions
from reloader.link.passes.match_old import changed_functions, match_old
from tests.support.edited import FLAGS, SOURCE
from tests.support.elf import (
    changed_names,
    compiled_object,
    differing_sections,
    live_version,
    matched,
)

every_flag = pytest.mark.parametrize("flags", FLAGS, ids=" ".join)


EDITS = {
    "comment": ("int add(int x)", "int /* edited */ add(int x)", set[str]()),
    "constant": ("return 11;", "return 1100;", {"pick"}),
    "body": ("count += x;", 'count += x; if (x > 5) printf("%d\\n", x);', {"add"}),
    "string": ("hello %d", "HELLO %d", {"say"}),
    "longer string": ("hello %d", "a longer hello %d", {"say"}),
    "double": ("x * 0.5", "x * 0.25", {"half"}),
    "wide string": ("wide text", "wide TEXT", {"wide"}),
    "callback": ("{ return add; }", "{ return square; }", {"callback"}),
    "switch": ("case 2: return square(9);", "case 2: return square(9) * shared;", {"pick"}),
}
MOVING = {"body", "longer string"}


@every_flag
@pytest.mark.parametrize("edit", EDITS)
def test_an_edit_changes_the_function_it_is_in_and_no_other(
    tmp_path: Path, flags: tuple[str, ...], edit: str
) -> None:
    before, after, expected = EDITS[edit]
    assert before in SOURCE
    old = compiled_object(tmp_path, SOURCE, *flags)
    new = compiled_object(tmp_path, SOURCE.replace(before, after), *flags)
    graph = matched(old, new)
    found = {name.removesuffix(".cold") for name in changed_names(graph)}
    # code and data that move make other branches short or long and change padding
    noise = {"pick", "choose"} if edit in MOVING else set[str]()
    assert expected <= found <= expected | noise
    assert bool(expected) == bool(differing_sections(graph))


@every_flag
def test_an_edited_table_changes_the_functions_that_read_it(
    tmp_path: Path, flags: tuple[str, ...]
) -> None:
    old = compiled_object(tmp_path, SOURCE, *flags)
    for before, after, reader in (
        ("{0, 1, 4,", "{0, 1, 5,", "square"),
        ('"beta"', '"BETA"', "word"),
        ("{square, ", "{say, ", "apply"),
        ('"square"}', '"area"}', "apply"),
    ):
        new = compiled_object(tmp_path, SOURCE.replace(before, after), *flags)
        graph = matched(old, new)
        found = changed_names(graph)
        assert reader in found
        # what refers to constants within a few bytes of the edited ones may count as changed
        assert {"add", "callback"}.isdisjoint(found)


@every_flag
def test_what_is_the_same_keeps_its_address(tmp_path: Path, flags: tuple[str, ...]) -> None:
    file = compiled_object(tmp_path, SOURCE, *flags)
    live, graph = live_version(file), matched(file, file)
    for block in np.flatnonzero(graph.blocks.same).tolist():
        section = int(graph.blocks.section[block])
        assert int(graph.blocks.addr[block]) == int(live.section_addr[section])
    data = graph.blocks.region == Region.DATA
    assert data.any()
    assert not graph.blocks.same[data].any()
    assert (graph.blocks.addr[data] == NO_ADDR).all()
    assert changed_functions(graph) == []


def test_only_the_edited_section_moves_with_function_sections(tmp_path: Path) -> None:
    flags = ("-O2", "-ffunction-sections", "-fdata-sections")
    old = compiled_object(tmp_path, SOURCE, *flags)
    new = compiled_object(tmp_path, SOURCE.replace("return 11;", "return 1100;"), *flags)
    sections = differing_sections(matched(old, new))
    assert sections == {".text.pick", ".rodata.pick", ".eh_frame"}


def test_a_first_load_changes_every_function(tmp_path: Path) -> None:
    arch = X86_64()
    graph = build_graph([compiled_object(tmp_path, SOURCE, "-O1")], arch)
    mark_functions(graph, arch)
    match_old(graph, [None], arch.kinds)
    assert {"add", "say", "pick", "apply", "wide"} <= changed_names(graph)
    assert not graph.blocks.same.any()


def test_objects_of_one_transaction_are_matched_each_with_its_own_version(
    tmp_path: Path,
) -> None:
    arch = X86_64()
    old = [compiled_object(tmp_path, f"int f{i}(void) {{ return {i}; }}") for i in range(3)]
    new = [old[0], compiled_object(tmp_path, "int f1(void) { return 100; }"), old[2]]
    graph = build_graph(new, arch)
    mark_functions(graph, arch)
    match_old(graph, [live_version(old[0]), live_version(old[1]), None], arch.kinds)
    assert changed_names(graph) == {"f1", "f2"}


def test_a_renamed_function_is_new(tmp_path: Path) -> None:
    for flag in ("-O1", "-ffunction-sections"):
        old = compiled_object(
            tmp_path, "int f(int x) { return x; } int g(void) { return 1; }", flag
        )
        new = compiled_object(
            tmp_path, "int h(int x) { return x; } int g(void) { return 1; }", flag
        )
        assert changed_names(matched(old, new)) == {"h"}


def test_a_function_that_became_static_is_new(tmp_path: Path) -> None:
    text = "__attribute__((used, noinline)) {} int f(int x) {{ return x; }}"
    old = compiled_object(tmp_path, text.format(""), "-O1")
    new = compiled_object(tmp_path, text.format("static"), "-O1")
    assert "f" in changed_names(matched(old, new))


def test_calling_another_undefined_function_is_a_change(tmp_path: Path) -> None:
    text = (
        "int one(void), two(void); int f(void) { return one(); } int g(void) { return two(); }"
    )
    old = compiled_object(tmp_path, text, "-O1")
    new = compiled_object(tmp_path, text.replace("return one()", "return two()"), "-O1")
    assert changed_names(matched(old, new)) == {"f"}


def test_using_another_variable_is_a_change(tmp_path: Path) -> None:
    text = "static int a = 1, b = 2; int f(void) { return a++; } int g(void) { return b++; }"
    old = compiled_object(tmp_path, text, "-O1")
    new = compiled_object(tmp_path, text.replace("return a++", "return b++ + 0 * a"), "-O1")
    assert "f" in changed_names(matched(old, new))


def test_a_new_variable_changes_its_user_alone(tmp_path: Path) -> None:
    text = "int a = 1; int f(void) { return a++; } int g(void) { return 5; }"
    new_text = text.replace("return 5", "static int fresh[50]; return fresh[0]++")
    flags = ("-O1", "-fdata-sections")
    old, new = (compiled_object(tmp_path, one, *flags) for one in (text, new_text))
    assert changed_names(matched(old, new)) == {"g"}
