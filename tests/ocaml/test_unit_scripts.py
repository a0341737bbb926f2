"""Scripts over real programs: initialisers, kept state, functions called, all of it undone."""

from collections.abc import Generator
from pathlib import Path

import pytest

from reloader.errors.ocaml import HookError, InitialiserError, PlaceMissingError
from reloader.hosts.caml.runtime import HOLDERS, Place, Script
from tests.support.caml_runtime import Live, entered, version
from tests.support.ocaml import Build, Compiler, build

pytestmark = pytest.mark.live

FIRST, SECOND, THIRD = '"first"', '"second"', '"third"'
DIG = """
let rec dig n = if n = 0 then failwith "no" else 1 + dig (n - 1)
let () = ignore (dig 2)
"""
HOOKS = """
let before () = print_string "before "
let after () = failwith "after"
"""
DEEP = """
let rec deep n = if n = 0 then 0 else 1 + deep (n - 1)
let () = Printf.printf "%d " (deep 100_000)
"""
FAREWELL = """
let () = at_exit (fun () -> print_endline "farewell")
let () = raise Exit
"""
ENDLESS = "let () = while true do ignore (Sys.opaque_identity (ref 0)) done\n"
BOTTOMLESS = """
let rec deep n = 1 + deep (n + 1)
let () = ignore (deep 0)
"""
A_FIELDS = (0, 1, 2, 3)  # Limit, name, f, seen
STACK = 8 << 20  # of the thread that our work borrows
LIMIT, TABLE = 0, 4  # the constructor, and a field that no other unit knows


@pytest.fixture(scope="module")
def host(compiler: Compiler, tmp_path_factory: pytest.TempPathFactory) -> Build:
    return build(compiler, tmp_path_factory.mktemp("host"), "units", packages=["unix"])


@pytest.fixture(scope="module")
def second(host: Build) -> Path:
    return version(host, "unit_a", FIRST, SECOND)


@pytest.fixture
def live(host: Build) -> Generator[Live]:
    with entered(host) as found:
        yield found


def test_an_initialiser_that_raises_fifty_times_leaves_no_trace(live: Live) -> None:
    bad = version(live.build, "unit_a", more=DIG)
    assert live.build.ask("limit 101") == "101"
    error = fail(live, bad)
    before = mapped(live)
    for _ in range(50):
        fail(live, bad)
    assert (error.unit, error.exception) == ("Unit_a", 'Failure("no")')
    assert "Stdlib.failwith in file" in error.backtrace[0]
    assert 'dig in file "unit_a.ml", line 13' in error.backtrace[1]
    assert live.build.ask("name") == "first"
    assert live.build.ask("compact") == "compacted"
    growth = mapped(live) - before
    stacks = round(growth / STACK)  # the C library keeps 40 MB of them for later threads
    assert stacks < 5
    assert growth - stacks * STACK < 1 << 20


def test_what_a_failed_initialiser_left_behind_keeps_its_code(live: Live) -> None:
    bad = version(live.build, "unit_a", more=FAREWELL)
    unit = live.load(bad)
    with pytest.raises(InitialiserError, match=r"raised Stdlib\.Exit") as caught:
        live.runtime.run(live.script(unit, A_FIELDS))
    assert caught.value.still_known == 1
    held = live.runtime.retire([unit.place.code_begin])[0]
    assert HOLDERS[held.kind] == "a block of the heap"
    child = live.build.process
    assert child is not None
    assert child.communicate("name\n")[0] == "first\nfarewell\n"
    assert child.returncode == 0


def test_a_transaction_whose_second_unit_raises_is_undone_in_the_first(
    live: Live, second: Path
) -> None:
    first = live.load(second)
    other = live.load(version(live.build, "unit_b", FIRST, SECOND, "let () = raise Not_found"))
    script = live.script(first, A_FIELDS)
    bad = live.script(other, [0])
    script.owner |= {at + len(script.words): name for at, name in bad.owner.items()}
    script.words += bad.words
    with pytest.raises(InitialiserError, match="the initialiser of Unit_b raised Not_found"):
        live.runtime.run(script)
    assert [live.build.ask(text) for text in ("name", "b", "f 1")] == ["first", "first", "2"]


