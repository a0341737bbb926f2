"""Units that do not fit one by one, as a build compiles them, come together with the last."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from reloader.session.session import Session
from tests.support.ocaml import Build, Compiler, build
from tests.support.ocaml_project import session_of

FOO = """let asked = ref 0
let said n = incr asked; "first " ^ string_of_int n
let plain s = "<" ^ s ^ ">"
"""
FOO_INTERFACE = "val asked : int ref\nval said : int -> string\nval plain : string -> string\n"
SOURCES = {
    "foo.ml": FOO,
    "foo.mli": FOO_INTERFACE,
    "bar.ml": "let bar n = Foo.said n\n",
    "baz.ml": "let baz n = Foo.said (n + 1)\n",
    "same.ml": "let same n = Foo.plain (string_of_int n)\n",
    "main.ml": """let () =
  print_endline "ready";
  try
    while true do
      let n = int_of_string (read_line ()) in
      let all = [ Bar.bar n; Baz.baz n; Same.same n; Foo.plain "m" ] in
      print_endline (String.concat " " all)
    done
  with End_of_file -> ()
""",
}
WIDER = (
    FOO.replace("said n", "said ~by n").replace("string_of_int n", "string_of_int (n * by)"),
    FOO_INTERFACE.replace("said : int", "said : by:int -> int"),
)


@pytest.fixture
def program(compiler: Compiler, tmp_path: Path) -> Iterator[Build]:
    with build(compiler, tmp_path, SOURCES) as made:
        made.start()
        yield made


def interface(program: Build, source: str, text: str) -> Path:
    """Write and compile Foo with its interface."""
    program.write({"foo.ml": source, "foo.mli": text})
    program.compile("foo.mli")
    return program.compile("foo.ml")


def saved(session: Session, path: Path) -> str:
    """Reload what was compiled; return the state, the error and the notes."""
    outcome = session.reload_files([str(path)])
    return "\n".join([outcome.state, outcome.error, *outcome.notes])


def test_a_changed_interface_is_live_once_the_last_user_was_compiled(program: Build) -> None:
    with session_of(program) as session:
        assert program.ask("1") == "first 1 first 2 <1> <m>"
        said = saved(session, interface(program, *WIDER))
        assert said.startswith("refused")
        assert "Bar, Baz, Main and Same" in said
        said = saved(session, program.edit("bar.ml", "said n", "said ~by:10 n"))
        assert said.startswith("refused")
        assert "Nothing was changed" in said
        said = saved(session, program.edit("baz.ml", "said (", "said ~by:100 ("))
        assert said.startswith("refused")
        assert program.ask("1") == "first 1 first 2 <1> <m>"
        assert saved(session, program.compile("same.ml")) == "unchanged\n"  # equal to before
        said = saved(session, program.compile("main.ml"))
        assert said.startswith("live")
        assert "Main runs on" in said
        assert "Foo.said" in said
        assert program.ask("1") == "first 10 first 200 <1> <m>"
        said = saved(session, program.edit("foo.ml", '"<"', '"["'))
        assert said.startswith("live")
        assert program.ask("1") == "first 10 first 200 [1> [m>"


def test_what_waits_is_forgotten_once_its_source_is_as_it_was(program: Build) -> None:
    with session_of(program) as session:
        assert saved(session, interface(program, *WIDER)).startswith("refused")
        assert saved(session, interface(program, FOO, FOO_INTERFACE)).startswith("unchanged")
        said = saved(session, program.edit("bar.ml", "said n", "said (7 * n)"))
        assert said.startswith("live")
        assert program.ask("1") == "first 7 first 2 <1> <m>"


def test_a_unit_that_runs_is_left_out_where_the_others_fit_without(program: Build) -> None:
    source = FOO.replace("let plain", "let more = 7\nlet plain").replace('"<"', '"{"')
    text = FOO_INTERFACE.replace("val plain", "val more : int\nval plain")
    with session_of(program) as session:
        paths = [interface(program, source, text)]
        paths += [program.compile(f"{name}.ml") for name in ("bar", "baz", "same", "main")]
        outcome = session.reload_files([str(path) for path in paths])
        assert (outcome.error or outcome.state) == "live"
        assert not any("main.o" in name for name in outcome.objects)
        assert any("Main: the program is inside its toplevel" in row for row in outcome.notes)
        assert program.ask("1") == "first 1 first 2 {1> {m>"


def test_a_unit_that_runs_is_refused_where_it_may_hold_what_changed(
    compiler: Compiler, tmp_path: Path
) -> None:
    sources = {
        "foo.ml": "type t = A of int\nlet make n = A n\nlet show (A n) = string_of_int n\n",
        "main.ml": 'let kept = Foo.make 1\nlet () = print_endline "ready"\n'
        "let () = ignore (read_line ()); print_endline (Foo.show kept)\n",
    }
    other = {"foo.ml": "type t = A of string\nlet make n = A (string_of_int n)\n"
             "let show (A s) = s\n"}  # fmt: skip
    with build(compiler, tmp_path, sources) as program:
        program.start()
        with session_of(program) as session:
            program.write(other)
            paths = [program.compile("foo.ml"), program.compile("main.ml")]
            outcome = session.reload_files([str(path) for path in paths])
            assert outcome.state == "refused"
            assert "Main may hold old values" in outcome.error
            assert "Nothing was changed" in outcome.error
        assert program.ask("?") == "1"
