"""Polling: on request, at inotify's limits, on network filesystems."""

import errno
from pathlib import Path

import pytest

from reloader.errors.watch import NoInotifyError, WatchLimitError
from reloader.watching import watch as watch_module
from reloader.watching.inotify import Reader, is_remote, raise_limit
from reloader.watching.watch import Mode
from tests.support.watch import watching, whole

pytestmark = pytest.mark.timeout(60)


def test_polling_finds_new_changed_and_recreated_files(tmp_path: Path) -> None:
    (tmp_path / "old.o").write_bytes(whole("old"))
    with watching(tmp_path, "build", "*.o", mode=Mode.POLL) as seen:
        assert seen.watcher.polling
        assert seen.watcher.folder_count == 0
        (tmp_path / "build").mkdir()
        (tmp_path / "build/a.o").write_bytes(whole("1")[:4])
        assert seen.all() == []
        (tmp_path / "build/a.o").write_bytes(whole("1"))
        assert seen.next().data == whole("1")
        (tmp_path / "build/a.o").unlink()
        assert seen.all() == []
        (tmp_path / "build/a.o").write_bytes(whole("1"))
        assert seen.next().data == whole("1")
        (tmp_path / "old.o").write_bytes(whole("new"))
        assert seen.next().data == whole("new")
        assert seen.all() == []


def test_polling_sees_two_contents_of_equal_size_in_one_clock_tick(tmp_path: Path) -> None:
    with watching(tmp_path, ".", mode=Mode.POLL, poll_seconds=60) as seen:
        for text in "abcdefgh":
            (tmp_path / "a.o").write_bytes(whole(text))
            assert seen.all() == [("a.o", whole(text))]


@pytest.mark.parametrize(
    ("number", "name"),
    [(errno.ENOSPC, "max_user_watches"), (errno.EMFILE, "max_user_instances")],
)
def test_a_limit_names_the_setting_and_how_to_raise_it(number: int, name: str) -> None:
    limit = int(Path("/proc/sys/fs/inotify", name).read_text(encoding="ascii"))
    with pytest.raises(WatchLimitError) as caught:
        raise_limit(OSError(number, "limit reached"), 7)
    assert str(caught.value) == (
        f"watching 7 folders needs more than fs.inotify.{name} = {limit}, "
        "which all programs of this user share. Files are polled instead, which is slower. "
        f"For events run: sudo sysctl fs.inotify.{name}={max(limit, 7) * 4}"
    )


def test_another_failure_of_inotify_is_told_in_its_own_words() -> None:
    with pytest.raises(NoInotifyError) as caught:
        raise_limit(OSError(errno.ENOSYS, "Function not implemented"), 1)
    assert str(caught.value) == (
        "inotify does not work here ([Errno 38] Function not implemented). "
        "Files are polled instead, which is slower."
    )


def test_beyond_the_limit_of_watches_files_are_polled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    granted: list[bytes] = []
    add = Reader.add_callback

    def add_few(self: Reader, path: bytes, *rest: object) -> object:
        if str(tmp_path).encode() in path and len(granted) >= 2:
            raise OSError(errno.ENOSPC, "inotify watch limit reached")
        granted.append(path)
        return add(self, path, *rest)  # type: ignore[arg-type]

    for name in "abc":
        (tmp_path / name).mkdir()
    monkeypatch.setattr(Reader, "add_callback", add_few)
    with watching(tmp_path, ".") as seen:
        (problem,) = seen.problems
        assert isinstance(problem, WatchLimitError)
        assert seen.watcher.polling
        for name in "abc":
            (tmp_path / name / "x.o").write_bytes(whole(name))
        assert {seen.next().data for _ in range(3)} == {whole(name) for name in "abc"}


def test_a_network_filesystem_is_polled_beside_its_events(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def remote(_: Path) -> bool:
        return True

    monkeypatch.setattr(watch_module, "is_remote", remote)
    with watching(tmp_path, ".") as seen:
        assert seen.watcher.polling
        assert seen.watcher.folder_count > 0
        (tmp_path / "a.o").write_bytes(whole("1"))
        assert seen.next().data == whole("1")


def test_local_folders_are_not_taken_for_remote_ones(tmp_path: Path) -> None:
    assert not is_remote(tmp_path / "not" / "there")
    assert not is_remote(Path("/proc/self"))
