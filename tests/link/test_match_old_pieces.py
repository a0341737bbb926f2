"""match_old on what compilers rarely emit: parts, groups, chains, and random programs."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from reloader.arch.x86_64 import X86_64
from reloader.ids import NO_ADDR, Region
from reloader.link.build import build_graph
from reloader.link.graph import LinkGraph, Origin
from reloader.link.passes.functions import mark_functions
from reloader.link.passes.match_old import changed_functions, match_old
from reloader.link.passes.versions import spread
from reloader.live.objects import DataMap, LiveObject
from tests.support.edited import FLAGS, SOURCE
from tests.support.elf import (
    bound_graph,
    changed_names,
    compiled_object,
    differing_sections,
    live_version,
    matched,
)

PIECES = """
    .text
    .type helper.constprop.0, @function
helper.constprop.0:
    {body}
    ret
    .size helper.constprop.0, .-helper.constprop.0
    .globl f
    .type f, @function
f:  mov $1, %edi
    {branch} helper.constprop.0
    .size f, .-f
    {fill}
    .globl far
    .type far, @function
far: mov $2, %edi
    call helper.constprop.0
    ret
    .size far, .-far
    .globl g
    .type g, @function
g:  call f
    ret
    .size g, .-g
"""


@pytest.mark.parametrize("fill", ["nop", ".skip 400, 0x90"])
@pytest.mark.parametrize("branch", ["jmp", "call"])
@pytest.mark.parametrize("body", ["mov $2, %eax", "mov $7, %eax; nop"])
def test_a_changed_part_changes_all_who_run_into_it(
    tmp_path: Path, fill: str, branch: str, body: str
) -> None:
    old, new = (
        compiled_object(
            tmp_path, PIECES.format(body=one, branch=branch, fill=fill), suffix=".s"
        )
        for one in ("mov $1, %eax", body)
    )
    assert changed_names(matched(old, new)) == {"helper.constprop.0", "f", "far"}


def test_a_change_spreads_through_parts_of_parts(tmp_path: Path) -> None:
    def chain(value: int) -> str:
        parts = ['.section .text.p0,"ax"\n.type p.part.0, @function', "p.part.0:"]
        parts.append(f"mov ${value}, %eax; ret\n.size p.part.0, .-p.part.0")
        for i in range(1, 6):
            parts.append(f'.section .text.p{i},"ax"\n.type p.part.{i}, @function\np.part.{i}:')
            parts.append(f"jmp p.part.{i - 1}\n.size p.part.{i}, .-p.part.{i}")
        parts.append('.section .text.f,"ax"\n.globl f, g\n.type f, @function\nf: jmp p.part.5')
        parts.append(".size f, .-f\n.text\n.type g, @function\ng: call f; ret\n.size g, .-g\n")
        return "\n".join(parts)

    old, new = (compiled_object(tmp_path, chain(value), suffix=".s") for value in (1, 2))
    graph = matched(old, new)
    assert changed_names(graph) == {f"p.part.{i}" for i in range(6)} | {"f"}
    assert ".text" not in differing_sections(graph)


def test_equal_bytes_that_call_another_function_are_a_change(tmp_path: Path) -> None:
    function = (
        "\n.type {0}, @function\n{0}: mov ${1}, %eax; ret\n.size {0}, .-{0}\n.p2align 4\n"
    )
    caller = ".globl f\n.type f, @function\nf: {}\nret\n.size f, .-f\n.p2align 4\n"
    for branch in ("call {}", "jmp {}", "lea {}(%rip), %rax"):
        g, h = (branch.format(name) for name in "gh")
        before = caller.format(g) + function.format("g", 1) + function.format("h", 2)
        after = caller.format(h) + function.format("h", 2)
        old, new = (compiled_object(tmp_path, one, suffix=".s") for one in (before, after))
        graph = matched(old, new)
        assert "f" in changed_names(graph)
        assert "h" not in changed_names(graph)


def test_calls_across_a_function_that_grew_are_the_same(tmp_path: Path) -> None:
    calls = "".join(f"call s{i}; lea s{i}(%rip), %rax; jne s{i};" for i in range(8))
    users = "".join(
        f".globl u{i}\n.type u{i}, @function\nu{i}: {calls} ret\n.size u{i}, .-u{i}\n"
        for i in range(4)
    )
    targets = "".join(
        f".type s{i}, @function\ns{i}: nop; .if {i} == 3; {{0}} .endif; ret\n"
        f".size s{i}, .-s{i}\n"
        for i in range(8)
    )
    old, new = (
        compiled_object(tmp_path, users + targets.format(body), suffix=".s")
        for body in ("nop;", "mov $4, %ecx;")
    )
    assert changed_names(matched(old, new)) == {"s3"}


def test_functions_without_sizes_reach_to_the_next_symbol(tmp_path: Path) -> None:
    text = """
    .globl f, g, h
    .type f, @function
    .type g, @function
    .type h, @function
