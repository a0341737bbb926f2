"""A first load, then an edit: what moves, what stays, and where callers go."""

from pathlib import Path

import numpy as np
import pytest

from reloader.ids import NO_ADDR, NO_ROW
from reloader.link.check import check_placed
from reloader.link.layout import body_addr
from reloader.link.pipeline import Linked
from tests.support.link import (
    ARCH,
    FakeArena,
    Names,
    compile_object,
    link_first,
    link_next,
    placed_names,
    symbol_row,
)
from tests.support.link_child import build_host, host_names, run_linked

NAMES = Names({b"host_add": 0x40_1000}, {b"host_add": 2})
TEXT = r"""
extern int host_add(int, int);
int total = 3;
static const int weights[] = {5, 6, 7};
__attribute__((noinline)) int g(int x) { return host_add(x, weights[x & 1]); }
__attribute__((noinline)) static int callback(int x) { return x + 1; }
int (*get(void))(int) { return callback; }
__attribute__((noinline)) int f(int x) { total += x; return g(x) + total; }
int entry(int x) { return f(x) * 1000 + get()(x); }
"""
SPLIT = ("-O2", "-fPIC", "-ffunction-sections")


def two_generations(
    folder: Path, text: str, edited: str, *flags: str, names: Names = NAMES
) -> tuple[Linked, Linked, FakeArena]:
    arena = FakeArena()
    first = link_first([compile_object(folder, "u.c", text, *flags)], names, arena)
    after = [compile_object(folder, "u.c", edited, *flags)]
    return first, link_next(first, after, names, arena), arena


def test_only_the_edited_function_is_placed(tmp_path: Path) -> None:
    edited = TEXT.replace("host_add(x, weights", "host_add(x + 1, weights")
    first, second, _ = two_generations(tmp_path, TEXT, edited, *SPLIT)
    assert placed_names(second) == {".text.g", ".eh_frame"}
    check_placed(second.graph, ARCH)
    old, new = symbol_row(first.graph, b"g"), symbol_row(second.graph, b"g")
    assert first.graph.symbols.slot[old] == second.graph.symbols.slot[new]
    assert first.graph.symbols.addr[old] == second.graph.symbols.addr[new]
    assert body_addr(first.graph)[old] != body_addr(second.graph)[new]


def test_an_unchanged_object_places_nothing(tmp_path: Path) -> None:
    _, second, _ = two_generations(tmp_path, TEXT, TEXT + "// a comment\n", *SPLIT)
    assert placed_names(second) == set()
    assert second.placed == []
    assert second.unwind.header == NO_ROW


def test_a_kept_caller_goes_through_the_stub_of_what_may_change(tmp_path: Path) -> None:
    """The test of design section 4: load f and g, then edit only g."""
    first, _, _ = two_generations(tmp_path, TEXT, TEXT, *SPLIT)
    graph = first.graph
    g = symbol_row(graph, b"g")
    block = int(graph.symbols.block[symbol_row(graph, b"f")])
    for edge in range(*graph.edges_of(block).indices(len(graph.edges.block))):
        if graph.edges.symbol[edge] == g:
            offset = int(graph.edges.offset[edge])
            field = int(graph.block_bytes(block)[offset : offset + 4].view("<i4")[0])
            reached = int(graph.blocks.addr[block]) + offset + 4 + field
            assert reached == int(graph.symbols.entry[g])
            return
    pytest.fail("f does not call g")


@pytest.mark.parametrize("flags", ["-O2 -fPIC", "-O0 -fPIC", "-O2 -fno-pic"])
def test_a_callback_is_its_canonical_address_even_within_one_section(
    tmp_path: Path, flags: str
) -> None:
    first, second, _ = two_generations(
        tmp_path, TEXT, TEXT.replace("return x + 1", "return x + 2"), *flags.split()
    )
    for linked in (first, second):
        symbols, edges = linked.graph.symbols, linked.graph.edges
        row = symbol_row(linked.graph, b"callback")
        block = symbols.block[symbol_row(linked.graph, b"get")]
        assert ((edges.symbol == row) & (edges.block == block)).any()
        assert symbols.slot[row] >= 0
        assert symbols.addr[row] == symbols.entry[row]


@pytest.mark.parametrize(
    "flags", ["-O2 -fPIC", "-O1 -fno-pic", "-O2 -fPIC -ffunction-sections"]
)
def test_state_stays_and_behaviour_changes(tmp_path: Path, flags: str) -> None:
    """The second generation's own answer; `total` is bound to the first one's variable."""
    host = build_host(tmp_path)
    names = host_names(host)
    edited = TEXT.replace("return x + 1", "return x + 9").replace("5, 6, 7", "50, 60, 70")
    first, second, arena = two_generations(tmp_path, TEXT, edited, *flags.split(), names=names)
    graph = second.graph
    total = symbol_row(graph, b"total")
    assert int(graph.symbols.addr[total]) == int(
        first.graph.symbols.addr[symbol_row(first.graph, b"total")]
    )
    answer = run_linked(host, second, arena, b"entry", 2, beside=first)
    assert answer == (2 + 50 + 5) * 1000 + 11


def test_an_edited_string_moves_its_user_and_a_copy_of_the_strings(tmp_path: Path) -> None:
    text = 'const char *name(void) { return "one"; }\nint other(int x) { return x; }\n'
    _, second, _ = two_generations(tmp_path, text, text.replace("one", "two"), *SPLIT)
    assert placed_names(second) == {".text.name", ".rodata.str1.1", ".eh_frame"}


def test_a_jump_table_belongs_to_the_body_it_was_placed_with(tmp_path: Path) -> None:
    cases = "".join(f"case {i}: return host_add(x, {i * 7});\n" for i in range(8))
    text = (
        "extern int host_add(int, int);\nint pick(int x) { switch (x) {"
        + cases
        + "} return 0; }"
    )
    first, second, _ = two_generations(
        tmp_path, text, text.replace("return 0", "return 1"), "-O2"
    )
    for linked in (first, second):
        graph = linked.graph
        code = graph.symbols.block[symbol_row(graph, b"pick")]
        table = next(
            row
            for row in range(len(graph.blocks.object))
            if graph.blocks.live[row]
            and graph.objects[0].section_names[graph.blocks.section[row]] == b".rodata"
        )
        start, size = int(graph.blocks.addr[code]), int(graph.blocks.size[code])
        words = graph.block_bytes(table).view("<i4")
        reached = words.astype(np.int64) + int(graph.blocks.addr[table])
        assert ((reached > start) & (reached < start + size)).all()


def test_a_new_function_has_its_stub_as_address(tmp_path: Path) -> None:
    edited = TEXT + "int fresh(int x) { return g(x); }\n"
    _, second, _ = two_generations(tmp_path, TEXT, edited, *SPLIT)
    symbols = second.graph.symbols
    row = symbol_row(second.graph, b"fresh")
    assert symbols.addr[row] == symbols.entry[row] != np.uint64(NO_ADDR)
    assert ".text.fresh" in placed_names(second)
