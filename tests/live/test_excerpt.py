"""Reloads of which only what changed is linked, beside reloads of the whole object."""

import re
from pathlib import Path

import pytest

from reloader.link import excerpt
from reloader.live import parts
from reloader.session.outcome import Outcome
from tests.support.road import MAIN, Program, attached, reload

pytestmark = pytest.mark.live

FILLING = "\n".join(f"int filling{n}(int x) {{ return x + {n}; }}" for n in range(12))
C = """
#include <stdio.h>
#include <string.h>
int outside(int);
static const int table[4] = {1, 2, 3, 4};
const char *text = "some text";
static int count = 40;
int shared;
static void *pieces[4];
__attribute__((noinline)) static int step(int n) { return n + 1; }
static int (*registered)(int) = step;
__attribute__((noinline)) static int unused(int n) { return snprintf(0, 0, "%d", n) + shared; }
__attribute__((noinline)) static int reads(int n) { return table[n & 3]; }
int answer(int n)
{
    shared += n;
    count += registered == step ? step(n) : 0;
    switch (n & 7) {
    case 1: return count; case 2: return reads(n); case 3: return n * 77; case 4: return 9;
    case 5: return outside(n); case 6: return (int)strlen(text); default: return count * 10;
    }
}
int keeps_unused(int n) { return unused(n); }
"""
OUTSIDE = "int outside(int n) { return n * 3; }"
C_EDITS = (
    ("count * 10", "count * 100"),
    ("n + 1;", "n + 2;"),
    ("{1, 2, 3, 4}", "{1, 2, 30, 4}"),
    ("return 9;", "return unused(n);"),
    ("return n * 77;", "return unused(n) + reads(n + 1) + (int)sizeof pieces;"),
    ('"some text"', '"another text"'),
    ("int shared;", "int shared; static int added = 5;"),
    ("step(n) : 0", "2 * step(n) : 0"),
)
CPP = """
struct Problem { virtual ~Problem() {} int size; };
extern "C" int answer(int);
struct Guard { int *count; ~Guard() { ++*count; } };
int unwound;
struct Shape { virtual ~Shape() {} virtual int area(int n) { return n + 1; } };
struct Square : Shape { int area(int n) override { return n * n; } };
__attribute__((noinline)) int thrower(int n)
{
    Guard guard{&unwound};
    if (n == 1) throw n + 100;
    if (n == 2) { Problem p; p.size = 12; throw p; }
    return n;
}
__attribute__((noinline)) Shape *make(int n) { return n & 1 ? new Square : new Shape; }
int answer(int n)
{
    try {
        Shape *shape = make(n);
        int area = shape->area(n);
        delete shape;
        return area + thrower(n);
    } catch (int value) { return value * 10 + unwound; }
    catch (const Problem &problem) { return problem.size; }
}
"""
CPP_EDITS = (
    ("n + 100", "n + 200"),
    ("value * 10", "value * 20"),
    ("return n * n", "return n * n * n"),
    ("if (n == 2)", "if (n == 3)"),
    ("return n + 1", "return n + 2"),
)
FLAGS = ("-O2", "-ffunction-sections", "-fdata-sections")


def told(outcome: Outcome) -> tuple[object, ...]:
    """Return what a user is told, without addresses and times."""
    notes = [re.sub(r"\d{6,}", "ADDRESS", note) for note in outcome.notes]
    notes = [note for note in notes if "debug information" not in note]
    return outcome.state, sorted(outcome.functions), outcome.new_variables, notes, outcome.error


def versions(text: str, edits: tuple[tuple[str, str], ...]) -> list[str]:
    """Return a text with one edit after the other made, then the last ones taken back."""
    made = [text]
    for old, new in edits:
        assert old in made[-1]
        made.append(made[-1].replace(old, new))
    return [*made[1:], made[-2], made[-3]]


def play(program: Program, texts: list[str]) -> list[object]:
    """Reload each text; return what was told and what the program answers after each."""
    log: list[object] = []
    program.start()
    try:
        with attached(program) as session:
            for text in texts:
                log.append(told(reload(session, *program.compile(code=text))))
                log.append([program.ask(n) for n in range(8)])
    finally:
        program.stop()
    return log


@pytest.mark.parametrize(
    ("text", "edits", "command"),
    [
        (C, C_EDITS, "gcc"),
        (C, C_EDITS, "gcc -g -fno-pie -no-pie"),
        (CPP, CPP_EDITS, "g++ -x c++"),
    ],
    ids=["C", "C with -g at a low address", "C++"],
)
def test_a_part_does_what_the_whole_does(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    text: str,
    edits: tuple[tuple[str, str], ...],
    command: str,
) -> None:
    compiler, *words = command.split()
    link = [word for word in words if word == "-no-pie"]
    logs: list[list[object]] = []
    cuts: list[bool] = []
    make = parts.excerpt

    def counted(*arguments: object) -> object:
        found = make(*arguments)  # pyright: ignore[reportArgumentType]  # as it is called
        cuts.append(found is not None)
        return found

    monkeypatch.setattr(parts, "excerpt", counted)
    monkeypatch.setattr(excerpt, "MOST", 1.0)
    for name, least in (("part", 0), ("whole", 1 << 30)):
        monkeypatch.setattr(excerpt, "LEAST_SECTIONS", least)
        folder = tmp_path / name
        folder.mkdir()
        program = Program(
            folder, [*FLAGS, *(w for w in words if w not in link)], link, compiler
        )
        main = (
            MAIN if compiler == "gcc" else MAIN.replace("int answer", 'extern "C" int answer')
        )
        program.compile(main=main, code=text + FILLING, outside=OUTSIDE)
        program.link()
        logs.append(play(program, [made + FILLING for made in versions(text, edits)]))
    assert logs[0] == logs[1]
    assert sum(cuts) >= len(edits) - 2  # some edits ask for the whole, or change nothing
    assert sum("live" in str(entry) for entry in logs[0][::2]) >= len(edits) - 2


def test_a_part_that_is_refused_is_refused_with_all_the_whole_has_to_say(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(excerpt, "LEAST_SECTIONS", 0)
    program = Program(tmp_path, FLAGS)
    program.compile(main=MAIN, code=C + FILLING, outside=OUTSIDE)
    program.link()
    program.start()
    wrong = C.replace("return 9;", "int missing(int); return missing(n);")
    try:
        with attached(program) as session:
            outcome = reload(session, *program.compile(code=wrong + FILLING))
            assert outcome.state == "refused"
            assert "missing" in outcome.error
            assert program.ask(4) == 9
            right = C.replace("return 9;", "return 10;")
            assert reload(session, *program.compile(code=right + FILLING)).state == "live"
            assert program.ask(4) == 10
    finally:
        program.stop()
