"""Where blocks go, which are live, and the unwind tables of those that are."""

import struct
from pathlib import Path

import numpy as np
import pytest

from reloader.errors.linking import UnwindTableError
from reloader.ids import NO_ROW, Region
from reloader.link.layout import image
from reloader.link.passes.eh_frame import read_unwind, unwind_ranges
from reloader.link.pipeline import Linked, link_graph, mark_first_load, read_graph
from tests.support.link import (
    ARCH,
    FakeArena,
    Names,
    compile_object,
    link_first,
    link_setting,
    placed_names,
    symbol_row,
)


def test_blocks_stand_at_multiples_of_their_alignment(tmp_path: Path) -> None:
    text = "\n".join(
        f'.section .rodata.{a},"a"\n.balign {a}\n.zero {a + 3}' for a in (1, 16, 64, 2)
    )
    linked = link_first([compile_object(tmp_path, "a.s", text)])
    blocks = linked.graph.blocks
    rows = np.flatnonzero(blocks.live & (blocks.size > 0))
    assert (blocks.addr[rows] % blocks.align[rows] == 0).all()
    assert len({item.region for item in linked.placed}) == len(linked.placed)


def test_alignment_beyond_a_page_is_kept(tmp_path: Path) -> None:
    text = ".data\n.balign 16384\n.globl big\nbig: .quad 1\n"
    linked = link_first([compile_object(tmp_path, "a.s", text)])
    assert int(linked.graph.symbols.addr[symbol_row(linked.graph, b"big")]) % 16384 == 0
    (item,) = (item for item in linked.placed if item.region == Region.DATA)
    big = int(linked.graph.symbols.addr[symbol_row(linked.graph, b"big")])
    assert item.allocation.addr <= big < item.allocation.addr + item.allocation.size


def test_each_object_and_region_is_one_allocation(tmp_path: Path) -> None:
    text = "int data = 1; int f(void) { return data; }"
    objects = [
        compile_object(tmp_path, f"{n}.c", text.replace("data", n).replace("f(", f"f{n}("))
        for n in ("one", "two")
    ]
    keys = [(item.object, item.region) for item in link_first(objects).placed]
    assert len(set(keys)) == len(keys)
    assert {(0, Region.CODE), (1, Region.CODE), (0, Region.DATA), (1, Region.DATA)} <= set(keys)
    assert (NO_ROW, Region.RODATA) in keys  # the transaction's table of unwind tables


def test_gaps_between_functions_are_traps(tmp_path: Path) -> None:
    text = "".join(f'.section .text.{n},"ax"\n.balign 16\n{n}: ret\n' for n in "fgh")
    linked = link_first([compile_object(tmp_path, "a.s", text)])
    (item,) = (item for item in linked.placed if item.region == Region.CODE)
    data = image(linked.graph, item, ARCH)
    assert data[:48].tobytes() == (b"\xc3" + b"\xcc" * 15) * 3
    assert (data[48:] == 0xCC).all()


def link_pruned(folder: Path, text: str, roots: tuple[int, ...] = ()) -> Linked:
    graph = read_graph([compile_object(folder, "p.c", text, *FLAGS)], [None], ARCH)
    mark_first_load(graph)
    graph.symbols.changed[:] = False
    setting = link_setting(FakeArena(), [None], Names())
    setting.prune, setting.roots = True, roots
    return link_graph(graph, setting)


FLAGS = ("-O1", "-ffunction-sections", "-fdata-sections", "-fno-inline")
PRUNED = """
static int unused_data = 4;
static int *unused(void) { return &unused_data; }
static int *(*volatile keep)(void) __attribute__((unused)) = unused;
static int used(int x) { return x + 1; }
int visible(int x) { return used(x); }
static int started;
__attribute__((constructor)) static void start(void) { started = 1; __asm__ volatile(""); }
"""


def test_a_pruned_load_keeps_what_global_symbols_reach(tmp_path: Path) -> None:
    names = placed_names(link_pruned(tmp_path, PRUNED))
    assert {".text.visible", ".text.used", ".init_array", ".text.start"} <= names
    assert not {".text.unused", ".data.unused_data"} & names


