"""Which file events become finished files, by inotify."""

import os
import queue
import shutil
import subprocess
import threading
import time
from pathlib import Path

import pytest

from reloader.watching.finished import FinishedFile
from reloader.watching.folders import FolderTree
from reloader.watching.globs import parse_pattern
from reloader.watching.inotify import Reader
from reloader.watching.watch import Watcher
from tests.support.watch import watching, whole

pytestmark = pytest.mark.timeout(60)


def save(path: Path, text: str) -> None:
    path.write_bytes(whole(text))


def test_a_file_closed_after_writing_is_handed_on_once(tmp_path: Path) -> None:
    with watching(tmp_path, ".") as seen:
        save(tmp_path / "a.o", "1")
        assert seen.all() == [("a.o", whole("1"))]


def test_a_file_renamed_into_place_is_handed_on_with_its_digest_and_times(
    tmp_path: Path,
) -> None:
    outside = tmp_path / "outside.o"
    (tmp_path / "build").mkdir()
    save(outside, "1")
    before = time.monotonic_ns()
    with watching(tmp_path, "build") as seen:
        outside.rename(tmp_path / "build/a.o")
        file = seen.next()
    assert file.path == tmp_path / "build/a.o"
    assert len(file.digest) == 32
    assert before < file.event_ns < time.monotonic_ns()
    assert file.mtime_ns == (tmp_path / "build/a.o").stat().st_mtime_ns


def test_a_rename_inside_the_watch_shows_only_the_wanted_name(tmp_path: Path) -> None:
    with watching(tmp_path, ".") as seen:
        save(tmp_path / "a.o.tmp", "1")
        (tmp_path / "a.o.tmp").rename(tmp_path / "a.o")
        assert seen.all() == [("a.o", whole("1"))]


def test_a_hard_link_from_a_compiler_cache_is_handed_on(tmp_path: Path) -> None:
    cached = tmp_path / "cached"
    save(cached, "1")
    (tmp_path / "build").mkdir()
    with watching(tmp_path, "build") as seen:
        (tmp_path / "build/a.o").hardlink_to(cached)
        assert seen.all() == [("a.o", whole("1"))]
        (tmp_path / "build/a.o").unlink()
        (tmp_path / "build/a.o").hardlink_to(cached)
        assert seen.all() == [("a.o", whole("1"))]


def test_a_half_written_file_waits_for_its_end_and_shows_once(tmp_path: Path) -> None:
    with watching(tmp_path, ".") as seen:
        with (tmp_path / "a.o").open("wb", buffering=0) as file:
            file.write(whole("1")[:4])
            assert seen.all() == []
            file.write(whole("1")[4:])
        assert seen.all() == [("a.o", whole("1"))]


def test_a_file_closed_incomplete_waits_for_its_next_event(tmp_path: Path) -> None:
    with watching(tmp_path, ".") as seen:
        (tmp_path / "a.o").write_bytes(whole("1")[:4])
        assert seen.all() == []
        assert seen.problems == []
        with (tmp_path / "a.o").open("ab") as file:
            file.write(whole("1")[4:])
        assert seen.all() == [("a.o", whole("1"))]


def test_an_empty_and_a_vanished_file_are_no_news(tmp_path: Path) -> None:
    with watching(tmp_path, ".", is_complete=bool) as seen:
        (tmp_path / "a.o").touch()
        (tmp_path / "b.o").symlink_to(tmp_path / "nowhere")
        os.mkfifo(tmp_path / "c.o")
        (tmp_path / "d.o").mkdir()
        assert seen.all() == []
        assert seen.problems == []


def test_files_that_are_there_at_the_start_are_listed_but_not_reported(tmp_path: Path) -> None:
    save(tmp_path / "a.o", "1")
    with watching(tmp_path, ".") as seen:
        assert seen.watcher.files() == [tmp_path / "a.o"]
        seen.watcher.rescan()
        assert seen.all() == []


def test_a_save_of_equal_content_is_told_so_that_it_can_be_called_unchanged(
    tmp_path: Path,
) -> None:
    with watching(tmp_path, ".") as seen:
        save(tmp_path / "a.o", "1")
        assert len(seen.all()) == 1
        os.utime(tmp_path / "a.o", ns=(1, 1))
        save(tmp_path / "a.o", "1")
        assert seen.all() == [("a.o", whole("1"))]


def test_two_contents_of_equal_size_in_one_clock_tick_both_arrive(tmp_path: Path) -> None:
    with watching(tmp_path, ".") as seen:
        for text in "abcdefgh":
            save(tmp_path / "a.o", text)
            assert seen.all()[-1] == ("a.o", whole(text))


def test_deleted_and_recreated_files_are_followed(tmp_path: Path) -> None:
    with watching(tmp_path, ".") as seen:
        for text in "123":
            save(tmp_path / "a.o", text)
            assert seen.all() == [("a.o", whole(text))]
            (tmp_path / "a.o").unlink()


