"""The baseline on small programs: what is found, and what is refused."""

import subprocess
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from reloader.arch.x86_64 import KINDS
from reloader.elf.object import COMMON
from reloader.ids import NO_ADDR
from reloader.live.baseline import State, match_baseline
from tests.support.baseline import (
    Linked,
    archive,
    build,
    compare_with_map,
    compile_c,
    link,
    load,
    members,
    symbol_addr,
    symbols,
)

MAIN = """
#include <stdio.h>
int add(int, int);
const char *label(int);
int table_sum(void);
static int counter = 3;
static int scratch[16];
int shown;
int main(int argc, char **argv) {
    for (int i = 0; i < argc; i++) {
        scratch[i & 15] += add(counter, i);
        printf("%s %d\\n", label(i), scratch[i & 15] + table_sum());
    }
    shown = counter++;
    return 0;
}
"""
LIB = """
static int calls = 1;
static int weights[4] = {1, 2, 3, 5};
static int once(int x) { return x * 3 + calls; }
static int twice(int x) { return x * 7 - calls; }
static int (*const ways[])(int) = {once, twice};
int add(int a, int b) { weights[a & 3] += ++calls; return ways[a & 1](b) + weights[b & 3]; }
const char *label(int i) {
    switch (i) {
    case 0: return "zero"; case 1: return "one"; case 2: return "two";
    case 3: return "three"; case 4: return "four"; case 5: return "five";
    }
    return "many";
}
int table_sum(void) {
    int sum = 0;
    for (int i = 0; i < 4; i++) sum += weights[i];
    return sum;
}
"""
SOURCES = {"main.c": MAIN, "lib.c": LIB}
FILES = {
    "pie": ((), ()),
    "nopie": (("-fno-pie",), ("-no-pie",)),
    "sections": (("-ffunction-sections", "-fdata-sections"), ("-Wl,--gc-sections",)),
    "pic-in-nopie": (("-fPIC", "-fno-plt"), ("-no-pie",)),
    "noplt": (("-fno-plt",), ()),
    "large": (("-fPIC", "-mcmodel=medium"), ()),
}


@pytest.mark.parametrize("stripped", [False, True], ids=["symbols", "stripped"])
@pytest.mark.parametrize("kind", FILES)
@pytest.mark.parametrize("level", ["-O0", "-O1", "-O2", "-O3"])
def test_small_program_is_placed_as_the_map_says(
    tmp_path: Path, level: str, kind: str, *, stripped: bool
) -> None:
    cflags, ldflags = FILES[kind]
    program = build(tmp_path, SOURCES, level, *cflags, ldflags=ldflags)
    baseline = program.baseline(stripped=stripped)
    score = compare_with_map(baseline, program.link_map())
    assert [placement.reason for placement in baseline.placements] == ["", ""]
    assert (score.wrong, score.missed) == ([], [])
    truth = symbols(program.executable)
    for row, names in enumerate((("counter", "scratch", "shown"), ("calls", "weights"))):
        for name in names:
            assert symbol_addr(baseline, row, name) == truth[name]


UTIL = """
static int state = {start};
static int step(void) {{ return state += 2; }}
int {name}(void) {{ return step() + step() * state; }}
"""


@pytest.mark.parametrize("stripped", [False, True], ids=["symbols", "stripped"])
def test_equal_statics_of_two_files_of_one_name_are_told_apart(
    tmp_path: Path, *, stripped: bool
) -> None:
    main = "int first(void), second(void); int main(void) { return first() + second(); }"
    sources = {
        "main.c": main,
        "a/util.c": UTIL.format(start=1, name="first"),
        "b/util.c": UTIL.format(start=1, name="second"),
    }
    program = build(tmp_path, sources, "-O0")
    baseline = program.baseline(stripped=stripped)
    truth = symbols(program.executable)
    for row, name in ((1, "first"), (2, "second")):
        assert symbol_addr(baseline, row, name) == truth[name]
        owner = baseline.owner(symbol_addr(baseline, row, "state"))
        assert owner is not None
        assert owner.object == row
    command = ["nm", program.executable]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    states = {int(line.split()[0], 16) for line in run.stdout.splitlines() if " state" in line}
    assert {symbol_addr(baseline, row, "state") for row in (1, 2)} == states


