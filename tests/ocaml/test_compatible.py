"""Which new versions of units fit a live program, and what is said of those that do not."""

from pathlib import Path

import pytest

from reloader.errors.ocaml_units import (
    IncompatibleUnitsError,
    InlinedProblem,
    InterfaceProblem,
    TypeProblem,
)
from reloader.hosts.caml.changed_types import changed_types
from reloader.hosts.caml.compatible import (
    dependency_order,
    outside_users,
    refuse_incompatible,
)
from reloader.hosts.caml.globals_map import read_program_units
from reloader.hosts.caml.units import UnitInfo
from tests.support.ocaml import Build, Compiler, build
from tests.support.ocaml_units import described, image_of

FOO = """\
type t = int
let make () : t = 1
let show (x : t) = string_of_int x
let hidden = ref []
let note (x : t) = hidden := x :: !hidden
"""
FOO_INTERFACE = "type t\nval make : unit -> t\nval show : t -> string\nval note : t -> unit\n"
RECORD = """\
type t = { n : int }
let make () = { n = 1 }
let show x = string_of_int x.n
let note (_ : t) = ()
"""
MAIN = """\
let kept : Foo.t list ref = ref [ Foo.make () ]
let () = print_endline (Foo.show (List.hd !kept))
"""


class Program:
    """A built program, and what was live when it was built."""

    def __init__(self, made: Build) -> None:
        self.made = made
        self.linked = read_program_units(image_of(made.executable))
        names = sorted(path.stem for path in made.folder.glob("*.ml"))
        self.live = {info.name: info for info in map(self.described, names)}

    def described(self, name: str) -> UnitInfo:
        return described(self.made.compiler, self.made.folder / f"{name}.o")

    def edit(self, text: str, old: str, new: str) -> UnitInfo:
        file = self.made.edit(text, old, new)
        if text.endswith(".mli"):
            file = self.made.compile(f"{file.stem}.ml")
        return described(self.made.compiler, file)

    def edit_both(self, old: str, new: str, old_type: str, new_type: str) -> UnitInfo:
        """Edit foo.ml and foo.mli, which fit only together."""
        source = self.made.folder / "foo.ml"
        source.write_text(source.read_text().replace(old, new))
        return self.edit("foo.mli", old_type, new_type)

    def refused(self, *units: UnitInfo) -> IncompatibleUnitsError:
        with pytest.raises(IncompatibleUnitsError) as caught:
            refuse_incompatible(units, self.live, self.linked)
        assert str(caught.value).endswith("Nothing was changed.")
        return caught.value


@pytest.fixture
def program(compiler: Compiler, tmp_path: Path) -> Program:
    """Foo hides its type from Main, which keeps a value of it."""
    sources = {"foo.ml": FOO, "foo.mli": FOO_INTERFACE, "main.ml": MAIN}
    return Program(build(compiler, tmp_path, sources))


def test_a_changed_body_fits(program: Program) -> None:
    foo = program.edit("foo.ml", "string_of_int x", '"no " ^ string_of_int x')
    assert refuse_incompatible([foo], program.live, program.linked) == frozenset()


def test_a_function_with_another_type_is_refused_with_both_declarations(
    program: Program,
) -> None:
    foo = program.edit_both(
        "let show (", 'let show ?(sep = "") (', "val show : t", "val show : ?sep:string -> t"
    )
    error = program.refused(foo)
    (problem,) = error.problems
    assert isinstance(problem, InterfaceProblem)
    assert problem.users == ("Main",)
    assert str(error) == (
        "Foo: its interface changed; Main uses the old one\n"
        "    in the program: val show : t -> string\n"
        "    now:            val show : ?sep:string -> t -> string\n"
        "    Reload Main together with it, or restart.\n"
        "Nothing was changed."
    )


def test_a_function_that_is_gone_is_refused(program: Program) -> None:
    foo = program.edit("foo.mli", "val note : t -> unit\n", "")
    assert "now:            (none)" in str(program.refused(foo))


def test_an_interface_that_only_grew_fits(program: Program) -> None:
    program.made.edit("foo.ml", "let make", "let zero : t = 0\nlet make")
    foo = program.edit("foo.mli", "val make", "val zero : t\nval make")
    assert foo.interface_crc != program.live["Foo"].interface_crc
    assert refuse_incompatible([foo], program.live, program.linked) == frozenset()


def test_a_changed_interface_fits_when_its_users_come_along(program: Program) -> None:
    foo = program.edit_both(
        "let show (", "let show () (", "val show : t", "val show : unit -> t"
    )
    main = program.edit("main.ml", "Foo.show", "Foo.show ()")
    assert refuse_incompatible([main, foo], program.live, program.linked) == frozenset()


def test_a_user_compiled_against_another_version_is_named(program: Program) -> None:
    stale = program.live["Main"]
    foo = program.edit_both(
        "let show (", "let show () (", "val show : t", "val show : unit -> t"
    )
    error = program.refused(foo, stale)
    text = str(error)
    assert "Main was compiled against another interface of Foo: " in text
    assert str(stale.imports["Foo"]) in text
    assert foo.interface_crc in text
    assert "Rebuild Main" in text


def test_a_type_that_changed_behind_its_interface_is_refused(program: Program) -> None:
    program.made.write({"foo.ml": RECORD})
    foo = described(program.made.compiler, program.made.compile("foo.ml"))
    assert foo.interface_crc == program.live["Foo"].interface_crc
    error = program.refused(foo)
    (problem,) = error.problems
    assert isinstance(problem, TypeProblem)
    assert str(error) == (
        "Foo: type t changed; Main may hold old values\n"
        "    in the program: type t = int\n"
        "    now:            type t = { n : int; }\n"
        "    The new code would misread them. Restore the type, or restart.\n"
        "Nothing was changed."
    )


