"""Values, their ranges, and GOT accesses that become direct ones."""

from pathlib import Path

import capstone
import numpy as np
import pytest

from reloader.elf.object import ObjectFile
from reloader.errors.linking import BrokenFactError, FixupRangeError
from reloader.ids import NO_ADDR
from reloader.link.check import check_built, check_placed
from reloader.link.dump import dump
from reloader.link.fixup import edge_targets
from reloader.link.pipeline import Linked, link_graph, mark_first_load, read_graph
from tests.support.link import (
    ARCH,
    FAR,
    LOW,
    FakeArena,
    Names,
    compile_object,
    link_first,
    link_setting,
    symbol_row,
)


def code_text(linked: Linked) -> list[str]:
    """Return the instructions of the first object's `.text`."""
    graph = linked.graph
    block = int(graph.block_of_section[0][1])
    data = graph.block_bytes(block).tobytes()
    decoder = capstone.Cs(*ARCH.capstone)
    return [
        f"{name} {operands}".strip()
        for _, _, name, operands in decoder.disasm_lite(data, int(graph.blocks.addr[block]))
    ]


def test_call_past_two_gib_names_both_ends(tmp_path: Path) -> None:
    """A variable cannot be reached through a stub."""
    file = compile_object(tmp_path, "hud.s", ".text\nmov draw(%rip), %eax\n")
    names = Names({b"draw": LOW + (31 << 27)}, {b"draw": 1})

    def line(_file: ObjectFile, _section: int, _offset: int) -> str:
        return "hud.c:41"

    graph = read_graph([file], [None], ARCH)
    mark_first_load(graph)
    setting = link_setting(FakeArena(), [None], names)
    setting.lines = line
    before = graph.content.copy()
    with pytest.raises(FixupRangeError) as caught:
        link_graph(graph, setting)
    assert str(caught.value) == (
        f"{file.name} .text+0x2 (hud.c:41): reference to draw is 3.9 GiB away, a PC32 edge "
        "reaches 2 GiB. Nothing was changed. Move the arena closer with --arena-near, or build "
        f"{file.name} with -mcmodel=large."
    )
    (row,) = caught.value.rows
    assert (row.low, row.high, row.pc, row.branch) == (-(2**31), 2**31 - 1, True, False)
    assert (graph.content[: len(before)] == before).all()


def test_all_values_that_do_not_fit_are_named_and_nothing_is_written(tmp_path: Path) -> None:
    file = compile_object(tmp_path, "low.s", ".text\nmov $a, %eax\nmov $b, %rax\n.byte b\n")
    names = Names({b"a": 0x1_0000_0000, b"b": 0x8000_0000})
    with pytest.raises(FixupRangeError) as caught:
        link_first([file], names)
    assert str(caught.value) == (
        "3 values do not fit their fields:\n"
        f"  {file.name} .text+0x1: a is 0x100000000, a 32 edge holds 0x0 to 0xffffffff\n"
        f"  {file.name} .text+0x8: b is 0x80000000, a 32S edge holds "
        "-0x80000000 to 0x7fffffff\n"
        f"  {file.name} .text+0xc: b is 0x80000000, a 8 edge holds -0x80 to 0xff\n"
        f"Nothing was changed. Build {file.name} with -fPIC, or run a program linked with "
        "-no-pie."
    )


GOT = """
    .text
    mov near@GOTPCREL(%rip), %rax
    mov near@GOTPCREL(%rip), %r9
    call *near@GOTPCREL(%rip)
    jmp *near@GOTPCREL(%rip)
    cmp near@GOTPCREL(%rip), %rax
    mov far@GOTPCREL(%rip), %rax
    call *far@GOTPCREL(%rip)
"""