def test_files_that_come_and_go_leave_nothing_behind(tmp_path: Path) -> None:
    with watching(tmp_path, ".") as seen:
        for number in range(20):
            save(tmp_path / f"temporary{number}.o", "1")
            (tmp_path / f"shared{number}.o").touch()
            (tmp_path / f"shared{number}.o").chmod(0o666)
        assert len(seen.all()) == 20
        for path in tmp_path.iterdir():
            if path.name.endswith("9.o"):
                path.rename(path.with_suffix(".away"))
            else:
                path.unlink()
        assert seen.all() == []
        assert not seen.watcher._known  # pyright: ignore[reportPrivateUsage]
        assert not seen.watcher._blocked  # pyright: ignore[reportPrivateUsage]


def test_a_deleted_and_recreated_watched_folder_is_followed(tmp_path: Path) -> None:
    build = tmp_path / "deep/er/build"
    build.mkdir(parents=True)
    with watching(tmp_path, "deep/er/build") as seen:
        for text, top in (("1", build), ("2", build.parent), ("3", tmp_path / "deep")):
            shutil.rmtree(top)
            build.mkdir(parents=True)
            save(build / "a.o", text)
            assert seen.next().data == whole(text)
            save(build / "b.o", text)
            assert seen.all() == [("b.o", whole(text))]


def test_a_folder_moved_away_is_replaced_by_the_new_one_of_its_name(tmp_path: Path) -> None:
    build = tmp_path / "deep/build"
    build.mkdir(parents=True)
    with watching(tmp_path, "deep/build") as seen:
        (tmp_path / "deep").rename(tmp_path / "old")
        assert seen.all() == []
        save(tmp_path / "old/build/a.o", "old")
        build.mkdir(parents=True)
        save(build / "a.o", "new")
        assert seen.all() == [("a.o", whole("new"))]


def test_a_folder_that_does_not_exist_at_the_start_is_followed(tmp_path: Path) -> None:
    with watching(tmp_path, "not/yet/there") as seen:
        assert seen.watcher.files() == []
        (tmp_path / "not/yet/there/sub").mkdir(parents=True)
        save(tmp_path / "not/yet/there/sub/a.o", "1")
        assert seen.next().data == whole("1")
        assert seen.all() == []


def test_files_in_folders_made_moved_and_removed_below_are_followed(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "build").mkdir()
    with watching(tmp_path, "build") as seen:
        (tmp_path / "out/sub").mkdir()
        save(tmp_path / "out/sub/a.o", "1")
        (tmp_path / "out/sub").rename(tmp_path / "build/sub")
        assert seen.all() == [("a.o", whole("1"))]
        (tmp_path / "build/sub").rename(tmp_path / "build/other")
        assert seen.all() == [("a.o", whole("1"))]
        save(tmp_path / "build/other/b.o", "2")
        assert seen.all() == [("b.o", whole("2"))]
        (tmp_path / "build/other").rename(tmp_path / "out/gone")
        save(tmp_path / "out/gone/c.o", "3")
        assert seen.all() == []
        # contents only: a time that is set later makes it another file
        shutil.copytree(
            tmp_path / "out/gone", tmp_path / "build/again", copy_function=shutil.copyfile
        )
        assert sorted(name for name, _ in seen.all()) == ["a.o", "b.o", "c.o"]


def test_a_folder_above_may_be_a_link_that_is_pointed_elsewhere(tmp_path: Path) -> None:
    for name in ("v1", "v2"):
        (tmp_path / name).mkdir()
        save(tmp_path / name / "a.o", name)
    (tmp_path / "current").symlink_to("v1")
    with watching(tmp_path, "current") as seen:
        assert seen.watcher.files() == [tmp_path / "current/a.o"]
        (tmp_path / "next").symlink_to("v2")
        (tmp_path / "next").rename(tmp_path / "current")
        assert seen.next().data == whole("v2")
        save(tmp_path / "v2/a.o", "3")
        assert seen.all() == [("a.o", whole("3"))]


def test_linked_folders_below_are_followed_and_loops_end(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "build").mkdir()
    (tmp_path / "build/loop").symlink_to("..")
    (tmp_path / "build/self").symlink_to("self")
    with watching(tmp_path, "build") as seen:
        (tmp_path / "build/link").symlink_to(tmp_path / "elsewhere")
        assert seen.all() == []
        save(tmp_path / "elsewhere/a.o", "1")
        assert seen.all() == [("a.o", whole("1"))]


