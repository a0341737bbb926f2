"""References that do not name their variable: folded indices, array ends, tables."""

from pathlib import Path

import pytest

from tests.support.data import bind, compile_c, place, wrong_references

FLAGS = [("-O0",), ("-O1",), ("-O2",), ("-O3",), ("-O2", "-fno-pie"), ("-O1", "-fno-pie"),
         ("-O2", "-g"), ("-O2", "-fPIC"), ("-O2", "-mcmodel=medium")]  # fmt: skip

FOLDED = """
extern void use(void *);
static int one[8] = {1}, two[8] = {2}, three[8] = {3};
int f(int i) { one[i]++; two[i - 1] += i; use(one); use(two); use(three); return three[i - 3]; }
int g(int i) { three[i + 1] = i; return two[i + 8]; }
int loop(int v) { for (int *p = two; p < two + 8; p++) v += *p; return v; }
int last(int v) { for (int i = 8; i-- > 0;) v += one[i]; return v; }
short narrow; unsigned char tiny;
void store(void) { narrow = 0x1234; tiny = 5; one[0] = 0x12345678; three[7] = 1; }
"""
MOVES = {
    "in front": ("static int one", "static int fresh[3] = {9}; static int one"),
    "between": ("two[8] = {2},", "two[8] = {2}, fresh[3] = {9},"),
    "behind": ("three[8] = {3}", "three[8] = {3}, fresh[3] = {9}"),
}


@pytest.mark.parametrize("flags", FLAGS, ids=" ".join)
@pytest.mark.parametrize("move", MOVES)
def test_unchanged_functions_find_their_arrays_after_a_move(
    tmp_path: Path, flags: tuple[str, ...], move: str
) -> None:
    old = compile_c(tmp_path / "old", FOLDED, *flags)
    source = FOLDED.replace(*MOVES[move]) + "int more(int i) { return fresh[1] += i; }\n"
    new = compile_c(tmp_path / "new", source, *flags)
    graph, report = bind(old, new)
    place(graph)
    assert wrong_references(graph, new) == []
    assert {"one", "two", "three"} <= set(report.kept)
    assert report.new == ["fresh"]


TABLES = """
static int a = 1, b = 2, c = 3;
static char text[16] = "x", other[16] = "y";
int *const words[] = {&a, &b, &c};
char *const texts[] = {text, other, text + 4};
int f(int i) { a++; b++; c++; text[i]++; other[i]++; return *words[i] + *texts[i]; }
"""


@pytest.mark.parametrize(
    "flags", [("-O0",), ("-O2",), ("-O2", "-fno-pie"), ("-O0", "-g")], ids=" ".join
)
def test_tables_of_pointers_lead_to_the_live_variables(
    tmp_path: Path, flags: tuple[str, ...]
) -> None:
    source = TABLES.replace("b = 2,", "b = 2, between = 5,").replace("b++;", "b++; between++;")
    old = compile_c(tmp_path / "old", TABLES, *flags)
    new = compile_c(tmp_path / "new", source, *flags)
    graph, report = bind(old, new)
    place(graph)
    assert wrong_references(graph, new) == []
    assert report.new == ["between"]


def test_an_instruction_with_an_immediate_behind_its_operand_finds_its_variable(
    tmp_path: Path,
) -> None:
    """Four bytes further on would be the neighbour."""
    source = "static int a = 1, b = 2, c = 3; int g(void) { return a + b + c; }\n"
    source += "void f(void) { a = 0x11111111; b = 0x22222222; c = 0x33333333; }\n"
    old = compile_c(tmp_path / "old", source, "-O2")
    moved = source.replace("b = 2", "new = 4, b = 2").replace("return a", "return new++ + a")
    new = compile_c(tmp_path / "new", moved, "-O2")
    graph, _ = bind(old, new)
    place(graph)
    assert wrong_references(graph, new) == []


def test_a_variable_exchanged_for_another_in_an_equal_function_is_not_the_end_of_its_neighbour(
    tmp_path: Path,
) -> None:
    """Both versions point behind `u`: at `w`, and now at the new `v`."""
    text = 'extern void use(void *); static char u[32] = "u"{}, w[32] = "w";'
    text += "void f(void) {{ use({}); }}"
    text += "void g(void) {{ u[0]++; w[0]++; }}"
    old = compile_c(tmp_path / "old", text.format("", "w"), "-O0")
    new = compile_c(tmp_path / "new", text.format(', v[32] = "v"', "v"), "-O0")
    try:
        graph, _ = bind(old, new)
    except Exception as error:  # noqa: BLE001  a refusal is right as well
        assert "may mean v or u" in str(error)  # noqa: PT017
        return
    place(graph)
    assert wrong_references(graph, new) == []
