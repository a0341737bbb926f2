"""Units of every kind get new versions while a program runs: what is new and what stays."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from reloader.session.session import Session
from tests.support.ocaml import Build, Compiler, build, large
from tests.support.ocaml_project import session_of


@dataclass
class Kinds:
    """The running program, and who reloads it."""

    program: Build
    session: Session

    def edit(self, name: str, old: str, new: str) -> None:
        """Edit a source, compile and reload it."""
        self.reload(self.program.edit(name, old, new))

    def reload(self, *paths: Path) -> None:
        """Reload objects together."""
        outcome = self.session.reload_files([str(path) for path in paths])
        assert (outcome.error or outcome.state) == "live"

    def ask(self, text: str) -> str:
        """Return the program's answer, which a collection must not change."""
        return self.program.ask(text)


@pytest.fixture(scope="module")
def kinds(compiler: Compiler, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kinds]:
    program = build(compiler, tmp_path_factory.mktemp("kinds"), "kinds")
    with program:
        program.start()
        with session_of(program) as session:
            yield Kinds(program, session)


def test_objects_that_exist_keep_their_methods_and_new_ones_have_the_new(kinds: Kinds) -> None:
    assert kinds.ask("old-object") == "round of 1 12 1"
    kinds.program.edit("shapes.ml", "radius * 3", "radius * 5")
    kinds.edit("shapes.ml", " of 1", " of 2")
    assert kinds.ask("new-object 3") == "new of 2 45"
    assert kinds.ask("old-object") == "round of 1 12 2"


def test_a_functor_that_was_applied_runs_the_new_functions_of_its_argument(
    kinds: Kinds,
) -> None:
    kinds.edit("ordered.ml", "String.length word", "10 * String.length word")
    assert kinds.ask("best") == "40"
    assert kinds.ask("words") == "fig pear apple"


def test_the_evaluator_of_a_gadt_is_replaced_below_values_that_others_make(
    kinds: Kinds,
) -> None:
    kinds.edit("expr.ml", "eval a + eval b", "eval a + eval b + 10")
    assert kinds.ask("eval 4") == "15"
    assert kinds.ask("eval 0") == "0"


def test_first_class_modules_in_a_table_that_is_kept_run_the_new_functions(
    kinds: Kinds,
) -> None:
    assert kinds.ask("lazy") == "5050"
    kinds.program.edit("plug.ml", "n * 2", "n * 3")
    kinds.edit("plug.ml", "List.init 101", "List.init 11")
    assert kinds.ask("plug double 4") == "12"
    assert kinds.ask("lazy") == "55"


def test_large_static_data_is_replaced(kinds: Kinds) -> None:
    assert kinds.ask("large 4499") == "4501"
    kinds.program.write({"large.ml": large(4500, 2)})
    kinds.edit("large.ml", "value + List", "1000 + value + List")
    assert kinds.ask("large 4499") == "5501"  # arrays are state
    kinds.program.edit("large.ml", "|]", "|] [@@reload.reset]")
    kinds.edit("large.ml", "1000 + value", "2000 + value")
    assert kinds.ask("large 4499") == "11000"


def test_c_stubs_are_replaced_alone_and_together_with_their_unit(kinds: Kinds) -> None:
    kinds.edit("native_stubs.c", '"hello %s"', '"hi %s"')
    assert kinds.ask("greet you") == "hi you"
    assert kinds.ask("both 9") == "21"
    stubs = kinds.program.edit("native_stubs.c", "2 * Long_val", "3 * Long_val")
    unit = kinds.program.edit("native.ml", "twice n +", "100 + twice n +")
    kinds.reload(stubs, unit)
    assert kinds.ask("both 9") == "130"
    assert kinds.ask("greet you") == "hi you"


def test_a_unit_and_a_c_function_that_did_not_exist_come_with_their_first_user(
    kinds: Kinds,
) -> None:
    kinds.program.write({
        "newcomer.ml": 'external five : int -> int = "newcomer_five"\n'
        "let seen : (int, int) Hashtbl.t = Hashtbl.create 7\n"
        "let note n = Hashtbl.replace seen n (five 0); Hashtbl.length seen\n",
        "newcomer_stubs.c": "#include <caml/mlvalues.h>\n"
        "value newcomer_five(value n) { return Val_long(5 + Long_val(n)); }\n",
    })  # fmt: skip
    stubs = kinds.program.compile("newcomer_stubs.c")
    unit = kinds.program.compile("newcomer.ml")
    user = kinds.program.edit("plug.ml", "P.apply n", "P.apply n + (100 * Newcomer.note n)")
    kinds.reload(user, unit, stubs)
    before = int(kinds.ask("plug double 1")) % 100
    assert int(kinds.ask("plug double 1")) == before + 100
    assert int(kinds.ask("plug double 2")) > 200
    kinds.edit("newcomer.ml", "; Hashtbl.length seen", "; 1 + Hashtbl.length seen")
    assert int(kinds.ask("plug double 2")) > 300
