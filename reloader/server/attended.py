"""Attended: one program, the watcher of its objects, the user's build, and its end."""

import os
import select
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from reloader.config import Config
from reloader.elf.complete import is_complete
from reloader.elf.stable_names import newest
from reloader.errors.base import ReloaderError
from reloader.server.engine import Host, WatchOptions
from reloader.server.replies import build_answer, crash_answer, reload_answer
from reloader.session.crash import take_crashes
from reloader.session.outcome import Outcome
from reloader.session.replay import replay
from reloader.watching.build import BuildResult, BuildRunner
from reloader.watching.finished import Files, FinishedFile
from reloader.watching.globs import parse_pattern
from reloader.watching.trust import Trust
from reloader.watching.watch import Mode, Watcher
from reloader.wire.answers import (
    BuildAnswer,
    CrashAnswer,
    EventKind,
    ReloadAnswer,
    TargetAnswer,
)
from reloader.wire.protocol import Event
from state.errors import StateError

if TYPE_CHECKING:
    from reloader.session.session import Session


class Attended:
    """A session, what feeds it, and what it tells."""

    def __init__(self, number: int, host: Host, config: Config, options: WatchOptions) -> None:
        """Prepare the watching of a program that is about to be opened."""
        self.number = number
        self.config = config
        self.options = options
        self.host = host
        self.began = time.time()
        self.session: Session | None = None
        self._pending: dict[str, FinishedFile] = {}
        self._lock = threading.Lock()
        trust = Trust.of_this_user([host.folder] if config.allow_shared_files else [])
        mode = Mode.POLL if config.polling else Mode.AUTO
        command = options.build or config.build
        texts = (*(options.watch or config.watch or (".",)), *config.archives)
        patterns = [pattern for text in texts for pattern in parse_pattern(text, host.folder)]
        self.builder = (
            BuildRunner(
                command,
                options.source or config.source or (".",),
                host.folder,
                self._built,
                on_files=self._take,
                on_problem=self._problem,
                on_start=self._build_began,
                env=options.build_env,
                trust=trust,
                mode=mode,
            )
            if command
            else None
        )
        self.watcher = Watcher(
            patterns,
            self.builder.offer if self.builder else self._take_one,
            self._problem,
            is_complete=is_complete,
            trust=trust,
            mode=mode,
            poll_seconds=config.polling_interval_s,
        )
        self._left = os.eventfd(0, os.EFD_CLOEXEC)  # readable once we have left the program

    def start(self) -> list[tuple[str, bytes]]:
        """Begin to watch; return the files that are there already.

        Each by what it is known by, and only such as would be loaded.
        """
        self.watcher.start()
        names = dict(newest(map(str, self.watcher.files())))
        found = [(names[path], data) for path, data in self.watcher.contents(names)]
        if self.builder is not None:
            self.builder.start(self.watcher)
        return found

    def stop(self) -> None:
        """Stop watching and building, and wait for no end; called once."""
        if self.builder is not None:
            self.builder.stop()
        self.watcher.stop()
        os.eventfd_write(self._left, 1)
        os.close(self._left)

    def taken(self, paths: frozenset[str]) -> list[FinishedFile]:
        """Return the finished files that are for this program, oldest event first.

        Each by what it is known by.
        """
        with self._lock:
            files = [self._pending.pop(path) for path in paths & self._pending.keys()]
        names = dict(newest(str(file.path) for file in files))
        wanted = [file for file in files if str(file.path) in names]
        found = [replace(file, path=Path(names[str(file.path)])) for file in wanted]
        return sorted(found, key=lambda file: file.event_ns)

    def on_end(self, pidfd: int, tell: Callable[[], object]) -> None:
        """Call `tell` once a process has ended, unless this one is stopped before.

        Its descriptor stays the caller's.
        """
        own, left = os.dup(pidfd), os.dup(self._left)
        poll = select.poll()
        for fd in (own, left):
            poll.register(fd, select.POLLIN)

        def wait() -> None:
            stopped = any(fd == left for fd, _ in poll.poll())
            os.close(own)
            os.close(left)
            if not stopped:
                tell()

        threading.Thread(target=wait, name=f"end-{self.number}", daemon=True).start()

    def emit(
        self,
        kind: EventKind,
        data: TargetAnswer | ReloadAnswer | BuildAnswer | CrashAnswer | dict[str, object],
    ) -> None:
        """Tell subscribed clients; the data names this session."""
        self.host.emit(Event(kind, {**data, "session": self.number}))

    def tell(self, outcome: Outcome, kind: str, began: float) -> ReloadAnswer:
        """Tell what came of an attempt, and return it."""
        answer = reload_answer(self.number, outcome, kind, began)
        self.emit(EventKind.RELOAD, answer)
        return answer

    def note_crashes(self) -> None:
        """Write down and tell that processes of the program crashed."""
        if self.session is None:
            return
        try:
            for crash in take_crashes(self.session):
                self.emit(EventKind.CRASHED, crash_answer(crash))
        except (ReloaderError, StateError) as error:
            self.warn(f"a crash of the program could not be written down: {error}")

    def replay(self) -> None:
        """Give the program what was live in its last run, if that is wished, and tell."""
        if self.session is None:
            return
        began = time.time()
        wanted = self.config.replay if self.options.replay is None else self.options.replay
        crashed = self.config.replay_crashed or self.options.replay_crashed
        try:
            done = replay(self.session, wanted=wanted, crashed=crashed)
        except (ReloaderError, StateError) as error:
            self.warn(f"what was live in the last run is not replayed: {error}")
            return
        self.session.notes += done.notes
        for note in done.notes:
            self.warn(note)
        if done.outcome is not None:
            self.tell(done.outcome, "replay", began)

    def warn(self, text: str) -> None:
        """Tell something that the user should know."""
        self.emit(EventKind.WARNING, {"text": text})

    def _take(self, files: Files) -> None:
        with self._lock:
            self._pending |= {str(file.path): file for file in files}
        self.host.files_changed(frozenset(str(file.path) for file in files))

    def _take_one(self, file: FinishedFile) -> None:
        self._take((file,))

    def _problem(self, error: Exception) -> None:
        self.warn(str(error))

    def _build_began(self, sources: tuple[Path, ...]) -> None:
        names = ", ".join(path.name for path in sources)
        command = self.builder.command if self.builder else ""
        self.emit(EventKind.BUILD, {"state": "began", "command": command, "sources": names})

    def _built(self, result: BuildResult) -> None:
        self.emit(EventKind.BUILD, build_answer(result))
        for stale in result.stale:
            self.warn(str(stale))
        if result.files:
            # milliseconds count from the build's end, which closes the transaction
            now = time.monotonic_ns()
            self._take(tuple(replace(file, event_ns=now) for file in result.files))