f:  mov $1, %eax
    ret
g:  mov ${}, %eax
    ret
h:  mov $3, %eax
    ret
    """
    old, new = (compiled_object(tmp_path, text.format(i), suffix=".s") for i in (2, 7))
    assert changed_names(matched(old, new)) == {"g"}


def test_an_equal_table_and_its_function_keep_each_other(tmp_path: Path) -> None:
    file = compiled_object(tmp_path, SOURCE, "-O2")
    graph = matched(file, file)
    names = graph.objects[0].section_names
    for name in (b".text", b".rodata"):
        assert graph.blocks.same[graph.block_of_section[0][names.index(name)]]


def test_an_edited_cold_part_changes_its_function(tmp_path: Path) -> None:
    text = """
    #include <stdio.h>
    #include <stdlib.h>
    __attribute__((cold)) void fail(const char *, int);
    int f(int x) { if (x == 77) { fail("bad", 1); fail("worse", 2); abort(); } return x; }
    int g(int x) { return f(x) + 1; }
    """
    flags = ("-O2", "-fno-inline", "-fno-ipa-icf")
    old = compiled_object(tmp_path, text, *flags)
    new = compiled_object(tmp_path, text.replace('"worse", 2', '"worse", 3'), *flags)
    assert b"f.cold" in new.symbol_names
    assert changed_names(matched(old, new)) == {"f", "f.cold"}


def test_sections_of_one_name_pair_by_group_then_by_order(tmp_path: Path) -> None:
    def text(first: int, second: int) -> str:
        parts = [
            f'.section .text.x,"axG",@progbits,{name},comdat\n.weak {name}\n'
            f".type {name}, @function\n{name}: mov ${value}, %eax\nret\n"
            f".size {name}, .-{name}\n"
            for name, value in (("one", first), ("two", second))
        ]
        return "".join(parts if first < second else reversed(parts))

    old = compiled_object(tmp_path, text(1, 2), suffix=".s")
    swapped = compiled_object(tmp_path, text(1, 2).replace("$2", "$9"), suffix=".s")
    assert changed_names(matched(old, swapped)) == {"two"}
    turned = compiled_object(tmp_path, text(3, 2), suffix=".s")
    assert changed_names(matched(old, turned)) == {"one"}


def test_what_an_assembler_leaves_in_relocated_fields_does_not_count(tmp_path: Path) -> None:
    text = ".globl f\n.type f, @function\nf: .byte 0xe8\n.reloc ., R_X86_64_PLT32, g - 4\n"
    text += ".long {}\nret\n"
    old, new = (compiled_object(tmp_path, text.format(i), suffix=".s") for i in (0, 0x1234))
    graph = matched(old, new)
    assert changed_names(graph) == set()
    assert differing_sections(graph) == set()


def test_thread_local_variables_are_the_same_while_their_layout_is(tmp_path: Path) -> None:
    text = "static __thread int a = 1, b = 2;"
    text += "int f(void) { return a++; } int g(void) { return b++; }"
    old = compiled_object(tmp_path, text, "-O1", "-fno-pie")
    assert changed_names(matched(old, old)) == set()
    new = compiled_object(tmp_path, text.replace("return b++", "return b--"), "-O1", "-fno-pie")
    assert changed_names(matched(old, new)) == {"g"}
    turned = text.replace("a = 1, b = 2", "b = 2, a = 1").replace("a++", "b++", 1)
    swapped = compiled_object(tmp_path, turned, "-O1", "-fno-pie")
    assert "f" in changed_names(matched(old, swapped))


def split_data(live: LiveObject, section: int, rows: list[tuple[int, int, int]]) -> LiveObject:
    """Return the live version with a section's variables moved apart: (offset, size, addr)."""
    columns = np.array([(section, *row) for row in rows], np.int64)
    data = DataMap(
        columns[:, 0].astype(np.int32), *(columns[:, i].astype(np.uint64) for i in (1, 2, 3))
    )
    addr = live.section_addr.copy()
    addr[section] = NO_ADDR
    return LiveObject(
        live.file, live.generation, addr, live.symbol_addr, live.symbol_slot, data
    )


def bind_variables(graph: LinkGraph, live: LiveObject, section: int, move: int = 0) -> None:
    """Bind each section reference by the variable at its place, as the data binder does."""
    symbols, edges = graph.symbols, graph.edges
    block = int(graph.block_of_section[0][section])
    for row in np.flatnonzero(symbols.block[edges.symbol] == block).tolist():
        place = int(symbols.offset[edges.symbol[row]]) + int(edges.addend[row])
        addr = live.data.find(section, place + 4) + move
        symbols.addr[edges.symbol[row]] = addr - place - 4
        symbols.origin[edges.symbol[row]] = Origin.BOUND


