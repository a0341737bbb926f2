"""GNU ld, told to put every section where we put it, writes the same bytes."""

import subprocess
from pathlib import Path

import numpy as np
import pytest

from reloader.arch.base import Table
from reloader.elf.object import ObjectFile
from reloader.elf.read import read_object
from reloader.ids import NO_ROW
from reloader.link.build import build_graph
from reloader.link.layout import fresh_blocks
from reloader.link.passes.functions import content_fields
from reloader.link.pipeline import Linked, link_graph
from tests.support.link import ARCH, FakeArena, Names, compile_object, link_setting
from tests.support.link_child import ld_sections

ONE = r"""
extern int outside(int), outside_data;
extern int two(int);
struct pair { const char *name; int (*call)(int); } ;
static int one_hidden(int x) { return x ^ outside_data; }
const struct pair pairs[] = {{"one", one_hidden}, {"two", two}, {"outside", outside}};
static long buffer[100];
long *end = buffer + 100, *before = buffer - 1;
int value = 7;
int one(int x)
{
    switch (x & 7) {
    case 0: return outside(1);
    case 1: return two(2) + value;
    case 2: return pairs[x].call(x);
    case 3: return (int)buffer[x];
    case 4: return outside_data;
    case 5: buffer[x - 1] = x; return 5;
    default: return one_hidden(x);
    }
}
"""
TWO = r"""
extern int one(int), value;
static const char *const texts[] = {"alpha", "beta"};
int two(int x) { return x ? one(x - 1) + value : texts[x & 1][0]; }
__attribute__((weak)) int three(int x) { return x; }
"""
OUTSIDE = {b"outside": 0x1200_0000, b"outside_data": 0x1200_1000}


def unmerged(path: Path) -> ObjectFile:
    """Take the merge flag from string sections: ld would put the strings in another order."""
    command = ["readelf", "-SW", str(path)]
    names = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    flags = [
        f"--set-section-flags={name}=alloc,readonly,data"
        for name in names
        if name.startswith((".rodata.str", ".rodata.cst"))
    ]
    command = ["objcopy", *flags, str(path)]
    subprocess.run(command, check=True)
    return read_object(str(path), path.read_bytes())


def link_plain(objects: list[ObjectFile]) -> Linked:
    """Link without stubs, as a linker of files does."""
    arena = FakeArena()
    setting = link_setting(arena, [None] * len(objects), Names(dict(OUTSIDE)), relax=False)
    return link_graph(build_graph(objects, ARCH), setting)


def ld_script(linked: Linked) -> str:
    """Put each section of each object at the address that we chose."""
    graph, lines = linked.graph, ["SECTIONS {"]
    blocks = graph.blocks
    for block in np.flatnonzero(fresh_blocks(graph) & (blocks.section >= 0)).tolist():
        file = graph.objects[int(blocks.object[block])]
        name = file.section_names[int(blocks.section[block])].decode()
        if name == ".eh_frame":
            continue
        lines.append(f'  .b{block} {int(blocks.addr[block]):#x} : {{ "{file.path}"({name}) }}')
    lines.append("  .got 0x12100000 : { *(.got) *(.got.plt) *(.igot*) }")
    lines.append("  /DISCARD/ : { *(.eh_frame) *(.comment) *(.note*) }")
    return "\n".join([*lines, "}"])


def run_ld(folder: Path, linked: Linked) -> dict[int, bytes]:
    """Return address -> bytes of what GNU ld makes of the same objects."""
    script, out = folder / "script.ld", folder / "out"
    script.write_text(ld_script(linked))
    outside = [f"--defsym={name.decode()}={addr:#x}" for name, addr in OUTSIDE.items()]
    paths = [file.path for file in linked.graph.objects]
    command = ["ld", "-static", "--no-relax", "-e", "0", "--no-warn-rwx-segments", "-T"]
    subprocess.run([*command, str(script), *outside, "-o", str(out), *paths], check=True)
    return ld_sections(out)


