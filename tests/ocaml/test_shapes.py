"""Which functions of a unit an edit changed, told from its objects before and after."""

from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from reloader.elf.read import read_object
from reloader.hosts.caml.compiler import find_compiler
from reloader.hosts.caml.inspector import Inspector, find_unit_files
from reloader.hosts.caml.shapes import Shapes, shapes_of
from reloader.hosts.caml.unit_object import read_unit
from tests.support.ocaml import Build, Compiler, build
from tests.support.ocaml_project import Project, project_of

TEXT = """let total = ref 0
let greeting = "hello"
let add a b = a + b
let twice f x = f (f x)
let loud word = String.uppercase_ascii word ^ "!"
let half x = x /. 2.5
let rec even n = n = 0 || odd (n - 1)
and odd n = n > 0 && even (n - 1)
let table () = [ 1; 2; 3 ]
let count words =
  let rec walk n = function [] -> n | _ :: rest -> walk (n + 1) rest in
  List.iter (fun word -> total := !total + String.length word) words;
  walk 0 words
let ( +++ ) a b = add a (twice succ b)
module Inner = struct
  let shown n = match n with 0 -> "a" | 1 -> "b" | 2 -> "c" | 3 -> "d" | 4 -> "e" | _ -> "f"
end
"""


class Subject:
    """One unit, compiled again after each edit."""

    def __init__(self, program: Build, inspector: Inspector) -> None:
        self.program, self.inspector = program, inspector
        self.before = self.read()

    def read(self) -> Shapes:
        path = self.program.folder / "unit.o"
        file = read_object(str(path), path.read_bytes())
        unit = read_unit(file)
        assert unit is not None
        info = self.inspector.unit(find_unit_files(path))
        return shapes_of(file, unit.symbol, info.slots)

    def changed(self, old: str, new: str) -> tuple[set[str], bool]:
        """Edit, compile; return the functions that changed, and whether the initialiser did."""
        self.program.edit("unit.ml", old, new)
        now = self.read()
        functions: Mapping[str, object] = {**now.functions, **self.before.functions}
        found = {
            name
            for name in functions
            if now.functions.get(name) != self.before.functions.get(name)
        }
        return found, now.entry != self.before.entry


@pytest.fixture
def subject(compiler: Compiler, tmp_path: Path) -> Iterator[Subject]:
    program = build(compiler, tmp_path, {"unit.ml": TEXT})
    with Inspector(find_compiler(" ".join(compiler.command))) as inspector:
        yield Subject(program, inspector)


@pytest.mark.parametrize(
    ("old", "new", "changed"),
    [
        ("a + b", "b - a", {"add", "+++"}),  # it has the other inlined
        ('"!"', '"?"', {"loud"}),
        ("2.5", "3.5", {"half"}),
        ("n - 1)\nand", "n - 3)\nand", {"even"}),
        ("[ 1; 2; 3 ]", "[ 1; 2; 4 ]", {"table"}),
        ("n + 1", "n + 2", {"count"}),
        ("String.length word", "3 * String.length word", {"count"}),
        ("twice succ b", "twice pred b", {"+++"}),
        ('"e"', '"E"', {"shown"}),
        ("let add a", "let more x = x\nlet add a", {"more"}),
    ],
)
def test_only_the_function_that_was_edited_is_told(
    subject: Subject, old: str, new: str, changed: set[str]
) -> None:
    found, _ = subject.changed(old, new)
    assert found == changed


def test_lines_that_moved_change_nothing(subject: Subject) -> None:
    assert subject.changed("let add", "(* adds *)\n\nlet add") == (set(), False)


def test_a_changed_value_is_the_initialisers(subject: Subject) -> None:
    assert subject.changed('"hello"', '"good day"') == (set(), True)


def test_a_long_constant_is_compared_in_one_go(compiler: Compiler, tmp_path: Path) -> None:
    numbers = "; ".join(map(str, range(5000)))
    text = f"let all () = [ {numbers} ]\nlet first x = x\n"
    program = build(compiler, tmp_path, {"unit.ml": text})
    with Inspector(find_compiler(" ".join(compiler.command))) as inspector:
        found = Subject(program, inspector).changed("; 4999 ]", "; 5000 ]")
    assert found == ({"all"}, False)


def test_a_reload_tells_what_changed_and_when_nothing_did(
    compiler: Compiler, tmp_path: Path
) -> None:
    with project_of(compiler, tmp_path, "counter") as project:
        project.run()
        assert saved(project, "!total + by", "!total + (10 * by)") == (["Counter.bump"], [])
        functions, notes = saved(project, "let add", "\n\nlet add")
        assert (functions, notes[0]) == ([], "Counter: only debug information changed")
        functions, notes = saved(project, '"first"', '"second"')
        assert functions == []
        assert "its initialiser changed" in notes[0]
        assert project.program.ask("name") == "second"


def saved(project: Project, old: str, new: str) -> tuple[list[str], list[str]]:
    """Edit and compile the counter; return the functions and the notes that are told."""
    assert project.save("counter.ml", old, new)["outcome"] == "live"
    row = project.json("history", "--limit", "1")[0]
    return row["functions"], [note for note in row["notes"] if "kept" not in note]
