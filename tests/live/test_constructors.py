"""Constructors, destructors and what objects register with the C library."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from reloader.session.outcome import Outcome
from reloader.session.session import Session
from tests.support.road import MAIN, Program, attached

pytestmark = pytest.mark.live

CALLER = """
int (*hook)(int);
char trace[256];
int answer(int n)
{
    int sum = 0;
    for (char *c = trace; n == 99 && *c; c++) sum = sum * 10 + *c - '0';
    if (n == 99) return sum;
    return hook ? hook(n) : -1;
}
"""
FLAGS = ["gcc -O2", "gcc -O0 -fno-pie -no-pie", "gcc -O2 -fPIC -fno-plt", "clang -O1"]


@pytest.fixture(params=FLAGS)
def program(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Program]:
    compiler, *words = str(request.param).split()
    link = [word for word in words if word == "-no-pie"]
    made = Program(tmp_path, [w for w in words if w != "-no-pie"], link, compiler)
    made.compile(main=MAIN, caller=CALLER)
    made.link()
    made.start()
    yield made
    made.stop()


@pytest.fixture
def plain(tmp_path: Path) -> Iterator[Program]:
    made = Program(tmp_path)
    made.compile(main=MAIN, caller=CALLER)
    made.link()
    made.start()
    yield made
    made.stop()


def load(session: Session, *objects: Path) -> Outcome:
    outcome = session.reload_files([str(path) for path in objects], named=True)
    assert (outcome.state, outcome.error) == ("live", "")
    return outcome


def unload(session: Session, path: Path) -> Outcome:
    return session.unload((str(path), ""))


NOTE = """
extern char trace[];
static void note(char c) { char *t = trace; while (*t) t++; *t = c; }
"""
ORDERED = (
    NOTE
    + """
__attribute__((constructor)) static void last(void) { note('3'); }
__attribute__((constructor(200))) static void second(void) { note('2'); }
__attribute__((constructor(101))) static void first(void) { note('1'); }
__attribute__((destructor(101))) static void gone_last(void) { note('9'); }
__attribute__((destructor(200))) static void gone_second(void) { note('8'); }
__attribute__((destructor)) static void gone_first(void) { note('7'); }
"""
)


def test_constructors_run_by_priority_and_destructors_against_it(program: Program) -> None:
    with attached(program) as session:
        (loaded,) = program.compile(ordered=ORDERED)
        load(session, loaded)
        assert program.ask(99) == 123
        assert unload(session, loaded).state == "live"
        assert program.ask(99) == 123789


def test_priorities_count_over_all_objects_of_a_transaction(plain: Program) -> None:
    text = NOTE + "__attribute__((constructor(PRIORITY))) static void f(void) { note('CHAR'); }"
    texts = {
        f"part{char}": text.replace("PRIORITY", str(priority)).replace("CHAR", str(char))
        for char, priority in ((1, 300), (2, 101), (3, 200))
    }
    with attached(plain) as session:
        load(session, *plain.compile(**texts))
        assert plain.ask(99) == 231


REGISTERED = (
    NOTE
    + """
#include <pthread.h>
#include <stdlib.h>
static void at_exit(void) { note('5'); }
static void forked(void) { note('6'); }
static void quick(void) { note('4'); }
extern int (*hook)(int);
static int use(int n) { return n + 1000; }
__attribute__((constructor)) static void begin(void)
{
    hook = use;
    atexit(at_exit);
    at_quick_exit(quick);
    pthread_atfork(forked, forked, 0);
}
__attribute__((destructor)) static void end(void) { hook = 0; note('7'); }
"""
)


def test_what_an_object_registers_goes_with_it(program: Program) -> None:
    with attached(program) as session:
        (loaded,) = program.compile(registered=REGISTERED)
        load(session, loaded)
        assert program.ask(1) == 1001
        assert program.ask(99) == 0
        assert unload(session, loaded).state == "live"
        assert program.ask(99) == 57
        assert program.ask(1) == -1
        session.retiring.attempt()
    assert program.stop() == 0


def test_destructors_of_the_newest_version_run_at_exit(plain: Program, tmp_path: Path) -> None:
    text = """
    #include <stdio.h>
    #include <stdlib.h>
    static void at_exit(void) { FILE *f = fopen("left", "a"); fputs("VERSION ", f); fclose(f); }
    __attribute__((constructor)) static void begin(void) { atexit(at_exit); }
    __attribute__((destructor)) static void end(void) { at_exit(); }
    """
    with attached(plain) as session:
        load(session, *plain.compile(writer=text.replace("VERSION", "old")))
        load(session, *plain.compile(writer=text.replace("VERSION", "new")))
    assert plain.stop() == 0
    assert (tmp_path / "left").read_text() == "new new "


SUBSETS = """
extern int (*hook)(int);
static int total;
static void destroy(void *object) { total += *(int *)object; }
extern int __cxa_thread_atexit(void (*)(void *), void *, void *);
extern char __dso_handle;
static int value = 5;
static int use(int n)
{
    if (n == 1) __cxa_thread_atexit(destroy, &value, &__dso_handle);
    return total;
}
__attribute__((constructor)) static void begin(void) { hook = use; }
"""


def test_an_object_stays_while_a_thread_will_call_its_destructors(plain: Program) -> None:
    with attached(plain) as session:
        (loaded,) = plain.compile(subsets=SUBSETS)
        load(session, loaded)
        assert plain.ask(0) == 0
        assert plain.ask(1) == 0
        outcome = unload(session, loaded)
        assert outcome.state == "refused"
        assert outcome.error == (
            f"{loaded}: 1 destructors of its thread-local objects run when threads end, and "
            "those threads still run. Nothing was changed. Unload it after they have ended."
        )
        assert plain.ask(0) == 0
