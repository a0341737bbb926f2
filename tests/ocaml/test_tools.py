"""What OCaml's own tools and `owner` tell of reloaded units."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.ocaml import Compiler
from tests.support.ocaml_project import Project, project_of

PART = """let limit = 3
let check n = if n > limit then raise (Failure "too much") else n
"""
MAIN = """let () =
  Printexc.record_backtrace true;
  print_endline "ready";
  try
    while true do
      let n = int_of_string (read_line ()) in
      match Part.check n + 1 with
      | n -> print_endline (string_of_int n)
      | exception Failure _ ->
          let slots = Printexc.backtrace_slots (Printexc.get_raw_backtrace ()) in
          let places = Array.map Printexc.Slot.location (Option.get slots) in
          let show place = Printexc.(place.filename ^ ":" ^ string_of_int place.line_number) in
          let known = List.filter_map (Option.map show) (Array.to_list places) in
          print_endline (String.concat " " known)
    done
  with End_of_file -> ()
"""


@pytest.fixture
def project(compiler: Compiler, tmp_path: Path) -> Iterator[Project]:
    sources = {"part.ml": PART, "main.ml": MAIN}
    with project_of(compiler, tmp_path, sources) as made:
        made.run()
        yield made


def part_lines(said: str) -> list[str]:
    return [word for word in said.split() if word.startswith("part.ml")]


def test_backtraces_have_the_lines_of_the_file_that_is_live(project: Project) -> None:
    ask = project.program.ask
    assert [ask("1"), part_lines(ask("9"))[-1]] == ["2", "part.ml:2"]
    project.save("part.ml", "let limit = 3", "\n\n\nlet limit = 3")
    assert part_lines(ask("9"))[-1] == "part.ml:5"
    project.save("part.ml", "let check n =", "let check n =\n  ignore (string_of_int n);\n ")
    assert part_lines(ask("9"))[-1] == "part.ml:7"
    assert [ask("2"), ask("9").split()[-1]] == ["3", "main.ml:7"]


def test_owner_tells_object_generation_address_and_line_of_an_ocaml_name(
    project: Project,
) -> None:
    linked = project.json("owner", "Part.check")[0]
    assert (linked["generation"], linked["line"]) == (0, "part.ml:2")
    project.save("part.ml", "let limit = 3", "\n\nlet limit = 4")
    row = project.json("owner", "Part.check")[0]
    assert (row["generation"], row["line"], row["live"]) == (1, "part.ml:4", True)
    assert Path(row["object"]).name == "part.o"
    assert row["addr"] != linked["addr"]
    assert project.json("owner", hex(row["addr"]))[0]["name"] == row["name"]
    assert project.program.ask("4") == "5"