def test_got_accesses_of_near_symbols_become_direct(tmp_path: Path) -> None:
    names = Names({b"near": LOW + 0x20, b"far": FAR}, {b"near": 2, b"far": 2})
    linked = link_first([compile_object(tmp_path, "g.s", GOT)], names)
    text = code_text(linked)
    assert text[0].startswith("lea rax, [rip")
    assert text[1].startswith("lea r9, [rip")
    assert text[2:5] == [f"call {LOW + 0x20:#x}", f"jmp {LOW + 0x20:#x}", "nop"]
    assert text[5].startswith("cmp rax, qword ptr [rip")
    assert text[6].startswith("mov rax, qword ptr [rip")
    assert text[7].startswith("call qword ptr [rip")
    check_placed(linked.graph, ARCH)


def test_a_low_symbol_is_not_called_directly_from_high_code(tmp_path: Path) -> None:
    """One of llvm-jitlink's mistakes."""
    file = compile_object(tmp_path, "g.s", ".text\ncall *low@GOTPCREL(%rip)\n")
    linked = link_first([file], Names({b"low": 0x1000}, {b"low": 2}), FakeArena(FAR))
    assert code_text(linked)[0].startswith("call qword ptr [rip")
    graph = linked.graph
    table = int(graph.symbols.block[graph.got_symbol[0]])
    assert graph.block_bytes(table).view("<u8").tolist() == [0x1000]


def test_a_symbol_has_one_got_entry_however_often_it_is_used(tmp_path: Path) -> None:
    linked = link_first(
        [compile_object(tmp_path, "g.s", GOT)], Names({b"near": LOW, b"far": FAR}), relax=False
    )
    graph = linked.graph
    table = int(graph.symbols.block[graph.got_symbol[0]])
    assert sorted(graph.block_bytes(table).view("<u8").tolist()) == [LOW, FAR]


def test_edge_targets_say_who_refers_to_what(tmp_path: Path) -> None:
    text = ".text\n.globl f\n.type f, @function\nf: lea x(%rip), %rax\n.data\nx: .quad f\n"
    linked = link_first([compile_object(tmp_path, "t.s", text)])
    graph = linked.graph
    source, target = edge_targets(graph, ARCH)
    data = int(graph.symbols.addr[symbol_row(graph, b".data")])
    pairs = set(zip(source.tolist(), target.tolist(), strict=True))
    assert (data, int(graph.symbols.addr[symbol_row(graph, b"f")])) in pairs
    assert data in target.tolist()


def test_a_dump_names_blocks_symbols_and_edges(tmp_path: Path) -> None:
    text = ".text\n.globl f\n.type f, @function\nf: call near\n.data\n.quad f + 8\n"
    file = compile_object(tmp_path, "t.s", text)
    lines = dump(link_first([file], Names({b"near": LOW})).graph, ARCH).splitlines()
    assert lines[0] == f"block 0 {file.name} .text code size 0x5 align 1 at 0x10004000 live"
    assert "  +0x1 R_X86_64_PLT32 near -0x4" in lines
    assert "  +0x0 R_X86_64_64 f +0x8" in lines
    assert any(line.startswith("  symbol") and "f block+0x0" in line for line in lines)
    assert lines[lines.index("outside") + 1].split()[2] == "near"


def test_broken_facts_say_which_rows(tmp_path: Path) -> None:
    file = compile_object(tmp_path, "t.s", ".data\n.quad x, y\n")
    graph = read_graph([file], [None], ARCH)
    check_built(graph, ARCH)
    graph.edges.offset[:] = (8, 0)
    with pytest.raises(BrokenFactError) as caught:
        check_built(graph, ARCH)
    assert str(caught.value) == (
        "The link graph is wrong: edges are not sorted by block and offset (rows 0). Nothing "
        "was changed. This is a bug of reloader: please report it with the object files."
    )


def test_an_unresolved_symbol_is_found_before_fixups(tmp_path: Path) -> None:
    linked = link_first([compile_object(tmp_path, "t.s", ".data\n.quad x\n")], Names({b"x": 5}))
    check_placed(linked.graph, ARCH)
    linked.graph.symbols.addr[symbol_row(linked.graph, b"x")] = np.uint64(NO_ADDR)
    with pytest.raises(BrokenFactError, match="a live edge's symbol has no address"):
        check_placed(linked.graph, ARCH)