EDITS = {
    "code": ("x * 3", "x * 9"),
    "string": ('"three"', '"drei!"'),
    "callee": ("{once, twice}", "{twice, once}"),
    "initial value": ("{1, 2, 3, 5}", "{1, 2, 3, 4}"),
    "operand": ("sum += weights[i]", "sum += calls"),
    "array size": ("weights[4] = {1, 2, 3, 5}", "weights[5] = {1, 2, 3, 5, 8}"),
}


@pytest.mark.parametrize("stripped", [False, True], ids=["symbols", "stripped"])
@pytest.mark.parametrize("edit", EDITS)
@pytest.mark.parametrize("flags", [(), ("-ffunction-sections", "-fdata-sections")])
def test_object_edited_after_linking_is_named_as_different(
    tmp_path: Path, flags: tuple[str, ...], edit: str, *, stripped: bool
) -> None:
    program = build(tmp_path, SOURCES, "-O1", *flags)
    old, new = EDITS[edit]
    assert old in LIB
    edited = compile_c(tmp_path, "edited/lib.c", LIB.replace(old, new), "-O1", *flags)
    baseline = program.baseline([program.objects[0], load(edited)], stripped=stripped)
    assert baseline.placements[1].state == State.DIFFERENT
    assert baseline.placements[1].reason
    assert baseline.placements[0].state == State.MATCHED


def test_reason_names_section_function_and_address(tmp_path: Path) -> None:
    program = build(tmp_path, SOURCES, "-O1", "-ffunction-sections")
    edited = compile_c(
        tmp_path, "edited/lib.c", LIB.replace("x * 3", "x * 9"), "-O1", "-ffunction-sections"
    )
    placement = program.baseline([program.objects[0], load(edited)]).placements[1]
    addr = symbols(program.executable)["once"]
    assert placement.reason.startswith(".text.once+0x")
    assert "(once) has other bytes than the program at" in placement.reason
    assert int(placement.reason.rsplit("0x", 1)[1], 16) - addr < 16


def test_swapped_callees_are_noticed_though_the_bytes_agree(tmp_path: Path) -> None:
    main = "int f(void), g(void); int main(void) { return f() - g(); }"
    sources = {"main.c": main, "f.c": "int f(void) { return 1; } int g(void) { return 2; }"}
    program = build(tmp_path, sources, "-O1", "-fno-inline")
    text = main.replace("f() - g()", "g() - f()")
    edited = load(compile_c(tmp_path, "edited/main.c", text, "-O1", "-fno-inline"))
    placement = program.baseline([edited, program.objects[1]]).placements[0]
    assert placement.state == State.DIFFERENT
    assert "refers to g at" in placement.reason


def test_shrunk_array_is_noticed_though_all_bytes_agree(tmp_path: Path) -> None:
    program = build(tmp_path, SOURCES, "-O1")
    text = MAIN.replace("static int scratch[16];", "static int scratch[8];")
    edited = load(compile_c(tmp_path, "edited/main.c", text, "-O1"))
    placement = program.baseline([edited, program.objects[1]]).placements[0]
    assert placement.state == State.DIFFERENT
    assert placement.reason.startswith("scratch has 32 bytes, in the program 64 at 0x")


def test_grown_array_that_reaches_behind_the_program_does_not_fit(tmp_path: Path) -> None:
    program = build(tmp_path, SOURCES, "-O1")
    text = MAIN.replace("static int scratch[16];", "static int scratch[160];")
    edited = load(compile_c(tmp_path, "edited/main.c", text, "-O1"))
    placement = program.baseline([edited, program.objects[1]]).placements[0]
    assert placement.state == State.DIFFERENT
    assert placement.reason.startswith(".bss of 6")
    assert "bytes does not fit at 0x" in placement.reason


