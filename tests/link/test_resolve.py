"""What names mean: within the transaction, in the process, made by the linker, or nowhere."""

from pathlib import Path

import numpy as np
import pytest

from reloader.errors.linking import (
    DuplicateSymbolError,
    UndefinedSymbolsError,
    UnsupportedSymbolError,
)
from reloader.ids import NO_ADDR
from reloader.link.graph import Origin
from reloader.link.passes.resolve import names_of, unify
from reloader.link.pipeline import read_graph
from tests.support.link import (
    ARCH,
    FAR,
    FakeArena,
    Names,
    compile_object,
    link_first,
    symbol_row,
)


def test_missing_names_are_listed_with_place_and_neighbours(tmp_path: Path) -> None:
    text = ".text\nf: call draw_all\n call other\n call draw_all\n.data\n.quad third\n"
    file = compile_object(tmp_path, "hud.s", text)
    with pytest.raises(UndefinedSymbolsError) as caught:
        link_first([file], Names({b"draw_one": 1, b"draw_two": 2}))
    assert str(caught.value) == (
        "3 symbols are not defined anywhere:\n"
        f"  {file.name} .text+0x1 and 1 more: draw_all is not defined anywhere "
        "(near: draw_one, draw_two)\n"
        f"  {file.name} .text+0x6: other is not defined anywhere\n"
        f"  {file.name} .data+0x0: third is not defined anywhere\n"
        "Nothing was changed. Load the object or archive that defines them in the same "
        "transaction."
    )


def test_two_strong_definitions_are_refused_naming_both_objects(tmp_path: Path) -> None:
    objects = [
        compile_object(tmp_path, f"{n}.s", ".text\n.globl same\nnop\nsame: ret\n") for n in "ab"
    ]
    with pytest.raises(DuplicateSymbolError) as caught:
        link_first(objects)
    assert str(caught.value) == (
        f"same is defined in {objects[0].name} .text+0x1 and in {objects[1].name} .text+0x1. "
        "Nothing was changed. Rename one of them or make it static; objects of two different "
        "programs are loaded one after the other, not together."
    )


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_strong_wins_over_common_and_common_over_weak(
    tmp_path: Path, order: tuple[int, int]
) -> None:
    strong = "int a = 1; int b __attribute__((weak)) = 2; int *f(void) { return &a; }"
    common = "int a, b[3]; int *g(void) { return &a; } int *h(void) { return b; }"
    objects = [
        compile_object(tmp_path, "s.c", strong, "-fcommon"),
        compile_object(tmp_path, "c.c", common, "-fcommon"),
    ]
    graph = read_graph([objects[i] for i in order], [None, None], ARCH)
    unify(graph)
    rows = graph.edges.symbol
    used = dict(zip(names_of(graph, rows), graph.symbols.object[rows].tolist(), strict=True))
    assert used[b"a"] == order.index(0)
    assert used[b"b"] == order.index(1)


def test_of_two_common_symbols_the_larger_gives_size_both_alignment(tmp_path: Path) -> None:
    first = "char c[8] __attribute__((aligned(64))); char *f(void) { return c; }"
    second = "char c[80]; char *g(void) { return c; }"
    graph = read_graph(
        [
            compile_object(tmp_path, "a.c", first, "-fcommon"),
            compile_object(tmp_path, "b.c", second, "-fcommon"),
        ],
        [None, None],
        ARCH,
    )
    unify(graph)
    (row,) = {r for r in graph.edges.symbol.tolist() if graph.symbols.name[r] == b"c"}
    block = graph.symbols.block[row]
    assert (graph.blocks.size[block], graph.blocks.align[block]) == (80, 64)


def test_a_weak_definition_gives_way_to_the_processes_copy(tmp_path: Path) -> None:
    text = "__attribute__((weak)) int inlined(void) { return 1; }"
    text += " int f(void) { return inlined(); }"
    file = compile_object(tmp_path, "w.c", text, "-O2", "-ffunction-sections")
    linked = link_first([file], Names({b"inlined": 0x1040_0000}, {b"inlined": 2}))
    row = symbol_row(linked.graph, b"inlined")
    assert linked.graph.symbols.origin[row] == Origin.BOUND
    assert not linked.graph.symbols.reloadable[row]


def test_an_undefined_weak_symbol_is_zero_and_calls_of_it_have_a_stub(tmp_path: Path) -> None:
    text = "__attribute__((weak)) int maybe(void); int f(void) { return maybe ? maybe() : 7; }"
    file = compile_object(tmp_path, "w.c", text, "-O2", "-fPIC")
    linked = link_first([file], arena=FakeArena(FAR))
    row = symbol_row(linked.graph, b"maybe")
    assert linked.graph.symbols.addr[row] == 0
    assert linked.graph.symbols.slot[row] >= 0


