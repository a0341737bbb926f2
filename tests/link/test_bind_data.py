"""Variables keep their address, and every reference leads to the variable it names."""

from pathlib import Path

import pytest

from reloader.ids import NO_ADDR, Region
from reloader.link.graph import LinkGraph, Origin
from reloader.link.passes.bind_data import next_data_map
from reloader.live.objects import LiveObject
from tests.support.data import (
    Compiled,
    address_of,
    assemble,
    bind,
    compile_c,
    live_address,
    live_object,
    place,
    wrong_references,
)

FLAGS = [
    ("-O0",), ("-O1",), ("-O2",), ("-O3",), ("-O0", "-g"), ("-O2", "-g"), ("-O2", "-fno-pie"),
    ("-O0", "-fno-pie"), ("-O2", "-fPIC"), ("-O2", "-fdata-sections"), ("-O2", "-fcommon"),
    ("-O2", "-g", "-gz"),
]  # fmt: skip

GAME = """
extern void use(void *);
struct point { int x, y; };
static int score, lives = 3;
static struct point at = {1, 2};
int level;
char *names[] = {"one", "two"};
int *counters[] = {&score, &lives};
int step(int i) { score += i; lives--; at.x += i; use(&at); use(names); return level++; }
int sum(void) { return *counters[0] + *counters[1] + at.y + lives; }
"""
KEPT = ("score", "lives", "at", "level", "names", "counters")


@pytest.mark.parametrize("flags", FLAGS, ids=" ".join)
def test_an_edit_of_code_alone_keeps_every_variable(
    tmp_path: Path, flags: tuple[str, ...]
) -> None:
    old = compile_c(tmp_path / "old", GAME, *flags)
    new = compile_c(tmp_path / "new", GAME.replace("score += i", "score += i * 2"), *flags)
    graph, report = bind(old, new)
    place(graph)
    assert wrong_references(graph, new) == []
    assert sorted(report.kept) == sorted(KEPT)
    assert report.new == report.removed == report.initialiser_changes() == []
    for name in KEPT:
        assert address_of(graph, name) == live_address(old, name)


EDITS = {
    "a new first variable": ("static int score", "static long before[4];\nstatic int score"),
    "a new middle variable": ("int level;", "static int fresh = 9, other;\nint level;"),
    "a new order": (
        "static int score, lives = 3;\nstatic struct point at = {1, 2};",
        "static struct point at = {1, 2};\nstatic int lives = 3, score;",
    ),
    "an initialised variable becomes zero": ("lives = 3", "lives"),
    "a zero variable becomes initialised": ("int level;", "int level = 4;"),
}


@pytest.mark.parametrize("flags", FLAGS, ids=" ".join)
@pytest.mark.parametrize("edit", EDITS)
def test_a_moved_layout_keeps_every_variable(
    tmp_path: Path, flags: tuple[str, ...], edit: str
) -> None:
    source = GAME.replace(*EDITS[edit])
    if "fresh" in source:
        source = source.replace("lives--;", "lives--; fresh += other++;")
    if "before" in source:
        source = source.replace("lives--;", "lives--; before[i]++;")
    old = compile_c(tmp_path / "old", GAME, *flags)
    new = compile_c(tmp_path / "new", source, *flags)
    graph, report = bind(old, new)
    place(graph)
    assert wrong_references(graph, new) == []
    assert set(report.kept) == set(KEPT)
    for name in KEPT:
        assert address_of(graph, name) == live_address(old, name)
    expected = {"fresh", "other"} if "fresh" in source else set[str]()
    assert set(report.new) == (expected or ({"before"} if "before" in source else set()))


def test_a_removed_variable_moves_its_neighbours_and_is_reported(tmp_path: Path) -> None:
    source = GAME.replace("static int score, lives", "static int gone[3], score, lives")
    old = compile_c(tmp_path / "old", source.replace("lives--;", "gone[i]++; lives--;"), "-O2")
    new = compile_c(tmp_path / "new", GAME, "-O2")
    graph, report = bind(old, new)
    place(graph)
    assert wrong_references(graph, new) == []
    assert report.removed == ["gone"]


STATICS = """
extern void use(void *);
int f(int i) { static int x = 1; x += i; return x; }
int g(int i) { static int x = 2; x += i; return x; }
"""


