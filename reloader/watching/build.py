"""A saved source runs the user's own build; the build's end closes one transaction.

One build at a time. A save during a build ends it and starts it anew, since what it makes would
be old; a source that did not exist when the build began is the build's own. What a build
finishes is held until a build succeeds: after a failure `make` does not make again what it made
before, so those objects belong to the next success. A source that the build itself writes (a
generated parser) looks like a save: equal content is none, and one that changes in every build
stops counting after `MAX_RESTARTS`, gets one last build in case a person saved it, and is named
in the result.
"""

import contextlib
import os
import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from reloader.errors.watch import BuildFailedError, BuildStartError
from reloader.watching.child import BuildChild
from reloader.watching.finished import Files, FinishedFile
from reloader.watching.globs import parse_pattern
from reloader.watching.stale import SOURCE_SUFFIXES, Stale, stale_objects
from reloader.watching.trust import Trust
from reloader.watching.watch import Mode, Watcher

MAX_RESTARTS = 5


@dataclass(frozen=True, slots=True)
class BuildResult:
    """How a build ended."""

    command: str
    status: int  # exit status; negative: killed by that signal; 127: could not start
    seconds: float
    output: str  # stdout and stderr as they came, the middle left out if very long
    sources: tuple[Path, ...]  # whose saves it answers
    files: Files  # one transaction; empty if it failed
    stale: tuple[Stale, ...]  # objects that a successful build left older than their sources
    unsettled: tuple[Path, ...]  # sources that the build changed again and again
    restarts: int  # how often a save started it anew
    error: BuildFailedError | BuildStartError | None  # its text is for the user


