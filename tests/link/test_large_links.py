"""What batches of objects must not change, and what must not be looked at once an object."""

from pathlib import Path

import pytest

from reloader.elf.object import ObjectFile
from reloader.ids import NO_ROW, Generation
from reloader.link.passes.bind_data import bind_data
from reloader.link.passes.eh_frame import read_unwind
from reloader.link.passes.match_old import match_old
from reloader.link.pipeline import read_graph
from reloader.live.ledger import Ledger
from reloader.live.next_version import hold, unwind_tables
from tests.support.link import (
    ARCH,
    FakeArena,
    compile_object,
    link_first,
    live_after,
    symbol_row,
)

UNIT = """
static int count{n} = {n}; int total{n}; const char *name{n} = "unit {n}";
int next{m}(int); static int twice(int x) {{ return 2 * x + count{n}; }}
int next{n}(int x) {{ total{n} += x; return x ? next{m}(x - 1) + twice(x) : 0; }}
"""


def units(folder: Path, count: int) -> list[ObjectFile]:
    """Return objects that call each other in a ring."""
    return [
        compile_object(folder, f"u{n}.c", UNIT.format(n=n, m=(n + 1) % count), "-O1")
        for n in range(count)
    ]


def test_objects_of_one_graph_keep_their_own_sections_symbols_and_bytes(tmp_path: Path) -> None:
    files = units(tmp_path, 5)
    graph = read_graph(files, [None] * 5, ARCH)
    for row, file in enumerate(files):
        alone = read_graph([file], [None], ARCH)
        blocks, own = graph.block_of_section[row], alone.block_of_section[0]
        assert ((blocks >= 0) == (own >= 0)).all()
        for block, single in zip(blocks[blocks >= 0], own[own >= 0], strict=True):
            assert graph.blocks.object[block] == row
            assert graph.blocks.section[block] == alone.blocks.section[single]
            assert graph.blocks.region[block] == alone.blocks.region[single]
            there, here = graph.edges_of(int(block)), alone.edges_of(int(single))
            assert (graph.edges.offset[there] == alone.edges.offset[here]).all()
            named: list[bytes] = [
                graph.symbols.name[s] for s in graph.edges.symbol[there].tolist()
            ]
            assert named == [alone.symbols.name[s] for s in alone.edges.symbol[here].tolist()]
            assert (graph.block_bytes(int(block)) == alone.block_bytes(int(single))).all()


def test_each_object_has_its_own_unwind_tables(tmp_path: Path) -> None:
    files = units(tmp_path, 3)
    linked = link_first(files)
    placed = hold(linked.graph, linked.placed, Ledger(), Generation(1), 0)
    fresh = Ledger()
    fresh.add(placed)
    tables = unwind_tables(linked.graph, 0, fresh, Ledger())
    assert tables.pop(NO_ROW) == set()  # there is no header
    assert sorted(tables) == [0, 1, 2]
    for row, holders in tables.items():
        owners = [fresh.rows[start].object for start in holders]
        assert owners == [files[row].key]


def test_a_call_cycle_of_statics_in_own_sections_is_linked(tmp_path: Path) -> None:
    count = 4000
    text = "".join(
        f'.section .text.s{n},"ax",@progbits\n.type s{n},@function\n'
        f"s{n}: call s{(n + 1) % count}\nret\n.size s{n}, .-s{n}\n"
        for n in range(count)
    )
    linked = link_first([compile_object(tmp_path, "cycle.s", text)], arena=FakeArena())
    symbols = linked.graph.symbols
    first = symbol_row(linked.graph, b"s0")
    block = int(symbols.block[symbol_row(linked.graph, b"s3999")])
    field = linked.graph.block_bytes(block)[1:5].view("<i4")[0]
    place = int(linked.graph.blocks.addr[block]) + 5
    assert place + int(field) == int(symbols.entry[first])


def test_a_value_that_points_to_the_same_text_in_another_place_is_not_reported(
    tmp_path: Path,
) -> None:
    source = 'char *kept = "kept"; char *other = "{}"; int use(void) {{ return kept[0]; }}\n'
    old = compile_object(tmp_path, "a.c", source.format("b"), "-O1")
    linked = link_first([old])
    new = compile_object(tmp_path, "a.c", source.format("a longer text"), "-O1")
    live = [live_after(linked)]
    graph = read_graph([new], live, ARCH)
    report = bind_data(graph, live, ARCH)
    match_old(graph, live, ARCH.kinds)
    assert [change.name for change in report.initialiser_changes()] == ["other"]


COUNT = 1100  # functions: tables of fewer are walked anyway
OWN_RECORDS = """.section .eh_frame,"a",@progbits
.long 12, 0, 1, 2     # a CIE, and an FDE without a relocation
.long 12, 20, 3, 4
"""


def walked(table: bytes) -> list[int]:
    """Return where the records of an unwind table begin."""
    starts, at = list[int](), 0
    while at + 4 <= len(table) and (length := int.from_bytes(table[at : at + 4], "little")):
        starts.append(at)
        at += 4 + length
    return starts


@pytest.mark.parametrize("first", ["", OWN_RECORDS])
def test_records_found_by_relocations_are_those_that_walking_finds(
    tmp_path: Path, first: str
) -> None:
    """Also where exception tables have relocations, and where a record has none."""
    throws = ".cfi_personality 0x1b, personality\n.cfi_lsda 0x1b, table\n"
    functions = [
        f"f{n}: .cfi_startproc\n{throws if n % 3 == 0 else ''}ret\n.cfi_endproc\n"
        for n in range(COUNT)
    ]
    text = f"{first}.text\n{''.join(functions)}.section .rodata\ntable: .long 0\n"
    graph = read_graph([compile_object(tmp_path, "r.s", text)], [None], ARCH)
    unwind = read_unwind(graph)
    (block,) = set(unwind.block.tolist())
    assert unwind.start.tolist() == walked(graph.block_bytes(block).tobytes())
    assert (unwind.code != NO_ROW).sum() == COUNT