def check_same(folder: Path, objects: list[ObjectFile]) -> int:
    """Compare all sections; a GOT load may name another entry, which must hold the same."""
    linked = link_plain(objects)
    graph, blocks = linked.graph, linked.graph.blocks
    theirs = run_ld(folder, linked)
    got = theirs.get(0x1210_0000, b"")
    through_got = ARCH.kinds["table"][graph.edges.kind] == Table.GOT
    compared = 0
    for block in np.flatnonzero(fresh_blocks(graph) & (blocks.content >= 0)).tolist():
        addr = int(blocks.addr[block])
        if blocks.section[block] == NO_ROW or addr not in theirs:
            continue
        mine = graph.block_bytes(block).copy()
        other = np.frombuffer(theirs[addr], np.uint8).copy()
        for edge in range(*graph.edges_of(block).indices(len(through_got))):
            if through_got[edge]:
                offset = int(graph.edges.offset[edge])
                field = slice(offset, offset + 4)
                entry = addr + offset + 4 + int(other[field].view("<i4")[0]) - 0x1210_0000
                assert got[entry : entry + 8] == our_entry(linked, edge)
                mine[field] = other[field]
        assert mine.tobytes() == other.tobytes(), graph.objects[int(blocks.object[block])].path
        compared += len(mine)
    return compared


def our_entry(linked: Linked, edge: int) -> bytes:
    """Return the GOT entry that a field of ours leads to."""
    graph = linked.graph
    place = int(content_fields(graph)[edge])
    block = int(graph.edges.block[edge])
    here = int(graph.blocks.addr[block]) + int(graph.edges.offset[edge])
    addr = here + 4 + int(graph.content[place : place + 4].view("<i4")[0])
    table = int(graph.symbols.block[graph.edges.symbol[edge]])
    offset = addr - int(graph.blocks.addr[table])
    return graph.block_bytes(table)[offset : offset + 8].tobytes()


@pytest.mark.parametrize("sections", ["", "-ffunction-sections -fdata-sections"])
@pytest.mark.parametrize("pic", ["-fPIC", "-fPIE", "-fno-pic"])
@pytest.mark.parametrize("level", ["-O0", "-O1", "-O2", "-O3"])
def test_objects_of_c_have_the_bytes_that_ld_gives_them(
    tmp_path: Path, level: str, pic: str, sections: str
) -> None:
    options = [level, pic, *sections.split()]
    for name, text in (("one.c", ONE), ("two.c", TWO)):
        compile_object(tmp_path, name, text, *options)
    objects = [unmerged(tmp_path / name) for name in ("one.o", "two.o")]
    assert check_same(tmp_path, objects) > 200


KINDS_TEXT = """
    .text
    .globl all_kinds
all_kinds:
    .byte 0                        # 8-bit absolute follows
    .reloc ., R_X86_64_8, small
    .byte 0
    .reloc ., R_X86_64_16, medium
    .short 0
    .reloc ., R_X86_64_PC16, all_kinds
    .short 0
    .reloc ., R_X86_64_PC8, all_kinds
    .byte 0
    .long outside_data             # R_X86_64_32
    movl $outside_data, %eax
    movq $outside_data, %rax       # R_X86_64_32S
    .quad outside_data             # R_X86_64_64
    .quad outside_data - .         # R_X86_64_PC64
    movq $object@SIZE, %rax        # R_X86_64_SIZE32
    .quad object@SIZE              # R_X86_64_SIZE64
    call outside@PLT
    jne outside
    movl object+4(%rip), %eax
    cmpl $3, object(%rip)          # the addend carries the immediate behind the field
    movq outside_data@GOTPCREL(%rip), %rax
    .data
    .globl object
    .type object, @object
    .size object, 24
object:
    .quad object + 8, 0, all_kinds
"""


def test_kinds_that_compilers_do_not_emit_have_the_bytes_that_ld_gives_them(
    tmp_path: Path,
) -> None:
    small = ".globl small, medium\nsmall = 0x71\nmedium = 0x7172\n"
    first = compile_object(tmp_path, "kinds.s", KINDS_TEXT)
    second = compile_object(tmp_path, "small.s", small)
    assert check_same(tmp_path, [first, second]) > 60