def test_globs_pick_files_and_watch_only_folders_on_their_way(tmp_path: Path) -> None:
    for folder in ("src", "src/deep", "lib/x/obj", "lib/y/other"):
        (tmp_path / folder).mkdir(parents=True)
    with watching(tmp_path, "src/*.o", "lib/**/obj/f*.a", "one/exact.o") as seen:
        for name in ("src/a.o", "src/a.c", "src/deep/b.o", "lib/x/obj/foo.a"):
            save(tmp_path / name, name)
        save(tmp_path / "lib/x/obj/bar.a", "")
        save(tmp_path / "lib/y/other/foo.a", "")
        (tmp_path / "one").mkdir()
        save(tmp_path / "one/exact.o", "1")
        save(tmp_path / "one/other.o", "1")
        assert [name for name, _ in seen.all()] == ["a.o", "foo.a", "exact.o"]


def test_a_move_out_of_the_tree_does_not_hold_back_the_write_after_it(tmp_path: Path) -> None:
    (tmp_path / "build").mkdir()
    save(tmp_path / "build/old.o", "1")
    with watching(tmp_path, "build") as seen:
        started = time.monotonic_ns()
        (tmp_path / "build/old.o").rename(tmp_path / "old.o")
        save(tmp_path / "build/a.o", "2")
        file = seen.next()
    # watchdog's own observers would hold it for 500 ms; ours has no timer at all
    assert file.data == whole("2")
    assert file.event_ns - started < 400_000_000


def test_ten_thousand_files_need_one_watch_a_folder(tmp_path: Path) -> None:
    for folder in range(10):
        (tmp_path / f"d{folder}").mkdir()
        for number in range(1000):
            (tmp_path / f"d{folder}/{number}.o").touch()
    with watching(tmp_path, ".") as seen:
        assert len(seen.watcher.files()) == 10_000
        assert seen.watcher.folder_count < 30
        save(tmp_path / "d9/999.o", "1")
        assert seen.all() == [("999.o", whole("1"))]


def test_lost_events_are_made_up_for_by_a_scan(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit = int(Path("/proc/sys/fs/inotify/max_queued_events").read_text(encoding="ascii"))
    entered, go_on = threading.Event(), threading.Event()
    handle = FolderTree.handle

    def hold(*args: object) -> None:
        entered.set()
        go_on.wait(60)
        handle(*args)  # type: ignore[arg-type]

    with watching(tmp_path, ".") as seen:
        save(tmp_path / "known.o", "1")
        assert seen.all() == [("known.o", whole("1"))]
        monkeypatch.setattr(FolderTree, "handle", hold)
        (tmp_path / "noise").touch()
        assert entered.wait(20)
        for number in range(limit // 2 + 10):  # events beyond the queue's length
            (tmp_path / f"noise{number % 2}").touch()
            (tmp_path / f"noise{number % 2}").unlink()
        save(tmp_path / "known.o", "2")
        (tmp_path / "new").mkdir()
        save(tmp_path / "new/lost.o", "3")
        go_on.set()
        arrived = {seen.next().path.name for _ in range(2)}
        assert arrived == {"known.o", "lost.o"}
        save(tmp_path / "new/lost.o", "4")
        assert seen.all() == [("lost.o", whole("4"))]


def test_what_a_compiler_and_an_archiver_write_is_handed_on(tmp_path: Path) -> None:
    (tmp_path / "a.c").write_text("int f(void) { return 1; }\n", encoding="utf-8")
    with watching(tmp_path, ".", is_complete=bool) as seen:
        subprocess.run(["/usr/bin/gcc", "-c", "a.c"], cwd=tmp_path, check=True)
        files = seen.all()
        assert files[-1] == ("a.o", (tmp_path / "a.o").read_bytes())
        subprocess.run(["/usr/bin/ar", "rcs", "liba.a", "a.o"], cwd=tmp_path, check=True)
        assert seen.all()[-1] == ("liba.a", (tmp_path / "liba.a").read_bytes())


def test_an_error_in_the_sink_is_a_problem_and_watching_goes_on(tmp_path: Path) -> None:
    arrived: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    problems: queue.SimpleQueue[Exception] = queue.SimpleQueue()

    def sink(file: FinishedFile) -> None:
        if file.data == b"bad":
            message = "no room"
            raise OSError(message)
        arrived.put(file.data)

    with Watcher(parse_pattern(".", tmp_path), sink, problems.put):
        (tmp_path / "a.o").write_bytes(b"bad")
        assert str(problems.get(timeout=20)) == "no room"
        (tmp_path / "a.o").write_bytes(b"good")
        assert arrived.get(timeout=20) == b"good"


def test_the_barrier_waits_for_the_reader(tmp_path: Path) -> None:
    with watching(tmp_path, ".") as seen:
        for number in range(200):
            save(tmp_path / f"{number}.o", str(number))
        assert len(seen.all()) == 200


def test_the_reader_ends_when_stopped() -> None:
    reader = Reader(lambda: None, lambda _: None)
    reader.start()
    assert reader.pass_barrier(20)
    reader.stop()
    reader.join(20)
    assert not reader.is_alive()
