"""Session: one live program, from attach to detach; every change to it goes through here."""

import gc
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Self

from reloader.config import Config, HooksConfig, load_config
from reloader.elf.object import ObjectFile
from reloader.elf.sources import source_line
from reloader.errors.base import UNTOUCHED, RefusedError, ReloaderError
from reloader.errors.live import TargetGoneError
from reloader.errors.session import StillReferredToError, UnreadableFileError
from reloader.errors.watch import UntrustedPathError
from reloader.hosts.caml.settings import OcamlConfig
from reloader.ids import Generation
from reloader.link.passes.anew import Anew
from reloader.live import constructors
from reloader.live.ending import noticing_the_end
from reloader.live.inject import attach as inject
from reloader.live.inputs import (
    choose,
    defined_names,
    pull,
    read_files,
    refuse_strangers,
    wanted_names,
)
from reloader.live.linking import IN_PLACE
from reloader.live.opening import Opened, index_symbols, open_new
from reloader.live.process import Process
from reloader.live.program import Key, Wishes
from reloader.live.retire import RetirePolicy
from reloader.reload import Options, reload
from reloader.session.checking import check, known_as
from reloader.session.checking import read_files as read_named
from reloader.session.hooks import Hooks
from reloader.session.outcome import Outcome
from reloader.session.plugins import Event, Plugins
from reloader.session.record import StateJournal, record_opened, summary_of, versions_of
from reloader.session.remap import remap
from reloader.session.replay import linked_before, rows_before
from reloader.session.report import family_notes
from reloader.session.resuming import follow, known_target, open_known, take_host
from reloader.session.retiring import Retiring
from reloader.session.rollback import rollback
from reloader.session.together import reload_with
from reloader.watching.globs import parse_pattern, read_wanted
from reloader.watching.trust import Trust
from state.errors import StateError
from state.rows import Kind, ObjectVersion
from state.store import Store
from stubs.table import SlotTableFullError

Contents = Sequence[tuple[str, bytes]]  # (path, content) of finished files


