"""The daemon's engine: all attended programs, and every verb as calls on one of them."""

import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np

from reloader.config import load_config
from reloader.errors.base import ReloaderError
from reloader.errors.live import SanitizerError, TargetGoneError
from reloader.live.doctor import sanitizer_in
from reloader.live.inject import Adopted, adopt
from reloader.live.inject import attach as inject
from reloader.live.process import Process
from reloader.server.attended import Attended
from reloader.server.engine import Host, SpawnOptions, WatchOptions
from reloader.server.questions import Questions
from reloader.server.replies import (
    holder_answers,
)
from reloader.session.host_program import begin_program, load_program
from reloader.session.plugins import load_plugins
from reloader.session.session import Session
from reloader.session.source_names import symbols_for
from reloader.wire.answers import (
    CheckAnswer,
    EventKind,
    HolderAnswer,
    ReloadAnswer,
    SpawnAnswer,
    TargetAnswer,
)
from reloader.wire.protocol import Event
from state.errors import StateError
from state.store import Store

_LONGEST_WAIT = 3600.0  # seconds between looks at retirement when nothing waits


class Sessions(Questions):
    """Implements `engine.Engine`."""

    def __init__(self, folder: Path, host: Host) -> None:
        """Open the project's configuration and state."""
        self.host = host
        self.config = load_config(folder)
        self.plugins = load_plugins(folder, self.config.plugins)
        super().__init__(Store.open(folder / ".reloader"), folder)
        self._numbers = 0
        self._wake = threading.Event()
        self._closing = False
        self._retirer = threading.Thread(target=self._retire_loop, name="retire", daemon=True)
        self._retirer.start()

    # programs come and go

    def spawn(self, options: SpawnOptions, fd: int) -> SpawnAnswer:
        """Expect the agent of a program on this socket."""
        sock = socket.socket(fileno=fd)
        refuse_sanitizer(options.path, sock)
        attended = self._new(options.watch)
        thread = threading.Thread(
            target=self._greet,
            args=(attended, sock, options.link),
            name=f"greet-{attended.number}",
            daemon=True,
        )
        thread.start()
        return {"session": attended.number}

    def _greet(self, attended: Attended, sock: socket.socket, link: Sequence[str]) -> None:
        """Wait for the program's agent; runs on a thread of its own."""
        try:
            adopted = adopt(0, sock)
        except (ReloaderError, OSError) as error:
            sock.close()
            attended.stop()
            attended.warn(str(error))
            self.host.emit(
                Event(
                    EventKind.ENDED,
                    {"session": attended.number, "pid": 0, "reason": str(error)},
                )
            )
            return
        self.host.post(lambda: self._begin(attended, adopted, link))

    def _begin(self, attended: Attended, adopted: Adopted, link: Sequence[str]) -> None:
        """Open a program that waits before its main."""
        pid = adopted.process.pid
        try:
            self._open(attended, adopted.process, "run", adopted.release)
            if link:
                began = time.time()
                outcome = load_program(self._session(attended), link)
                attended.tell(outcome, "load", began)  # before it can end
                begin_program(self._session(attended), outcome)
        except (ReloaderError, StateError) as error:
            if link:  # it has nothing to run
                attended.warn(str(error))
                os.kill(pid, signal.SIGTERM)
            else:
                attended.warn(f"the program runs without reloading: {error}")
        finally:
            adopted.release()

    def attach(self, pid: int, options: WatchOptions) -> TargetAnswer:
        """Go beside a running program."""
        attended = self._new(options)
        self.host.progress(f"entering process {pid}")
        try:
            process = inject(pid)
        except BaseException:
            attended.stop()
            raise
        return self._open(attended, process, "attach")

    def _new(self, options: WatchOptions) -> Attended:
        self._numbers += 1
        return Attended(self._numbers, self.host, self.config, options)

    def _open(
        self,
        attended: Attended,
        process: Process,
        how: str,
        begin: Callable[[], None] | None = None,
    ) -> TargetAnswer:
        """Match the program with its objects and begin to watch."""
        for other in list(self._programs.values()):  # its last run may have ended just now
            if not self._session(other).process.alive():
                self._ended(other)
        try:
            self.host.progress("matching objects with the program")
            watched = attended.start()
            attended.session = Session.open(
                process,
                self.store,
                watched,
                how=how,
                plugins=self.plugins,
                ocaml=self.config.ocaml,
            )
            attended.session.begin = begin
            attended.session.configure(self.config, self.host.folder)
            if attended.options.consistent:
                attended.session.together_s = self.config.consistent_limit_s
        except BaseException:
            attended.stop()
            process.close()
            raise
        self._programs[attended.number] = attended
        self._mind_end(attended)
        self.host.targets_changed(len(self._programs))
        answer = self._target_answer(attended)
        attended.emit(EventKind.ATTACHED, answer)
        attended.replay()
        return answer

    def _mind_end(self, attended: Attended) -> None:
        pidfd = self._session(attended).process.pidfd()
        attended.on_end(pidfd, lambda: self.host.post(lambda: self._ended(attended)))

    def _ended(self, attended: Attended) -> None:
        """A program has ended, or the process of it that stood for all."""
        if attended.number not in self._programs:
            return
        session, reason = self._session(attended), "the program ended"
        attended.note_crashes()
        if session.follow():
            self._mind_end(attended)
            return
        try:
            self.store.targets.end(session.target, reason)
        except StateError as error:  # a later daemon sees that it has ended
            attended.warn(str(error))
        self._leave(attended, reason)

    def _leave(self, attended: Attended, reason: str) -> None:
        """Forget a program: nothing of ours refers to it any more."""
        session = self._session(attended)
        del self._programs[attended.number]
        attended.stop()
        session.close()
        attended.session = None  # the watcher and its callbacks are a cycle that would keep it
        attended.emit(EventKind.ENDED, {"pid": session.process.pid, "reason": reason})
        self.host.targets_changed(len(self._programs))

    def detach(self, target: str | None) -> TargetAnswer:
        """Let a program go on without us."""
        attended = self._find(target)
        answer = self._target_answer(attended)
        self._leave(attended, "detached")
        return answer

    def close(self) -> None:
        """Let every program go on and release everything."""
        self._closing = True
        self._wake.set()
        self._retirer.join()
        for attended in self._programs.values():
            attended.stop()
            self._session(attended).close()
        self._programs.clear()
        self.store.close()

    # changes

    def files_changed(self, paths: frozenset[str]) -> object:
        """Reload finished files, one transaction a program."""
        for attended in list(self._programs.values()):
            files = attended.taken(paths)
            attended.note_crashes()
            if not files:
                continue
            began = time.time()
            contents = [(str(file.path), file.data) for file in files]
            event_time = min(file.event_ns for file in files) / 1e9
            outcome = self._session(attended).reload_contents(contents, event_time)
            attended.tell(outcome, "load", began)
        self._wake.set()
        return None

    def load(
        self,
        paths: Sequence[str],
        target: str | None,
        reinit: Sequence[str],
        *,
        consistent: bool = False,
    ) -> ReloadAnswer:
        """Reload objects or archives as one transaction."""
        attended, began = self._find(target), time.time()
        session, files = self._session(attended), [str(self.host.folder / p) for p in paths]
        with session.together(self.config.consistent_limit_s if consistent else None):
            names = symbols_for(session.program, reinit)
            outcome = session.reload_files(files, reinit=names, named=True)
        self._wake.set()
        return attended.tell(outcome, "load", began)

    def unload(self, path: str, target: str | None) -> ReloadAnswer:
        """Take an object that was loaded out again."""
        attended, began = self._find(target), time.time()
        session = self._session(attended)
        outcome = session.unload(self._key(session, path))
        self._wake.set()
        return attended.tell(outcome, "unload", began)

    def rollback(self, generation: int | None, target: str | None) -> ReloadAnswer:
        """Make the versions live that were live after a generation."""
        attended, began = self._find(target), time.time()
        outcome = self._session(attended).rollback(generation)
        self._wake.set()
        return attended.tell(outcome, "rollback", began)

    def remap(self, path: str, target: str | None) -> ReloadAnswer:
        """Give the code and constants of a live object another place."""
        attended, began = self._find(target), time.time()
        session = self._session(attended)
        outcome = session.remap(self._key(session, path))
        self._wake.set()
        return attended.tell(outcome, "remap", began)

    def check(self, paths: Sequence[str], target: str | None) -> list[CheckAnswer]:
        """Say whether objects would load."""
        session = self._session(self._find(target))
        return [self._check(session, str(self.host.folder / path)) for path in paths]

    def _check(self, session: Session, path: str) -> CheckAnswer:
        outcome = session.check(path)
        return {
            "object": path,
            "ok": not outcome.error,
            "reasons": [outcome.error] if outcome.error else [],
            "functions": outcome.functions,
            "notes": outcome.notes,
        }

    def why(self, name: str, target: str | None) -> list[HolderAnswer]:
        """Name what still holds superseded versions of an object."""
        session = self._session(self._find(target))
        pinned = session.retiring.why(self._key(session, name))
        return [answer for item in pinned for answer in holder_answers(item)]

    # inside

    def _retire_loop(self) -> None:
        """Post an attempt to free memory whenever one is due."""
        while not self._closing:
            due = min(
                (a.session.retiring.due() for a in list(self._programs.values()) if a.session),
                default=np.inf,
            )
            self._wake.wait(min(max(due - time.monotonic(), 0.0), _LONGEST_WAIT))
            self._wake.clear()
            if not self._closing and self.config.retire.enabled and due <= time.monotonic():
                self.host.post(self._retire)
                self._wake.wait(self.config.retire.min_interval_s)

    def _retire(self) -> None:
        """Try to free what waits in every program."""
        for attended in list(self._programs.values()):
            session = self._session(attended)
            if session.retiring.due() > time.monotonic():
                continue
            try:
                report = session.retiring.attempt()
            except TargetGoneError:
                continue  # its end is told by itself
            except (ReloaderError, StateError) as error:
                attended.warn(f"old code stays for now: {error}")
                continue
            while session.retiring.problems:
                attended.warn(session.retiring.problems.pop())
            if report.freed:
                attended.emit(
                    EventKind.RETIRED,
                    {"freed_size": report.freed_size, "stop_us": report.stop_us},
                )
        with suppress(StateError):  # the next reload says that nothing can be written
            self.store.tidy(self.config.keep)
        self._wake.set()


def refuse_sanitizer(path: str, sock: socket.socket) -> None:
    """Refuse a program that the agent would crash, before it is started.

    Raises:
        SanitizerError: It is one.
    """
    with suppress(OSError):
        if name := sanitizer_in(path):
            sock.close()
            raise SanitizerError(path, name)


def open_engine(folder: Path, host: Host) -> Sessions:
    """Return the engine of a project folder."""
    return Sessions(folder, host)
