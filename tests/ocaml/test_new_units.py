"""Units that the program was linked without: the standard library's, an archive's, new ones."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from reloader.session.session import Session
from tests.support.ocaml import Build, Compiler, build
from tests.support.ocaml_project import session_of

FOO = """let count = ref 0
let answer (line : string) =
  incr count;
  Printf.sprintf "%d %s" !count (line)
"""
MAIN = """let () =
  print_endline "ready";
  try
    while true do
      print_endline (Foo.answer (read_line ()))
    done
  with End_of_file -> ()
"""
# what the new code says, what of 12 3, and what it is compiled with; the first needs C as well
STANDARD = {
    'Str.global_replace (Str.regexp "[0-9]+") "n" line': ("n n", ("str",)),
    "Digest.to_hex (Digest.string line)": ("8787ae48ed1d2b18c2775021703b9e12", ()),
    'Scanf.sscanf line "%d %d" (fun a b -> string_of_int (a * b))': ("36", ()),
    "let open Bigarray in string_of_int Array1.(dim (create int c_layout 7))": ("7", ()),
    "let module S = Set.Make (Char) in String.(of_seq (S.to_seq (S.of_seq (to_seq line))))": (
        " 123", ()),
    "match Unix.readlink line with x -> x | exception e -> Printexc.to_string e": (
        'Unix.Unix_error(Unix.ENOENT, "readlink", "12 3")', ("unix",)),
}  # fmt: skip


@pytest.fixture
def program(compiler: Compiler, tmp_path: Path) -> Iterator[Build]:
    with build(compiler, tmp_path, {"foo.ml": FOO, "main.ml": MAIN}) as made:
        made.start()
        yield made


def edited(program: Build, session: Session, new: str, packages: tuple[str, ...] = ()) -> str:
    """Let Foo say something else, and reload it; return the state and the error."""
    (program.folder / "foo.ml").write_text(FOO.replace("(line)", f"({new})"))
    program.packages = packages
    outcome = session.reload_files([str(program.compile("foo.ml"))])
    return outcome.state + outcome.error


def test_units_of_the_standard_library_come_when_new_code_uses_them(program: Build) -> None:
    with session_of(program) as session:
        for number, (text, (said, packages)) in enumerate(STANDARD.items(), 1):
            assert edited(program, session, text, packages) == "live"
            assert program.ask("12 3") == f"{number} {said}"


def test_a_unit_that_no_library_at_hand_has_is_named(program: Build) -> None:
    with session_of(program) as session:
        text = "string_of_int (Thread.id (Thread.self ()))"
        error = edited(program, session, text, ("threads.posix",))
        assert error.startswith("refused")
        assert "Foo: it uses Thread and Unix, and the program was linked without" in error
        assert "Link the program with the library" in error
        assert "Nothing was changed" in error
        assert program.ask("12 3") == "1 12 3"


PARTS = {
    "lib_base.ml": 'let calls = ref 0\nlet word = "base"\nlet tag s = incr calls; word ^ s\n',
    "lib_more.ml": "let all n = List.init n (fun k -> Lib_base.tag (string_of_int k))\n"
    'let said n = String.concat "," (all n)\n',
    "main.ml": MAIN.replace("Foo.answer (", "Lib_more.said (int_of_string (").replace(
        "))\n    done", ")))\n    done"
    ),
}


class Library(Build):
    """Units whose names begin with `lib_` are in an archive, and nowhere else."""

    def archive(self) -> Path:
        """Put the units together, as a makefile's rule does."""
        names = [f"{Path(name).stem}.cmx" for name in PARTS if name.startswith("lib_")]
        words = [*self.compiler.command, "-a", *names, "-o", "parts.cmxa"]
        self.compiler.run(*words, cwd=self.folder)
        for name in names:
            (self.folder / name).with_suffix(".o").unlink()
        return self.folder / "parts.a"

    def _link(self, inputs: Sequence[str]) -> None:
        self.archive()
        super()._link(["parts.cmxa", *(name for name in inputs if "lib_" not in name)])


def test_units_of_an_archive_are_replaced_together_in_their_order(
    compiler: Compiler, tmp_path: Path
) -> None:
    program = Library(compiler, tmp_path)
    program.write(PARTS)
    program.build()
    with program:
        program.start()
        with session_of(program, watch="*.a") as session:
            assert program.ask("2") == "base0,base1"
            program.edit("lib_base.ml", '"base"', '"new"')
            program.edit("lib_more.ml", '","', "(string_of_int !Lib_base.calls)")
            outcome = session.reload_files([str(program.archive())])
            assert (outcome.error or outcome.state) == "live"
            assert program.ask("2") == "new04new1"
            program.edit("lib_base.ml", "word ^ s", "s ^ word")
            program.compile("lib_more.ml")  # equal, and in the new archive like before
            outcome = session.reload_files([str(program.archive())])
            assert (outcome.error or outcome.state) == "live"
            assert program.ask("2") == "0new61new"