def test_kept_state_goes_on_and_captured_pointers_lead_to_it(live: Live, second: Path) -> None:
    assert [live.build.ask("seen a") for _ in range(3)] == ["1", "2", "3"]
    kept = [(LIMIT, LIMIT), (TABLE, TABLE)]
    _, done = live.swap(second, A_FIELDS, kept)
    assert done.forwarded >= 1  # `find` had captured the new table
    assert live.build.ask("name") == "second"
    assert live.build.ask("seen a") == "4"
    assert live.build.ask("limit 200") == "200"  # the handler knows the exception still
    assert live.build.ask("compact") == "compacted"
    assert live.build.ask("seen a") == "5"
    assert live.build.ask("f 1") == "2"


def test_a_backtrace_has_lines_of_the_new_file(live: Live) -> None:
    lower = version(live.build, "unit_a", "exception", "\n\n\nexception")
    live.swap(lower, A_FIELDS, [(LIMIT, LIMIT)])
    assert live.build.ask("limit 200") == "200"
    assert 'f in file "unit_a.ml", line 9' in live.build.ask("trace")


def test_functions_are_called_around_a_swap_and_one_that_raises_undoes_it(live: Live) -> None:
    first = live.load(version(live.build, "unit_a", FIRST, SECOND, HOOKS))
    script = live.script(first, A_FIELDS)
    script.call("Unit_a.before", Place(first.place.block, (6,)))
    live.runtime.run(script)
    assert live.build.ask("name") == "before second"
    again = live.load(version(live.build, "unit_a", FIRST, THIRD, HOOKS))
    script = live.script(again, A_FIELDS)
    script.call("Unit_a.after", Place(again.place.block, (7,)))
    with pytest.raises(
        HookError, match=r"Unit_a\.after, which the configuration names, raised Failure"
    ):
        live.runtime.run(script)
    assert live.build.ask("name") == "second"


def test_a_field_that_is_not_there_undoes_all(live: Live, second: Path) -> None:
    unit = live.load(second)
    script = live.script(unit, A_FIELDS)
    script.swap("Unit_a", [(Place(live.block("Unit_a"), (77,)), Place(unit.place.block, (0,)))])
    with pytest.raises(PlaceMissingError, match="Unit_a: a field"):
        live.runtime.run(script)
    assert live.build.ask("name") == "first"


def test_an_initialiser_recurses_deeply_while_the_program_is_blocked(live: Live) -> None:
    unit = live.load(version(live.build, "unit_a", FIRST, SECOND, DEEP))
    live.runtime.run(live.script(unit, A_FIELDS))
    assert live.build.ask("name") == "100000 second"


def test_an_initialiser_without_end_is_interrupted(live: Live) -> None:
    unit = live.load(version(live.build, "unit_a", more=ENDLESS))
    live.runtime.patience_ms = 100
    with pytest.raises(InitialiserError, match="takes too long and was interrupted"):
        live.runtime.run(live.script(unit, A_FIELDS))
    assert live.build.ask("name") == "first"


def test_an_initialiser_that_recurses_for_ever_raises_stack_overflow(live: Live) -> None:
    unit = live.load(version(live.build, "unit_a", more=BOTTOMLESS))
    with pytest.raises(InitialiserError, match="Stack_overflow"):
        live.runtime.run(live.script(unit, A_FIELDS))
    assert live.build.ask("name") == "first"


def test_a_forked_child_runs_on_after_a_swap(live: Live, second: Path) -> None:
    live.swap(second, A_FIELDS, [(LIMIT, LIMIT)])
    assert live.build.ask("fork") == "child second"
    assert live.build.line() == "parent second"
    third = version(live.build, "unit_a", FIRST, THIRD)
    live.swap(third, A_FIELDS, [(LIMIT, LIMIT)])
    assert live.build.ask("name") == "third"


def test_a_script_larger_than_the_text_area_is_executed(live: Live, second: Path) -> None:
    unit = live.load(second)
    script = live.script(unit, A_FIELDS)
    move = (Place(live.block("Unit_a"), (1,)), Place(unit.place.block, (1,)))
    script.swap("Unit_a", [move] * 5000)
    live.runtime.run(script)
    assert live.build.ask("name") == "second"


def test_a_script_is_known_by_its_token(live: Live) -> None:
    live.runtime.run(Script(), token=77)
    assert live.runtime.token == 77


def fail(live: Live, path: Path) -> InitialiserError:
    """Load a unit whose initialiser raises."""
    unit = live.load(path)
    with pytest.raises(InitialiserError) as caught:
        live.runtime.run(live.script(unit, A_FIELDS))
    assert caught.value.still_known == 0
    live.drop(unit)
    return caught.value


def mapped(live: Live) -> int:
    """Return bytes of private writable memory."""
    rows = [row for row in live.process.maps() if row.protection == "rw-p"]
    return sum(row.end - row.start for row in rows)
