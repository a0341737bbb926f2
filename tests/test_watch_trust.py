"""Whose files are loaded: nobody else may have written or planted them."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from reloader.errors.watch import UntrustedPathError
from reloader.watching import watch as watch_module
from reloader.watching.trust import Trust, check_trusted, read_trusted
from tests.support.watch import watching, whole

STRANGER = 12345
TRUST = Trust(frozenset({0, os.geteuid()}))


@pytest.fixture
def build(tmp_path: Path) -> Path:
    folder = tmp_path / "build"
    folder.mkdir(mode=0o755)
    (folder / "a.o").write_bytes(whole("1"))
    (folder / "a.o").chmod(0o644)
    return folder


def refusal(path: Path, *roots: Path, trust: Trust = TRUST) -> str:
    with pytest.raises(UntrustedPathError) as caught:
        check_trusted(path, roots, trust)
    return str(caught.value)


GiveAway = Callable[..., None]


@pytest.fixture
def give_away(monkeypatch: pytest.MonkeyPatch) -> GiveAway:
    """Make a path a stranger's: really as root, else as far as `lstat` tells."""
    given: dict[int, tuple[int, int]] = {}  # by inode: a rename keeps the owner
    lstat = os.lstat

    def lstat_given(path: str) -> os.stat_result:
        state = lstat(path)
        if state.st_ino not in given:
            return state
        uid, gid = given[state.st_ino]
        fields = list(state)
        fields[4:6] = [state.st_uid if uid < 0 else uid, state.st_gid if gid < 0 else gid]
        return os.stat_result(fields)

    def give(path: Path, uid: int = STRANGER, gid: int = STRANGER) -> None:
        if os.geteuid() == 0:
            os.chown(path, uid, gid, follow_symlinks=False)
        else:
            given[lstat(str(path)).st_ino] = (uid, gid)
            monkeypatch.setattr(os, "lstat", lstat_given)

    return give


def test_own_files_are_trusted_and_their_real_path_is_returned(build: Path) -> None:
    (build / "link.o").symlink_to("a.o")
    assert check_trusted(build / "link.o", [build]) == build / "a.o"
    data, state = read_trusted(build / "link.o", [build])
    assert (data, state.st_size) == (whole("1"), len(whole("1")))


def test_a_path_outside_the_roots_is_refused(build: Path, tmp_path: Path) -> None:
    assert refusal(tmp_path / "b.o", build) == (
        f"{tmp_path}/b.o is not loaded: it lies outside the watched folders. "
        "Nothing was changed. Watch its folder with --watch."
    )


def test_a_file_that_everybody_may_write_is_refused(build: Path) -> None:
    (build / "a.o").chmod(0o666)
    assert refusal(build / "a.o", build) == (
        f"{build}/a.o is not loaded: it may be written by every user (mode 0666). "
        f"Nothing was changed. Run `chmod o-w {build}/a.o`, or trust its folder in "
        "reloader.toml."
    )


def test_a_folder_that_others_may_write_is_refused_and_named(build: Path) -> None:
    build.chmod(0o777)
    assert f"a.o is not loaded: {build} may be written by every user" in refusal(
        build / "a.o", build
    )
    build.chmod(0o1777)  # sticky: others can neither rename nor remove what is ours
    assert check_trusted(build / "a.o", [build]) == build / "a.o"


def test_a_group_with_other_members_is_refused(build: Path, give_away: GiveAway) -> None:
    give_away(build / "a.o", uid=-1)
    (build / "a.o").chmod(0o664)
    assert f"may be written by group {STRANGER} (mode 0664)" in refusal(build / "a.o", build)


def test_a_users_private_group_may_write(build: Path) -> None:
    (build / "a.o").chmod(0o664)  # umask 002: root's group is root, with no other members
    assert check_trusted(build / "a.o", [build], TRUST) == build / "a.o"


def test_a_strangers_file_folder_and_link_are_refused(
    build: Path, tmp_path: Path, give_away: GiveAway
) -> None:
    give_away(build / "a.o")
    text = refusal(build / "a.o", build)
    assert f"it belongs to user {STRANGER}. Nothing was changed. Make it yours" in text
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "b.o").write_bytes(whole("2"))
    (build / "planted").symlink_to(outside)
    assert check_trusted(build / "planted/b.o", [build]) == outside / "b.o"  # our own link
    give_away(build / "planted")
    assert refusal(build / "planted/b.o", build) == (
        f"{build}/planted/b.o is not loaded: {build}/planted is a link made by user "
        f"{STRANGER}. Nothing was changed. Replace it by your own link."
    )


def test_folders_that_the_user_vouches_for_are_trusted(
    build: Path, give_away: GiveAway
) -> None:
    give_away(build / "a.o")
    build.chmod(0o777)
    trust = Trust.of_this_user(allowed=[build])
    assert read_trusted(build / "a.o", [build], trust)[0] == whole("1")


def test_a_link_to_itself_ends(build: Path) -> None:
    (build / "l.o").symlink_to("l.o")
    with pytest.raises(OSError, match="Too many levels"):
        check_trusted(build / "l.o", [build])


def test_the_watcher_says_once_why_and_takes_the_file_when_it_is_mended(build: Path) -> None:
    with watching(build, ".") as seen:
        (build / "b.o").touch(mode=0o600)
        (build / "b.o").chmod(0o666)
        for _ in range(3):
            (build / "b.o").write_bytes(whole("2"))
        assert seen.all() == []
        assert [type(problem) for problem in seen.problems] == [UntrustedPathError]
        (build / "b.o").chmod(0o644)
        assert seen.all() == [("b.o", whole("2"))]


def test_the_watcher_does_not_enter_a_folder_through_a_strangers_link(
    build: Path, tmp_path: Path, give_away: GiveAway
) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (build / "planted").symlink_to(outside)
    give_away(build / "planted")
    with watching(build, ".") as seen:
        count = seen.watcher.folder_count
        (outside / "evil.o").write_bytes(whole("2"))
        (tmp_path / "unready").symlink_to(outside)
        give_away(tmp_path / "unready")
        (tmp_path / "unready").rename(build / "later")
        assert seen.all() == []
        assert seen.watcher.folder_count == count


def test_an_unreadable_file_is_taken_when_it_becomes_readable(
    build: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    readable = False
    read = watch_module.read_trusted

    def read_as_another(path: Path, *rest: object) -> object:
        if path.name == "b.o" and not readable:  # root reads whatever the mode is
            raise PermissionError(13, "Permission denied")
        return read(path, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(watch_module, "read_trusted", read_as_another)
    with watching(build, ".") as seen:
        (build / "b.o").write_bytes(whole("2"))
        assert seen.all() == []
        assert seen.problems == []
        readable = True
        (build / "b.o").chmod(0o600)
        assert seen.all() == [("b.o", whole("2"))]