def with_archive(folder: Path, *flags: str) -> Linked:
    """Return a program whose archive has members that it does not need."""
    used = compile_c(
        folder,
        "used.c",
        "int used(int x) { for (int i = 0; i < 9; i++) x ^= x * 41 + (i << 3); return x; }",
        *flags,
    )
    spare = compile_c(
        folder,
        "spare.c",
        "int spare(int x) { for (int i = 2; i < 7; i++) x |= x * 43 - i; return x; }"
        "int tiny(void) { return 0; }",
        *flags,
    )
    tiny = compile_c(folder, "tiny.c", "int tiny(void) { return 0; }", *flags)
    main = compile_c(
        folder,
        "main.c",
        "int used(int), tiny(void);int main(int c, char **v) { return used(c * 77 + tiny()); }",
        *flags,
    )
    library = archive(folder, "libparts.a", used, tiny, spare)
    return Linked(folder, link(folder, main, library), [load(main), *members(library)])


@pytest.mark.parametrize("stripped", [False, True], ids=["symbols", "stripped"])
@pytest.mark.parametrize("flags", [(), ("-ffunction-sections",)])
def test_archive_member_that_was_not_pulled_is_absent(
    tmp_path: Path, flags: tuple[str, ...], *, stripped: bool
) -> None:
    program = with_archive(tmp_path, "-O2", *flags)
    baseline = program.baseline(stripped=stripped)
    states = {placement.file.member: str(placement.state) for placement in baseline.placements}
    assert states == {
        "": "matched",
        "used.o": "matched",
        "tiny.o": "matched",
        "spare.o": "absent",
    }
    spare = baseline.placements[3]
    assert (spare.section_addr == np.uint64(NO_ADDR)).all()
    assert "not linked in" in spare.reason or "nothing of it" in spare.reason
    owner = baseline.owner(symbol_addr(baseline, 2, "tiny"))
    assert owner is not None
    assert baseline.placements[owner.object].file.member == "tiny.o"


def test_object_watched_beside_its_archive_has_the_same_place(tmp_path: Path) -> None:
    program = with_archive(tmp_path, "-O2")
    twice = [*program.objects, load(tmp_path / "used.o")]
    baseline = program.baseline(twice)
    assert baseline.placements[4].state == State.MATCHED
    assert baseline.placements[4].file.member == ""
    assert symbol_addr(baseline, 4, "used") == symbol_addr(baseline, 1, "used")


@pytest.mark.parametrize("stripped", [False, True], ids=["symbols", "stripped"])
def test_object_of_another_program_with_its_own_main_is_absent(
    tmp_path: Path, *, stripped: bool
) -> None:
    program = build(tmp_path, SOURCES, "-O1")
    other = compile_c(
        tmp_path, "tool.c", 'int puts(const char *); int main(void) { return puts("x"); }'
    )
    baseline = program.baseline([*program.objects, load(other)], stripped=stripped)
    placement = baseline.placements[2]
    assert placement.state == State.ABSENT
    assert baseline.placements[0].state == State.MATCHED


@pytest.mark.parametrize("stripped", [False, True], ids=["symbols", "stripped"])
def test_common_symbols_have_an_address_and_an_owner(tmp_path: Path, *, stripped: bool) -> None:
    sources = {
        "a.c": "int pool[8]; int other(int); int main(int c, char **v) {"
        " for (int i = 0; i < 8; i++) pool[i] = c * 1234567 + other(i); return pool[c & 7]; }",
        "b.c": "int pool[8]; int late; int other(int i) { return pool[i & 7] + (late *= 7654321); }",
    }
    program = build(tmp_path, sources, "-O1", "-fcommon")
    baseline = program.baseline(stripped=stripped)
    truth = symbols(program.executable)
    assert symbol_addr(baseline, 0, "pool") == symbol_addr(baseline, 1, "pool") == truth["pool"]
    owner = baseline.owner(truth["late"] + 2)
    assert owner is not None
    assert (owner.object, owner.section, owner.offset) == (1, COMMON, 2)
    live = baseline.live_object(1)
    late = live.file.symbol_names.index(b"late")
    assert live.data.find(COMMON, late) == truth["late"]


