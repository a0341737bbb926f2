"""C++ that is reloaded while it runs: exceptions, vtables, inline functions, constructors."""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from reloader.session.outcome import Outcome
from reloader.session.session import Session
from tests.support.road import MAIN, Program, attached, reload

pytestmark = pytest.mark.live

FLAGS = [
    "g++ -O0", "g++ -O2", "g++ -O0 -fno-pie -no-pie", "g++ -O2 -fno-pie -no-pie",
    "g++ -O2 -fPIC -ffunction-sections -fdata-sections", "clang++ -O2",
]  # fmt: skip


def program_of(folder: Path, flags: str) -> Program:
    compiler, *words = flags.split()
    link = [word for word in words if word == "-no-pie"]
    words = ["-x", "c++", *(w for w in words if w != "-no-pie")]
    return Program(folder, words, link, compiler)


@pytest.fixture(params=FLAGS)
def program(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Program]:
    made = program_of(tmp_path, str(request.param))
    yield made
    made.stop()


@pytest.fixture
def plain(tmp_path: Path) -> Iterator[Program]:
    made = program_of(tmp_path, "g++ -O2")
    yield made
    made.stop()


def begin(program: Program, **texts: str) -> None:
    program.compile(main=MAIN, **texts)
    program.link()
    program.start()


def live(session: Session, objects: Sequence[Path]) -> Outcome:
    outcome = reload(session, *objects)
    assert (outcome.state, outcome.error) == ("live", "")
    return outcome


THROWS = """
#include <stdexcept>
#include <string>
struct Mine { int value; virtual ~Mine() {} };
struct Derived : Mine {};
struct Guard { int *count; ~Guard() { ++*count; } };
extern int unwound;
int unwound;
__attribute__((noinline)) void thrower(int n)
{
    Guard guard{&unwound};
    if (n == 1) throw n + 100;
    if (n == 2) throw std::runtime_error(std::string("twelve chars, and then some more") + "!");
    if (n == 3) { Derived d; d.value = 7; throw d; }
}
"""
CATCHES = """
#include <stdexcept>
#include <cstring>
struct Mine { int value; virtual ~Mine(); };
inline Mine::~Mine() {}
void thrower(int);
extern int unwound;
int answer(int n)
{
    try { thrower(n); }
    catch (int value) { return value * 10 + unwound; }
    catch (const std::exception &e) { return (int)strlen(e.what()) * 10 + unwound; }
    catch (const Mine &m) { return m.value * 10 + unwound; }
    return unwound;
}
"""


def test_exceptions_pass_through_every_mixture_of_generations(program: Program) -> None:
    begin(program, throws=THROWS, catches=CATCHES)
    assert [program.ask(n) for n in (0, 1, 2, 3)] == [1, 1012, 333, 74]
    with attached(program) as session:
        live(session, program.compile(throws=THROWS.replace("n + 100", "n + 200")))
        assert [program.ask(n) for n in (0, 1, 2, 3)] == [5, 2016, 337, 78]
        live(session, program.compile(catches=CATCHES.replace("* 10", "* 100")))
        assert [program.ask(n) for n in (0, 1, 2, 3)] == [9, 20110, 3311, 712]
        live(session, program.compile(throws=THROWS.replace("= 7", "= 8")))
        assert [program.ask(n) for n in (0, 1, 2, 3)] == [13, 10114, 3315, 816]
        session.retiring.attempt()
        assert [program.ask(n) for n in (1, 2, 3)] == [10117, 3318, 819]
    assert program.stop() == 0


SHAPES = """
struct Shape { virtual int area(int n) const; virtual ~Shape(); int side; };
struct Square : Shape { int area(int n) const override; };
Shape *make(int side);
"""
SHAPES_IMPL = (
    SHAPES
    + """
int Shape::area(int n) const { return n; }
Shape::~Shape() {}
int Square::area(int n) const { return side * side + n; }
Shape *make(int side) { auto *s = new Square; s->side = side; return s; }
"""
)
SHAPES_USER = (
    SHAPES
    + """
static Shape *old;
int answer(int n)
{
    if (!old) old = make(3);
    Shape *fresh = make(4);
    int sum = old->area(n) * 1000 + fresh->area(n);
    delete fresh;
    return sum;
}
"""
)


def test_objects_made_by_an_old_generation_run_the_newest_virtual_functions(
    program: Program,
) -> None:
    begin(program, shapes=SHAPES_IMPL, user=SHAPES_USER)
    assert program.ask(1) == 10017
    with attached(program) as session:
        live(session, program.compile(shapes=SHAPES_IMPL.replace("side + n", "side + 2 * n")))
        assert program.ask(1) == 11018
        live(session, program.compile(shapes=SHAPES_IMPL.replace("side + n", "side + 3 * n")))
        assert program.ask(1) == 12019
    assert program.stop() == 0


