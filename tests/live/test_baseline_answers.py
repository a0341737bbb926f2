"""What the baseline tells the rest: addresses, owners, variables, call sites."""

import subprocess
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from reloader.arch.x86_64 import KINDS
from reloader.elf.object import COMMON
from reloader.ids import NO_ADDR
from reloader.live.baseline import match_baseline
from tests.support.baseline import (
    SOURCES,
    build,
    symbol_addr,
    symbols,
)


@pytest.mark.parametrize("stripped", [False, True], ids=["symbols", "stripped"])
def test_common_symbols_have_an_address_and_an_owner(tmp_path: Path, *, stripped: bool) -> None:
    sources = {
        "a.c": "int pool[8]; int other(int); int main(int c, char **v) {"
        " for (int i = 0; i < 8; i++) pool[i] = c * 1234567 + other(i); return pool[c & 7]; }",
        "b.c": "int pool[8]; int late;"
        "int other(int i) { return pool[i & 7] + (late *= 7654321); }",
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