def test_live_object_maps_variables_but_not_relocated_constants(tmp_path: Path) -> None:
    program = build(tmp_path, SOURCES, "-O1", "-fPIC")
    baseline = program.baseline()
    live, truth = baseline.live_object(1), symbols(program.executable)
    assert int(live.generation) == 0
    assert (live.symbol_slot == -1).all()
    names = live.file.section_names
    data = names.index(b".data")
    assert live.data.find(data, 4) == int(live.section_addr[data]) + 4
    assert live.data.find(data, 0) <= truth["calls"]
    constants = next(i for i, name in enumerate(names) if name.startswith(b".data.rel.ro"))
    assert int(live.section_addr[constants]) == truth["ways"]
    assert live.data.find(constants, 0) == NO_ADDR


THREAD = """
#include <stdio.h>
__thread int seed = 7;
static __thread long hidden[3];
extern __thread int elsewhere;
int main(void) {
    char *self;
    __asm__("mov %%fs:0, %0" : "=r"(self));
    hidden[1] = seed + elsewhere;
    printf("%ld %ld %ld\\n", (long)((char *)&seed - self), (long)((char *)hidden - self),
           (long)((char *)&elsewhere - self));
    return 0;
}
"""


@pytest.mark.parametrize("stripped", [False, True], ids=["symbols", "stripped"])
@pytest.mark.parametrize("flags", [(), ("-fPIC",), ("-fno-pie",)])
def test_thread_local_symbols_are_offsets_from_the_thread_pointer(
    tmp_path: Path, flags: tuple[str, ...], *, stripped: bool
) -> None:
    sources = {"main.c": THREAD, "tls.c": "char before; __thread int elsewhere = 5;"}
    ldflags = ["-no-pie"] if "-fno-pie" in flags else []
    program = build(tmp_path, sources, "-O1", *flags, ldflags=ldflags)
    run = subprocess.run([program.executable], capture_output=True, text=True, check=True)
    printed = [int(word) for word in run.stdout.split()]
    baseline = program.baseline(stripped=stripped)
    found = [
        symbol_addr(baseline, 0, "seed"),
        symbol_addr(baseline, 0, "hidden"),
        symbol_addr(baseline, 1, "elsewhere"),
    ]
    assert [addr - 2**64 for addr in found] == printed


def test_inline_function_in_two_objects_is_shared(tmp_path: Path) -> None:
    text = """
    struct Shape {{ virtual int area() {{ return 4711 * size; }} int size = 3; }};
    int {name}() {{ Shape shape; Shape *p = &shape; asm("" : "+r"(p)); return p->area(); }}
    {rest}
    """
    sources = {
        "a.cc": text.format(name="first", rest=""),
        "b.cc": text.format(
            name="second", rest="int first(); int main() { return first() + second(); }"
        ),
    }
    program = build(tmp_path, sources, "-O1", compiler="g++")
    baseline = program.baseline()
    assert [placement.reason for placement in baseline.placements] == ["", ""]
    truth = symbols(program.executable)["_ZN5Shape4areaEv"]
    for row, placement in enumerate(baseline.placements):
        assert symbol_addr(baseline, row, "_ZN5Shape4areaEv") == truth
        section = placement.file.section_names.index(b".text._ZN5Shape4areaEv")
        assert bool(placement.shared[section])


# gold folds no function that has unwind information
FOLDED = ("-O1", "-ffunction-sections", "-fno-asynchronous-unwind-tables")


def test_folded_identical_functions_are_shared(tmp_path: Path) -> None:
    body = "(int x) { return (x * 1234567) ^ (x >> 3) ^ 0x5a5a5a5a; }"
    sources = {
        "a.c": f"int first{body}\nint second(int); int main(int c, char **v) "
        "{ return first(c) + second(c); }",
        "b.c": f"int second{body}",
    }
    flags = ["-fuse-ld=gold", "-Wl,--icf=all"]
    program = build(tmp_path, sources, *FOLDED, ldflags=flags)
    truth = symbols(program.executable)
    assert truth["first"] == truth["second"]
    baseline = program.baseline()
    assert [placement.state for placement in baseline.placements] == [State.MATCHED] * 2
    assert symbol_addr(baseline, 1, "second") == truth["first"]
    assert all(placement.shared.any() for placement in baseline.placements)


