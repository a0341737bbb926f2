"""File events -> finished files: each complete, trusted, read once, reported once.

A file is looked at when it was closed after writing, renamed into place, or when its name
appeared (a hard link makes no other event). Whether it is finished is asked of its bytes: the
name of a file just created shows up before its content. An unfinished one waits for its next
event and is no error. What was lost (queue overflow, a folder that came back) is found by a
scan that compares inode, size and times with what was last seen.
"""

import os
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Self

from reloader.errors.base import ReloaderError
from reloader.errors.watch import NoInotifyError, UntrustedPathError
from reloader.watching.finished import FinishedFile, digest_of
from reloader.watching.folders import Cause, FolderTree
from reloader.watching.globs import Pattern
from reloader.watching.inotify import Reader, is_remote, raise_limit
from reloader.watching.trust import Trust, read_trusted

# Kernel time stamps move in ticks of 1 to 10 ms: a file written this shortly before we looked
# can change again under the same stamp (what git calls racily clean), so its content decides.
_RACY_NS = 50_000_000


class Mode(Enum):
    """How files are watched."""

    AUTO = "auto"  # events; polling as well where events do not tell all
    POLL = "poll"  # polling only


@dataclass(frozen=True, slots=True)
class _Known:
    """What was last seen of a file."""

    signature: tuple[int, ...]  # inode, size, mtime_ns, ctime_ns
    digest: str  # "": it was there at the start and was not read
    racy: bool  # it may have changed since without a new signature


