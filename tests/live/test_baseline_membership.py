"""Which objects were linked, and whose bytes are whose."""

from pathlib import Path

import numpy as np
import pytest

from reloader.ids import NO_ADDR
from reloader.live.baseline import State
from tests.support.baseline import (
    LIB,
    MAIN,
    SOURCES,
    Linked,
    archive,
    build,
    compile_c,
    link,
    load,
    members,
    symbol_addr,
    symbols,
)


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