def test_a_changed_type_fits_when_all_that_may_hold_it_comes_along(program: Program) -> None:
    program.made.write({"foo.ml": RECORD})
    foo = described(program.made.compiler, program.made.compile("foo.ml"))
    changed = refuse_incompatible([foo, program.live["Main"]], program.live, program.linked)
    assert changed == {"Foo.t"}


def test_a_hidden_type_that_only_the_unit_knows_may_change(program: Program) -> None:
    program.made.edit("foo.ml", "type t = int", "type t = int\ntype own = A")
    program.live["Foo"] = described(program.made.compiler, program.made.folder / "foo.o")
    foo = program.edit("foo.ml", "type own = A", "type own = A | B")
    changed = refuse_incompatible([foo], program.live, program.linked)
    assert changed == {"Foo.own"}


def test_an_abstract_type_that_no_cmt_tells_of_is_refused(program: Program) -> None:
    foo = program.edit("foo.ml", "string_of_int x", '"no " ^ string_of_int x')
    (program.made.folder / "foo.cmt").unlink()
    text = str(program.refused(described(program.made.compiler, program.made.folder / "foo.o")))
    assert "what is behind type t is not known" in text
    assert "-bin-annot" in text
    assert foo.complete


def test_a_unit_that_was_inlined_must_bring_its_users(
    compiler: Compiler, tmp_path: Path
) -> None:
    sources = {"foo.ml": "let f x = x + 1\n", "main.ml": "let () = print_int (Foo.f 1)\n"}
    program = Program(build(compiler, tmp_path, sources, opaque=False))
    foo = program.edit("foo.ml", "x + 1", "x + 2")
    error = program.refused(foo)
    (problem,) = error.problems
    assert isinstance(problem, InlinedProblem)
    text = str(error)
    assert text.startswith("Foo: Main was optimised with its old code (")
    assert problem.wanted in text
    assert problem.new is not None
    assert problem.new in text
    assert "-opaque" in text
    program.made.compile("main.ml")
    together = [program.described("main"), foo]
    assert refuse_incompatible(together, program.live, program.linked) == frozenset()


def test_a_unit_compiled_against_inlined_code_that_is_not_live_is_refused(
    compiler: Compiler, tmp_path: Path
) -> None:
    sources = {"foo.ml": "let f x = x + 1\n", "main.ml": "let () = print_int (Foo.f 1)\n"}
    program = Program(build(compiler, tmp_path, sources, opaque=False))
    program.edit("foo.ml", "x + 1", "x + 2")
    program.made.compile("main.ml")
    text = str(program.refused(program.described("main")))
    assert "Main was compiled against another implementation of Foo: " in text


def test_units_are_ordered_by_what_they_import(compiler: Compiler, tmp_path: Path) -> None:
    sources = {"a.ml": "let x = 1\n", "b.ml": "let y = A.x\n", "c.ml": "let z = B.y + A.x\n"}
    made = Build(compiler, tmp_path)
    made.write(sources)
    units = [described(compiler, made.compile(name)) for name in sources]
    order = dependency_order(units[::-1])
    assert [units[::-1][row].name for row in order] == ["A", "B", "C"]


def test_a_unit_of_which_nothing_is_known_counts_if_it_was_linked_later(
    program: Program,
) -> None:
    known = {"Foo": program.live["Foo"]}
    assert outside_users("Foo", {}, known, program.linked) == ("Main",)
    assert outside_users("Main", {}, {}, program.linked) == ()


@pytest.mark.parametrize(
    ("before", "after", "changed"),
    [
        ("type r = { a : int }", "type r = { a : int; b : int }", {"Foo.r"}),
        ("type r = A | B", "type r = B | A", {"Foo.r"}),
        ("type r = A", "type r = A  (* same *)", set[str]()),
        ("type r = A\ntype s = r list", "type r = A | B\ntype s = r list", {"Foo.r", "Foo.s"}),
        (
            "module M = struct type r = A end\ntype s = M.r",
            "module M = struct type r = A | B end\ntype s = M.r",
            {"Foo.M.r", "Foo.s"},
        ),
        ("type r = A", "type r = A\ntype added = int", set[str]()),
        ("type r = A\ntype gone = int", "type r = A", {"Foo.gone"}),
        ("type r = < x : int >", "type r = < x : float >", {"Foo.r"}),
    ],
)
def test_types_change_with_what_they_are_made_of(
    compiler: Compiler, tmp_path: Path, before: str, after: str, changed: set[str]
) -> None:
    made = Build(compiler, tmp_path)
    infos: list[UnitInfo] = []
    for text in (before, after):
        made.write({"foo.ml": text + "\n"})
        infos.append(described(compiler, made.compile("foo.ml")))
    assert changed_types(infos[0], infos[1]) == changed


def test_a_type_changes_with_one_of_another_unit(compiler: Compiler, tmp_path: Path) -> None:
    made = Build(compiler, tmp_path)
    made.write({"a.ml": "type t = int\n", "b.ml": "type u = { x : A.t list }\n"})
    infos = [described(compiler, made.compile(name)) for name in ("a.ml", "b.ml")]
    assert changed_types(infos[1], infos[1], frozenset({"A.t"})) == {"A.t", "B.u"}
