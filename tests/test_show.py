"""Tables for a terminal or a pipe."""

from pathlib import Path

import pytest

from reloader.commands import show


def test_a_table_is_as_wide_as_the_paths_that_it_shows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    rows = [(str(tmp_path / "a.o"), "1"), ("elsewhere.o", "20")]
    text = show.table(("object", "count"), rows, right="count")
    assert text.splitlines() == [
        "OBJECT       COUNT",
        "a.o              1",
        "elsewhere.o     20",
    ]