class Watcher:
    """Watches patterns and hands on finished files, on its own thread."""

    def __init__(  # noqa: PLR0913 - each has one sentence below
        self,
        patterns: Sequence[Pattern],
        sink: Callable[[FinishedFile], None],
        on_problem: Callable[[Exception], None],
        *,
        is_complete: Callable[[bytes], bool] = bool,
        trust: Trust | None = None,
        mode: Mode = Mode.AUTO,
        poll_seconds: float = 0.5,
    ) -> None:
        """Prepare; nothing is watched before `start`.

        Args:
            patterns: From `parse_pattern`.
            sink: Takes each finished file; must be quick.
            on_problem: Takes refusals (once a file state) and limits; watching goes on.
            is_complete: Whether bytes are a whole file; any non-empty file by default.
            trust: Whose files are taken; this user's and root's if None.
            mode: How files are watched.
            poll_seconds: The time between two scans where polling is needed.
        """
        self._roots = tuple({pattern.root for pattern in patterns})
        self._sink = sink
        self._on_problem = on_problem
        self._is_complete = is_complete
        self._trust = trust or Trust.of_this_user()
        self._mode = mode
        self._poll_seconds = poll_seconds
        self._tree = FolderTree(patterns, self._look, self._resync, self._may_follow)
        self._reader: Reader | None = None
        self._known: dict[str, _Known] = {}
        self._blocked: dict[str, str] = {}  # path -> what was said about it
        self._lock = threading.RLock()
        self._stopping = threading.Event()
        self._poller: threading.Thread | None = None

    def start(self) -> Self:
        """Watch, and remember what is there already: existing files are not reported."""
        if self._mode is Mode.AUTO:
            self._start_inotify()
        if self._reader is None or any(is_remote(root) for root in self._roots):
            self._start_polling()
        with self._lock:
            self._scan(first=True)
        return self

    def stop(self) -> None:
        """End the threads; no file is handed on after this returns."""
        self._stopping.set()
        current = threading.current_thread()
        if self._poller is not None and self._poller is not current:
            self._poller.join()
        if self._reader is not None:
            self._reader.stop()
            if self._reader is not current:
                self._reader.join()

    def __enter__(self) -> Self:
        """Start."""
        return self.start()

    def __exit__(self, *_: object) -> None:
        """Stop."""
        self.stop()

    @property
    def polling(self) -> bool:
        """Whether files are polled, alone or beside events."""
        return self._poller is not None

    @property
    def folder_count(self) -> int:
        """How many folders inotify watches; files cost nothing."""
        return self._tree.folder_count

    def files(self) -> list[Path]:
        """Return the wanted files that exist now, sorted."""
        return sorted(Path(path) for path in set(self._tree.files()))

    def contents(self, paths: Iterable[str]) -> list[tuple[str, bytes]]:
        """Return path and content of those files that may be loaded, as they are now."""
        found: list[tuple[str, bytes]] = []
        with self._lock:
            for path in paths:
                try:
                    data, _ = read_trusted(Path(path), self._roots, self._trust)
                except UntrustedPathError as error:
                    self._refuse(path, error)
                except OSError:  # it vanished, or is no file: its next event will tell
                    continue
                else:
                    found.append((path, data))
        return found

    def sync(self, timeout: float = 5.0) -> bool:
        """Wait until everything that happened before this call was handed on.

        Returns:
            False if it took longer than the time (seconds).
        """
        done = self._reader is None or self._reader.pass_barrier(timeout)
        if self._poller is not None:
            self.rescan()
        return done

    def rescan(self) -> None:
        """Look at every wanted file and hand on those that changed since last seen."""
        with self._lock:
            self._scan(first=False)

    def _start_inotify(self) -> None:
        try:
            reader = self._open_reader()
            self._reader = reader
            self._tree.attach(reader)
            self._tree.rebuild()
        except ReloaderError as error:
            self._lose_inotify(error)

    def _open_reader(self) -> Reader:
        try:
            reader = Reader(self._resync, self._on_problem)
        except OSError as error:
            raise_limit(error, 1)
            raise NoInotifyError(str(error)) from error
        reader.start()
        return reader

    def _lose_inotify(self, error: ReloaderError) -> None:
        """Go on by polling; watches that were granted stay, they are faster."""
        self._on_problem(error)
        self._start_polling()

    def _start_polling(self) -> None:
        with self._lock:
            if self._poller is None:
                self._poller = threading.Thread(target=self._poll, name="poll", daemon=True)
                self._poller.start()

    def _poll(self) -> None:
        while not self._stopping.wait(self._poll_seconds):
            try:
                self.rescan()
            except Exception as error:  # noqa: BLE001 - the thread's end would end all watching
                self._on_problem(error)

    def _resync(self) -> None:
        """Events were lost, or a root moved: watch what is there now and find what changed."""
        try:
            self._tree.rebuild()
        except ReloaderError as error:
            self._lose_inotify(error)
        self.rescan()

    def _scan(self, *, first: bool) -> None:
        now = time.monotonic_ns()
        found: set[str] = set()
        for path in self._tree.files():
            found.add(path)
            if first:
                self._remember(path)
            else:
                self._look(path, Cause.FOUND, now)
        for path in self._known.keys() - found:
            del self._known[path]
        for path in self._blocked.keys() - found:
            del self._blocked[path]

    def _remember(self, path: str) -> None:
        """Note a file that is there at the start."""
        if path in self._known:
            return
        try:
            state = os.stat(path)  # noqa: PTH116 - strings on the event road
        except OSError:
            return
        racy = _is_racy(state)
        digest = ""
        if racy:
            try:
                data, state = read_trusted(Path(path), self._roots, self._trust)
            except (OSError, UntrustedPathError):
                return
            digest = digest_of(data)
        self._known[path] = _Known(_signature(state), digest, racy)

    def _look(self, path: str, cause: Cause, event_ns: int) -> None:
        """Hand a file on if it is new, complete and trusted."""
        with self._lock:
            if cause is Cause.GONE:
                self._known.pop(path, None)
                self._blocked.pop(path, None)
                return
            if self._stopping.is_set() or self._is_old_news(path, cause):
                return
            try:
                data, state = read_trusted(Path(path), self._roots, self._trust)
            except UntrustedPathError as error:
                self._refuse(path, error)
                return
            except PermissionError:
                self._blocked.setdefault(path, "")
                return
            except OSError:
                return  # it vanished, or is no file: its next event will tell
            self._blocked.pop(path, None)
            if not self._is_complete(data):
                # remembered, so that polling does not read it again and again
                self._known[path] = _Known(_signature(state), "", _is_racy(state))
                return
            self._hand_on(path, data, state, cause, event_ns)

    def _is_old_news(self, path: str, cause: Cause) -> bool:
        """Return whether a look would tell nothing, without opening the file."""
        if cause is Cause.ALLOWED:
            return path not in self._blocked
        known = self._known.get(path)
        if cause is not Cause.FOUND or known is None or known.racy:
            return False
        try:
            return known.signature == _signature(os.stat(path))  # noqa: PTH116 - as above
        except OSError:
            return True

    def _hand_on(
        self, path: str, data: bytes, state: os.stat_result, cause: Cause, event_ns: int
    ) -> None:
        """Hand on what was not handed on before in this very state."""
        known = self._known.get(path)
        signature, racy = _signature(state), _is_racy(state)
        # one write shows twice, as a name and as a close; a scan also sees a mere change of
        # the link count (ctime). A true save of equal content has a new time: it is told.
        same = 3 if cause is Cause.FOUND else 4
        if known is not None and known.signature[:same] == signature[:same]:
            digest = digest_of(data)
            self._known[path] = _Known(signature, digest, racy)
            if known.digest == digest:
                return
        self._sink(FinishedFile(Path(path), data, state.st_mtime_ns, event_ns))
        # a large file takes as long to hash as to link: by now others are at work on it
        self._known[path] = _Known(signature, digest_of(data), racy)

    def _refuse(self, path: str, error: UntrustedPathError) -> None:
        """Say why, once until the reason changes."""
        if self._blocked.get(path) != str(error):
            self._blocked[path] = str(error)
            self._on_problem(error)

    def _may_follow(self, path: str) -> bool:
        """Return whether to enter a folder; a link only if somebody trusted made it."""
        try:
            state = os.lstat(path)
        except OSError:
            return False
        return state.st_uid in self._trust.owners or not os.path.islink(path)  # noqa: PTH114 - as above


def _signature(state: os.stat_result) -> tuple[int, ...]:
    return (state.st_ino, state.st_size, state.st_mtime_ns, state.st_ctime_ns)


def _is_racy(state: os.stat_result) -> bool:
    return time.time_ns() - max(state.st_mtime_ns, state.st_ctime_ns) < _RACY_NS