def test_a_function_beyond_two_gib_gets_a_stub_and_a_near_one_none(tmp_path: Path) -> None:
    file = compile_object(tmp_path, "c.s", ".text\ncall far@PLT\ncall near@PLT\n")
    names = Names({b"far": 0x7F00_0000_0000, b"near": 0x40_0000}, {b"far": 2, b"near": 2})
    linked = link_first([file], names)
    symbols = linked.graph.symbols
    assert symbols.slot[symbol_row(linked.graph, b"far")] >= 0
    assert symbols.slot[symbol_row(linked.graph, b"near")] < 0


def test_section_bounds_are_made_where_the_process_has_none(tmp_path: Path) -> None:
    text = """
    .section list,"aw"
    .quad 1, 2, 3
    .data
    .quad __start_list, __stop_list
    """
    linked = link_first([compile_object(tmp_path, "l.s", text)])
    symbols = linked.graph.symbols
    start, stop = (
        int(symbols.addr[symbol_row(linked.graph, n)])
        for n in (b"__start_list", b"__stop_list")
    )
    assert stop - start == 24


def test_each_object_has_its_own_dso_handle(tmp_path: Path) -> None:
    objects = [compile_object(tmp_path, f"{n}.s", ".data\n.quad __dso_handle\n") for n in "ab"]
    graph = link_first(objects, Names({b"__dso_handle": 5})).graph
    rows = [row for row, name in enumerate(graph.symbols.name) if name == b"__dso_handle"]
    addrs = {int(graph.symbols.addr[row]) for row in rows}
    assert len(addrs) == 2
    assert NO_ADDR not in addrs


def test_a_new_thread_local_variable_is_refused(tmp_path: Path) -> None:
    text = "__thread int mine; int f(void) { return ++mine; }"
    file = compile_object(tmp_path, "t.c", text, "-O2", "-fPIC")
    with pytest.raises(UnsupportedSymbolError) as caught:
        link_first([file])
    text = str(caught.value)
    assert "mine: a thread-local variable that the running program does not have yet" in text
    assert "Nothing was changed. Start the program anew" in text


def test_a_plain_address_is_no_answer_for_a_thread_local_name(tmp_path: Path) -> None:
    text = "extern __thread int theirs; int f(void) { return theirs; }"
    file = compile_object(tmp_path, "t.c", text, "-O2", "-fPIC")
    with pytest.raises(UndefinedSymbolsError):
        link_first([file], Names({b"theirs": 0x1000}, {b"theirs": 1}))


def test_an_own_ifunc_gets_a_stub_and_its_resolver_a_name(tmp_path: Path) -> None:
    text = """
    static int one(void) { return 1; }
    static void *choose(void) { return one; }
    int chosen(void) __attribute__((ifunc("choose")));
    int f(void) { return chosen(); }
    """
    file = compile_object(tmp_path, "i.c", text, "-O2", "-fPIC")
    linked = link_first([file])
    ((slot, resolver),) = linked.choices
    symbols = linked.graph.symbols
    row = symbols.name.index(b"chosen")
    assert symbols.slot[row] == slot
    assert symbols.addr[row] == symbols.entry[row] != resolver


def test_thread_local_code_of_an_unknown_form_is_refused(tmp_path: Path) -> None:
    text = ".text\n lea x@tlsgd(%rip), %rdi\n nop\n call __tls_get_addr@PLT\n"
    file = compile_object(tmp_path, "x.s", text)
    with pytest.raises(UnsupportedSymbolError) as caught:
        link_first([file], Names({b"x": -8, b"__tls_get_addr": 1}, {b"x": 6}))
    assert str(caught.value) == (
        f"{file.name} .text+0x3: x: a thread-local access in an instruction sequence that "
        "is not known. Nothing was changed. Build the object without -mcmodel=large, or with "
        "-ftls-model=initial-exec."
    )


def test_names_that_only_dead_edges_want_are_not_missed(tmp_path: Path) -> None:
    """An FDE of nobody would want its personality."""
    text = '.section .eh_frame,"a"\n.long 12, 0\n.quad nobody\n.long 0\n'
    linked = link_first([compile_object(tmp_path, "n.s", text)])
    assert not linked.graph.edges.live.any()
    assert not np.isin(linked.graph.symbols.origin, Origin.BOUND).any()
