"""The whole road on small real programs: compile, run, attach, edit, reload, ask."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from reloader.ids import Region
from tests.support.road import MAIN, Program, attached, reload

FLAGS = [
    ("-O0",),
    ("-O1", "-g"),
    ("-O2",),
    ("-O3", "-fno-plt"),
    ("-O2", "-g", "-ffunction-sections", "-fdata-sections"),
    ("-O2", "-fno-pie"),
    ("-Os", "-fcf-protection=full"),
]


@pytest.fixture(params=FLAGS, ids=" ".join)
def program(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Program]:
    flags: tuple[str, ...] = request.param
    made = Program(tmp_path, flags, ["-no-pie"] if "-fno-pie" in flags else [])
    yield made
    made.stop()


@pytest.fixture
def plain(tmp_path: Path) -> Iterator[Program]:
    made = Program(tmp_path)
    yield made
    made.stop()


COUNTER = """
static int count = 40;
int total;
int answer(int n)
{
    static int calls;
    calls++;
    count += n;
    total += n;
    return count * 10 + calls;
}
"""


def test_a_saved_function_runs_and_its_variables_go_on(program: Program) -> None:
    program.compile(main=MAIN, counter=COUNTER)
    program.link()
    program.start()
    assert program.ask(2) == 421
    with attached(program) as session:
        edited = program.compile(counter=COUNTER.replace("count * 10", "count * 1000"))
        outcome = reload(session, *edited)
        assert (outcome.state, outcome.functions) == ("live", ["answer"])
        assert program.ask(1) == 43002
        edited = program.compile(counter=COUNTER.replace("count * 10", "count * 100"))
        outcome = reload(session, *edited)
        assert outcome.stop_us == 0
        assert program.ask(1) == 4403
    assert program.ask(1) == 4504
    assert program.stop() == 0


def test_a_comment_edit_is_unchanged(program: Program) -> None:
    program.compile(main=MAIN, counter=COUNTER)
    program.link()
    program.start()
    with attached(program) as session:
        edited = program.compile(counter=COUNTER + "/* nothing */\n")
        outcome = reload(session, *edited)
        assert outcome.state == "unchanged"
    assert program.ask(2) == 421


F_AND_G = """
__attribute__((noinline)) static int g(int n) { return n + 1; }
__attribute__((noinline)) int f(int n) { return g(n) * 2; }
int answer(int n) { return f(n) + 0 * g(n); }
"""


def test_a_kept_caller_reaches_the_newest_callee(program: Program) -> None:
    program.compile(main=MAIN, fg=F_AND_G)
    program.link()
    program.start()
    assert program.ask(1) == 4
    with attached(program) as session:
        both = F_AND_G.replace("n + 1", "n + 2").replace("* 2", "* 3")
        assert reload(session, *program.compile(fg=both)).state == "live"
        assert program.ask(1) == 9
        only_g = both.replace("n + 2", "n + 5")
        assert reload(session, *program.compile(fg=only_g)).state == "live"
        assert program.ask(1) == 18
        assert reload(session, *program.compile(fg=F_AND_G)).state == "live"
        assert program.ask(1) == 4


def test_new_variables_and_constants(program: Program) -> None:
    text = """
    static const int table[3] = {1, 2, 3};
    static const char *const names[2] = {"zero", "one"};
    int answer(int n) { return table[n % 3] * 100 + names[n & 1][0]; }
    """
    program.compile(main=MAIN, tables=text)
    program.link()
    program.start()
    assert program.ask(2) == 300 + ord("z")
    edited = """
    static const int table[4] = {1, 2, 7, 9};
    static const char *const names[2] = {"Zero", "One"};
    static int added = 5;
    static int zeroed;
    int answer(int n)
    {
        zeroed++;
        added++;
        return table[n % 4] * 1000 + names[n & 1][0] + added + zeroed;
    }
    """
    with attached(program) as session:
        assert reload(session, *program.compile(tables=edited)).state == "live"
        assert program.ask(2) == 7000 + ord("Z") + 6 + 1
        assert program.ask(3) == 9000 + ord("O") + 7 + 2


def test_a_callback_registered_by_one_generation_sees_the_next(program: Program) -> None:
    text = """
    static int (*registered)(int);
    __attribute__((noinline)) static int handler(int n) { return n + 1000; }
    int answer(int n)
    {
        if (!registered) registered = handler;
        return registered(n) * (registered == handler ? 1 : -1);
    }
    """
    program.compile(main=MAIN, callback=text)
    program.link()
    program.start()
    assert program.ask(1) == 1001
    with attached(program) as session:
        for step in (2, 3, 4):
            edited = text.replace("n + 1000", f"n + {step}000").replace(
                "* (reg", f"* {step} * (reg"
            )
            outcome = reload(session, *program.compile(callback=edited))
            assert (outcome.state, outcome.error) == ("live", "")
            assert program.ask(1) == (1 + step * 1000) * step


def test_a_variable_that_grew_is_refused_with_both_sizes(plain: Program) -> None:
    plain.compile(main=MAIN, counter=COUNTER)
    plain.link()
    plain.start()
    assert plain.ask(2) == 421
    with attached(plain) as session:
        grown = COUNTER.replace("static int count = 40", "static long count = 40")
        outcome = reload(session, *plain.compile(counter=grown))
        assert outcome.state == "refused"
        for word in ("count", "4", "8", "--reinit", "Nothing was changed"):
            assert word in outcome.error
        assert plain.ask(1) == 432
        outcome = reload(session, *plain.compile(counter=grown), reinit=["count"])
        assert outcome.state == "live"
        assert plain.ask(1) == 413


def test_a_changed_initialiser_of_a_kept_variable_is_reported(plain: Program) -> None:
    plain.compile(main=MAIN, counter=COUNTER)
    plain.link()
    plain.start()
    assert plain.ask(2) == 421
    with attached(plain) as session:
        edited = COUNTER.replace("count = 40", "count = 77").replace("* 10", "* 100")
        outcome = reload(session, *plain.compile(counter=edited))
        assert outcome.state == "live"
        note = next(note for note in outcome.notes if "count" in note)
        assert "42" in note
        assert "77" in note
        assert plain.ask(0) == 4202


def test_an_undefined_symbol_is_refused_by_name(plain: Program) -> None:
    plain.compile(main=MAIN, counter=COUNTER)
    plain.link()
    plain.start()
    with attached(plain) as session:
        edited = "int totale(int); " + COUNTER.replace("count * 10", "totale(count)")
        outcome = reload(session, *plain.compile(counter=edited))
        assert outcome.state == "refused"
        assert "totale" in outcome.error
        assert "Nothing was changed" in outcome.error
        assert plain.ask(2) == 421


def test_new_libc_functions_can_be_called(program: Program) -> None:
    program.compile(main=MAIN, counter=COUNTER)
    program.link()
    program.start()
    with attached(program) as session:
        edited = "#include <string.h>\n#include <stdio.h>\n" + COUNTER.replace(
            "count * 10 + calls",
            '(int)strlen("hello") * 100 + (stdout != NULL) + (int)strtol_length(n)',
        ).replace(
            "int total;",
            "int total; static int strtol_length(int n)"
            ' { char b[32]; return snprintf(b, 32, "%d", n); }',
        )
        outcome = reload(session, *program.compile(counter=edited))
        assert outcome.error == ""
        assert program.ask(1234) == 505


def test_a_constant_that_another_object_uses_reaches_that_object(program: Program) -> None:
    table = "const int table[3] = {1, 2, 3}; const int other = 5;"
    user = """
    extern const int table[3], other;
    const int *const where[2] = {table, &other};
    int answer(int n) { return table[n % 3] * 100 + *where[n & 1]; }
    """
    program.compile(main=MAIN, table=table, user=user)
    program.link()
    program.start()
    assert (program.ask(0), program.ask(1)) == (101, 205)
    with attached(program) as session:
        outcome = reload(session, *program.compile(table=table.replace("1, 2, 3", "7, 2, 4")))
        assert (outcome.state, outcome.error) == ("live", "")
        assert outcome.functions == ["answer"]
        assert (program.ask(0), program.ask(1)) == (707, 205)
        outcome = reload(session, *program.compile(table=table.replace("1, 2, 3", "8, 2, 4")))
        assert (program.ask(0), program.ask(1)) == (808, 205)


HOLDER = """
__attribute__((noinline)) static int base(int n) { return n + 5000; }
static int (*held)(int);
int answer(int n)
{
    if (n == 1) held = base;
    if (n == 2) held = 0;
    return held ? held(n) : -1;
}
"""


def test_a_function_that_is_gone_is_freed_once_no_pointer_holds_it(plain: Program) -> None:
    function = "static int extra(int n) { return n * 77 + 9999; }\n"
    extra = function + HOLDER.replace("= base", "= extra")
    plain.compile(main=MAIN, holder=HOLDER)
    plain.link()
    plain.start()
    with attached(plain) as session:
        assert reload(session, *plain.compile(holder=extra)).state == "live"
        assert plain.ask(1) == 10076
        assert reload(session, *plain.compile(holder=HOLDER)).state == "live"
        live = session.process.arena.used(Region.CODE)
        session.retiring.attempt()
        session.retiring.collect()
        session.retiring.attempt()
        assert (
            session.process.arena.used(Region.CODE) == live
        )  # `held` still points at its stub
        assert plain.ask(3) == 10230
        assert plain.ask(2) == -1
        session.retiring.attempt()
        session.retiring.collect()
        session.retiring.attempt()
        assert session.process.arena.used(Region.CODE) < live
        assert plain.ask(1) == 5001


FORKING = """
#include <unistd.h>
int answer(int n)
{
    static int child;
    if (n == 1 && !child && !(child = fork())) for (;;) pause();
    if (n == 2) { extern int kill(int, int); kill(child, 9); }
    return n * 10;
}
"""


def test_children_that_keep_the_old_code_are_named(plain: Program) -> None:
    plain.compile(main=MAIN, forking=FORKING)
    plain.link()
    plain.start()
    assert plain.ask(1) == 10
    with attached(plain) as session:
        outcome = reload(session, *plain.compile(forking=FORKING.replace("* 10", "* 20")))
        assert "1 child process" in " ".join(outcome.notes)
        assert plain.ask(2) == 40
