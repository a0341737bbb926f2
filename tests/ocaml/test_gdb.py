"""What gdb finds of reloaded OCaml units."""

from pathlib import Path

from tests.support.gdb import frames, gdb
from tests.support.ocaml import Compiler
from tests.support.ocaml_project import project_of

PART = "let limit = 3\nlet check n = String.length (string_of_int n) + limit\n"
MAIN = """let () =
  print_endline "ready";
  try
    while true do
      print_endline (string_of_int (Part.check (int_of_string (read_line ())) + 1))
    done
  with End_of_file -> ()
"""


def test_a_reloaded_function_has_its_name_and_its_callers_in_gdb(
    compiler: Compiler, tmp_path: Path
) -> None:
    sources = {"part.ml": PART, "main.ml": MAIN}
    with project_of(compiler, tmp_path, sources) as project:
        project.run()
        assert project.program.ask("7") == "5"
        project.save("part.ml", "limit = 3", "limit = 4")
        row = project.json("owner", "Part.check")[0]
        pid = int(project.json("status")["targets"][0]["pid"])
        commands = ["feed", "continue", "bt", f"info symbol {row['addr']:#x}"]
        said = gdb(pid, f"break *{row['addr']:#x}", *commands)
        assert project.program.line() == "6"
        assert frames(said)[0] == row["name"]
        assert frames(said)[1].startswith("camlMain")
        assert f"{row['name']} in section .text" in said
