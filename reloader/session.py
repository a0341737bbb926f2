"""Session: one live program, from attach to detach; every change to it goes through here, one at a time."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Self

from reloader.elf.object import ObjectFile
from reloader.errors.base import RefusedError, ReloaderError
from reloader.globs import parse_pattern, read_wanted
from reloader.inputs import choose, pull, read_files, refuse_strangers
from reloader.live.inject import attach as inject
from reloader.live.process import Process
from reloader.opening import Opened, open_new
from reloader.outcome import Outcome
from reloader.record import StateJournal, record_opened, summary_of, versions_of
from reloader.reload import Options, reload
from reloader.resuming import known_target, open_known
from reloader.retiring import Retiring
from reloader.sources import source_line
from state.errors import StateError
from state.rows import Kind, ObjectVersion
from state.store import Store

Contents = Sequence[tuple[str, bytes]]  # (path, content) of finished files


class Session:
    """One program under us."""

    def __init__(self, process: Process, opened: Opened, store: Store, target: int) -> None:
        """Take over an opened program; `target` is its id in the state."""
        self.process = process
        self.program = opened.program
        self.shelf = opened.shelf
        self.refused = opened.refused
        self.notes = opened.notes
        self.store = store
        self.target = target
        self.retiring = Retiring(self.program, store, target)
        self.before_step: Callable[[str], None] = lambda _: None  # tests kill somebody there

    @classmethod
    def attach(cls, pid: int, root: Path, watch: Sequence[str]) -> Self:
        """Go beside a running program, with the state in `root`/.reloader."""
        store = Store.open(root / ".reloader")
        patterns = [pattern for text in watch for pattern in parse_pattern(text, root)]
        return cls.open(inject(pid), store, read_wanted(patterns), how="attach")

    @classmethod
    def open(
        cls, process: Process, store: Store, watched: Contents, *, how: str
    ) -> Self:
        """Find out what a process with the agent in it is made of, and write it down."""
        target = known_target(process, store)
        if target is not None:
            opened = open_known(process, store, target)
        else:
            opened = open_new(process, watched)
            target = record_opened(store, process, opened, how)
        return cls(process, opened, store, target)

    def reload_files(
        self, paths: Sequence[str], *, reinit: frozenset[str] = frozenset(), named: bool = False
    ) -> Outcome:
        """Read files now and reload what changed in them, as one transaction."""
        began = time.monotonic()
        contents = [(path, Path(path).read_bytes()) for path in paths]
        return self.reload_contents(contents, began, reinit=reinit, named=named)

    def reload_contents(
        self,
        contents: Contents,
        event_time: float,
        *,
        reinit: frozenset[str] = frozenset(),
        named: bool = False,
    ) -> Outcome:
        """Reload what changed in finished files, as one transaction.

        Args:
            contents: The files as they were when their event came.
            event_time: `time.monotonic()` of the first event.
            reinit: Variables to start anew.
            named: The user named the files: objects new to the program are loaded too.

        Returns:
            What came of it, refusals and failures included.
        """
        names = [path for path, _ in contents]
        try:
            objects, equal = self.chosen(contents, named=named)
        except RefusedError as error:
            return self.decided(error, [], names, event_time, "load")
        if not objects:
            return Outcome("unchanged", objects=equal or names)
        return self.reload_objects(objects, event_time, "load", reinit)

    def chosen(self, contents: Contents, *, named: bool) -> tuple[list[ObjectFile], list[str]]:
        """Return the objects to reload, and the names of those that are what is live."""
        objects, archives = read_files(contents)
        for archive in archives:
            self.shelf.archives[archive.path] = archive
        found = choose(self.program, objects, archives, named=named, refused=self.refused)
        for file in found.strangers:
            self.shelf.put(file)
        chosen = pull(self.program, found.objects, self.shelf)
        refuse_strangers(found, chosen)
        return chosen, found.equal

    def reload_objects(
        self,
        objects: Sequence[ObjectFile],
        event_time: float,
        kind: Kind,
        reinit: frozenset[str] = frozenset(),
    ) -> Outcome:
        """Make versions of objects live, and write down what came of it."""
        journal = StateJournal(self.store, self.target, self.program, kind)
        options = Options(reinit, event_time, source_line, self.before_step)
        names = [file.name for file in objects]
        try:
            outcome = reload(self.program, objects, journal, options)
        except (ReloaderError, StateError) as error:
            return self.decided(error, objects, names, event_time, kind)
        if outcome.state == "unchanged":
            self.remember(outcome, objects, kind)
        self.retiring.collect()
        return outcome

    def decided(
        self,
        error: ReloaderError | StateError,
        objects: Sequence[ObjectFile],
        names: list[str],
        event_time: float,
        kind: Kind,
    ) -> Outcome:
        """Return and record an attempt that did not become live."""
        refused = isinstance(error, RefusedError)
        outcome = Outcome("refused" if refused else "failed", objects=names, error=str(error))
        outcome.code = getattr(error, "code", "state")
        outcome.total_ms = (time.monotonic() - event_time) * 1e3
        self.retiring.collect()
        if not isinstance(error, StateError):
            self.remember(outcome, objects, kind)
        return outcome

    def remember(self, outcome: Outcome, objects: Sequence[ObjectFile], kind: Kind) -> None:
        """Write an attempt that was decided before it was prepared into the history."""
        if outcome.state not in {"unchanged", "refused", "failed"}:
            return
        versions = versions_of(objects) or [ObjectVersion(name, "", None) for name in outcome.objects]
        outcome.generation = self.store.journal.record(
            self.target, outcome.state, versions, summary_of(outcome), kind=kind
        )

    def close(self) -> None:
        """Let the program go on without us; a later daemon can take it up again."""
        self.process.close()
        self.store.close()
