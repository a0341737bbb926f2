"""ObjectFile -> LinkGraph: regions, COMMON, COMDAT, edges, and what is refused."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from reloader.errors.linking import FieldOutsideError, UnknownRelocationError
from reloader.ids import NO_ROW, Region
from reloader.link.build import build_graph
from reloader.link.check import check_built
from reloader.link.graph import LinkGraph, Origin
from reloader.link.passes.resolve import names_of
from reloader.link.pipeline import read_graph
from tests.support.link import ARCH, compile_object, link_first, symbol_row


def regions(graph: LinkGraph) -> dict[str, int]:
    """Return section name -> region of the first object."""
    file, blocks = graph.objects[0], graph.blocks
    return {
        file.section_names[int(section)].decode(): int(region)
        for section, region in zip(blocks.section, blocks.region, strict=True)
        if section != NO_ROW
    }


def test_sections_go_to_the_region_of_their_use(tmp_path: Path) -> None:
    text = """
    __attribute__((constructor)) void start(void) {}
    int data = 1, zero; static const int number = 4; const int *const pointer = &number;
    __thread int thread = 3; const char *text(void) { return "text"; }
    """
    graph = build_graph([compile_object(tmp_path, "r.c", text, "-g", "-fPIC")], ARCH)
    found = regions(graph)
    expected = {
        ".text": Region.CODE, ".data": Region.DATA, ".bss": Region.DATA,
        ".rodata": Region.RODATA, ".data.rel.ro.local": Region.RODATA,
        ".init_array": Region.RODATA, ".tdata": Region.TLS, ".eh_frame": Region.RODATA,
        ".debug_info": Region.NONE, ".comment": Region.NONE,
    }  # fmt: skip
    assert {name: found[name] for name in expected} == expected
    check_built(graph, ARCH)


def test_debug_sections_have_no_content_and_no_edges(tmp_path: Path) -> None:
    graph = build_graph(
        [compile_object(tmp_path, "g.c", "int f(void) { return 1; }", "-g")], ARCH
    )
    debug = np.flatnonzero(graph.blocks.region == Region.NONE)
    assert len(debug) > 5
    assert (graph.blocks.content[debug] == NO_ROW).all()
    assert not np.isin(graph.edges.block, debug).any()


def test_content_is_the_sections_bytes(tmp_path: Path) -> None:
    text = 'int a = 5; int f(int x) { return x + a; } const char c[] = "c"; int z[9];'
    objects = [compile_object(tmp_path, f"{n}.c", text.replace("z", n * 2), "-g") for n in "pq"]
    graph = build_graph(objects, ARCH)
    for row, file in enumerate(objects):
        for section, block in enumerate(graph.block_of_section[row].tolist()):
            if block != NO_ROW and graph.blocks.region[block] <= Region.TLS:
                assert (
                    graph.block_bytes(block).tobytes() == file.section_bytes(section).tobytes()
                )


def test_each_common_symbol_is_a_zeroed_block_of_its_alignment(tmp_path: Path) -> None:
    text = (
        "int one; double two[40] __attribute__((aligned(64))); int *get(void) { return &one; }"
    )
    graph = build_graph([compile_object(tmp_path, "c.c", text, "-fcommon")], ARCH)
    row = symbol_row(graph, b"two")
    block = int(graph.symbols.block[row])
    assert graph.symbols.origin[row] == Origin.BLOCK
    assert (graph.blocks.size[block], graph.blocks.align[block]) == (320, 64)
    assert graph.blocks.region[block] == Region.DATA
    assert graph.blocks.content[block] == NO_ROW
    assert graph.symbols.block[symbol_row(graph, b"one")] != block


GROUP = """
    .section .text.shared,"axG",@progbits,shared,comdat
    .weak shared
    .type shared, @function
shared:
    .cfi_startproc
    mov $VALUE, %eax
    ret
    .cfi_endproc
    .text
    .globl userNAME
    .type userNAME, @function