@pytest.mark.parametrize(
    "flags", [("-O2", "-g"), ("-O0", "-g"), ("-O2",), ("-O0",)], ids=" ".join
)
def test_renumbered_static_locals_keep_the_value_of_their_own_function(
    tmp_path: Path, flags: tuple[str, ...]
) -> None:
    """Swapping the functions swaps the numbers; without -g the functions that use them tell."""
    lines = STATICS.strip().split("\n")
    old = compile_c(tmp_path / "old", STATICS, *flags)
    new = compile_c(tmp_path / "new", "\n".join([lines[0], lines[2], lines[1]]), *flags)
    graph, report = bind(old, new)
    place(graph)
    assert wrong_references(graph, new) == []
    assert len(report.kept) == 2
    assert by_initial_value(new, graph) == by_initial_value(old, None)


def by_initial_value(version: Compiled, graph: LinkGraph | None) -> dict[int, int]:
    """Return the address of each static local `x` by its first initial byte, which names it."""
    file, found = version.file, dict[int, int]()
    for row, name in enumerate(file.symbol_names):
        if name.startswith(b"x."):
            start = int(file.symbols["st_value"][row])
            first = int(file.section_bytes(int(file.symbol_sections[row]))[start])
            text = name.decode()
            found[first] = address_of(graph, text) if graph else live_address(version, text)
    return found


def test_a_new_static_local_of_a_used_name_is_new_and_the_others_stay(tmp_path: Path) -> None:
    added = STATICS.replace(
        "int g", "int h(int i) { static int x = 3; x -= i; return x; }\nint g"
    )
    old = compile_c(tmp_path / "old", STATICS, "-O2", "-g")
    new = compile_c(tmp_path / "new", added, "-O2", "-g")
    graph, report = bind(old, new)
    place(graph)
    assert wrong_references(graph, new) == []
    assert sorted(report.kept) == ["f.x", "g.x"]
    assert report.new == ["h.x"]
    assert report.initialiser_changes() == []


def test_a_changed_initialiser_is_reported_and_the_live_value_stays(tmp_path: Path) -> None:
    old = compile_c(tmp_path / "old", GAME, "-O2")
    changed = GAME.replace("lives = 3", "lives = 5").replace('"two"', '"three"')
    new = compile_c(tmp_path / "new", changed, "-O2")
    _, report = bind(old, new)
    changes = {change.name: change for change in report.initialiser_changes()}
    assert set(changes) == {"lives", "names"}
    assert changes["lives"].old == (3).to_bytes(4, "little")
    assert changes["lives"].new == (5).to_bytes(4, "little")
    assert changes["lives"].addr == live_address(old, "lives")
    assert changes["names"].old_targets[1] == (8, "'two'")
    assert changes["names"].new_targets[1] == (8, "'three'")


def test_reinit_starts_a_variable_anew_in_its_own_block(tmp_path: Path) -> None:
    old = compile_c(tmp_path / "old", GAME, "-O2")
    grown = GAME.replace("x, y;", "x, y, z;")
    new = compile_c(tmp_path / "new", grown, "-O2")
    graph, report = bind(old, new, "at", "nothing")
    place(graph)
    assert wrong_references(graph, new) == []
    assert report.reinitialised == ["at"]
    assert report.reinit_unused == ["nothing"]
    assert "at" not in report.kept
    assert address_of(graph, "at") >= 0x9000_0000


def test_common_variables_keep_their_place_when_they_get_an_initialiser(tmp_path: Path) -> None:
    old = compile_c(tmp_path / "old", "int a; int b; int f(void) { return a + b; }", "-fcommon")
    new = compile_c(
        tmp_path / "new", "int a = 2; int b; int f(void) { return b - a; }", "-fcommon"
    )
    graph, report = bind(old, new)
    assert sorted(report.kept) == ["a", "b"]
    assert address_of(graph, "a") == live_address(old, "a")
    assert address_of(graph, "b") == live_address(old, "b")


def test_constants_and_relocated_constants_are_replaced(tmp_path: Path) -> None:
    source = 'static const char *const t[] = {"a", "b"}; static const int n[] = {1, 2};\n'
    source += "int f(int i) { return *t[i] + n[i]; }"
    old = compile_c(tmp_path / "old", source, "-O2", "-fPIC")
    new = compile_c(tmp_path / "new", source.replace('"b"', '"c"'), "-O2", "-fPIC")
    graph, report = bind(old, new)
    assert report.kept == []
    assert not (graph.symbols.origin == Origin.BOUND).any()


