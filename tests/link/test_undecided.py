"""Functions that are compared only once the new code runs, and those that cannot wait."""

from pathlib import Path

import numpy as np
import pytest

from reloader.arch.x86_64 import X86_64
from reloader.ids import I32, Bool
from reloader.link.graph import LinkGraph
from reloader.link.passes.match_old import match_old
from reloader.link.passes.undecided import Moves, Undecided
from tests.support.elf import bound_graph, changed_names, compiled_object, live_version, matched

BEFORE = """
#define APART __attribute__((noinline, noipa))
static int count;
APART int f(int x) { count += x; return 1000; }
APART int g(int x) { return f(x) + f(2); }
APART static int h(int x) { return g(x) * 3; }
int (*shown)(int) = h;
"""
EDITS = {
    "a number": ("return 1000;", "return 1001;"),
    "a longer function": ("return 1000;", "return x * x + count / 7;"),
    "a shorter function": ("f(x) + f(2)", "x"),
    "a new function": ("int (*shown)", "APART int fresh(int x) { return h(x); }\nint (*shown)"),
}
every_edit = pytest.mark.parametrize("edit", EDITS.values(), ids=EDITS)


def all_move(rows: I32) -> Bool:
    return np.ones(len(rows), np.bool_)


def none_moves(rows: I32) -> Bool:
    return np.zeros(len(rows), np.bool_)


def compared(
    folder: Path, text: str, moves: Moves, flags: tuple[str, ...] = ("-O2",)
) -> tuple[LinkGraph, list[Undecided], set[str]]:
    """Return the graph, what is open, and what an immediate comparison says."""
    old = compiled_object(folder, BEFORE, *flags)
    new = compiled_object(folder, text, *flags)
    live = live_version(old)
    graph = bound_graph(new, live)
    undecided = match_old(graph, [live], X86_64().kinds, moves)
    return graph, undecided, changed_names(matched(old, new))


@every_edit
@pytest.mark.parametrize("flags", [("-O2",), ("-O2", "-ffunction-sections")], ids=" ".join)
def test_what_waits_is_decided_as_it_would_have_been_at_once(
    tmp_path: Path, edit: tuple[str, str], flags: tuple[str, ...]
) -> None:
    graph, undecided, expected = compared(tmp_path, BEFORE.replace(*edit), all_move, flags)
    assert expected <= changed_names(graph)
    assert bool(undecided) == (edit is not EDITS["a number"])  # nothing moved: that is quick
    graph.symbols.addr[:] = 0  # linking goes on with the graph meanwhile
    graph.edges.symbol[:] = 0
    for item in undecided:
        item.decide(graph)
    assert changed_names(graph) == expected


def test_where_an_unchanged_function_could_stay_in_the_executable_all_is_decided_at_once(
    tmp_path: Path,
) -> None:
    edited = BEFORE.replace(*EDITS["a number"])
    graph, undecided, expected = compared(tmp_path, edited, none_moves)
    assert undecided == []
    assert changed_names(graph) == expected == {"f"}


def test_where_only_a_relocation_differs_nothing_is_sure_and_all_is_decided_at_once(
    tmp_path: Path,
) -> None:
    edited = BEFORE.replace("return g(x) * 3", "return f(x) * 3")
    graph, undecided, expected = compared(tmp_path, edited, all_move)
    assert undecided == []
    assert changed_names(graph) == expected == {"h"}


def test_a_block_in_which_no_function_surely_changed_is_compared_at_once(
    tmp_path: Path,
) -> None:
    swapped = BEFORE.replace("APART int g", "APART int aside(int x) { return x; }\nAPART int g")
    old = compiled_object(tmp_path, swapped)
    moved = swapped.replace("APART int aside(int x) { return x; }\n", "").replace(
        "int (*shown)", "APART int aside(int x) { return x; }\nint (*shown)"
    )
    new = compiled_object(tmp_path, moved)
    live = live_version(old)
    graph = bound_graph(new, live)
    assert match_old(graph, [live], X86_64().kinds, all_move) == []
    assert changed_names(graph) == changed_names(matched(old, new))


def test_a_weak_function_cannot_wait_since_another_copy_may_win(tmp_path: Path) -> None:
    weak = BEFORE.replace("APART int g", "__attribute__((weak)) APART int g")
    old = compiled_object(tmp_path, weak)
    new = compiled_object(tmp_path, weak.replace(*EDITS["a number"]))
    live = live_version(old)
    graph = bound_graph(new, live)
    assert match_old(graph, [live], X86_64().kinds, all_move) == []
    assert changed_names(graph) == {"f"}
