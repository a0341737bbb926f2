"""Objects that the running program was not built from, named with the reason."""

from pathlib import Path

import pytest

from reloader.live.baseline import State
from tests.support.baseline import (
    LIB,
    MAIN,
    SOURCES,
    build,
    compile_c,
    load,
    symbols,
)

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


def test_link_time_optimised_program_says_lto(tmp_path: Path) -> None:
    flags = ("-O2", "-flto", "-ffat-lto-objects")
    program = build(tmp_path, SOURCES, *flags, ldflags=["-flto", "-O2"])
    states = program.baseline().placements
    assert {placement.state for placement in states} == {State.DIFFERENT}
    assert all("LTO" in placement.reason for placement in states)
