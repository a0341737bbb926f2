"""How finished files become the sets that one reload takes; what a pattern asks for."""

import queue
import threading
from pathlib import Path

import pytest

from reloader.errors.watch import BadPatternError
from reloader.watching.globs import parse_pattern
from reloader.watching.settle import Files, FinishedFile, Settle
from tests.support.watch import watching, whole


def finished(name: str, text: str) -> FinishedFile:
    return FinishedFile(Path("/w") / name, text.encode(), text, 0, 0)


def raised(error: Exception) -> None:
    raise error


def test_what_finishes_during_a_reload_is_the_next_set() -> None:
    sets: queue.SimpleQueue[Files] = queue.SimpleQueue()
    go_on = threading.Semaphore(0)

    def reload(files: Files) -> None:
        sets.put(files)
        go_on.acquire()

    settle = Settle(reload, raised)
    settle.put_one(finished("a.o", "1"))
    assert sets.get(timeout=20) == (finished("a.o", "1"),)
    for name, text in (("b.o", "1"), ("c.o", "1"), ("b.o", "2")):
        settle.put_one(finished(name, text))
    go_on.release(2)
    assert set(sets.get(timeout=20)) == {finished("c.o", "1"), finished("b.o", "2")}
    assert settle.wait_idle(20)
    settle.close()
    assert sets.empty()


def test_a_hundred_saves_cost_as_many_sets_as_there_were_reloads_and_the_last_arrives(
    tmp_path: Path,
) -> None:
    sets: list[Files] = []
    first, go_on = threading.Event(), threading.Event()

    def reload(files: Files) -> None:
        sets.append(files)
        first.set()
        go_on.wait(20)

    settle = Settle(reload, raised)
    with watching(tmp_path, ".") as seen:
        (tmp_path / "a.o").write_bytes(whole("0"))
        settle.put_one(seen.next())
        assert first.wait(20)
        for number in range(1, 101):
            (tmp_path / "a.o").write_bytes(whole(str(number)))
        assert seen.watcher.sync(20)
        while not seen.arrived.empty():
            settle.put_one(seen.arrived.get())
    go_on.set()
    assert settle.wait_idle(20)
    settle.close()
    assert [[file.data for file in files] for files in sets] == [[whole("0")], [whole("100")]]


def test_a_failed_reload_is_told_and_the_next_set_is_delivered() -> None:
    errors: queue.SimpleQueue[Exception] = queue.SimpleQueue()
    done: queue.SimpleQueue[Files] = queue.SimpleQueue()

    def reload(files: Files) -> None:
        if files[0].digest == "bad":
            raise ValueError(files[0].digest)
        done.put(files)

    settle = Settle(reload, errors.put)
    settle.put([finished("a.o", "bad")])
    assert str(errors.get(timeout=20)) == "bad"
    settle.put([finished("a.o", "good"), finished("b.o", "good")])
    assert len(done.get(timeout=20)) == 2
    settle.close()


def test_what_waits_can_be_taken_back() -> None:
    entered, go_on = threading.Event(), threading.Event()

    def reload(_: Files) -> None:
        entered.set()
        go_on.wait(20)

    settle = Settle(reload, raised)
    settle.put_one(finished("a.o", "1"))
    assert entered.wait(20)
    settle.put_one(finished("b.o", "1"))
    assert settle.drop() == (finished("b.o", "1"),)
    go_on.set()
    assert settle.wait_idle(20)
    settle.close()


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
