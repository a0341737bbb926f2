"""The x86-64 file: every kind by its formula written by hand, stubs, jumps, branches."""

from pathlib import Path

import capstone
import numpy as np
import pytest

from reloader.arch.base import Table
from reloader.arch.x86_64 import X86_64
from reloader.arch.x86_64_kinds import KINDS, NAMES, kind
from reloader.errors.linking import FixupRangeError
from reloader.ids import Region
from reloader.link.build import build_graph
from reloader.link.fixup import apply_fixups, limits
from reloader.link.graph import Origin
from reloader.link.grow import append_edges, append_symbols
from reloader.link.layout import one_by_one, place
from reloader.link.passes.build_tables import build_got
from tests.support.link import FakeArena, compile_object

ARCH = X86_64()
S, A, Z = 0x1100_2340, 3, 24
NAME = "R_X86_64_"


def by_hand(p: int, got: int, g: int) -> dict[str, int]:
    """Return the value of each kind at P, with the GOT and the entry's offset G."""
    return {
        "64": S + A,
        "PC32": S + A - p,
        "GOT32": g + A,
        "PLT32": S + A - p,
        "GOTPCREL": g + got + A - p,
        "32": S + A,
        "32S": S + A,
        "16": 0x1234 + A,
        "PC16": 0x30 + A,
        "8": 0x12 + A,
        "PC8": 0x30 + A,
        "DTPOFF64": S + A,
        "TPOFF64": S + A,
        "TLSGD": S + A - p,
        "TLSLD": S + A - p,
        "DTPOFF32": S + A,
        "GOTTPOFF": g + got + A - p,
        "TPOFF32": S + A,
        "PC64": S + A - p,
        "GOTOFF64": S + A - got,
        "GOTPC32": got + A - p,
        "GOT64": g + A,
        "GOTPCREL64": g + got + A - p,
        "GOTPC64": got + A - p,
        "GOTPLT64": g + A,
        "PLTOFF64": S + A - got,
        "SIZE32": Z + A,
        "SIZE64": Z + A,
        "GOTPC32_TLSDESC": S + A - p,
        "GOTPCRELX": g + got + A - p,
        "REX_GOTPCRELX": g + got + A - p,
    }


BY_HAND = by_hand(0, 0, 0)


def test_every_kind_with_bytes_has_a_formula_by_hand() -> None:
    wide = {name.removeprefix(NAME) for name in KINDS["name"][KINDS["width"] > 0].tolist()}
    assert wide == set(BY_HAND)


@pytest.mark.parametrize("name", BY_HAND)
def test_an_edge_writes_the_value_of_the_psabi_formula(tmp_path: Path, name: str) -> None:
    """One field of each kind in a block of zeros, beside one unused GOT entry."""
    graph = build_graph([compile_object(tmp_path, "z.s", ".text\n.zero 64\n")], ARCH)
    row, arena, offset = kind(name), FakeArena(), 16
    target = append_symbols(graph, [b"x"], origin=Origin.BOUND, size=Z, object=0)
    text = graph.block_of_section[0][1]
    blocks = graph.blocks
    blocks.live = blocks.region == Region.CODE
    append_edges(graph, 2, block=text, offset=[0, offset], kind=[kind("GOT64"), row],
                 symbol=[0, target[0]], addend=[0, A])  # fmt: skip
    graph.symbols.addr[0] = 0
    build_got(graph, ARCH)
    place(graph, one_by_one(arena.allocate))
    here = int(blocks.addr[text]) + offset
    near = {"16": 0x1234, "8": 0x12, "PC16": here + 0x30, "PC8": here + 0x30}
    graph.symbols.addr[target] = graph.symbols.entry[target] = near.get(name, S)
    apply_fixups(graph, ARCH)
    got = int(graph.symbols.addr[graph.got_symbol[0]])
    entry = 8 if int(KINDS["table"][row]) in {Table.GOT, Table.TLS_IE} else 0
    size = int(KINDS["width"][row])
    expected = by_hand(here, got, entry)[name] & ((1 << 8 * size) - 1)
    field = graph.block_bytes(int(text))[offset : offset + size]
    assert int.from_bytes(field.tobytes(), "little") == expected
    assert not graph.block_bytes(int(text))[offset + size :].any()


