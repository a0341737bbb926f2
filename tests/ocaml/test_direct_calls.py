"""An old unit whose code calls another old one directly, as without -opaque, keeps it whole."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from reloader.session.session import Session
from tests.support.ocaml import Build, Compiler
from tests.support.ocaml_project import session_of

FOO = """let name = "first"
let rec count n found = if n = 0 then found else count (n - 1) (name :: found)
let work n = String.concat "," (List.rev (count n []))
"""
BAR = """let name = "first"
let scaled k =
  let more = Sys.opaque_identity k in
  fun n -> Foo.work (n + more)
"""
MAIN = """let kept = ref (fun _ -> "none")
let answer = function
  | "take" -> kept := Bar.scaled 1; "done"
  | "kept" -> Gc.compact (); String.sub (!kept 200_000) 0 13
  | "drop" -> kept := (fun _ -> "none"); Gc.compact (); "done"
  | _ -> Bar.scaled 0 1

let () =
  print_endline "ready";
  try
    while true do
      print_endline (answer (read_line ()))
    done
  with End_of_file -> ()
"""


class Mixed(Build):
    """Foo shows its code to Bar, and nobody else shows anything to anybody."""

    def compile(self, name: str) -> Path:
        self.opaque = name != "foo.ml"
        return super().compile(name)


@pytest.fixture
def program(compiler: Compiler, tmp_path: Path) -> Iterator[Build]:
    made = Mixed(compiler, tmp_path)
    made.write({"foo.ml": FOO, "bar.ml": BAR, "main.ml": MAIN})
    made.build()
    with made:
        made.start()
        yield made


def reload_both(program: Build, session: Session, old: str, new: str) -> str:
    """Edit Foo's name and Bar's, compile both, and reload them."""
    paths = [program.edit(name, f'"{old}"', f'"{new}"') for name in ("foo.ml", "bar.ml")]
    outcome = session.reload_files([str(path) for path in paths])
    return outcome.state + outcome.error


def known(session: Session) -> set[tuple[str, int]]:
    """Let go of all that can be; return the units that the runtime knows, with generation."""
    session.retiring.let_go()
    host, rows = session.program.host, session.program.ledger.rows.values()
    found = [row for row in rows if host.holds(row.allocation)]
    return {(Path(row.object[0]).stem, int(row.generation)) for row in found}


def test_a_closure_of_an_old_unit_keeps_the_old_unit_that_its_code_calls(
    program: Build,
) -> None:
    with session_of(program) as session:
        assert reload_both(program, session, "first", "second") == "live"
        assert program.ask("take") == "done"
        assert reload_both(program, session, "second", "third") == "live"
        assert known(session) == {("foo", 1), ("bar", 1), ("foo", 2), ("bar", 2)}
        assert program.ask("kept") == "second,second"
        assert program.ask("?") == "third"
        assert program.ask("drop") == "done"
        assert known(session) == {("foo", 2), ("bar", 2)}
        assert program.ask("?") == "third"


def test_a_user_that_was_compiled_again_to_the_same_object_is_linked_anew(
    program: Build,
) -> None:
    with session_of(program) as session:
        foo = program.edit("foo.ml", '"first"', '"second"')
        outcome = session.reload_files([str(foo)])
        assert outcome.state == "refused"
        assert "Bar was optimised with its old code" in outcome.error
        assert program.ask("?") == "first"
        outcome = session.reload_files([str(program.compile("bar.ml"))])
        assert (outcome.error or outcome.state) == "live"
        assert program.ask("?") == "second"
        paths = [program.edit("foo.ml", '"second"', '"third"'), program.compile("bar.ml")]
        outcome = session.reload_files([str(path) for path in paths])
        assert (outcome.error or outcome.state) == "live"
        assert program.ask("?") == "third"
