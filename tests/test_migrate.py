"""A variable of a new layout gets the value of before from a function of the user's."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from reloader.live.program import Wishes
from tests.support.road import MAIN, Program, attached, reload

OLD = """
struct state { int count; int total; };
struct state state = {0, 100};
int answer(int n) { state.count++; state.total += n; return state.total * 10 + state.count; }
"""

NEW = """
struct old { int count; int total; };
struct state { long total; int average; int count; };
struct state state;
void convert(const struct old *before, struct state *after)
{
    after->count = before->count;
    after->total = before->total;
    after->average = 7;
}
int answer(int n)
{
    state.count++;
    state.total += n;
    return state.average * 100000 + state.total * 10 + state.count;
}
"""
CONVERT = Wishes(migrate={"state": "convert"})


@pytest.fixture
def program(tmp_path: Path) -> Iterator[Program]:
    made = Program(tmp_path, ("-O2", "-g"))
    made.compile(main=MAIN, state=OLD)
    made.link()
    made.start()
    assert made.ask(5) == 1051
    yield made
    made.stop()


def test_a_variable_of_another_size_is_converted(program: Program) -> None:
    with attached(program) as session:
        session.program.wishes = CONVERT
        outcome = reload(session, *program.compile(state=NEW))
        assert outcome.state == "live", outcome.error
        assert "state was converted by convert" in outcome.notes
        assert program.ask(1) == 701062
        # it has the layout now: the next reload keeps it
        outcome = reload(session, *program.compile(state=NEW.replace("* 10 +", "* 100 +")))
        assert outcome.state == "live", outcome.error
        assert outcome.notes == []
        assert program.ask(1) == 710703


def test_a_variable_of_the_same_size_and_another_layout_is_converted(program: Program) -> None:
    text = """
    struct old { int count, total; };
    struct state { int total, count; };
    struct state state;
    int answer(int n) { return (state.total += n) * 10 + ++state.count; }
    void convert(const struct old *b, struct state *a)
    {
        a->count = b->count;
        a->total = b->total;
    }
    """
    with attached(program) as session:
        session.program.wishes = CONVERT
        outcome = reload(session, *program.compile(state=text))
        assert outcome.state == "live", outcome.error
        assert program.ask(1) == 1062


def test_a_static_local_is_converted(tmp_path: Path) -> None:
    old = "int answer(int n) { static int sums[2] = {1, 2}; return sums[0] += sums[1] + n; }"
    new = """
    int answer(int n) { static long sums[3]; return sums[0] += sums[1] + sums[2] + n; }
    void widen(const int *old, long *fresh)
    {
        for (int i = 0; i < 2; i++) fresh[i] = old[i];
        fresh[2] = 1000;
    }
    """
    program = Program(tmp_path, ("-O1", "-g"))
    try:
        program.compile(main=MAIN, sums=old)
        program.link()
        program.start()
        assert program.ask(0) == 3
        with attached(program) as session:
            session.program.wishes = Wishes(migrate={"sums": "widen"})
            outcome = reload(session, *program.compile(sums=new))
            assert outcome.state == "live", outcome.error
            assert program.ask(0) == 1005
    finally:
        program.stop()


def test_a_missing_function_is_named_and_nothing_changes(program: Program) -> None:
    with attached(program) as session:
        session.program.wishes = CONVERT
        outcome = reload(
            session, *program.compile(state=NEW.replace("void convert", "void other"))
        )
        assert (outcome.state, outcome.code) == ("refused", "migration-missing")
        assert outcome.error == (
            "state changed its layout and is to be converted by convert ([migrate] in "
            "reloader.toml), but neither the new objects nor the program define convert. "
            "Nothing was changed. Define it, not static: "
            "void convert(const void *old, void *fresh)."
        )
    assert program.ask(5) == 1102


def test_without_a_function_the_size_is_refused(program: Program) -> None:
    with attached(program) as session:
        session.program.wishes = Wishes(migrate={"other": "convert"})
        assert reload(session, *program.compile(state=NEW)).code == "data-layout"
    assert program.ask(5) == 1102


def test_a_function_that_throws_leaves_the_program_as_it_was(tmp_path: Path) -> None:
    old = (
        "int kept[2] = {4, 5};\nvoid limit(int n) { if (n > 99) throw n; }\n"
        'extern "C" int answer(int n) { limit(n); return kept[0]++ + n; }\n'
    )
    new = (
        'int kept[3] = {9};\nextern "C" int answer(int n) { return kept[2] + n; }\n'
        'extern "C" void convert(const int *, int *) { throw 1; }\n'
    )
    program = Program(tmp_path, ("-O2", "-g"))
    try:
        program.compile(main=MAIN)
        program.cc, program.flags = "g++", ["-O2", "-g", "-x", "c++"]
        program.compile(kept=old)
        program.link()
        program.start()
        with attached(program) as session:
            session.program.wishes = Wishes(migrate={"kept": "convert"})
            outcome = reload(session, *program.compile(kept=new))
            assert (outcome.state, outcome.code) == ("refused", "migration-failed")
            assert "convert threw an exception (i) while it converted kept" in outcome.error
        assert program.ask(0) == 4
        assert program.ask(0) == 5
    finally:
        program.stop()
