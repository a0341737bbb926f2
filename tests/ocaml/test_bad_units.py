"""Units that cannot replace another: a clear text, and the program runs on with its state."""

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.ocaml import Compiler, build, compiler_of
from tests.support.ocaml_project import Project, project_of

COMPILED = (".o", ".cmi", ".cmx", ".cmt")
E_MACHINE, AARCH64 = 18, 183


@pytest.fixture
def counter(compiler: Compiler, tmp_path: Path) -> Iterator[Project]:
    """A program with some state, which is all there after whatever a test did to it."""
    folder = tmp_path / "program"
    folder.mkdir()
    with project_of(compiler, folder, "counter") as project:
        project.run()
        assert project.program.ask("bump 7") == "7"
        yield project
        asked = [project.program.ask(text) for text in ("total", "hidden", "name", "table 1")]
        assert asked == ["7", "1", "first", "8"]


def refused(project: Project) -> str:
    """Wait for the attempt, which must be refused; return its text."""
    row = project.settled()
    assert row["outcome"] == "refused", row
    assert "Nothing was changed" in row["error"]
    return str(row["error"])


def put(obj: Path, place: Path) -> None:
    """Put an object in place the way compilers finish theirs."""
    kept = place.with_suffix(".tmp")
    shutil.copy(obj, kept)
    kept.rename(place)


def test_a_unit_of_another_compiler_version(
    counter: Project, compiler: Compiler, tmp_path: Path
) -> None:
    other = compiler_of("4.13" if compiler.multicore else "5.3")
    (tmp_path / "other").mkdir()
    build(other, tmp_path / "other", "counter")
    for suffix in reversed(COMPILED):
        put(tmp_path / "other" / f"counter{suffix}", counter.folder / f"counter{suffix}")
    assert "one compiler" in refused(counter)


def test_an_object_of_another_architecture(counter: Project) -> None:
    obj = counter.folder / "counter.o"
    content = bytearray(obj.read_bytes())
    content[E_MACHINE] = AARCH64
    (counter.folder / "new").write_bytes(content)
    (counter.folder / "new").rename(obj)
    assert "e_machine) is 183" in refused(counter)


def test_a_unit_without_its_interface(counter: Project) -> None:
    (counter.folder / "counter.cmi").unlink()
    obj = counter.folder / "counter.o"
    (counter.folder / "new").write_bytes(obj.read_bytes().replace(b"first", b"other"))
    (counter.folder / "new").rename(obj)
    assert "counter.cmi" in refused(counter)


def save_without_cmx(project: Project) -> None:
    """Save another version of the counter's object, with nothing that describes its code."""
    obj = project.folder / "counter.o"
    for suffix in (".cmx", ".cmt"):
        obj.with_suffix(suffix).unlink()
    (project.folder / "new").write_bytes(obj.read_bytes().replace(b"first", b"other"))
    (project.folder / "new").rename(obj)


def test_a_unit_without_a_cmx_is_taken_where_nobody_inlines(
    compiler: Compiler, tmp_path: Path
) -> None:
    with project_of(compiler, tmp_path, "counter") as project:
        project.run()
        assert project.program.ask("bump 7") == "7"
        save_without_cmx(project)
        row = project.settled()
        assert row["outcome"] == "live"
        assert any("there is no .cmt file" in note for note in row["notes"])
        assert [project.program.ask("name"), project.program.ask("total")] == ["other", "7"]


def test_a_unit_without_a_cmx_is_refused_where_others_inlined_it(
    compiler: Compiler, tmp_path: Path
) -> None:
    with project_of(compiler, tmp_path, "counter", opaque=False) as project:
        project.run()
        save_without_cmx(project)
        text = refused(project)
        assert "Main" in text
        assert ".cmx is missing" in text
        assert project.program.ask("name") == "first"


def test_an_initialiser_without_end_is_given_up(compiler: Compiler, tmp_path: Path) -> None:
    with project_of(compiler, tmp_path, "counter") as project:
        (tmp_path / "reloader.toml").write_text("[ocaml]\ninitialiser_s = 0.3\n")
        project.run()
        assert project.program.ask("bump 3") == "3"
        text = "let add a b = a + b"
        row = project.save("counter.ml", text, f"let () = while true do () done\n{text}")
        assert row["outcome"] != "live"
        assert "the initialiser of Counter" in row["error"]
        assert "takes too long" in row["error"]
        assert [project.program.ask("bump 1"), project.program.ask("hidden")] == ["4", "2"]
        row = project.save("counter.ml", "while true do () done", "()")
        assert row["outcome"] == "live"
        assert project.program.ask("total") == "4"