@pytest.mark.parametrize("name", [n for n in BY_HAND if KINDS["checked"][kind(n)]])
def test_limits_are_those_of_the_fields_width(name: str) -> None:
    row = kind(name)
    low, high = limits(ARCH, row)
    bits = 8 * int(KINDS["width"][row])
    if KINDS["signed"][row]:
        assert (low, high) == (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    else:
        assert high == 2**bits - 1
        assert low == (0 if bits == 32 else -(2 ** (bits - 1)))


def test_numbers_lead_back_to_their_rows() -> None:
    for row, number in enumerate(KINDS["number"].tolist()):
        assert ARCH.kind_of_number[number] == row
    assert ARCH.kind_of_number[5] == -1  # COPY is no business of an object
    assert len(set(NAMES)) == len(NAMES)


def test_a_stub_jumps_through_its_slot() -> None:
    stubs = np.zeros((2, 16), np.uint8)
    at = np.array([0x1000_0000, 0x1000_0010], np.uint64)
    slot = np.array([0x0F00_0000, 0x4000_0008], np.uint64)
    ARCH.write_stubs(stubs, at, slot)
    for row in range(2):
        decoded = list(
            capstone.Cs(*ARCH.capstone).disasm_lite(stubs[row].tobytes(), int(at[row]))
        )
        assert [step[2] for step in decoded[:3]] == ["endbr64", "jmp", "int3"]
        next_pc = decoded[1][0] + decoded[1][1]
        shift = int(slot[row]) - next_pc
        sign = "+" if shift >= 0 else "-"
        assert decoded[1][3] == f"qword ptr [rip {sign} {abs(shift):#x}]"


def test_a_slot_out_of_reach_is_refused_and_nothing_is_written() -> None:
    stubs = np.zeros((1, 16), np.uint8)
    with pytest.raises(FixupRangeError) as caught:
        ARCH.write_stubs(stubs, np.array([0x1000], np.uint64), np.array([1 << 40], np.uint64))
    assert not stubs.any()
    assert "1024 GiB away" in str(caught.value)


BRANCHES = """
    call x; jmp x; jne x; jb x
    lea x(%rip), %rax; mov x(%rip), %eax; call *x(%rip); cmpb $1, x(%rip); movups x(%rip), %xmm8
"""


def test_only_calls_and_jumps_are_branches(tmp_path: Path) -> None:
    graph = build_graph([compile_object(tmp_path, "b.s", BRANCHES)], ARCH)
    field = graph.blocks.content[graph.edges.block] + graph.edges.offset.astype(np.int64)
    assert ARCH.is_branch(graph.content, field).tolist() == [True] * 4 + [False] * 5
    ends = ARCH.ends_instruction(graph.content, field).tolist()
    assert ends == [True] * 6 + [False] * 3
    assert ARCH.is_lea(graph.content, field).tolist() == [False] * 4 + [True] + [False] * 4


def test_descriptor_sequences_keep_their_register(tmp_path: Path) -> None:
    """The psABI allows any register; compilers take %rax."""
    text = "lea x@tlsdesc(%rip), %r9\n call *x@tlscall(%rax)\n"
    graph = build_graph([compile_object(tmp_path, "d.s", text)], ARCH)
    field = graph.blocks.content[graph.edges.block] + graph.edges.offset.astype(np.int64)
    out = ARCH.rewrite_thread_local(graph.content, field, KINDS["table"][graph.edges.kind])
    assert out.done.all()
    code = graph.block_bytes(0).tobytes()
    text = [
        f"{m} {o}".strip() for _, _, m, o in capstone.Cs(*ARCH.capstone).disasm_lite(code, 0)
    ]
    assert text[0] == "mov r9, 0"
    assert text[1] in {"nop", "xchg ax, ax"}


def test_unknown_thread_local_bytes_are_left_alone() -> None:
    content = np.arange(64, dtype=np.uint8)
    before = content.copy()
    tables = np.array([Table.TLS_GD, Table.TLS_LD, Table.TLS_DESC], np.uint8)
    out = ARCH.rewrite_thread_local(content, np.array([0, 30, 60]), tables)
    assert not out.done.any()
    assert (content == before).all()


def test_the_table_says_how_far_a_linker_rewrites() -> None:
    before, after = KINDS["mask_before"].tolist(), KINDS["mask_after"].tolist()
    names = ("REX_GOTPCRELX", "GOTPCRELX", "TLSGD", "TLSLD", "GOTTPOFF", "PC32")
    rows = {name: (before[kind(name)], after[kind(name)]) for name in names}
    assert rows == {
        "REX_GOTPCRELX": (-3, 4),
        "GOTPCRELX": (-2, 4),
        "TLSGD": (-4, 12),
        "TLSLD": (-3, 9),
        "GOTTPOFF": (-3, 4),
        "PC32": (0, 4),
    }
