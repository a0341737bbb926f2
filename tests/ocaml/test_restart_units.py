"""Restart, rollback and unloading of OCaml units, on both versions of the compiler."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.ocaml import Compiler
from tests.support.ocaml_project import Project, project_of

GREETING = 'print_endline "ready"'
NAMED_GREETING = 'Printf.printf "ready %!"; print_endline Counter.name'


@pytest.fixture
def counter(compiler: Compiler, tmp_path: Path) -> Iterator[Project]:
    with project_of(compiler, tmp_path, "counter") as project:
        source = tmp_path / "main.ml"
        text = source.read_text()
        assert text.count(GREETING) == 1
        source.write_text(text.replace(GREETING, NAMED_GREETING))
        project.program.build()
        project.run()
        yield project


def again(project: Project) -> str:
    """End the program, run it under the same daemon; return its first line."""
    assert project.program.stop() == 0
    project.run()
    return project.program.greeting


def test_a_program_that_is_started_again_has_its_new_units_before_its_loop_begins(
    counter: Project,
) -> None:
    assert counter.program.greeting == "ready first"
    ask = counter.program.ask
    counter.save("counter.ml", '"first"', '"second"')
    counter.save("counter.ml", "let total = ref 0", "let total = ref 500")
    counter.save("keepers.ml", "Counter.add 5", "Counter.add 50")
    assert [ask("bump 1"), ask("name")] == ["1", "second"]
    assert again(counter) == "ready second"
    assert [ask("total"), ask("hidden"), ask("seen a")] == ["500", "0", "1"]
    assert [ask("bump 1"), ask("table 1"), ask("partial 1")] == ["501", "502", "51"]
    assert again(counter) == "ready second"
    assert [ask("total"), ask("compact"), ask("same")] == ["500", "compacted", "true"]


def test_state_that_only_one_version_has_is_told_apart_after_a_restart(
    counter: Project,
) -> None:
    ask = counter.program.ask
    counter.save("counter.ml", "let calls = ref 0", "let more = ref 7\nlet calls = ref 90")
    assert again(counter) == "ready first"
    assert [ask("bump 1"), ask("hidden"), ask("seen a")] == ["1", "91", "1"]
    counter.attempts = 1  # the replay
    row = counter.save("counter.ml", "!total + by", "!total + by + !more")
    assert row["outcome"] == "live", row
    assert [ask("bump 1"), ask("hidden"), ask("seen a")] == ["9", "92", "2"]
    assert "dropped: more" in counter.verb("rollback", "0")
    assert [ask("bump 1"), ask("hidden"), ask("seen a")] == ["10", "93", "3"]
    assert ask("same") == "true"


def test_a_new_version_whose_initialiser_needs_more_than_a_restart_has_leaves_the_old_one(
    counter: Project,
) -> None:
    marker = counter.folder / "here"
    marker.touch()
    line = f'let () = if not (Sys.file_exists "{marker}") then failwith "no marker"'
    counter.save("counter.ml", "let calls = ref 0", f"{line}\nlet calls = ref 10")
    assert counter.program.ask("hidden") == "0"
    marker.unlink()
    assert again(counter) == "ready first"
    assert [counter.program.ask("hidden"), counter.program.ask("bump 2")] == ["0", "2"]


def test_an_older_version_is_linked_again_with_todays_state(counter: Project) -> None:
    ask = counter.program.ask
    for by in range(2, 9):
        old = "!total + by" if by == 2 else f"!total + ({by - 1} * by)"
        assert counter.save("counter.ml", old, f"!total + ({by} * by)")["outcome"] == "live"
    assert [ask("bump 1"), ask("seen a")] == ["8", "1"]
    counter.verb("rollback", "1")
    assert [ask("bump 1"), ask("table 1"), ask("eta 1")] == ["10", "12", "14"]
    counter.verb("rollback", "0")
    assert [ask("bump 1"), ask("alias 1"), ask("hidden"), ask("seen a")] == [
        "15", "16", "6", "2",
    ]  # fmt: skip


def test_unloading_a_unit_returns_to_the_one_that_was_linked(counter: Project) -> None:
    ask = counter.program.ask
    counter.save("counter.ml", "!total + by", "!total + (10 * by)")
    assert [ask("bump 1"), ask("hidden")] == ["10", "1"]
    counter.verb("unload", "counter.o")
    assert [ask("bump 1"), ask("table 1"), ask("hidden")] == ["11", "12", "3"]
    row = counter.save("counter.ml", "(10 * by)", "(100 * by)")
    assert row["outcome"] == "live"
    assert ask("bump 1") == "112"


def test_units_of_the_standard_library_that_came_later_come_again(counter: Project) -> None:
    row = counter.save("counter.ml", '"first"', '(Scanf.sscanf "second" "%s" Fun.id)')
    assert row["outcome"] == "live", row
    assert counter.program.ask("name") == "second"
    assert again(counter) == "ready second"
    counter.attempts = 1  # the replay
    row = counter.save("counter.ml", '"%s" Fun.id', '"sec%s" Fun.id')
    assert row["outcome"] == "live", row
    assert [counter.program.ask("name"), counter.program.ask("compact")] == ["ond", "compacted"]
