"""The command itself on OCaml programs: the same edits on both versions of the compiler."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.ocaml import CompileError, Compiler
from tests.support.ocaml_project import Project, project_of


@pytest.fixture
def counter(compiler: Compiler, tmp_path: Path) -> Iterator[Project]:
    with project_of(compiler, tmp_path, "counter") as project:
        project.run()
        yield project


def test_a_saved_unit_is_live_for_every_caller_and_its_state_is_kept(counter: Project) -> None:
    ask = counter.program.ask
    assert [ask("bump 2"), ask("seen a"), ask("hidden")] == ["2", "1", "1"]
    row = counter.save("counter.ml", "!total + by", "!total + (10 * by)")
    assert (row["outcome"], row["error"]) == ("live", None)
    assert [ask("bump 1"), ask("alias 1"), ask("table 1"), ask("eta 1")] == [
        "12", "22", "32", "42",
    ]  # fmt: skip
    assert [ask("packed 1"), ask("functor 1"), ask("include 0")] == ["52", "134", "10072"]
    assert [ask("seen a"), ask("same"), ask("hidden")] == ["2", "true", "9"]
    row = counter.save("counter.ml", "(10 * by)", "(100 * by)")
    assert row["outcome"] == "live"
    assert [ask("table 1"), ask("alias 1"), ask("total")] == ["10172", "10272", "10272"]
    assert counter.program.stop() == 0


def test_an_exception_keeps_its_identity_between_old_and_new_units(counter: Project) -> None:
    assert counter.program.ask("guarded 101") == "limit 101"
    counter.save("counter.ml", "n > 100", "n > 10")
    assert [counter.program.ask("guarded 11"), counter.program.ask("guarded 7")] == [
        "limit 11", "7",
    ]  # fmt: skip


def test_the_caller_is_replaced_while_its_callee_stays(counter: Project) -> None:
    assert counter.program.ask("bump 5") == "5"
    row = counter.save("keepers.ml", "Counter.add 5", "Counter.add 50")
    assert row["outcome"] == "live"
    assert [counter.program.ask("partial 1"), counter.program.ask("bump 1")] == ["51", "6"]


def test_a_typing_error_is_shown_and_nothing_changes(
    compiler: Compiler, tmp_path: Path
) -> None:
    with project_of(compiler, tmp_path, "counter") as project:
        source = tmp_path / "counter.ml"
        tool = compiler.bin / "ocamlfind"
        command = f"{tool} ocamlopt -g -bin-annot -opaque -c counter.ml"
        project.run(options=["--build", command, "--source", "*.ml"])
        assert project.program.ask("bump 1") == "1"
        text = source.read_text()
        source.write_text(text.replace("let add a b = a + b", 'let add a b = a + "b"'))
        said = project.report("the program is untouched")
        assert "This expression has type" in said or "This constant has type" in said
        assert project.program.ask("bump 1") == "2"
        source.write_text(text.replace("let add a b = a + b", "let add a b = a * b"))
        assert project.settled()["outcome"] == "live"
        assert project.program.ask("partial 4") == "20"


def test_a_changed_interface_is_refused_with_both_declarations(counter: Project) -> None:
    interface = counter.folder / "counter.mli"
    interface.write_text(
        interface.read_text().replace("val add : int -> int -> int", "val add : int -> int")
    )
    counter.program.compile("counter.mli")
    text = counter.refusal("counter.ml", "let add a b = a + b", "let add a = a")
    assert "int -> int -> int" in text
    assert counter.program.ask("partial 1") == "6"


def test_a_raising_initialiser_is_reported_and_everything_is_as_before(
    counter: Project,
) -> None:
    assert counter.program.ask("bump 3") == "3"
    text = "let add a b = a + b"
    row = counter.save("counter.ml", text, f'let () = failwith "no luck"\n{text}')
    assert row["outcome"] in {"refused", "failed"}
    assert "no luck" in row["error"]
    assert "counter.ml" in row["error"]
    assert [counter.program.ask("bump 1"), counter.program.ask("hidden")] == ["4", "2"]
    row = counter.save("counter.ml", 'failwith "no luck"', "()")
    assert row["outcome"] == "live"
    assert [counter.program.ask("table 1"), counter.program.ask("hidden")] == ["5", "3"]


def test_owner_understands_ocaml_names(counter: Project) -> None:
    row = counter.json("owner", "Counter.bump")[0]
    assert (row["kind"], row["generation"], row["line"]) == ("function", 0, "counter.ml:11")
    counter.save("counter.ml", "!total + by", "!total + by + 0")
    row = counter.json("owner", "Counter.bump")[0]
    assert (row["generation"], row["live"]) == (1, True)


def test_attach_reaches_a_program_that_already_runs(compiler: Compiler, tmp_path: Path) -> None:
    with project_of(compiler, tmp_path, "counter") as project:
        project.attach()
        assert project.program.ask("bump 2") == "2"
        row = project.save("counter.ml", "!total + by", "!total - by")
        assert row["outcome"] == "live"
        assert [project.program.ask("table 1"), project.program.ask("hidden")] == ["1", "2"]


def test_roll_back_returns_to_earlier_code_with_todays_state(counter: Project) -> None:
    counter.save("counter.ml", "!total + by", "!total + (10 * by)")
    counter.save("counter.ml", "(10 * by)", "(100 * by)")
    assert counter.program.ask("bump 1") == "100"
    counter.verb("rollback", "1")
    assert [counter.program.ask("bump 1"), counter.program.ask("table 1")] == ["110", "120"]


def test_a_compile_that_deletes_the_object_does_not_unload_it(counter: Project) -> None:
    with pytest.raises(CompileError):
        counter.program.edit("counter.ml", "!total + by", '!total + "by"')
    assert not (counter.folder / "counter.o").exists()
    assert counter.program.ask("bump 1") == "1"
    row = counter.save("counter.ml", '!total + "by"', "!total + (5 * by)")
    assert row["outcome"] == "live"
    assert counter.program.ask("table 1") == "6"