class Session:
    """One program under us."""

    def __init__(
        self,
        process: Process,
        opened: Opened,
        store: Store,
        target: int,
        plugins: Plugins | None = None,
    ) -> None:
        """Take over an opened program; `target` is its id in the state."""
        self.process = process
        self.program = opened.program
        self.program.hooks = self.plugins = plugins
        self.shelf = opened.shelf
        self.refused = opened.refused
        self.notes = [*opened.notes, *family_notes(process)]
        self.store = store
        self.target = target
        self.retiring = Retiring(self.program, store, target, plugins)
        self.journal = StateJournal(store, target, self.program)
        self.owns_store = False
        self.trust: Trust | None = None  # whose files are loaded; None: this user's
        self.together_s: float | None = None  # reload at one instant, and how long to wait
        self.begin: Callable[[], None] | None = None  # lets a program run that is before main
        self.hooks: Hooks | None = None  # what the user wants done before and after
        self.before_step: Callable[[str], None] = lambda _: None  # tests kill somebody there

    @classmethod
    def attach(
        cls, pid: int, root: Path, watch: Sequence[str], plugins: Plugins | None = None
    ) -> Self:
        """Go beside a running program, with the state in `root`/.reloader."""
        store = Store.open(root / ".reloader")
        patterns = [pattern for text in watch for pattern in parse_pattern(text, root)]
        with ExitStack() as undo:
            undo.callback(store.close)
            process = inject(pid)
            undo.callback(process.close)
            wanted = known_as(read_wanted(patterns))
            config = load_config(root)
            session = cls.open(
                process, store, wanted, how="attach", plugins=plugins, ocaml=config.ocaml
            )
            session.owns_store = True
            undo.pop_all()
        return session

    @classmethod
    def open(  # noqa: PLR0913  one argument a fact
        cls,
        process: Process,
        store: Store,
        watched: Contents,
        *,
        how: str,
        plugins: Plugins | None = None,
        ocaml: OcamlConfig | None = None,
    ) -> Self:
        """Find out what a process with the agent in it is made of, and write it down."""
        target = known_target(process, store)
        if target is not None:
            opened = open_known(process, store, target, watched, ocaml or OcamlConfig())
        else:
            opened = open_new(process, watched, linked_before(process, store))
            earlier = rows_before(opened.program.image.path, store)
            take_host(opened, ocaml or OcamlConfig(), {}, earlier)
            target = record_opened(store, process, opened, how)
            store.resume.put_host(target, opened.program.host.rows())
        # What is known of the program stays: a collection in the middle of a reload need not
        # walk it (4 ms for some hundred variables).
        gc.freeze()
        return cls(process, opened, store, target, plugins)

    def configure(self, config: Config, folder: Path) -> None:
        """Take what the project says of hooks, types, retention and consistency."""
        self.program.past.keep = config.retain
        self.retiring.retirer.policy = RetirePolicy(
            min_interval=config.retire.min_interval_s, max_stop_ms=config.retire.max_stop_ms
        )
        self.trust = Trust.of_this_user([folder] if config.allow_shared_files else [])
        if config.consistent:
            self.together_s = config.consistent_limit_s
        self.hooks = Hooks(config.hooks, folder) if config.hooks != HooksConfig() else None
        accepted = frozenset(config.types.accept)
        self.program.wishes = Wishes(accepted, config.migrate, self.program.wishes.told)

    @contextmanager
    def together(self, limit_s: float | None) -> Generator[None]:
        """Let reloads meanwhile switch at one instant, with a limit; None: as otherwise."""
        before = self.together_s
        self.together_s = before if limit_s is None else limit_s
        try:
            yield
        finally:
            self.together_s = before

    def reload_files(
        self, paths: Sequence[str], *, reinit: frozenset[str] = frozenset(), named: bool = False
    ) -> Outcome:
        """Read files now and reload what changed in them, as one transaction."""
        began = time.monotonic()
        try:
            contents = read_named(paths, self.trust)
        except (UnreadableFileError, UntrustedPathError) as error:
            self.journal.begin("load")
            return self.decided(error, [], list(paths), began, "load")
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
        self.journal.begin("load")
        try:
            with noticing_the_end(self.process, lambda: "reading objects"):
                objects, equal = self.chosen(contents, named=named, again=bool(reinit))
        except (ReloaderError, StateError) as error:
            return self.decided(error, [], names, event_time, "load")
        if objects:
            return self.reload_objects(objects, event_time, "load", reinit)
        more = self.program.host.companions(None, [])
        if more is not None:
            return reload_with(self, more, [], event_time, reinit)
        return Outcome("unchanged", objects=equal or names)

    def chosen(
        self, contents: Contents, *, named: bool, again: bool = False
    ) -> tuple[list[ObjectFile], list[str]]:
        """Return the objects to reload, and the names of those that are what is live.

        Those count as well if they are to be reloaded `again`, for their variables' sake.
        """
        objects, archives = read_files(contents, self.program)
        for archive in archives:
            self.shelf.archives[archive.path] = archive
        found = choose(
            self.program, objects, archives, named=named, again=again, refused=self.refused
        )
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
        anew: Anew = IN_PLACE,
    ) -> Outcome:
        """Make versions of objects live, and write down what came of it."""
        if not self.process.is_inside():
            self.follow()
        self.journal.begin(kind)
        options = Options(
            reinit, event_time, source_line, self.before_step, anew, self.plugins,
            self.together_s, self.hooks,
        )  # fmt: skip
        names, pid = [file.name for file in objects], self.process.pid
        try:
            outcome = reload(self.program, objects, self.journal, options)
        except (ReloaderError, StateError, SlotTableFullError) as error:
            more = self.program.host.companions(error, objects) if kind == "load" else None
            if more is not None:
                return reload_with(self, more, objects, event_time, reinit)
            return self.decided(error, objects, names, event_time, kind)
        with self.noting_state_errors(outcome):
            if outcome.state == "unchanged":
                self.remember(outcome, objects, kind)
            if self.process.pid != pid:
                self.follow()
            self.retiring.collect()
        return outcome

    def check(self, path: str) -> Outcome:
        """Say whether a file would load, and what would change; changes nothing."""
        return check(self, path)

    def rollback(self, generation: int | None) -> Outcome:
        """Make the versions live that were live after a generation; None: before the last."""
        return rollback(self, generation)

    def version(self, version: ObjectVersion) -> ObjectFile:
        """Return an earlier version of an object."""
        data = self.store.snapshots.load(version.digest or "")
        program = self.program
        return program.cache.read(version.path, data, version.member, program.objects)

    def is_other(self, version: ObjectVersion) -> bool:
        """Return whether another version of this object is live."""
        live = self.program.objects.get((version.path, version.member))
        return version.digest is not None and (
            live is None or live.file.digest != version.digest
        )

    def unload(self, key: Key) -> Outcome:
        """Take an object out; one of the program's own returns to what was linked."""
        began = time.monotonic()
        name = f"{key[0]}({key[1]})" if key[1] else key[0]
        self.journal.begin("unload")
        original = {(v.path, v.member): v for v in self.store.query.live_set(self.target, 0)}
        if key in original:
            if not self.is_other(original[key]):
                return Outcome("unchanged", objects=[name])
            try:
                file = self.version(original[key])
            except StateError as error:
                return self.decided(error, [], [name], began, "unload")
            return self.reload_objects([file], began, "unload")
        users = self.users_of(key)
        if users:
            error = StillReferredToError(name, users)
            return self.decided(error, [], [name], began, "unload")
        return self.forget(key, name, began)

    def remap(self, *keys: Key) -> Outcome:
        """Give the code and constants of live objects another place; variables stay."""
        return remap(self, keys)

    def users_of(self, key: Key) -> list[str]:
        """Return the live objects that refer to what an object defines."""
        names = defined_names(self.program.objects[key].file)
        return [
            live.file.name
            for other, live in self.program.objects.items()
            if other != key and names & wanted_names(live.file)
        ]

    def forget(self, key: Key, name: str, began: float) -> Outcome:
        """Remove an object that nothing linked refers to; its memory waits for its proof."""
        outcome = Outcome("live", objects=[name])
        version = [ObjectVersion(*key, None)]
        try:
            constructors.may_go(self.program, key, name)
            self.journal.catch_up()
            with self.store.transaction():
                number = self.store.journal.prepare(self.target, version, {}, kind="unload")
                self.store.journal.live(self.target, number, summary_of(outcome))
                self.journal.remove(key)
        except (ReloaderError, StateError) as error:
            return self.decided(error, [], [name], began, "unload")
        try:
            constructors.destroy(self.program, key)
        except ReloaderError as error:
            outcome.notes.append(f"its destructors did not finish: {error}")
        del self.program.objects[key]
        self.program.past.moments.clear()  # it has had its destructors run
        self.program.index.remove_owner(key)
        index_symbols(self.program)  # others may have had the same names
        self.program.ledger.supersede(self.program.roots())
        self.program.generation = Generation(number)
        outcome.generation = number
        outcome.total_ms = (time.monotonic() - began) * 1e3
        with self.noting_state_errors(outcome):
            self.retiring.collect()
        return outcome

    def known_objects(self) -> list[Key]:
        """Return every object that is or was live."""
        superseded = {row.object for row in self.program.ledger.rows.values() if row.object[0]}
        return sorted({*self.program.objects, *superseded})

    def decided(
        self,
        error: ReloaderError | StateError | SlotTableFullError,
        objects: Sequence[ObjectFile],
        names: list[str],
        event_time: float,
        kind: Kind,
    ) -> Outcome:
        """Return and record an attempt that did not become live."""
        refused = isinstance(error, RefusedError | SlotTableFullError)
        outcome = Outcome("refused" if refused else "failed", objects=names, error=str(error))
        outcome.code = getattr(error, "code", "slots-full")
        outcome.generation = self.journal.number  # its row says why already, if it has one
        outcome.total_ms = (time.monotonic() - event_time) * 1e3
        if isinstance(error, StateError):
            outcome.error += f" {UNTOUCHED}"
        if self.plugins:
            event = Event(tuple(names), outcome.generation, error=outcome.error)
            outcome.notes += self.plugins.failed(event)
        with self.noting_state_errors(outcome):
            if not isinstance(error, StateError) and not outcome.generation:
                self.remember(outcome, objects, kind)
            if isinstance(error, TargetGoneError) and not self.follow():
                self.store.targets.end(self.target, "the program ended")
            else:
                self.retiring.collect()
        return outcome

    def follow(self) -> bool:
        """Go on with what the program has forked if it has ended; return whether any is."""
        return follow(self.process, self.store, self.target)

    @contextmanager
    def noting_state_errors(self, outcome: Outcome) -> Generator[None]:
        """Tell that an outcome could not be written down: it is as it is all the same."""
        try:
            yield
        except StateError as error:
            outcome.notes.append(str(error))

    def remember(self, outcome: Outcome, objects: Sequence[ObjectFile], kind: Kind) -> None:
        """Write an attempt that was decided before it was prepared into the history."""
        if outcome.state == "live":
            return
        versions = versions_of(objects) or [
            ObjectVersion(name, "", None) for name in outcome.objects
        ]
        outcome.generation = self.store.journal.record(
            self.target, outcome.state, versions, summary_of(outcome), kind=kind
        )

    def close(self) -> None:
        """Let the program go on without us; a later daemon can take it up again."""
        with suppress(StateError):  # the prepared row stays: the next daemon finishes it
            self.journal.catch_up()
        self.program.host.close()
        self.process.close()
        if self.owns_store:
            self.store.close()
