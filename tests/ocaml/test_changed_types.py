"""A type that changed in a running program: old values meet old code, new values new code."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.ocaml import Compiler
from tests.support.ocaml_project import Project, project_of

pytestmark = pytest.mark.live

SOURCES = {
    "foo.mli": "type t\nval make : unit -> t\nval show : t -> string\nval name : string\n",
    "foo.ml": """\
type t = { n : int }
let name = "first"
let make () = { n = 1 }
let show t = string_of_int t.n
""",
    "user.ml": """\
let kept = ref (Foo.make ())
let calls = ref 0
let now () = incr calls; Foo.name ^ " " ^ Foo.show !kept ^ " " ^ string_of_int !calls
let direct () = let value = Foo.make () in fun () -> Foo.show value
let captured () = let value = Foo.make () and show = Foo.show in fun () -> show value
""",
    "user.mli": """\
val now : unit -> string
val direct : unit -> unit -> string
val captured : unit -> unit -> string
""",
    "main.ml": """\
let held = ref []
let answer = function
  | "hold" -> held := [ User.direct (); User.captured () ] @ !held; "held"
  | "held" -> String.concat " " (List.map (fun f -> f ()) !held)
  | _ -> User.now ()
let () =
  print_endline "ready";
  try
    while true do
      let line = read_line () in
      print_endline (answer line)
    done
  with End_of_file -> ()
""",
}
NEXT = """\
type t = { label : string; n : int }
let name = "second"
let make () = { label = "new "; n = 2 }
let show t = t.label ^ string_of_int t.n
"""


BUILD = """\
for unit in $(cat units); do
  ocamlfind ocamlopt -g -bin-annot -opaque -c $unit || exit 1
done
"""


@pytest.fixture
def project(compiler: Compiler, tmp_path: Path) -> Iterator[Project]:
    with project_of(compiler, tmp_path, SOURCES) as made:
        (tmp_path / "build.sh").write_text(BUILD)
        made.run(options=["--build", "sh build.sh", "--source", "foo.ml"])
        yield made


def build(project: Project, text: str, *units: str) -> dict[str, Any]:
    """Save foo.ml, which compiles some units; return what came of that."""
    (project.folder / "units").write_text(" ".join(units))
    (project.folder / "foo.ml").write_text(text)
    return project.settled()


def test_a_hidden_type_changes_together_with_its_users(project: Project) -> None:
    ask = project.program.ask
    assert [ask("now"), ask("hold"), ask("held")] == ["first 1 1", "held", "1 1"]
    refused = build(project, NEXT, "foo.ml")
    assert refused["outcome"] == "refused"
    assert "type t changed; User may hold old values" in str(refused["error"])
    assert "now:            type t = { label : string; n : int; }" in str(refused["error"])
    assert [ask("now"), ask("held")] == ["first 1 2", "1 1"]

    user = project.folder / "user.ml"
    user.write_text(user.read_text().replace('^ " "', '^ ", "'))
    row = build(project, NEXT + "\n", "foo.ml", "user.ml")
    assert (row["outcome"], row["error"]) == ("live", None)
    assert ask("now") == "second, new 2, 3"  # `calls` went on, `kept` was made anew
    assert ask("held") == "1 1"  # old functions with old values
    assert [ask("hold"), ask("held")] == ["held", "new 2 new 2 1 1"]

    build(project, NEXT.replace("string_of_int t.n", "string_of_int (10 * t.n)"), "foo.ml")
    assert ask("held") == "new 20 new 20 1 1"  # who captured the new `show` has the newest
    assert project.program.stop() == 0