def test_a_variable_that_the_compiler_made_constant_is_reported(tmp_path: Path) -> None:
    source = "static int limit = 3; int f(int *p) { p[0] = limit; return limit++; }"
    old = compile_c(tmp_path / "old", source, "-O0")
    new = compile_c(tmp_path / "new", "static const int limit = 3; const int *f(void) "
                    "{ return &limit; }", "-O0")  # fmt: skip
    _, report = bind(old, new)
    assert report.became_constant == ["limit"]


def test_edges_in_the_dead_initial_bytes_of_kept_variables_are_cleared(tmp_path: Path) -> None:
    old = compile_c(tmp_path / "old", GAME, "-O2")
    new = compile_c(tmp_path / "new", GAME.replace("int level;", "int level, more = 1;"), "-O2")
    graph, _ = bind(old, new)
    data = graph.blocks.region[graph.edges.block] == Region.DATA
    assert data.any()
    assert not graph.edges.live[data].any()


def test_a_new_global_variable_names_its_block_as_a_root(tmp_path: Path) -> None:
    old = compile_c(tmp_path / "old", GAME, "-O2")
    new = compile_c(tmp_path / "new", GAME + "int later = 7;", "-O2")
    graph, report = bind(old, new)
    row = graph.symbols.name.index(b"later")
    assert report.new_global_blocks == [int(graph.symbols.block[row])]


def test_a_new_name_of_a_kept_variable_is_the_same_variable(tmp_path: Path) -> None:
    source = "int a = 1; int f(void) { return a++; }"
    alias = 'extern int b __attribute__((alias("a"))); int a = 1; int f(void) { return b++; }'
    old = compile_c(tmp_path / "old", source, "-O2")
    new = compile_c(tmp_path / "new", alias, "-O2")
    graph, _ = bind(old, new)
    assert address_of(graph, "b") == live_address(old, "a")


def test_the_next_reload_starts_where_the_last_one_left_the_data(tmp_path: Path) -> None:
    """Three versions: kept at the first address, or new in the second version's block."""
    first = compile_c(tmp_path / "1", GAME, "-O2")
    second_source = GAME.replace("int level;", "static int fresh = 9; int level;")
    second_source = second_source.replace("lives--;", "lives--; fresh += i;")
    second = compile_c(tmp_path / "2", second_source, "-O2")
    graph, _ = bind(first, second)
    place(graph)
    fake = live_object(second.file)
    mapped = next_data_map(graph, 0)
    live = LiveObject(second.file, fake.generation, fake.section_addr,
                      graph.symbols.addr.copy(), fake.symbol_slot, mapped)  # fmt: skip
    fresh = address_of(graph, "fresh")
    third = compile_c(
        tmp_path / "3", second_source.replace("return level++", "return ++level"), "-O2"
    )
    graph, report = bind(live, third)
    place(graph, 0xA000_0000)
    assert wrong_references(graph, third) == []
    assert "fresh" in report.kept
    assert address_of(graph, "fresh") == fresh
    for name in KEPT:
        assert address_of(graph, name) == live_address(first, name)


def test_a_first_load_maps_every_writable_section_to_its_block(tmp_path: Path) -> None:
    new = compile_c(tmp_path, GAME, "-O2")
    unbound, _ = bind(live_object(compile_c(tmp_path / "x", "int other;", "-O2").file), new)
    place(unbound)
    mapped = next_data_map(unbound, 0)
    for name in KEPT:
        row = new.file.symbol_names.index(name.encode())
        section = int(new.file.symbol_sections[row])
        found = mapped.find(section, int(new.file.symbols["st_value"][row]))
        assert found == address_of(unbound, name) != NO_ADDR


def test_unnamed_assembly_data_is_bound_as_a_whole(tmp_path: Path) -> None:
    text = ".data\n.Lx: .long 1, 2\n.text\n.globl f\n.type f,@function\n"
    text += "f: {} .Lx+4(%rip)\nret\n"
    old = assemble(tmp_path, text.format("incl"))
    new = assemble(tmp_path, text.format("decl"), name="b")
    graph, _ = bind(old, new)
    before = live_object(old.file)
    section = old.file.section_names.index(b".data")
    edge = int(graph.edges.live.nonzero()[0][0])
    target = int(graph.symbols.addr[graph.edges.symbol[edge]]) + int(graph.edges.addend[edge])
    assert target == before.data.find(section, 4) - 4
