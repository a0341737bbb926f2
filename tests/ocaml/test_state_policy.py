"""Which state of a unit goes on in its new version, what is made anew, and why."""

from dataclasses import replace
from pathlib import Path

import pytest

from reloader.errors.ocaml_units import IncompatibleUnitsError
from reloader.hosts.caml.changed_types import changed_types
from reloader.hosts.caml.state import Policy, Sizes, StatePlan, plan_state
from reloader.hosts.caml.units import UnitInfo
from tests.support.ocaml import Compiler, compiler_of
from tests.support.ocaml_units import described, unit, unit_object

BEFORE = """\
type row = { mutable n : int }
exception Limit of int
exception Row of row
let version = 1
let counter = ref 0
let table : (string, row) Hashtbl.t = Hashtbl.create 7
let names = [| "a" |]
let later = lazy 1
module M = struct let queue : int Queue.t = Queue.create () end
let old = ref 0
let step x = incr counter; x + version
"""


def texts(compiler: Compiler, folder: Path, *edits: tuple[str, str]) -> list[UnitInfo]:
    """Describe `BEFORE`, and it after some edits."""
    after = BEFORE
    for old, new in edits:
        assert after.count(old) == 1, old
        after = after.replace(old, new)
    return [unit(compiler, folder, text) for text in (BEFORE, after)]


def planned(infos: list[UnitInfo], policy: Policy | None = None) -> StatePlan:
    before, after = infos
    return plan_state(before, after, policy or Policy(), changed_types(before, after))


def moved(plan: StatePlan) -> list[str]:
    """Return all that is carried over, exceptions too."""
    assert all(old.path == new.path for old, new in plan.pairs)
    return [new.path for _, new in plan.pairs]


def test_mutable_values_and_exceptions_are_kept_and_all_else_is_new(
    compiler: Compiler, tmp_path: Path
) -> None:
    plan = planned(texts(compiler, tmp_path, ("version = 1", "version = 2")))
    assert plan.kept == ["counter", "table", "names", "old", "M.queue"]
    assert set(moved(plan)) == {*plan.kept, "Limit", "Row"}
    assert [path for path, _ in plan.reset] == ["later"]
    assert (plan.new, plan.dropped) == ([], [])


def test_fields_that_moved_are_found_by_name(compiler: Compiler, tmp_path: Path) -> None:
    first = ("let version = 1", "let first = ref 5\nlet help () = 3\nlet version = 1")
    plan = planned(texts(compiler, tmp_path, first, ("let old = ref 0\n", "")))
    rows = {new.path: (old.chain, new.chain) for old, new in plan.pairs}
    before, after = rows["counter"]
    assert after[0] == before[0] + 2
    assert (plan.new, plan.dropped) == (["first"], ["old"])


def test_a_value_of_another_type_is_made_anew_and_both_types_are_told(
    compiler: Compiler, tmp_path: Path
) -> None:
    plan = planned(texts(compiler, tmp_path, ("let old = ref 0", 'let old = ref ""')))
    assert ("old", "its type was int ref, now string ref") in plan.reset
    assert "old" not in moved(plan)


def test_what_holds_a_type_that_changed_is_made_anew(
    compiler: Compiler, tmp_path: Path
) -> None:
    edit = ("{ mutable n : int }", "{ mutable n : int; m : int }")
    plan = planned(texts(compiler, tmp_path, edit))
    assert ("table", "type Foo.row changed") in plan.reset
    assert "Row" not in moved(plan)
    assert {"counter", "Limit"} <= set(moved(plan))


def test_an_exception_that_carries_something_else_gets_another_identity(
    compiler: Compiler, tmp_path: Path
) -> None:
    plan = planned(texts(compiler, tmp_path, ("Limit of int", "Limit of string")))
    assert "Limit" not in moved(plan)
    assert "Row" in moved(plan)


def test_attributes_in_the_new_source_decide(compiler: Compiler, tmp_path: Path) -> None:
    edits = [
        ("let counter = ref 0", "let counter = ref 0 [@@reload.reset]"),
        ("let later = lazy 1", "let later = lazy 1 [@@reload.keep]"),
        ("let version = 1", "let version = 1 [@@reload.keep]"),
    ]
    plan = planned(texts(compiler, tmp_path, *edits))
    assert ("counter", "as asked") in plan.reset
    assert {"later", "version"} <= set(plan.kept)


