"""Types that live data and new code share: a difference is refused, what is private is free."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from reloader.live.program import Wishes
from reloader.session.outcome import Outcome
from tests.support.road import MAIN, Program, attached, reload

Reload = Callable[..., Outcome]


@pytest.fixture
def program(tmp_path: Path) -> Iterator[Program]:
    made = Program(tmp_path, ("-O2", "-g"))
    yield made
    made.stop()


def started(program: Program, **texts: str) -> None:
    program.compile(main=MAIN, **texts)
    program.link()
    program.start()


def edit(text: str, *changes: tuple[str, str]) -> str:
    for old, new in changes:
        assert old in text, old
        text = text.replace(old, new)
    return text


BODY = """
struct part { int id; struct part *next; };
struct body { int x; int y; unsigned short kind; enum mode { REST, MOVE } mode; };
struct body sun = {1, 20, 3, MOVE};
struct part *parts;
struct part first = {5, 0};
int answer(int n)
{
    struct local { int a; int b; } l = {n, 2 * n};
    parts = &first;
    return sun.x * 1000 + sun.y * 10 + sun.kind + parts->id + l.a + (sun.mode == MOVE);
}
"""


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("int x; int y;", "int y; int x;"), "x was at byte 0, is at byte 4"),
        (("int x; int y;", "unsigned x; int y;"), "int became unsigned int"),
        (("int x; int y;", "float x; int y;"), "int became float"),
        (("REST, MOVE", "FAST, REST, MOVE"), "REST was 0, is 1"),
        (("REST, MOVE", "REST = 3, MOVE = 1"), "REST was 0, is 3"),
        (("unsigned short kind;", "unsigned kind : 9, more : 7;"), "kind had all bits, has 9"),
        (("int id; struct part *next;", "int id; int age; struct part *next;"), "age is new"),
        (("int id; struct part *next;", "struct part *next; int id;"), "id was at byte 0"),
        (("int id; struct part *next;", "long id; struct part *next;"), "4 bytes became 8"),
    ],
)
def test_a_layout_that_a_live_variable_has_is_refused(
    program: Program, change: tuple[str, str], said: str
) -> None:
    started(program, body=BODY)
    before = program.ask(1)
    with attached(program) as session:
        outcome = reload(session, *program.compile(body=edit(BODY, change)))
    assert (outcome.state, outcome.code) == ("refused", "type-changed")
    assert said in outcome.error
    assert "Nothing was changed." in outcome.error
    assert program.ask(1) == before


HARMLESS = [
    ("int a; int b; } l = {n, 2 * n}", "long b; int a; } l = {2 * n, n}"),  # of a local type
    ("struct part *parts;", "/* a\ncomment */\nstruct part *parts;"),
    ("REST, MOVE", "REST, MOVE, FAST"),
    ("int x; int y;", "int east; int y;"),
    ("unsigned short kind;", "unsigned short kind; /* what it is */"),
    ("struct local { int a; int b; } l", "struct renamed { int a; int b; } l"),
    ("struct part *parts;", "const struct part *parts;"),
    ("int answer(int n)", "static int added(void) { return 0; }\nint answer(int n)"),
    ("int x; int y;", "signed int x; int y;"),
    ("int answer(int n)", "typedef int number;\nnumber answer(number n)"),
]


@pytest.mark.parametrize("change", HARMLESS)
def test_what_changes_no_shared_layout_is_loaded(
    program: Program, change: tuple[str, str]
) -> None:
    started(program, body=BODY)
    text = edit(BODY, change, ("sun.kind + ", "sun.kind + 100 + "))
    if "east" in change[1]:
        text = edit(text, ("sun.x", "sun.east"))
    before = program.ask(1)
    with attached(program) as session:
        outcome = reload(session, *program.compile(body=text))
    assert outcome.state == "live", outcome.error
    assert program.ask(1) == before + 100


def test_the_refusal_shows_both_layouts_and_what_holds_them(program: Program) -> None:
    started(program, body=BODY)
    text = edit(BODY, ("int id; struct part *next;", "struct part *next; int id;"))
    with attached(program) as session:
        outcome = reload(session, *program.compile(body=text))
    name = program.folder / "body.o"
    assert outcome.error == (
        f"{name}: struct part changed: id was at byte 0, is at byte 8\n"
        "    in the program: struct part, 16 bytes  "
        "  in the new object: struct part, 16 bytes\n"
        "    +0    4    int id                      * +0    8    struct part * next\n"
        "    +8    8    struct part * next          * +8    4    int id\n"
        "    variables that keep the old layout: first, parts\n"
        "Nothing was changed. Restore the layout; or start the variables anew, losing the live"
        " values: reloader load --reinit first --reinit parts FILE, or convert them: [migrate]"
        ' in reloader.toml, first = "FUNCTION" (docs/types.md).'
    )


def test_variables_started_anew_may_have_another_layout(program: Program) -> None:
    started(program, body=BODY)
    text = edit(BODY, ("int x; int y;", "int y; int x;"), ("{1, 20,", "{20, 1,"))
    before = program.ask(1)
    with attached(program) as session:
        outcome = reload(session, *program.compile(body=text), reinit=["sun"])
    assert outcome.state == "live", outcome.error
    assert program.ask(1) == before


ITEM = "struct item { int size; int price; };\nint cost(struct item *i, int n);\n"
COST = '#include "item.h"\nint cost(struct item *i, int n) { return i->price * n; }\n'
SHOP = """
#include "item.h"
int answer(int n) { struct item i = {.size = 3, .price = 7}; return cost(&i, n); }
"""


SWAPPED = edit(ITEM, ("int size; int price;", "int price; int size;"))


def test_a_function_called_from_an_object_that_stays_keeps_its_parameters(
    program: Program,
) -> None:
    header = program.folder / "item.h"
    header.write_text(ITEM)
    started(program, cost=COST, shop=SHOP)
    with attached(program) as session:
        header.write_text(SWAPPED)
        outcome = reload(session, *program.compile(cost=COST))
        assert outcome.code == "type-changed"
        assert f"cost is called by {program.folder / 'shop.o'} (answer)" in outcome.error
        assert f"old layout and would go on: {program.folder / 'shop.o'}" in outcome.error
        header.write_text(edit(ITEM, ("int n)", "long n)")))
        outcome = reload(session, *program.compile(cost=edit(COST, ("int n)", "long n)"))))
        assert outcome.code == "type-changed"
        assert "cost changed: 4 bytes became 8" in outcome.error
        assert "int cost(struct item *, int)" in outcome.error
        assert "int cost(struct item *, long int)" in outcome.error
    assert program.ask(2) == 14


def test_the_objects_of_one_build_may_change_a_type_together(program: Program) -> None:
    (program.folder / "item.h").write_text(ITEM)
    started(program, cost=COST, shop=SHOP)
    with attached(program) as session:
        (program.folder / "item.h").write_text(SWAPPED)
        both = program.compile(cost=edit(COST, ("* n", "* n * 10")), shop=SHOP)
        outcome = reload(session, *both)
        assert outcome.state == "live", outcome.error
    assert program.ask(2) == 140


def test_a_caller_alone_may_not_use_another_layout(program: Program) -> None:
    (program.folder / "item.h").write_text(ITEM)
    started(program, cost=COST, shop=SHOP)
    with attached(program) as session:
        (program.folder / "item.h").write_text(SWAPPED)
        outcome = reload(session, *program.compile(shop=SHOP))
        assert outcome.code == "type-changed"
        assert "cost, which stays" in outcome.error
    assert program.ask(2) == 14


def test_a_variable_of_an_object_that_stays_is_used_as_it_is(program: Program) -> None:
    owner = "struct pair { int a; int b; };\nstruct pair both = {1, 2};\n"
    user = "struct pair { int a; int b; };\nextern struct pair both;\n"
    user += "int answer(int n) { return both.a * 10 + both.b + n; }\n"
    started(program, owner=owner, user=user)
    with attached(program) as session:
        text = edit(user, ("int a; int b;", "int b; int a;"))
        outcome = reload(session, *program.compile(user=text))
    assert outcome.code == "type-changed"
    assert "it is that of both, which stays" in outcome.error
    assert program.ask(0) == 12


def test_data_behind_an_opaque_pointer_is_known_by_name(program: Program) -> None:
    header = "struct store;\nstruct store *store_new(void);\nint store_sum(struct store *);\n"
    store = header + (
        "#include <stdlib.h>\nstruct store { int a; int b; };\n"
        "struct store *store_new(void) { struct store *s = malloc(sizeof *s);"
        " s->a = 1; s->b = 20; return s; }\n"
        "int store_sum(struct store *s) { return s->a + 10 * s->b; }\n"
    )
    holder = header + (
        "static struct store *held;\n"
        "int answer(int n) { if (!held) held = store_new(); return store_sum(held) + n; }\n"
    )
    started(program, store=store, holder=holder)
    before = program.ask(0)
    with attached(program) as session:
        changed = edit(store, ("int a; int b;", "int b; int a;"))
        both = program.compile(store=changed, holder=edit(holder, ("+ n", "+ n + 1")))
        outcome = reload(session, *both)
    assert outcome.code == "type-changed"
    assert "variables that keep the old layout: held" in outcome.error
    assert program.ask(0) == before


def test_a_thread_local_variable_keeps_its_layout(program: Program) -> None:
    text = "static _Thread_local struct { short a, b; } mine = {1, 2};\n"
    text += "int answer(int n) { return mine.a++ * 100 + mine.b + n; }\n"
    started(program, local=text)
    assert program.ask(0) == 102
    with attached(program) as session:
        whole = edit(text, ("short a, b", "int a"), ("mine.b", "0"), ("{1, 2}", "{1}"))
        outcome = reload(session, *program.compile(local=whole))
        assert outcome.code == "type-changed"
        assert "mine" in outcome.error
    assert program.ask(0) == 202


def test_without_debug_information_sizes_count_and_the_report_says_so_once(
    tmp_path: Path,
) -> None:
    program = Program(tmp_path, ("-O2",))
    try:
        started(program, body=BODY)
        with attached(program) as session:
            for more, notes in ((10, 1), (20, 0)):
                text = edit(BODY, ("sun.kind + ", f"sun.kind + {more} + "))
                outcome = reload(session, *program.compile(body=text))
                assert outcome.state == "live"
                said = [note for note in outcome.notes if "no debug information" in note]
                assert len(said) == notes
            text = edit(BODY, ("int x; int y;", "int x; int y; int z;"))
            assert reload(session, *program.compile(body=text)).code == "data-layout"
    finally:
        program.stop()


@pytest.mark.parametrize("flag", ["-fdebug-types-section", "-gsplit-dwarf"])
def test_types_that_are_not_in_the_objects_own_unit_are_not_taken_for_compared(
    tmp_path: Path, flag: str
) -> None:
    program = Program(tmp_path, ("-O2", "-g", flag))
    try:
        started(program, body=BODY)
        with attached(program) as session:
            text = edit(
                BODY, ("sun.kind + ", "sun.kind + 1 + "), ("int answer", "\nint answer")
            )
            outcome = reload(session, *program.compile(body=text))
            assert outcome.state == "live", outcome.error
            assert any("no debug information that tells types" in n for n in outcome.notes)
    finally:
        program.stop()


def test_a_change_that_the_user_answers_for_is_loaded(program: Program) -> None:
    started(program, body=BODY)
    text = edit(BODY, ("REST, MOVE", "FAST, REST, MOVE"))
    with attached(program) as session:
        assert reload(session, *program.compile(body=text)).code == "type-changed"
        session.program.wishes = Wishes(frozenset({"enum mode"}))
        assert reload(session, *program.compile(body=text)).state == "live"


CLASSES = """
struct Shape {
    virtual int area(int n) { return n; }
    virtual int sides(int n) { return 4 * n; }
    int w = 2;
};
struct Square : Shape { int area(int n) override { return w * w * n; } int h = 3; };
static Shape *shape = new Square;
extern "C" int answer(int n) { return shape->area(n) * 100 + shape->sides(n); }
"""


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("    virtual int area", "virtual int early() { return 1; } virtual int area"),
         "virtual function 0"),
        (("int w = 2;", "virtual int late() { return 1; } int w = 2;"), "virtual function 2"),
        (("struct Square : Shape {",
          "struct Named { int name = 9; };\nstruct Square : Named, Shape {"), "Square"),
        (("int h = 3;", "int h = 3; int d = 4;"), "Square"),
        (("virtual int sides(int n) { return 4 * n; }", "int sides(int n) { return 4 * n; }"),
         "virtual function 1"),
    ],
)  # fmt: skip
def test_the_layout_of_a_class_and_its_virtual_functions_is_kept(
    tmp_path: Path, change: tuple[str, str], said: str
) -> None:
    program = Cpp(tmp_path, ("-O1", "-g"))
    try:
        program.compile(main=MAIN)
        program.compile_cpp(shape=CLASSES)
        program.cc = "g++"
        program.link()
        program.start()
        assert program.ask(1) == 404
        with attached(program) as session:
            outcome = reload(session, *program.compile_cpp(shape=edit(CLASSES, change)))
            assert outcome.code == "type-changed", outcome.line()
            assert said in outcome.error
            text = edit(CLASSES, ("return 4 * n", "return 5 * n"),
                        ("int w = 2;", "int w = 2; int plain() { return 1; }"))  # fmt: skip
            outcome = reload(session, *program.compile_cpp(shape=text))
            assert outcome.state == "live", outcome.error
        assert program.ask(1) == 405
    finally:
        program.stop()


class Cpp(Program):
    """A program whose objects may be C++."""

    def compile_cpp(self, **texts: str) -> list[Path]:
        """Compile C++ texts as `compile` does C."""
        other = Program(self.folder, [*self.flags, "-x", "c++"], cc="g++")
        return other.compile(**texts)


RUNNING = """
#include <stdio.h>
#include <stdlib.h>
struct tally { int sum; int count; };
__attribute__((noinline)) void add(struct tally *t, int n) { t->sum += n; t->count++; }
int main(void)
{
    struct tally t = {0, 0};
    char line[64];
    setvbuf(stdout, NULL, _IOLBF, 0);
    puts("ready");
    while (fgets(line, sizeof line, stdin)) {
        add(&t, atoi(line));
        printf("%d\\n", t.sum * 10 + t.count);
    }
    return 0;
}
"""


def test_a_function_that_runs_with_the_old_layout_is_not_given_the_new_one(
    program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("reloader.live.linking.INSTANT_SECONDS", 0.05)
    program.compile(running=RUNNING)
    program.link()
    program.start()
    assert program.ask(4) == 41
    with attached(program) as session:
        text = edit(RUNNING, ("int sum; int count;", "int count; int sum;"))
        outcome = reload(session, *program.compile(running=text))
        assert (outcome.state, outcome.code) == ("refused", "never-outside")
        assert "main" in outcome.error
    assert program.ask(4) == 82


def test_a_rollback_past_a_change_of_types_compares_them_again(program: Program) -> None:
    started(program, body=BODY)
    text = edit(BODY, ("REST, MOVE", "FAST, REST, MOVE"))
    with attached(program) as session:
        session.program.wishes = Wishes(frozenset({"enum mode"}))
        assert reload(session, *program.compile(body=text)).state == "live"
        session.program.wishes = Wishes()
        assert session.rollback(None).code == "type-changed"


def test_a_function_that_the_compiler_declares_itself_has_no_type_to_compare(
    program: Program,
) -> None:
    text = """
    #include <string.h>
    struct big { int id; char rest[300]; } one = {1, ""}, two = {7, ""};
    int answer(int n) { memcpy(&one, &two, (size_t)n); return one.id; }
    """
    started(program, part=text)
    with attached(program) as session:
        program.flags = ["-O0", "-g"]  # has memcpy's parameters
        outcome = reload(session, *program.compile(part=text))
        assert (outcome.state, outcome.error, program.ask(4)) == ("live", "", 7)
