"""A reload that says `live` is what runs, and one that could not be says so."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from reloader.session.outcome import Outcome
from reloader.session.session import Session
from tests.support.road import MAIN, Program, attached, reload

PART = "int answer(int n) { return n + %d; }\n"  # too short for a jump at its entry
WEAK = "__attribute__((weak)) int answer(int n) { return %d; }\nint other(void) { return 1; }\n"
HOLDS = MAIN.replace("answer(atoi(line))", "held(atoi(line))").replace(
    "int main", "int (*volatile held)(int) = answer;\nint main"
)
TOTAL = "int total = %d;\nint answer(int n) { total += n; return total + %d; }\n"
KEPT = (
    "total keeps its value 41; its initialiser changed from 40 to 50 (--reinit total would"
    " apply it)"
)
SECTION = """
static int x;
static void late(void) { x = x * 10 + 7; }
static void last(void) { x = x * 10 + 1; }
__attribute__((section("%s"), used)) static void (*const at_start[])(void) = {late, %s};
__attribute__((constructor)) static void plain(void) { x = x * 10 + 2; }
int extra(void) { return x + last - last; }
"""


@pytest.fixture
def program(tmp_path: Path) -> Iterator[Program]:
    made = Program(tmp_path)
    yield made
    made.stop()


def begin(program: Program, main: str = MAIN, **texts: str) -> None:
    program.compile(main=main, **texts)
    program.link()
    program.start()


def load(session: Session, program: Program, *names: str) -> Outcome:
    """Load objects by name, new ones included."""
    return session.reload_files([str(program.folder / name) for name in names], named=True)


@pytest.mark.parametrize("watch", ["*.o", "part.o"])
def test_calls_in_objects_that_nobody_watches_are_sent_to_new_code(
    program: Program, watch: str
) -> None:
    begin(program, part=PART % 1)
    with attached(program, watch) as session:
        assert reload(session, *program.compile(part=PART % 2)).state == "live"
        assert program.ask() == 2


def test_an_address_held_in_an_object_that_nobody_watches_is_a_refusal(
    program: Program,
) -> None:
    begin(program, main=HOLDS, part=PART % 1)
    with attached(program, "part.o") as session:
        outcome = reload(session, *program.compile(part=PART % 2))
        assert (outcome.state, outcome.code) == ("refused", "not-redirectable")
        assert "its 4 bytes are too short for a jump of 5" in outcome.error
        assert program.ask() == 1


def test_calls_of_a_stripped_program_that_cannot_be_told_are_a_refusal(
    program: Program,
) -> None:
    program.link_flags = ["-s"]
    begin(program, part=PART % 1)
    with attached(program, "part.o") as session:
        outcome = reload(session, *program.compile(part=PART % 2))
        assert outcome.state == "refused"
        assert program.ask() == 1


def test_a_weak_function_never_runs_in_place_of_a_strong_one(program: Program) -> None:
    begin(program, part=PART % 1, weak=WEAK % 5)
    with attached(program) as session:
        assert reload(session, *program.compile(weak=WEAK % 6)).state == "unchanged"
        assert reload(session, *program.compile(part=PART % 2)).state == "live"
        assert program.ask() == 2
        assert reload(session, *program.compile(weak=WEAK % 7)).state == "unchanged"
        assert program.ask() == 2
        (caller,) = program.compile(
            fresh="int answer(int); int fresh(void) { return answer(5); }"
        )
        assert load(session, program, caller.name).state == "live"
        assert session.program.index.rows[b"answer"].owner == (
            str(program.folder / "part.o"),
            "",
        )


def test_a_function_and_a_variable_move_to_another_source_in_one_build(
    program: Program,
) -> None:
    begin(program, part=TOTAL % (7, 0) + "int kept(void) { return ++total; }\n")
    with attached(program) as session:
        assert program.ask(2) == 9
        program.compile(
            moved=TOTAL % (7, 100), part="extern int total; int kept(void) { return ++total; }"
        )
        assert load(session, program, "part.o", "moved.o").state == "live"
        assert program.ask() == 109


def test_a_function_and_a_variable_move_to_another_source_one_file_at_a_time(
    program: Program,
) -> None:
    begin(program, part=TOTAL % (7, 0))
    with attached(program) as session:
        assert program.ask(2) == 9
        program.compile(moved=TOTAL % (7, 100))
        outcome = load(session, program, "moved.o")
        part = program.folder / "part.o"
        assert sorted(outcome.notes) == [
            f"answer is defined in {part} as well: what was loaded last counts",
            f"total is defined in {part} as well: what was loaded last counts",
        ]
        assert program.ask() == 109
        program.compile(part="int other(void) { return 3; }")
        assert load(session, program, "part.o").state == "live"
        assert reload(session, *program.compile(moved=TOTAL % (7, 200))).state == "live"
        assert program.ask() == 209


def test_a_variable_that_moves_with_another_size_is_refused(program: Program) -> None:
    begin(program, part=TOTAL % (7, 0))
    with attached(program) as session:
        program.compile(moved="int total[4]; int other(void) { return ++total[1]; }")
        outcome = load(session, program, "moved.o")
        assert (outcome.state, outcome.code) == ("refused", "data-layout")
        assert program.ask() == 7


def test_an_object_by_another_name_is_the_function_that_runs(program: Program) -> None:
    begin(program, part=PART % 1)
    with attached(program) as session:
        (part,) = program.compile(part=PART % 2)
        (program.folder / "alias.o").symlink_to(part)
        assert load(session, program, "alias.o").state == "live"
        assert program.ask() == 2
        assert reload(session, *program.compile(part=PART % 3)).state == "live"
        assert program.ask() == 3


def test_a_file_named_twice_is_loaded_once(program: Program) -> None:
    begin(program, part=PART % 1)
    with attached(program) as session:
        (part,) = program.compile(part=PART % 2)
        assert reload(session, part, part).objects == [str(part)]
        assert program.ask() == 2


@pytest.mark.parametrize(
    ("section", "second", "result"),
    [
        (".init_array.late", "last", 712),
        (".init_array.00200", "last", 712),
        (".ctors", "last", 217),
        (".ctors.65000", "0", 72),
        (".init_arrays", "last", 2),  # no linker takes this for constructors
    ],
)
def test_constructors_run_whatever_their_section_is_called(
    program: Program, section: str, second: str, result: int
) -> None:
    begin(program, part=PART % 1)
    with attached(program) as session:
        program.compile(
            extra=SECTION % (section, second),
            part="int extra(void); int answer(int n) { return n + extra(); }",
        )
        assert load(session, program, "part.o", "extra.o").state == "live"
        assert program.ask() == result


def test_a_changed_initial_value_alone_is_told_and_can_be_applied(program: Program) -> None:
    begin(program, part=TOTAL % (40, 0))
    with attached(program) as session:
        program.ask(1)
        (part,) = program.compile(part=TOTAL % (50, 0))
        outcome = reload(session, part)
        assert outcome.state == "unchanged"
        assert outcome.notes == [KEPT]
        assert reload(session, part, reinit=["total"]).state == "live"
        assert program.ask() == 50


def test_a_variable_starts_anew_in_an_object_that_is_live_already(program: Program) -> None:
    begin(program, part=TOTAL % (40, 0))
    with attached(program) as session:
        (part,) = program.compile(part=TOTAL % (50, 100))
        assert "--reinit total would apply it" in reload(session, part).notes[0]
        assert program.ask(1) == 141
        assert reload(session, part, reinit=["total"]).state == "live"
        assert program.ask() == 150
        outcome = reload(session, part, reinit=["totl"])
        assert outcome.state == "unchanged"
        assert outcome.notes == ["--reinit had nothing to do for: totl"]


def test_refused_returns_and_unloads_stand_in_the_history_by_their_own_number(
    program: Program,
) -> None:
    begin(program, part=PART % 1)
    with attached(program) as session:
        program.compile(
            helper="int helper(int n) { return n * 2; }",
            part="int helper(int); int answer(int n) { return helper(n) + 2; }",
        )
        assert load(session, program, "part.o", "helper.o").generation == 1
        assert session.rollback(99).generation == 2
        assert session.unload((str(program.folder / "helper.o"), "")).generation == 3
        rows = session.store.query.history(session.target, limit=9)
        assert [(row.generation, row.kind, row.state) for row in rows] == [
            (3, "unload", "refused"),
            (2, "rollback", "refused"),
            (1, "load", "live"),
        ]


def test_names_that_an_unloaded_object_shared_mean_what_they_did_before(
    program: Program,
) -> None:
    begin(program, part=PART % 1)
    with attached(program, "part.o") as session:
        program.compile(guest="int main(void) { return 3; }")
        outcome = load(session, program, "guest.o")
        assert outcome.notes == [
            "main: the executable has its own, which code that is not reloaded goes on to use"
        ]
        assert session.unload((str(program.folder / "guest.o"), "")).state == "live"
        assert session.program.index.rows[b"main"].owner == ("", "")


LOOP = """
int %s(int n) { int s = 0; for (int i = 0; i < n + 9; i++) s += i * i %% 7; return s + %d; }
"""
ALIAS = 'int twin(int) __attribute__((alias("answer")));\n'
BOTH = MAIN.replace("int answer(int);", "int answer(int), twin(int);").replace(
    "answer(atoi(line))", "answer(atoi(line)) * 1000 + twin(atoi(line))"
)


@pytest.mark.parametrize("body", [LOOP, "int %s(int n) { return n + %d; }\n"])
def test_an_alias_changes_with_what_it_is_an_alias_of_and_not_alone(
    program: Program, body: str
) -> None:
    begin(program, main=BOTH, part=body % ("answer", 0) + ALIAS)
    with attached(program) as session:
        first = program.ask()
        for step in (1, 2, 3):
            outcome = reload(session, *program.compile(part=body % ("answer", step) + ALIAS))
            assert outcome.state == "live", outcome.error
            assert program.ask() == first + 1001 * step
        apart = body % ("answer", 4) + body % ("twin", 5)
        outcome = reload(session, *program.compile(part=apart))
        assert (outcome.state, outcome.code) == ("refused", "not-redirectable")
        assert "it is one with answer in the program" in outcome.error
        assert program.ask() == first + 3003
        assert (
            reload(session, *program.compile(part=body % ("answer", 6) + ALIAS)).state == "live"
        )
        assert program.ask() == first + 6006


def test_a_function_that_the_linker_folded_is_refused_and_its_twin_untouched(
    tmp_path: Path,
) -> None:
    program = Program(
        tmp_path, ["-O2", "-ffunction-sections"], ["-fuse-ld=gold", "-Wl,--icf=all"]
    )
    begin(program, main=BOTH, part=LOOP % ("answer", 0), second=LOOP % ("twin", 0))
    with attached(program) as session:
        before = program.ask()
        outcome = reload(session, *program.compile(part=LOOP % ("answer", 1)))
        assert "it is one with twin in the program" in outcome.error
        assert program.ask() == before
        same = program.compile(part=LOOP % ("answer", 1), second=LOOP % ("twin", 1))
        assert reload(session, *same).state == "refused"
        assert program.ask() == before
    program.stop()
