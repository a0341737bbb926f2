"""Units without an .mli: what an edit costs in memory, and what a new exported value costs."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from reloader.session.session import Session
from tests.support.ocaml import Build, Compiler, build
from tests.support.ocaml_project import session_of

FOO = """type shape = { name : string; size : int }
exception Too_small of shape
module Sizes = struct let least = 1 end
let total = ref 0
let make size = { name = "v0"; size }
let check shape = if shape.size < Sizes.least then raise (Too_small shape) else shape.name
"""
MAIN = """let captured = Foo.check
let answer = function
  | "small" -> (try Foo.check (Foo.make 0) with Foo.Too_small shape -> "small " ^ shape.name)
  | _ -> incr Foo.total; captured (Foo.make 1) ^ " " ^ string_of_int !Foo.total

let () =
  print_endline "ready";
  try
    while true do
      print_endline (answer (read_line ()))
    done
  with End_of_file -> ()
"""


@pytest.fixture
def program(compiler: Compiler, tmp_path: Path) -> Iterator[Build]:
    with build(compiler, tmp_path, {"foo.ml": FOO, "main.ml": MAIN}) as made:
        made.start()
        yield made


def needed(session: Session) -> tuple[int, int]:
    """Return how many blocks others know units by, and the bytes of memory that is in use."""
    rows = session.program.ledger.rows.values()
    size = sum(row.allocation.size for row in rows if not row.superseded)
    return len(session.program.host.roots()), size


def test_thirty_edits_that_move_lines_need_no_more_memory_than_one(program: Build) -> None:
    with session_of(program) as session:
        sizes: list[tuple[int, int]] = []
        for row in range(30):
            path = program.edit("foo.ml", f'"v{row}"', f'\n"v{row + 1}"')
            assert session.reload_files([str(path)]).state == "live"
            sizes.append(needed(session))
        assert len(set(sizes)) == 1
        assert program.ask("?") == "v30 1"
        assert program.ask("small") == "small v30"


def test_a_new_value_costs_one_version_and_no_more(program: Build) -> None:
    with session_of(program) as session:
        more = '"v0"'
        blocks: list[int] = []
        for row in range(4):
            if row % 2:  # a value in the midst: all behind it have other places
                program.edit("foo.ml", "let make", f"let more{row} = {row}\nlet make")
            path = program.edit("foo.ml", more, f'"v{row + 1}"')
            more = f'"v{row + 1}"'
            assert session.reload_files([str(path)]).state == "live"
            blocks.append(needed(session)[0])
            assert program.ask("small") == f"small v{row + 1}"
        first = blocks[0]
        assert blocks == [first, first + 1, first + 1, first + 2]
        assert program.ask("?") == "v4 1"