INLINE = """
struct Counter { int n; Counter(int start) : n(start) {} };
template <class T> __attribute__((noinline)) T twice(T t) { return t * FACTOR; }
inline int next() { static Counter counter(40 + twice(1)); return ++counter.n; }
"""
ONE = INLINE + "int one() { return next() * 100 + twice(3); }"
TWO = INLINE + "int one(); int answer(int n) { return n ? one() : next() * 100 + twice(4); }"


def test_inline_functions_of_two_objects_are_one_and_keep_their_statics(
    program: Program,
) -> None:
    def texts(factor: int) -> dict[str, str]:
        return {n: t.replace("FACTOR", str(factor)) for n, t in (("one", ONE), ("two", TWO))}

    begin(program, **texts(2))
    assert [program.ask(n) for n in (0, 1, 0)] == [4308, 4406, 4508]
    with attached(program) as session:
        live(session, program.compile(**texts(5)))
        assert [program.ask(n) for n in (0, 1, 0)] == [4620, 4715, 4820]
        live(
            session, program.compile(one=ONE.replace("FACTOR", "5").replace("* 100", "* 1000"))
        )
        assert [program.ask(n) for n in (0, 1)] == [4920, 50015]
    assert program.stop() == 0


LIBRARY = """
#include <iostream>
#include <map>
#include <memory>
#include <sstream>
#include <string>
#include <vector>
#include <algorithm>
#include <functional>
static std::map<std::string, std::vector<int>> table;
static std::string log = "log";
int answer(int n)
{
    auto &row = table["row " + std::to_string(n % 3)];
    row.push_back(n);
    std::ostringstream out;
    out << "sum " << row.size() << ' ' << table.size();
    log += out.str();
    std::function<int(int)> f = [&](int k) { return k * FACTOR + (int)row.size(); };
    auto held = std::make_unique<int>(f(n));
    std::sort(row.begin(), row.end(), [](int a, int b) { return a > b; });
    return *held * 1000 + (int)log.size();
}
"""


def test_the_standard_library_works_in_reloaded_code_and_keeps_its_objects(
    program: Program,
) -> None:
    begin(program, library=LIBRARY.replace("FACTOR", "2"))
    assert [program.ask(n) for n in (0, 3, 4)] == [1010, 8017, 9024]
    with attached(program) as session:
        live(session, program.compile(library=LIBRARY.replace("FACTOR", "5")))
        assert [program.ask(n) for n in (0, 3, 4)] == [3031, 19038, 22045]
        edited = LIBRARY.replace("FACTOR", "7").replace('"sum "', '"total "')
        live(session, program.compile(library=edited))
        assert [program.ask(n) for n in (0, 5)] == [5054, 36063]
    assert program.stop() == 0


HOOKED = """
#include <iostream>
int (*hook)(int);
int answer(int n)
{
    if (n == 7) std::cout.flush();
    return hook ? hook(n) : -1;
}
"""
PLUGIN = """
#include <cstdlib>
#include <iostream>
#include <string>
extern int (*hook)(int);
struct Registered {
    std::string text;
    Registered() : text("a text of more than sixteen characters")
    {
        if (THROW) throw std::string("no");
        hook = use;
    }
    ~Registered() { hook = nullptr; }
    static int use(int n);
};
static Registered registered;
int Registered::use(int n) { return (int)registered.text.size() + n; }
"""


def test_a_new_object_is_constructed_and_destroyed(program: Program) -> None:
    begin(program, hooked=HOOKED)
    with attached(program) as session:
        (plugin,) = program.compile(plugin=PLUGIN.replace("THROW", "0"))
        outcome = session.reload_files([str(plugin)], named=True)
        assert (outcome.state, outcome.error) == ("live", "")
        assert program.ask(5) == 43
        edited = PLUGIN.replace("THROW", "0").replace("+ n", "- n")
        live(session, program.compile(plugin=edited))
        assert program.ask(5) == 33
        assert session.unload((str(plugin), "")).state == "live"
        assert program.ask(5) == -1
        session.retiring.attempt()
        outcome = session.reload_files([str(plugin)], named=True)
        assert (outcome.state, outcome.error) == ("live", "")
        assert program.ask(5) == 33
    assert program.stop() == 0


GROWING = """
#include <string>
struct Named {
    std::string text;
    Named(const char *t) : text(t) {}
    ~Named() { text = "gone"; }
};
FIRST
int answer(int n) { SECOND }
"""


# so that the program has the library
ANCHOR = "#include <iostream>\nvoid anchor() { std::cout.flush(); }"


def growing(first: str, second: str) -> str:
    return GROWING.replace("FIRST", first).replace("SECOND", second)