@pytest.mark.parametrize("stripped", [False, True], ids=["symbols", "stripped"])
def test_section_dropped_by_the_linker_is_no_reason_to_doubt(
    tmp_path: Path, *, stripped: bool
) -> None:
    lib = LIB + "int unused(int x) { return x * 99 + weights[x & 3]; }\n"
    program = build(
        tmp_path, {"main.c": MAIN, "lib.c": lib}, "-O1", "-ffunction-sections",
        ldflags=["-Wl,--gc-sections"],
    )  # fmt: skip
    assert "unused" not in symbols(program.executable)
    placement = program.baseline(stripped=stripped).placements[1]
    assert placement.state == State.MATCHED
    section = placement.file.section_names.index(b".text.unused")
    assert int(placement.section_addr[section]) == NO_ADDR


def test_link_time_optimised_program_says_lto(tmp_path: Path) -> None:
    flags = ("-O2", "-flto", "-ffat-lto-objects")
    program = build(tmp_path, SOURCES, *flags, ldflags=["-flto", "-O2"])
    states = program.baseline().placements
    assert {placement.state for placement in states} == {State.DIFFERENT}
    assert all("LTO" in placement.reason for placement in states)


READY = """
int main(int argc, char **argv) {
    for (int i = 0; i < argc; i++) ready = ready * 1664525 + 1013904223 + (argv[i][0] << 7);
    return ready;
}
"""


def test_constructor_table_is_placed(tmp_path: Path) -> None:
    text = "int ready; __attribute__((constructor)) static void set(void) { ready = 77; }\n"
    program = build(tmp_path, {"main.c": text + READY}, "-O1")
    for stripped in (False, True):
        baseline = program.baseline(stripped=stripped)
        score = compare_with_map(baseline, program.link_map())
        assert (score.wrong, score.missed) == ([], [])


@pytest.mark.parametrize("stripped", [False, True], ids=["symbols", "stripped"])
@pytest.mark.parametrize("flags", [(), ("-fno-plt", "-fPIC")])
def test_call_sites_are_those_that_a_disassembler_sees(
    tmp_path: Path, flags: tuple[str, ...], *, stripped: bool
) -> None:
    program = build(tmp_path, SOURCES, "-O1", "-ffunction-sections", *flags)
    truth = symbols(program.executable)
    command = ["objdump", "-d", "--no-show-raw-insn", program.executable]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    wanted = [truth[name] for name in ("add", "label", "table_sum")]
    # the displacement is the last four bytes of a call, so the next instruction ends it
    lines = run.stdout.splitlines()
    expected: set[int] = set()
    for line, following in pairwise(lines):
        words = line.split()
        if any(word.startswith("call") for word in words[1:3]) and any(
            f"{addr:x}" in words for addr in wanted
        ):
            expected.add(int(following.split(":")[0], 16) - 4)
    sites = program.baseline(stripped=stripped).call_sites(np.array(wanted, np.uint64))
    assert set(sites.addr.tolist()) == expected
    assert len(expected) == 3
    assert set(sites.target.tolist()) == set(wanted)
    assert set(sites.object.tolist()) == {0}


def test_owner_knows_every_byte_of_the_objects_and_none_other(tmp_path: Path) -> None:
    program = build(tmp_path, SOURCES, "-O1")
    baseline, truth = program.baseline(), symbols(program.executable)
    for name, row in (("main", 0), ("counter", 0), ("add", 1), ("weights", 1)):
        owner = baseline.owner(truth[name])
        assert owner is not None
        assert owner.object == row
        start = int(baseline.placements[row].section_addr[owner.section])
        assert start + owner.offset == truth[name]
    assert baseline.owner(truth["_start"]) is None
    assert baseline.owner(0) is None


def test_no_objects_make_an_empty_baseline(tmp_path: Path) -> None:
    program = build(tmp_path, SOURCES, "-O1")
    baseline = match_baseline([], program.image(), KINDS)
    assert baseline.placements == []
    assert baseline.owner(program.image().entry) is None
    assert len(baseline.functions().addr) == 0
    assert len(baseline.call_sites(np.array([program.image().entry], np.uint64)).addr) == 0
