"""Kinds of symbols beyond plain ones, across generations: IFUNC, versions, COMMON."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.road import MAIN, Program, attached, reload

pytestmark = pytest.mark.live

FLAGS = ["gcc -O2", "gcc -O0 -fno-pie -no-pie", "gcc -O2 -fPIC -DCPU"]


@pytest.fixture(params=FLAGS)
def program(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Program]:
    compiler, *words = str(request.param).split()
    link = [word for word in words if word == "-no-pie"]
    made = Program(tmp_path, [w for w in words if w != "-no-pie"], link, compiler)
    yield made
    made.stop()


CHOSEN = """
static int plain(int n) { return n + 1; }
static int fast(int n) { return n + 2; }
#ifdef CPU
#define SUPPORTED (__builtin_cpu_init(), __builtin_cpu_supports("sse2"))
#else
static volatile int wanted = 1;
#define SUPPORTED wanted
#endif
static int (*choose(void))(int) { return SUPPORTED ? fast : plain; }
int chosen(int n) __attribute__((ifunc("choose")));
int (*chosen_address(void))(int) { return chosen; }
"""
USES = """
int chosen(int);
int (*chosen_address(void))(int);
int answer(int n)
{
    return chosen(n) * FACTOR + (chosen_address() == chosen_address() ? 0 : 1000);
}
"""


def test_an_ifunc_of_the_program_is_reloaded_and_used(program: Program) -> None:
    program.compile(main=MAIN, chosen=CHOSEN, uses=USES.replace("FACTOR", "10"))
    program.link()
    program.start()
    assert program.ask(1) == 30
    with attached(program) as session:
        outcome = reload(session, *program.compile(uses=USES.replace("FACTOR", "100")))
        assert (outcome.state, outcome.error) == ("live", "")
        assert program.ask(1) == 300
        outcome = reload(session, *program.compile(chosen=CHOSEN.replace("n + 2", "n + 5")))
        assert (outcome.state, outcome.error) == ("live", "")
        assert program.ask(1) == 600
    assert program.stop() == 0


def test_an_ifunc_that_a_reload_brings(program: Program) -> None:
    program.compile(main=MAIN, uses="int answer(int n) { return n; }")
    program.link()
    program.start()
    with attached(program) as session:
        objects = program.compile(chosen=CHOSEN, uses=USES.replace("FACTOR", "10"))
        outcome = session.reload_files([str(path) for path in objects], named=True)
        assert (outcome.state, outcome.error) == ("live", "")
        assert program.ask(1) == 30
        other = CHOSEN.replace("? fast : plain", "? plain : fast")
        outcome = reload(session, *program.compile(chosen=other))
        assert (outcome.state, outcome.error) == ("live", "")
        assert program.ask(1) == 20
        outcome = reload(session, *program.compile(uses=USES.replace("FACTOR", "1000")))
        assert (outcome.state, outcome.error) == ("live", "")
        assert program.ask(1) == 2000
    assert program.stop() == 0


def test_a_symbol_of_an_old_version_is_that_version(program: Program) -> None:
    text = """
    #include <string.h>
    #include <stdio.h>
    __asm__(".symver old_copy, memcpy@GLIBC_2.2.5");
    void *old_copy(void *, const void *, size_t);
    static char from[] = "abc", to[4];
    int answer(int n) { old_copy(to, from, (unsigned)n + 3); return to[n]; }
    """
    program.compile(main=MAIN, copies="int answer(int n) { return n; }")
    program.link()
    program.start()
    with attached(program) as session:
        outcome = reload(session, *program.compile(copies=text))
        assert (outcome.state, outcome.error) == ("live", "")
        assert program.ask(1) == ord("b")
    assert program.stop() == 0


def test_common_variables_are_those_of_the_program(tmp_path: Path) -> None:
    made = Program(tmp_path, ["-O2", "-fcommon"])
    made.compile(
        main=MAIN,
        one="int shared; int fresh(void); int answer(int n) { return shared += n; }",
        two="int shared; int read_shared(void) { return shared; }",
    )
    made.link()
    made.start()
    try:
        assert made.ask(5) == 5
        with attached(made) as session:
            text = "int shared, added; int read_shared(void); int answer(int n)"
            text += "{ shared += n; added += n; return read_shared() * 100 + added; }"
            outcome = reload(session, *made.compile(one=text))
            assert (outcome.state, outcome.error) == ("live", "")
            assert made.ask(3) == 803
            other = "int shared, added; int read_shared(void) { return shared * 10 + added; }"
            outcome = reload(session, *made.compile(two=other))
            assert (outcome.state, outcome.error) == ("live", "")
            assert made.ask(1) == 9404
    finally:
        assert made.stop() == 0


ENTRY = """
struct entry { int (*call)(int); int factor; };
static int call(int n) { return n + VALUE; }
static struct entry mine __attribute__((section("entries"), used, aligned(8))) = {call, VALUE};
"""
WALK = """
struct entry { int (*call)(int); int factor; };
extern struct entry __start_entries[], __stop_entries[];
extern int (*hook)(int);
static int walk(int n)
{
    int sum = 0;
    for (struct entry *e = __start_entries; e < __stop_entries; e++)
        sum = sum * 100 + e->call(n) * EACH;
    return sum;
}
__attribute__((constructor)) static void begin(void) { hook = walk; }
"""


def test_a_walked_section_has_the_entries_of_all_objects(program: Program) -> None:
    hooked = "int (*hook)(int); int answer(int n) { return hook ? hook(n) : -1; }"
    program.compile(main=MAIN, hooked=hooked)
    program.link()
    program.start()
    with attached(program) as session:
        entries = {f"entry{v}": ENTRY.replace("VALUE", str(v)) for v in (10, 20, 30)}
        objects = program.compile(**entries, walk=WALK.replace("EACH", "1"))
        outcome = session.reload_files([str(path) for path in objects], named=True)
        assert (outcome.state, outcome.error) == ("live", "")
        assert program.ask(1) == 112131
        edited = ENTRY.replace("n + VALUE", "n + 1 + VALUE").replace("VALUE", "20")
        outcome = reload(session, *program.compile(entry20=edited))
        assert (outcome.state, outcome.error) == ("live", "")
        assert program.ask(1) == 112231
    assert program.stop() == 0