def test_the_configuration_decides_before_attributes(
    compiler: Compiler, tmp_path: Path
) -> None:
    infos = texts(
        compiler, tmp_path, ("let counter = ref 0", "let counter = ref 0 [@@reload.reset]")
    )
    policy = Policy(
        keep=frozenset({"Foo.counter", "Foo.later"}), reset=frozenset({"Foo.M.queue"})
    )
    plan = planned(infos, policy)
    assert {"counter", "later"} <= set(plan.kept)
    assert ("M.queue", "as asked") in plan.reset


def test_dunes_name_of_a_unit_is_as_good_as_its_authors(
    compiler: Compiler, tmp_path: Path
) -> None:
    before, after = (replace(info, name="Dune__exe__Foo") for info in texts(compiler, tmp_path))
    for name in ("Foo.table", "Dune__exe__Foo.table"):
        plan = plan_state(before, after, Policy(reset=frozenset({name})))
        assert ("table", "as asked") in plan.reset


def test_a_value_marked_to_be_kept_refuses_another_type(
    compiler: Compiler, tmp_path: Path
) -> None:
    edit = ("let old = ref 0", 'let old = ref "" [@@reload.keep]')
    with pytest.raises(IncompatibleUnitsError) as caught:
        planned(texts(compiler, tmp_path, edit))
    assert str(caught.value) == (
        "Foo: old is marked to be kept, but its type changed\n"
        "    in the program: int ref\n"
        "    now:            string ref\n"
        "    Restore the type, or take the mark away, which loses its value.\n"
        "Nothing was changed."
    )


def test_values_of_one_name_cannot_be_told_apart(compiler: Compiler, tmp_path: Path) -> None:
    twice = ("let old = ref 0", "let old = ref 0\nlet use = !old\nlet old = ref use")
    infos = texts(compiler, tmp_path, twice)
    plan = planned([infos[1], infos[1]])
    assert "old" not in moved(plan)
    assert ("old", "several values have this name") in plan.reset


def test_hidden_fields_are_not_trusted_when_the_block_has_another_size(
    compiler: Compiler, tmp_path: Path
) -> None:
    info = unit(compiler, tmp_path, BEFORE, "val counter : int ref\nexception Limit of int\n")
    size = unit_object(tmp_path / "foo.o").block_size
    assert size == info.field_count
    right = plan_state(info, info, Policy(), sizes=Sizes(size, size))
    assert "table" in right.kept
    plan = plan_state(info, info, Policy(), sizes=Sizes(size, size + 1))
    assert moved(plan) == ["counter", "Limit"]
    assert dict(plan.reset)["table"] == (
        "the fields of the compiled unit are not those of its .cmt file"
    )


def test_without_a_cmt_hidden_state_is_reset_and_says_so(
    compiler: Compiler, tmp_path: Path
) -> None:
    info = unit(compiler, tmp_path, BEFORE, "val counter : int ref\n")
    plan = plan_state(replace(info, complete=False), info, Policy())
    assert plan.kept == ["counter"]
    assert "-bin-annot" in dict(plan.reset)["table"]


def test_values_that_no_cmt_names_are_not_lost_in_silence(
    compiler: Compiler, tmp_path: Path
) -> None:
    whole = unit(compiler, tmp_path, BEFORE, "val counter : int ref\n")
    (tmp_path / "foo.cmt").unlink()
    info = described(compiler, tmp_path / "foo.o")
    size = unit_object(tmp_path / "foo.o").block_size
    assert info.field_count < whole.field_count == size
    plan = plan_state(info, info, Policy(), sizes=Sizes(size, size))
    assert plan.kept == ["counter"]
    assert "@check" in dict(plan.reset)["values behind the interface"]


def test_the_report_has_a_line_for_each_fate(tmp_path: Path) -> None:
    compiler = compiler_of("4.13")
    edits = [("let old = ref 0", "let fresh = ref 0"), ('[| "a" |]', "[| 1 |]")]
    assert planned(texts(compiler, tmp_path, *edits)).notes() == [
        "kept: counter, table, M.queue",
        "reset: names: its type was string array, now int array",
        "reset: later: a lazy value is made anew unless [@@reload.keep] says otherwise",
        "new: fresh",
        "dropped: old",
    ]
