"""The baseline of small programs, checked against ld's map."""

import subprocess
from pathlib import Path

import pytest

from tests.support.baseline import (
    SOURCES,
    build,
    compare_with_map,
    symbol_addr,
    symbols,
)

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
