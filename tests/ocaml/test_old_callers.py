"""Callers that go on with old code are named: which function, and which module leads to it."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.ocaml import Compiler
from tests.support.ocaml_project import Project, project_of

FOO = """let factor = 2
let add a b = a + b + (0 * factor)

let adder n =
  let k = n * factor in
  fun x -> x + k

let tick = adder 1
let scale a b = a * b * factor
let operations = [ ("scale", scale) ]

module Make (S : sig val start : int end) = struct
  let next x = x + (S.start * factor)
end
"""
FOO_INTERFACE = """val add : int -> int -> int
val adder : int -> int -> int
val tick : int -> int
val operations : (string * (int -> int -> int)) list
module Make (_ : sig val start : int end) : sig val next : int -> int end
"""
BAR = """let table : (string, int -> int) Hashtbl.t = Hashtbl.create 4
let listed : (int * (int -> int -> int)) list ref = ref []
let partial = Foo.add 5
let scaled = List.assoc "scale" Foo.operations 5
let take () = Hashtbl.replace table "adder" (Foo.adder 3)
let drop () = Hashtbl.reset table

module Copy = struct
  include Foo
end

module Made = Foo.Make (struct let start = int_of_string "7" end)
"""
MAIN = """let answer = function
  | "take" -> Bar.take (); "done"
  | "list" -> Bar.listed := [ (1, Foo.add); (2, Foo.adder) ]; "done"
  | "drop" -> Bar.drop (); Gc.compact (); "done"
  | "partial" -> string_of_int (Bar.partial 1)
  | "table" -> string_of_int (Hashtbl.find Bar.table "adder" 1)
  | "next" -> string_of_int (Bar.Made.next 1)
  | _ -> "what?"

let () =
  print_endline "ready";
  try
    while true do
      print_endline (answer (read_line ()))
    done
  with End_of_file -> ()
"""
SOURCES = {"foo.mli": FOO_INTERFACE, "foo.ml": FOO, "bar.ml": BAR, "main.ml": MAIN}


@pytest.fixture
def project(compiler: Compiler, tmp_path: Path) -> Iterator[Project]:
    with project_of(compiler, tmp_path, SOURCES) as made:
        made.run()
        yield made


def still_old(row: dict[str, Any]) -> list[str]:
    assert row["outcome"] == "live", row
    return sorted(note for note in row["notes"] if note.startswith("still old"))


def test_closures_with_an_environment_are_named_and_forwarded_functions_are_not(
    project: Project,
) -> None:
    ask = project.program.ask
    assert [ask("take"), ask("list"), ask("partial")] == ["done", "done", "6"]
    row = project.save("foo.ml", "a + b + (0 * factor)", "a + (10 * b) + (0 * factor)")
    why = "(its environment belongs to the old version)"
    assert still_old(row) == [
        "still old: Foo.Make in Bar.Copy.Make (nothing leads it to new code)",
        f"still old: a closure of Foo.(fun at foo.ml:6) in Bar.Copy.tick {why}",
        f"still old: a closure of Foo.(fun at foo.ml:6) in Bar.table {why}",
        f"still old: a closure of Foo.next in Bar.Made {why}",
    ]
    assert ask("partial") == "15"


def test_a_partial_application_of_a_function_that_is_gone_is_named(project: Project) -> None:
    text = 'let scale a b = a * b * factor\nlet operations = [ ("scale", scale) ]'
    row = project.save("foo.ml", text, "let operations = []")
    text = "still old: Foo.scale, which a closure holds, in Bar.scaled"
    assert f"{text} (nothing leads it to new code)" in still_old(row)


def test_why_names_the_module_that_leads_to_an_old_closure(project: Project) -> None:
    ask = project.program.ask
    project.save("foo.ml", "let factor = 2", "let factor = 3")
    assert [ask("take"), ask("table")] == ["done", "10"]
    row = project.save("foo.ml", "let factor = 3", "let factor = 4")
    closure = "a closure of Foo.(fun at foo.ml:6) in Bar.table"
    assert any(closure in note for note in still_old(row))
    assert ask("table") == "10"
    assert closure in runtime_holders(project)
    assert ask("drop") == "done"
    row = project.save("foo.ml", "let factor = 4", "let factor = 5")
    assert not any(closure in note for note in still_old(row))


def runtime_holders(project: Project) -> list[str]:
    rows = project.json("why", "foo.o")
    return [row["where"] for row in rows if row["kind"] == "runtime"]
