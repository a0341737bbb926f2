"""An OCaml program that captures functions, forks, and goes on in the background when told."""

import shutil
from collections.abc import Generator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from tempfile import mkdtemp

from reloader.session.outcome import Outcome
from reloader.session.session import Session
from tests.support.ocaml import Build, Compiler, build

FOO = """external bonus : int -> int = "bonus"
let calls = ref 0
let version () = incr calls; "first"
let answer n = string_of_int (bonus n) ^ version ()
"""
MAIN = """let captured = Foo.version
let waiting = ref []

let child () =
  let from_parent, to_child = Unix.pipe ~cloexec:false () in
  flush stdout;
  match Unix.fork () with
  | 0 ->
      Unix.close to_child;
      ignore (Unix.read from_parent (Bytes.create 1) 0 1);
      Gc.compact ();
      let said = captured () in
      Gc.compact ();
      exit (if said = "first" then 1 else if said = "second" then 2 else 3)
  | pid -> waiting := (pid, from_parent, to_child) :: !waiting; string_of_int pid

let join () =
  let ended (pid, from_parent, to_child) =
    Unix.close from_parent;
    Unix.close to_child;
    match Unix.waitpid [] pid with
    | _, Unix.WEXITED status -> string_of_int status
    | _ -> "signal" in
  let said = String.concat " " (List.map ended !waiting) in
  waiting := [];
  said

let rec spawn times =
  if times > 0 then
    match Unix.fork () with
    | 0 -> Unix.sleepf 0.05; Unix.execv "/bin/true" [| "true" |]
    | pid -> ignore (Unix.waitpid [] pid); spawn (times - 1)

let background () =
  flush stdout;
  if Unix.fork () > 0 then Unix._exit 0;
  "child"

let said = function
  | "fork" -> child ()
  | "join" -> join ()
  | "spawn" -> spawn 6; "done"
  | "background" -> background ()
  | "gc" -> Gc.compact (); "done"
  | "late" -> Late.said ()
  | _ -> captured () ^ " " ^ Foo.answer 1

let () =
  print_endline "ready";
  try
    while true do
      print_endline (said (read_line ()))
    done
  with End_of_file -> ()
"""
STUB = """#include <unistd.h>
long bonus(long tagged) { return tagged + 2 * 10; }
long hold(long unused) { while (access("go-on", F_OK)) usleep(1000); return unused; }
"""
LATE = """let first_said = ref ""
let said () = if !first_said = "" then first_said := Foo.version (); !first_said
"""
SOURCES = {"foo.ml": FOO, "late.ml": LATE, "main.ml": MAIN, "stub.c": STUB}


@cache
def built(compiler: Compiler) -> Build:
    """Build it once for each compiler."""
    return build(
        compiler, Path(mkdtemp(prefix="reloader-forking-")), SOURCES, packages=["unix"]
    )


@contextmanager
def forking(compiler: Compiler, folder: Path) -> Generator[Build]:
    """Run it from a folder of its own; end it with the block."""
    shutil.copytree(built(compiler).folder, folder, dirs_exist_ok=True)
    made = Build(compiler, folder, packages=["unix"])
    made.start()
    try:
        yield made
    finally:
        made.stop()


def reload(program: Build, session: Session, old: str, new: str) -> Outcome:
    """Edit, compile and reload foo.ml."""
    return session.reload_files([str(program.edit("foo.ml", old, new))])


def text_of(outcome: Outcome) -> str:
    """Return all that an outcome says."""
    return "\n".join([outcome.state, outcome.error, *outcome.notes])