def test_a_root_is_kept_with_all_it_reaches(tmp_path: Path) -> None:
    graph = read_graph([compile_object(tmp_path, "p.c", PRUNED, *FLAGS)], [None], ARCH)
    names = graph.objects[0].section_names
    (section,) = (
        row for row, name in enumerate(names) if name.startswith(b".data.rel.local.keep")
    )
    root = int(graph.block_of_section[0][section])
    placed = placed_names(link_pruned(tmp_path, PRUNED, (root,)))
    assert {".text.unused", ".data.unused_data"} <= placed


def test_a_chain_of_calls_is_followed_to_its_end(tmp_path: Path) -> None:
    text = (
        "".join(f'.section .text.f{i},"ax"\nf{i}: call f{i + 1}\n' for i in range(3000))
        + '.section .text.f3000,"ax"\nf3000: call f0\n.text\n.globl top\ntop: call f0\n'
    )
    graph = read_graph([compile_object(tmp_path, "c.s", text)], [None], ARCH)
    setting = link_setting(FakeArena(), [None], Names())
    setting.prune = True
    linked = link_graph(graph, setting)
    assert (
        int((linked.graph.blocks.live & (linked.graph.blocks.region == Region.CODE)).sum())
        == 3002
    )


UNWOUND = "".join(f"int f{i}(int x) {{ return x * {i + 2}; }}\n" for i in range(9))


def test_unwind_tables_are_cut_to_the_functions_that_are_placed(tmp_path: Path) -> None:
    linked = link_pruned(
        tmp_path, UNWOUND.replace("int f4", "static int f4").replace("int f7", "static int f7")
    )
    graph, unwind = linked.graph, linked.unwind
    table = int(unwind.block[0])
    data = graph.block_bytes(table).tobytes()
    at, fdes = 0, 0
    while at < len(data):
        length, back = struct.unpack_from("<II", data, at)
        if back:
            fdes += 1
            assert at + 4 - back == 0  # the one CIE, at the start
        at += 4 + length
    assert fdes == 7
    assert len(read_unwind(graph).start) == 8


def test_the_search_table_is_sorted_and_leads_to_each_function(tmp_path: Path) -> None:
    linked = link_first([compile_object(tmp_path, "u.c", UNWOUND, *FLAGS)])
    graph, unwind = linked.graph, linked.unwind
    header = int(graph.blocks.addr[unwind.header])
    data = graph.block_bytes(unwind.header).tobytes()
    assert data[:4] == bytes([1, 0x1B, 0x03, 0x3B])
    frame, count = struct.unpack_from("<iI", data, 4)
    assert header + 4 + frame == int(graph.blocks.addr[unwind.block[0]]) + int(unwind.start[1])
    pairs = np.frombuffer(data, "<i4", 2 * count, 12).reshape(-1, 2).astype(np.int64) + header
    assert len(data) == 12 + 8 * count
    assert (np.diff(pairs[:, 0]) > 0).all()
    bodies = {
        int(graph.blocks.addr[graph.symbols.block[symbol_row(graph, f"f{i}".encode())]])
        for i in range(9)
    }
    assert set(pairs[:, 0].tolist()) == bodies
    begin, at = unwind_ranges(graph, unwind)
    assert begin.tolist() == pairs[:, 0].tolist()
    assert at.tolist() == pairs[:, 1].tolist()


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (".long 0x100, 0", "a record of 0x100 bytes leaves the table"),
        (".long 8, 4, 0", "an FDE has no CIE"),
        (".long 3, 0", "a record of 0x3 bytes leaves the table"),
        (".long 8", "a record is cut off"),
    ],
)
def test_a_damaged_unwind_table_is_refused(tmp_path: Path, text: str, why: str) -> None:
    file = compile_object(tmp_path, "d.s", f'.section .eh_frame,"a"\n{text}\n')
    with pytest.raises(UnwindTableError) as caught:
        link_first([file])
    assert str(caught.value) == (
        f"{file.name} .eh_frame+0x0: {why}. Nothing was changed. The file is damaged: "
        "build it again."
    )