def test_a_new_variable_is_constructed_by_the_reload_that_brings_it(program: Program) -> None:
    begin(program, anchor=ANCHOR, growing=growing("static int calls;", "return ++calls;"))
    assert program.ask() == 1
    with attached(program) as session:
        first = (
            'static int calls; static Named added("a text of more than sixteen characters");'
        )
        second = "added.text += '.'; return ++calls * 1000 + (int)added.text.size();"
        live(session, program.compile(growing=growing(first, second)))
        assert program.ask() == 2039
        live(session, program.compile(growing=growing(first, second.replace("1000", "100"))))
        assert program.ask() == 340
        third = first + ' static Named late("late");'
        more = second.replace("added.text.size()", "(added.text.size() + late.text.size())")
        outcome = reload(session, *program.compile(growing=growing(third, more)))
        if outcome.code != "ambiguous-reference":
            assert (outcome.state, outcome.code) == ("refused", "mixed-constructor")
            assert "late: new, and initialised by _GLOBAL__sub_I_" in outcome.error
            assert "added again. Nothing was changed. Make it a static" in outcome.error
        else:
            refused_with_its_remedy(outcome)
        inner = growing(first, 'static Named late("late"); ' + more)
        outcome = reload(session, *program.compile(growing=inner))
        if "-fdata-sections" not in program.flags:
            # `late` begins where `added` ends, or just before it: both have their address taken
            # and hold an array, so that nothing tells one's end from the other's start
            refused_with_its_remedy(outcome)
            assert program.ask() == 441
            program.flags.append("-fdata-sections")
            outcome = reload(session, *program.compile(growing=inner))
        assert (outcome.state, outcome.error) == ("live", "")
        assert program.ask() in {4045, 5046}
    assert program.stop() == 0


def refused_with_its_remedy(outcome: Outcome) -> None:
    assert (outcome.state, outcome.code) == ("refused", "ambiguous-reference")
    first, *_, last = outcome.error.splitlines()
    assert re.fullmatch(
        r"\S+/growing\.o \.text\S*\+0x\w+: the reference in \S+ to \.bss\+0x\w+ may mean"
        r" \S*(late|added) or \S*(late|added)",
        first,
    )
    assert last.startswith(
        "The variables of that section moved apart, so the two readings lead"
    )
    assert last.endswith(
        "with -fdata-sections, which gives each variable a section of its own, and reload it."
    )


def test_a_constructor_that_throws_undoes_the_load(program: Program) -> None:
    begin(program, hooked=HOOKED)
    with attached(program) as session:
        (plugin,) = program.compile(plugin=PLUGIN.replace("THROW", '(getenv("HOME") || true)'))
        outcome = session.reload_files([str(plugin)], named=True)
        assert outcome.state == "failed"
        assert outcome.code == "constructor-threw"
        assert "threw an exception of type NSt7__cxx1112basic_string" in outcome.error
        assert program.ask(5) == -1
        (plugin,) = program.compile(plugin=PLUGIN.replace("THROW", "0"))
        outcome = session.reload_files([str(plugin)], named=True)
        assert (outcome.state, outcome.error) == ("live", "")
        assert program.ask(5) == 43
    assert program.stop() == 0


HANDLER = """
#include <functional>
static int seven = 7;
static std::function<int(int)> handler()
{
    int more = 5, most = 1;
    return [more](int n) { return n + more; };
}
static std::function<int(int)> taken = handler();
int answer(int n) { return taken(n) + seven; }
"""


@pytest.mark.parametrize("compiler", ["g++ -O2 -g", "g++ -O0 -g", "clang++ -O2 -g"])
def test_a_closure_that_captures_other_variables_is_refused_while_an_old_one_may_be_called(
    tmp_path: Path, compiler: str
) -> None:
    program = program_of(tmp_path, compiler)
    begin(program, part=HANDLER)
    try:
        assert program.ask(1) == 13
        with attached(program) as session:
            live(session, program.compile(part=HANDLER.replace("n + more", "n + more + 100")))
            assert program.ask(1) == 113
            wider = HANDLER.replace("[more]", "[more, most, &n = seven]")
            wider = wider.replace("(int n) { return n", "(int m) { return m + n + most")
            outcome = reload(session, *program.compile(part=wider))
        assert (outcome.state, outcome.code) == ("refused", "type-changed")
        assert "{closure} changed" in outcome.error
        assert "comes to the new code through pointers" in outcome.error
        assert program.ask(1) == 113
    finally:
        program.stop()


VIRTUAL = """
struct Shape { virtual int area() const { return 4; } int id = 0; };
template <typename T> int measured(const T &shape) { return shape.area(); }
int answer(int n) { Shape shape; shape.id = n; return measured(shape) + shape.id; }
"""


def test_a_class_that_only_its_own_source_uses_may_change(plain: Program) -> None:
    plain.flags.append("-g")
    begin(plain, part=VIRTUAL)
    with attached(plain) as session:
        text = VIRTUAL.replace("int id", "virtual int more() const { return 9; } int id")
        text = text.replace("shape.area()", "shape.area() + shape.more()")
        live(session, plain.compile(part=text))
        assert plain.ask(1) == 14