def test_variables_that_an_earlier_reload_moved_apart_are_the_same_again(
    tmp_path: Path,
) -> None:
    text = (
        "static int a = 1, b = 2; int f(void) { return b++; } int g(void) { a = b; return 1; }"
    )
    file = compiled_object(tmp_path, text, "-O1", "-fno-toplevel-reorder")
    section = file.section_names.index(b".data")
    whole = live_version(file)
    for rows, move, expected in (
        ([(0, 8, 0x7000_0000)], 0, set[str]()),
        ([(0, 4, 0x7000_0000), (4, 4, 0x7100_0000)], 0, set[str]()),
        ([(0, 8, 0x7000_0000)], 64, {"f", "g"}),
    ):
        live = split_data(whole, section, rows)
        arch = X86_64()
        graph = build_graph([file], arch)
        mark_functions(graph, arch)
        for symbol in np.flatnonzero(graph.symbols.reloadable).tolist():
            graph.symbols.addr[symbol] = live.symbol_addr[symbol]
        separate_references(graph)
        bind_variables(graph, live, section, move)
        match_old(graph, [live], arch.kinds)
        assert changed_names(graph) == expected


def separate_references(graph: LinkGraph) -> None:
    """Give each reference to a section symbol a symbol of its own, taken from unused rows."""
    symbols, edges = graph.symbols, graph.edges
    rows = np.flatnonzero(graph.blocks.region[symbols.block[edges.symbol]] == Region.DATA)
    spare = iter(np.flatnonzero(symbols.type == 1).tolist())
    taken: dict[int, int] = {}
    for row in rows.tolist():
        symbol, addend = int(edges.symbol[row]), int(edges.addend[row])
        if addend in taken:
            edges.symbol[row] = taken[addend]
            continue
        copy = next(spare)
        symbols.block[copy] = symbols.block[symbol]
        symbols.offset[copy] = symbols.offset[symbol]
        edges.symbol[row] = taken[addend] = copy


def test_a_change_reaches_along_a_chain_of_any_length() -> None:
    count = 20000
    same = np.ones(count, np.bool_)
    same[0] = False
    rows = np.arange(1, count)
    spread(same, rows, rows - 1)
    assert not same.any()


def test_units_that_depend_only_on_each_other_stay_the_same() -> None:
    same = np.ones(5, np.bool_)
    same[4] = False
    spread(same, np.array([0, 1, 2, 3]), np.array([1, 0, 3, 4]))
    assert same.tolist() == [True, True, False, False, False]


def program(values: list[int], kinds: list[int]) -> str:
    """Return a source of functions that call each other, read tables, print and switch."""
    count = len(values)
    lines = ["#include <stdio.h>", "extern int sink;", "static int total = 3;"]
    lines += [f"__attribute__((noinline, noipa)) int f{i}(int);" for i in range(count)]
    for i, (value, kind) in enumerate(zip(values, kinds, strict=True)):
        other = (i * 7 + 3) % count
        other = (other + (other == i)) % count  # a tail call of itself folds into a loop
        cases = "".join(f"case {k}: return f{other}(x + {k * 3 + value});" for k in range(6))
        body = (
            f"total += {value}; return f{other}(x);",
            f'return printf("text {value} %d", x) + f{other}(x);',
            f"switch (x) {{ {cases} }} return total;",
            f"static const int t[] = {{{value}, 2, 3}}; return t[x & 1] + f{other}(x);",
            f"return (int)(x * {value}.125) + f{other}(x);",
        )[kind]
        lines.append(f"int f{i}(int x) {{ {body} }}")
    return "\n".join(lines)


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    values=st.lists(st.integers(1, 9), min_size=6, max_size=14),
    edits=st.dictionaries(st.integers(0, 13), st.integers(10, 70000), max_size=3),
    seed=st.integers(0, 4),
    flags=st.sampled_from(FLAGS),
)
def test_no_edit_is_ever_missed(
    tmp_path: Path, values: list[int], edits: dict[int, int], seed: int, flags: tuple[str, ...]
) -> None:
    kinds = [(i + seed) % 5 for i in range(len(values))]
    edited = [edits.get(i, value) for i, value in enumerate(values)]
    old = compiled_object(tmp_path, program(values, kinds), *flags)
    new = compiled_object(tmp_path, program(edited, kinds), *flags)
    expected = {f"f{i}" for i, value in enumerate(values) if edited[i] != value}
    found = changed_names(matched(old, new))
    assert expected <= found
    if "-fdata-sections" in flags:
        assert found == expected
    # elsewhere what refers to constants near the edited ones may count as changed
    reading = {f"f{i}" for i, kind in enumerate(kinds) if kind} if expected else set[str]()
    assert found <= expected | reading


def test_the_same_source_compiled_twice_is_unchanged(tmp_path: Path) -> None:
    files = [compiled_object(tmp_path, SOURCE, "-O2", "-g") for _ in range(2)]
    graph = bound_graph(files[1], live_version(files[0]))
    match_old(graph, [live_version(files[0])], X86_64().kinds)
    assert changed_functions(graph) == []
    assert differing_sections(graph) == set()
