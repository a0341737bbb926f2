"""What a pattern asks for, and which are none."""

from pathlib import Path

import pytest

from reloader.errors.watch import BadPatternError
from reloader.watching.globs import parse_pattern


@pytest.mark.parametrize(
    ("text", "yes", "no"),
    [
        ("build", ["build/a.o", "build/x/.y/l.a"], ["a.o", "build/a.c", "build/.git/a.o"]),
        ("build/", ["build/a.o"], ["build"]),
        ("build/*.o", ["build/a.o"], ["build/x/a.o", "build/a.o/b"]),
        ("b*/**/a?.o", ["build/a1.o", "b/x/y/a2.o"], ["c/a1.o", "build/a.o"]),
        ("**", ["a.o", "x/y/z.a"], ["a.c"]),
        ("./x/../one.o", ["one.o"], ["two.o", "x/one.o"]),
        ("[ab].o", ["a.o"], ["c.o", "[ab].o"]),
        ("/w/build/a.o", ["build/a.o"], ["build/b.o"]),
    ],
)
def test_patterns(text: str, yes: list[str], no: list[str]) -> None:
    patterns = parse_pattern(text, Path("/w"))

    def wanted(name: str) -> bool:
        path = Path("/w", name)
        below = [
            (pattern, path.relative_to(pattern.root).parts)
            for pattern in patterns
            if path.is_relative_to(pattern.root)
        ]
        return any(
            pattern.matches(parts)
            and all(pattern.may_hold(parts[:i]) for i in range(len(parts)))
            for pattern, parts in below
        )

    assert [name for name in yes if not wanted(name)] == []
    assert [name for name in no if wanted(name)] == []


def test_home_is_expanded_and_a_folder_may_be_called_like_an_object(tmp_path: Path) -> None:
    assert parse_pattern("~/x", tmp_path)[0].root == Path.home() / "x"
    (tmp_path / "a.o").mkdir()
    assert len(parse_pattern("a.o", tmp_path)) == 2  # a folder, whatever it is called


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "it is empty"),
        ("a\0b", "it holds a zero byte"),
        ("*/../a", "`..` stands after a wildcard"),
    ],
)
def test_a_pattern_that_matches_nothing_says_why(text: str, reason: str) -> None:
    with pytest.raises(BadPatternError) as caught:
        parse_pattern(text, Path("/w"))
    assert str(caught.value) == (
        f"cannot watch `{text}`: {reason}. Nothing was changed. Name a folder (`build`), "
        "a file (`build/hud.o`) or a glob (`build/**/*.o`)."
    )
