"""What fails after the swap, or beside it, must leave a program whole: OCaml's promises."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from reloader.ids import Region
from reloader.live.retire import RetirePolicy
from reloader.session.session import Session
from tests.support.live import traced
from tests.support.ocaml import Build, Compiler, build
from tests.support.ocaml_project import session_of

FOO = """let step = ref 1.5
let version () = "first"
let scaled k = fun x -> Float.to_string (Float.abs (-. x) *. k +. !step)
"""
MAIN = """external hold : int -> unit = "hold_runtime"
let children = ref 0
let captured = Foo.version
let kept = ref (fun (_ : float) -> "none")
let take () = kept := Foo.scaled 2.

let child () =
  let from_parent, to_child = Unix.pipe ~cloexec:false () in
  flush stdout;
  match Unix.fork () with
  | 0 ->
      Unix.close to_child;
      ignore (Unix.read from_parent (Bytes.create 1) 0 1);
      Gc.compact ();
      exit (if captured () = "first" then 0 else 3)
  | pid -> (pid, to_child)

let waiting = ref None
let answer = function
  | "take" -> take (); "done"
  | "kept" -> !kept 4.
  | "fork" -> let pid, pipe = child () in waiting := Some (pid, pipe); string_of_int pid
  | "join" -> (
      match !waiting with
      | None -> "no child"
      | Some (pid, pipe) -> (
          Unix.close pipe;
          match Unix.waitpid [] pid with
          | _, Unix.WEXITED status -> string_of_int status
          | _ -> "signal"))
  | "gc" -> Gc.compact (); "done"
  | _ -> captured () ^ " " ^ Foo.version ()

let () =
  if Array.length Sys.argv > 9 then hold 0;
  print_endline "ready";
  try
    while true do
      print_endline (answer (read_line ()))
    done
  with End_of_file -> ()
"""
STUB = """#include <time.h>
long hold_runtime(long tagged)
{
    struct timespec left = {tagged >> 1, 0};
    while (nanosleep(&left, &left)) continue;
    return 1;
}
"""
SOURCES = {"foo.ml": FOO, "main.ml": MAIN, "stub.c": STUB}


@pytest.fixture
def program(compiler: Compiler, tmp_path: Path) -> Iterator[Build]:
    made = build(compiler, tmp_path, SOURCES, packages=["unix"])
    made.start()
    yield made
    made.stop()


def version(program: Build, session: Session, old: str, new: str) -> str:
    """Edit, compile and reload foo.ml; return the state and the error or notes."""
    outcome = session.reload_files([str(program.edit("foo.ml", old, new))])
    return "\n".join([outcome.state, outcome.error, *outcome.notes])


def test_a_program_that_cannot_be_stopped_runs_the_new_unit_all_the_same(
    program: Build,
) -> None:
    with session_of(program) as session:
        assert program.process is not None
        with traced(program.process.pid):
            said = version(program, session, "first", "second")
        assert said.startswith("live")
        assert "captured" in said
        assert program.ask("gc") == "done"
        assert program.ask("?") == "first second"
        assert version(program, session, "second", "third").startswith("live")
        assert program.ask("?") == "third third"


def test_a_slot_table_without_room_refuses_before_anything_is_swapped(program: Build) -> None:
    with session_of(program) as session:
        table = session.program.table
        room, table.capacity = table.capacity, len(table) + 1
        said = version(program, session, "first", "second")
        assert said.startswith("refused")
        assert "Nothing was changed" in said
        assert program.ask("?") == "first first"
        table.capacity = room
        assert version(program, session, "second", "third").startswith("live")
        assert program.ask("gc") == "done"
        assert program.ask("?") == "third third"


def test_a_unit_is_refused_while_a_forked_child_would_run_it_unprepared(program: Build) -> None:
    with session_of(program) as session:
        child = program.ask("fork")
        said = version(program, session, "first", "second")
        assert said.startswith("refused")
        assert child in said
        assert "Nothing was changed" in said
        assert program.ask("?") == "first first"
        assert program.ask("join") == "0"
        assert version(program, session, "second", "third").startswith("live")
        assert program.ask("?") == "third third"


def test_a_closure_of_an_old_version_keeps_the_constants_of_its_code(program: Build) -> None:
    with session_of(program) as session:
        assert version(program, session, "first", "second").startswith("live")
        assert program.ask("take") == "done"
        before = program.ask("kept")
        for row in range(4):
            old, new = "second" if row == 0 else f"v{row}", f"v{row + 1}"
            assert version(program, session, old, new).startswith("live")
            session.retiring.next_release = 0.0
            session.retiring.retirer.policy = RetirePolicy(min_interval=0.0)
            session.retiring.attempt()
            assert program.ask("gc") == "done"
        held = [
            row.allocation.region
            for row in session.program.ledger.rows.values()
            if row.superseded and row.generation == 1 and row.object[0]
        ]
        assert sorted(held) == [Region.CODE, Region.RODATA, Region.DATA]
        assert program.ask("kept") == before


def test_an_object_that_is_gone_once_it_was_read_is_no_reason_to_fail(program: Build) -> None:
    with session_of(program) as session:
        path = program.edit("foo.ml", "first", "second")
        content = path.read_bytes()
        path.unlink()
        outcome = session.reload_contents([(str(path), content)], time.monotonic())
        assert outcome.state == "live"
        assert program.ask("?") == "second second"


def test_an_initialiser_that_ends_late_in_a_c_function_is_undone(program: Build) -> None:
    with session_of(program, "initialiser_s = 0.2\n") as session:
        late = 'external hold : int -> unit = "hold_runtime"\nlet () = hold 1\n'
        source = program.folder / "foo.ml"
        text = source.read_text()
        source.write_text(text.replace("first", "second") + late)
        outcome = session.reload_files([str(program.compile("foo.ml"))])
        assert outcome.state != "live"
        assert "takes too long" in outcome.error
        assert program.ask("?") == "first first"
        source.write_text(text.replace("first", "third"))
        outcome = session.reload_files([str(program.compile("foo.ml"))])
        assert outcome.state == "live"
        assert program.ask("?") == "third third"