userNAME:
    .cfi_startproc
    call shared
    ret
    .cfi_endproc
    .data
    .quad .text.shared
"""


def test_the_first_comdat_group_wins(tmp_path: Path) -> None:
    objects = [
        compile_object(tmp_path, f"{n}.s", GROUP.replace("VALUE", v).replace("NAME", n))
        for n, v in (("a", "1"), ("b", "2"))
    ]
    linked = link_first(objects)
    graph = linked.graph
    section = objects[1].section_names.index(b".text.shared")
    assert graph.block_of_section[1][section] == NO_ROW
    winner = symbol_row(graph, b"shared")
    assert graph.symbols.object[winner] == 0
    calls = graph.edges.symbol[
        np.isin(graph.edges.block, [graph.block_of_section[r][1] for r in (0, 1)])
    ]
    assert (calls == winner).all()
    quad = graph.edges.symbol[graph.edges.block == graph.block_of_section[1][3]]
    assert (graph.symbols.block[quad] == graph.symbols.block[winner]).all()
    assert int((linked.unwind.code != NO_ROW).sum()) == 3  # shared once, and both users


def test_unknown_relocations_are_refused_all_at_once(tmp_path: Path) -> None:
    text = ".text\n.globl f\nf: call g\n call h\n call i\n"
    file = compile_object(tmp_path, "u.s", text)
    bad = file.relocations.copy()
    bad["r_type"][:2] = (37, 250)
    with pytest.raises(UnknownRelocationError) as caught:
        build_graph([replace(file, relocations=bad)], ARCH)
    assert str(caught.value) == (
        "2 relocations have an unknown type:\n"
        f"  {file.name} .text+0x1: relocation type 37 is not known\n"
        f"  {file.name} .text+0x6: relocation type 250 is not known\n"
        "Nothing was changed. Build the object for x86-64 with gcc or clang, without -mx32."
    )


def test_a_field_past_its_section_is_refused_with_both_numbers(tmp_path: Path) -> None:
    file = compile_object(tmp_path, "p.s", ".data\n.quad x\n")
    bad = file.relocations.copy()
    bad["r_offset"] = 4
    with pytest.raises(FieldOutsideError) as caught:
        build_graph([replace(file, relocations=bad)], ARCH)
    assert str(caught.value) == (
        f"{file.name} .data+0x4: a R_X86_64_64 field of 8 bytes ends past the section, which "
        "has 8 bytes of content. Nothing was changed. The file is damaged: build it again."
    )


def test_relocations_out_of_order_become_sorted_edges(tmp_path: Path) -> None:
    file = compile_object(tmp_path, "o.s", ".data\n.quad x\n.quad y\n.quad z\n")
    turned = replace(file, relocations=file.relocations[::-1].copy())
    graph = build_graph([turned], ARCH)
    check_built(graph, ARCH)
    assert names_of(graph, graph.edges.symbol) == [b"x", b"y", b"z"]


def test_pieces_of_functions_are_not_reached_through_stubs(tmp_path: Path) -> None:
    lines = [
        f".type {name}, @function\n{name}: ret"
        for name in (
            "f",
            "f.cold",
            "f.part.0",
            "f.isra.0",
            "f.constprop.0",
            "f.lto_priv.0",
            "cold",
        )
    ]
    graph = read_graph([compile_object(tmp_path, "f.s", "\n".join(lines) + "\n")], [None], ARCH)
    reloadable = {
        name
        for name, flag in zip(graph.symbols.name, graph.symbols.reloadable, strict=True)
        if flag
    }
    assert reloadable == {b"f", b"cold"}


def test_an_object_without_sections_is_an_empty_graph(tmp_path: Path) -> None:
    file = compile_object(tmp_path, "e.s", "\n")
    linked = link_first([file])
    assert not linked.graph.edges.live.any()