class BuildRunner:
    """Runs the build on its own thread and holds back objects while it runs."""

    def __init__(  # noqa: PLR0913 - each has one sentence below
        self,
        command: str,
        sources: Sequence[str],
        cwd: Path,
        on_result: Callable[[BuildResult], None],
        *,
        on_files: Callable[[Files], None],
        on_problem: Callable[[Exception], None],
        on_start: Callable[[tuple[Path, ...]], None] | None = None,
        env: Mapping[str, str] | None = None,
        trust: Trust | None = None,
        mode: Mode = Mode.AUTO,
    ) -> None:
        """Prepare; nothing runs before `start`.

        Args:
            command: A shell command line.
            sources: Watch patterns of the sources; a folder means the C family, Rust and OCaml.
            cwd: Where the command runs and relative patterns start.
            on_result: Called at each build's end, on the build thread.
            on_files: Takes objects that changed without a build.
            on_problem: Takes refused sources and limits.
            on_start: Told the saved sources when a build starts, or starts anew.
            env: The build's environment; ours if None.
            trust: Whose sources count.
            mode: How sources are watched.
        """
        self.command = command
        self._cwd, self._env = cwd, env
        self._on_result = on_result
        self._on_files = on_files
        self._on_problem = on_problem
        self._on_start = on_start
        patterns = [p for text in sources for p in parse_pattern(text, cwd, SOURCE_SUFFIXES)]
        self._sources = Watcher(
            patterns, self._source_saved, on_problem, trust=trust, mode=mode
        )
        self._objects: Watcher | None = None
        self._changed = threading.Condition()
        self._interrupt = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._saved: dict[Path, None] = {}  # saves not answered by a build yet, in order
        self._digests: dict[Path, str] = {}
        self._restarts_by: Counter[Path] = Counter()
        self._unsettled: dict[Path, None] = {}
        self._held: dict[Path, FinishedFile] = {}
        self._known: set[Path] = set()  # sources there were before the running build
        self._made: set[Path] = set()  # sources that appeared while it runs
        self._wanted = self._busy = self._closed = self._last = False
        self._thread = threading.Thread(target=self._run, name="build", daemon=True)

    def start(self, objects: Watcher | None) -> None:
        """Watch the sources.

        Args:
            objects: The watcher whose sink is `offer`; a build ends when its events have come.
        """
        self._objects = objects
        self._sources.start()
        self._known = set(self._sources.files())
        self._thread.start()

    def stop(self) -> None:
        """End a running build and the threads."""
        self._sources.stop()
        with self._changed:
            self._closed = True
            os.eventfd_write(self._interrupt, 1)
            self._changed.notify_all()
        if self._thread.ident is not None:  # it was started
            self._thread.join()
        os.close(self._interrupt)

    @property
    def busy(self) -> bool:
        """Whether a build runs, or is about to."""
        return self._busy

    def build_now(self) -> None:
        """Build without a save."""
        with self._changed:
            self._wanted = self._busy = True
            self._changed.notify_all()

    def offer(self, file: FinishedFile) -> None:
        """Take a finished object: held while a build runs, else handed on at once."""
        with self._changed:
            self._held[file.path] = file
            if not self._busy:
                self._on_files(self._take_held())

    def _take_held(self) -> Files:
        """Return what is held and still exists, and hold it no longer."""
        files = tuple(file for file in self._held.values() if os.path.lexists(file.path))
        self._held.clear()
        return files

    def _source_saved(self, file: FinishedFile) -> None:
        """Note a save; end a running build."""
        with self._changed:
            known = self._digests.get(file.path)
            self._digests[file.path] = file.digest
            if self._busy and file.path not in self._known:
                self._made.add(file.path)  # a generated file, or a configure script's trials
                return
            self._known.add(file.path)
            if self._busy:
                if known == file.digest:
                    return
                if self._restarts_by[file.path] >= MAX_RESTARTS:
                    self._unsettled[file.path] = None
                    return
                self._restarts_by[file.path] += 1
            self._saved[file.path] = None
            self._wanted = True
            if self._busy:
                os.eventfd_write(self._interrupt, 1)
            self._busy = True
            self._changed.notify_all()

    def _run(self) -> None:
        while self._next():
            try:
                result = self._build()
                if result is not None:
                    self._on_result(result)
            except Exception as error:  # noqa: BLE001 - whatever it is, building must go on
                self._on_problem(error)

    def _next(self) -> bool:
        """Wait for something to build; False when closed."""
        with self._changed:
            self._busy = self._wanted
            if not self._wanted:
                self._restarts_by.clear()
            self._changed.wait_for(lambda: self._wanted or self._closed)
            return not self._closed

    def _build(self) -> BuildResult | None:
        """Run the command until a run of it was not interrupted; None when closed."""
        restarts, saved = 0, dict[Path, None]()
        while True:
            saved |= self._begin()
            sources = tuple(saved)
            if self._on_start is not None:
                self._on_start(sources)
            try:
                with BuildChild(self.command, self._cwd, self._env) as child:
                    status = child.wait(self._interrupt)
                    if status is None:
                        child.kill()
                    output, seconds = child.output.text(), child.seconds
            except BuildStartError as error:
                return self._failed(127, 0.0, "", sources, restarts, error)
            if self._closed:
                return None
            if status is None:
                restarts += 1
                continue
            if status:
                failure = BuildFailedError(self.command, status, seconds, output)
                return self._failed(status, seconds, output, sources, restarts, failure)
            return self._succeeded(seconds, output, sources, restarts)

    def _begin(self) -> dict[Path, None]:
        """Take the saves that this run answers."""
        with self._changed:
            if not self._closed:
                _drain(self._interrupt)  # for a run that had ended by itself by then
            self._wanted = False
            saved, self._saved = self._saved, {}
            return saved

    def _succeeded(
        self, seconds: float, output: str, sources: tuple[Path, ...], restarts: int
    ) -> BuildResult:
        self._hear_all()
        stale: tuple[Stale, ...] = ()
        if self._objects is not None:
            stale = tuple(stale_objects(self._sources.files(), self._objects.files()))
        with self._changed:
            files = self._take_held()
            unsettled = self._end()
        return BuildResult(
            self.command, 0, seconds, output, sources, files, stale, unsettled, restarts, None
        )

    def _failed(  # noqa: PLR0913, PLR0917 - the result's own fields
        self,
        status: int,
        seconds: float,
        output: str,
        sources: tuple[Path, ...],
        restarts: int,
        error: BuildFailedError | BuildStartError,
    ) -> BuildResult:
        self._hear_all()
        with self._changed:
            unsettled = self._end()
        return BuildResult(
            self.command, status, seconds, output, sources, (), (), unsettled, restarts, error
        )

    def _hear_all(self) -> None:
        """Wait for the events of what the build wrote: they are of it, not of after it."""
        self._sources.sync()
        if self._objects is not None:
            self._objects.sync()

    def _end(self) -> tuple[Path, ...]:
        """Close the transaction; what is saved from now on is for the next build."""
        unsettled = tuple(self._unsettled)
        self._unsettled.clear()
        self._known |= self._made
        self._made.clear()
        self._last = bool(unsettled) and not self._last
        self._wanted = self._wanted or self._last
        self._busy = self._wanted
        return unsettled


def _drain(event_fd: int) -> None:
    """Take the interrupts that came so far."""
    with contextlib.suppress(BlockingIOError):
        os.eventfd_read(event_fd)