def test_units_of_an_flambda_compiler_are_refused(compiler: Compiler, tmp_path: Path) -> None:
    with project_of(compiler, tmp_path, "counter") as project:
        fake = tmp_path / "flambda"
        real = " ".join(compiler.command)
        fake.write_text(f'#!/bin/sh\n{real} "$@" | sed "s/^flambda: false/flambda: true/"\n')
        fake.chmod(0o755)
        (tmp_path / "reloader.toml").write_text(f'[ocaml]\ncompiler = "{fake}"\n')
        project.run()
        text = project.refusal("counter.ml", "let add a b = a + b", "let add a b = a * b")
        assert "flambda" in text
        assert project.program.ask("partial 1") == "6"


def test_a_type_that_the_interface_hides_changed(compiler: Compiler, tmp_path: Path) -> None:
    texts = {
        "box.mli": "type t\nval make : int -> t\nval get : t -> int\n",
        "box.ml": "type t = { n : int }\nlet make n = { n }\nlet get t = t.n\n",
        "main.ml": 'let box = Box.make 3\nlet () = print_endline "ready"; try while true do\n'
        "ignore (read_line ()); print_endline (string_of_int (Box.get box)) done\n"
        "with End_of_file -> ()\n",
    }  # fmt: skip
    with project_of(compiler, tmp_path, texts) as project:
        project.run()
        project.program.write(
            {"box.ml": "type t = { m : int; n : int }\nlet make n = { m = 0; n }\n"
             "let get t = t.n\n"}
        )  # fmt: skip
        project.program.compile("box.ml")
        text = refused(project)
        assert "type t = { n : int; }" in text
        assert "type t = { m : int; n : int; }" in text
        assert "Main" in text
        assert project.program.ask("") == "3"


def test_callers_that_inlined_the_old_unit_are_named(
    compiler: Compiler, tmp_path: Path
) -> None:
    with project_of(compiler, tmp_path, "counter", opaque=False) as project:
        project.run()
        text = project.refusal("counter.ml", "let add a b = a + b", "let add a b = a * b")
        assert "-opaque" in text
        assert "Keepers" in text
        assert "Main" in text
        assert project.program.ask("partial 1") == "6"


def test_a_unit_that_is_not_in_the_program(counter: Project) -> None:
    counter.program.write({"stranger.ml": "let f x = x + 1\n"})
    counter.program.compile("stranger.ml")
    assert "no part of the running program" in refused(counter)


def test_a_static_program_is_refused_by_name(compiler: Compiler, tmp_path: Path) -> None:
    program = build(compiler, tmp_path, "counter")
    program.link_flags = ("-ccopt", "-static")
    program.build()
    project = Project(program)
    pid = program.start()
    text = project.verb("attach", str(pid), status=1)
    assert "static" in text
    assert program.ask("bump 2") == "2"
    program.stop()


def test_a_stripped_program_still_takes_new_units(compiler: Compiler, tmp_path: Path) -> None:
    with project_of(compiler, tmp_path, "counter") as project:
        subprocess.run(["/usr/bin/strip", project.program.executable], check=True)
        project.run()
        ten = 'Scanf.sscanf "10" "%d" Fun.id'
        row = project.save("counter.ml", "!total + by", f"!total + ({ten} * by)")
        assert row["outcome"] == "live"
        assert project.program.ask("table 1") == "10"


def test_a_unit_that_needs_a_library_the_program_lacks(
    compiler: Compiler, tmp_path: Path
) -> None:
    with project_of(compiler, tmp_path, "counter") as project:
        project.run()
        project.program.packages = ("threads.posix",)
        text = project.refusal(
            "counter.ml",
            "let add a b = a + b",
            "let add a b = Thread.id (Thread.self ()) + a + b",
        )
        assert "not defined anywhere" in text
        assert project.program.ask("partial 1") == "6"
