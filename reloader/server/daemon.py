"""The daemon: one project, one work thread, and clients that never hold it up.

    main thread     accepts clients, waits for signals, ends when nobody needs it
    work thread     spawn, attach, load, … one after the other (`work.py`)
    client threads  read requests; answer queries at once (`connection.py`)

Its end never ends a program: the agents notice and the programs run on with the code they have.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import socket
import threading
import time
from functools import partial
from typing import TYPE_CHECKING, Final

from reloader.errors.base import ReloaderError
from reloader.errors.daemon import (
    NotAnsweredInTimeError,
    PeerError,
    RequestError,
    StoppingError,
    VersionError,
)
from reloader.server import log
from reloader.server.connection import Connection
from reloader.server.verbs import EVENTFUL, READ, WORK, Params
from reloader.server.work import Job, WorkQueue
from reloader.wire.project import DaemonInfo, Project, start_time_of
from reloader.wire.protocol import (
    VERSION,
    Event,
    Failure,
    Reply,
    Request,
    check_peer,
    encode,
)
from state.errors import StateError

if TYPE_CHECKING:
    from collections.abc import Callable

    from reloader.server.engine import Engine, OpenEngine
    from reloader.wire.answers import DaemonAnswer, ReloadAnswer

_FIRST_GRACE_S: Final = 15.0  # without a program, from the last client on
_LAST_GRACE_S: Final = 2.0  # after the last program's end
_BREATH_S: Final = 0.05
_LONGEST_WAIT_S: Final = 3600.0  # in one call; a condition does not take any number
_TAKEOVER_S: Final = 20  # an old daemon that is ending must have let go by then
_ANY_VERSION: Final = frozenset({"status", "stop"})  # so that an old daemon can be ended


class Daemon:
    """The engine's host and the clients' server."""

    def __init__(
        self,
        project: Project,
        *,
        first_grace: float = _FIRST_GRACE_S,
        last_grace: float = _LAST_GRACE_S,
    ) -> None:
        self.folder = project.folder
        self.project = project
        self.log = log.set_up(project.log)
        self._graces = (first_grace, last_grace)
        self._had_targets = False
        self._targets = 0
        self._began = time.time()
        self._stopping = False
        self._connections: set[Connection] = set()
        self._lock = threading.Lock()  # of _connections
        self._progressed = threading.Condition()
        self._decided = 0  # grows when something was decided: `wait` looks again
        self._queue = WorkQueue(self._job_done)
        self._ours, self._poked = socket.socketpair()
        for end in (self._ours, self._poked):
            end.setblocking(False)  # noqa: FBT003 - the socket module's own signature
        self._engine: Engine | None = None

    # the engine's side (engine.Host)

    def post(self, work: Callable[[], object]) -> None:
        """Queue work behind what is queued already."""
        with contextlib.suppress(StoppingError):
            self._queue.put(Job("post", work))

    def files_changed(self, paths: frozenset[str]) -> None:
        """Queue a reload of finished files; sets that wait are merged."""
        self._queue.put_files(paths, self._the_engine.files_changed)

    def emit(self, event: Event) -> None:
        """Send an event to every subscribed client; never blocks."""
        log.note(self.log, event.kind, event.data)
        data = encode(event)
        with self._lock:
            subscribed = [c for c in self._connections if c.subscribed]
        for connection in subscribed:
            connection.send_encoded(data)
        self._notify_waiters()

    def progress(self, text: str) -> None:
        """Tell the client whose request is worked on what is happening."""
        job = self._queue.current
        if job and job.client:
            job.client.send(Event("progress", {"text": text}))

    def targets_changed(self, count: int) -> None:
        """Note how many programs are under the daemon."""
        self._targets = count
        self._had_targets = self._had_targets or count > 0
        self._poke()

    # life

    def run(self, open_engine: OpenEngine, ready: Callable[[], object]) -> None:
        """Serve until a signal, `stop`, or nobody needs it.

        Args:
            open_engine: Called on the work thread, as is all that touches programs.
            ready: Called once clients can connect.

        Raises:
            ReloaderError: The engine could not be opened; nothing was started.
        """
        self._queue.start()
        try:
            opening = Job("open", lambda: open_engine(self.folder, self))
            self._engine = self._queue.put(opening).wait()
            listener = self._listen()
        except BaseException:
            self._queue.close(self._close_engine)
            raise
        self.log.info(log.Name.DAEMON_BEGAN, pid=os.getpid(), folder=str(self.folder))
        try:
            ready()
            self._loop(listener)
        finally:
            self._shut_down(listener)

    def stop(self) -> None:
        """Begin to end; may be called from any thread."""
        self._stopping = True
        self._queue.refuse()
        self._notify_waiters()
        self._poke()

    def _listen(self) -> socket.socket:
        path = self.project.socket
        path.unlink(missing_ok=True)  # of a daemon that was killed: we hold the lock
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        mask = os.umask(0o177)
        try:
            listener.bind(str(path))
        finally:
            os.umask(mask)
        listener.listen(64)
        info = DaemonInfo(os.getpid(), start_time_of(os.getpid()) or 0, str(path))
        self.project.write_daemon(info)
        return listener

    def _loop(self, listener: socket.socket) -> None:
        with selectors.DefaultSelector() as selector:
            selector.register(listener, selectors.EVENT_READ)
            selector.register(self._ours, selectors.EVENT_READ)
            while not self._stopping:
                ready = selector.select(self._grace())
                if not ready and self._grace() is not None:
                    return  # nobody came for the whole grace
                for key, _ in ready:
                    if key.fileobj is listener:
                        self._accept(listener)
                    else:
                        self._hear()

    def _grace(self) -> float | None:
        """Return how long to stay without anyone, or None while someone needs us."""
        with self._lock:
            needed = self._targets or self._connections or not self._queue.idle()
        return None if needed else self._graces[self._had_targets]

    def _accept(self, listener: socket.socket) -> None:
        try:
            sock, _ = listener.accept()
        except OSError as error:  # no descriptor is left: whoever is served goes on
            self.log.warning(log.Name.CLIENT_REFUSED, reason=str(error))
            time.sleep(_BREATH_S)  # the client waits in the queue, and `select` tells at once
            return
        try:
            check_peer(sock)
        except (PeerError, OSError) as error:
            self.log.warning(log.Name.CLIENT_REFUSED, reason=str(error))
            sock.close()
            return
        connection = Connection(sock, self._answer, self._closed)
        with self._lock:
            self._connections.add(connection)
        connection.start()

    def _hear(self) -> None:
        with contextlib.suppress(BlockingIOError):
            heard = self._ours.recv(4096)
            # the wake-up descriptor's bytes are signal numbers; a poke is 0
            if heard.strip(b"\0"):
                self._stopping = True

    def _shut_down(self, listener: socket.socket) -> None:
        self._stopping = True
        self.log.info(log.Name.DAEMON_STOPPING)
        listener.close()
        self.project.forget_daemon()
        self.project.socket.unlink(missing_ok=True)
        self._notify_waiters()
        self._queue.close(self._close_engine)
        with self._lock:
            connections = list(self._connections)
        for connection in connections:
            connection.finish()
        self.log.info(log.Name.DAEMON_ENDED)

    def _close_engine(self) -> None:
        if self._engine:
            self._engine.close()

    def wake_fd(self) -> int:
        """Return the descriptor that `signal.set_wakeup_fd` may write to."""
        return self._poked.fileno()

    def _poke(self) -> None:
        with contextlib.suppress(BlockingIOError):  # full: it is awake anyway
            self._poked.send(b"\0")

    def _closed(self, connection: Connection) -> None:
        with self._lock:
            self._connections.discard(connection)
        self._poke()

    def _job_done(self, job: Job) -> None:
        if job.error and not job.client and job.verb in {"post", "files changed"}:
            failure = self._failure(job.verb, job.error)
            self.emit(Event("warning", {"code": failure.code, "text": failure.text}))
        self._notify_waiters()
        if not self._targets:
            self._poke()

    def _notify_waiters(self) -> None:
        with self._progressed:
            self._decided += 1
            self._progressed.notify_all()

    # answers

    def _answer(self, connection: Connection, request: Request) -> Reply:
        params = Params(request.verb, request.params, connection.channel.take_fds())
        try:
            if request.version != VERSION and request.verb not in _ANY_VERSION:
                raise VersionError(request.version, VERSION)  # noqa: TRY301 - one way out
            return Reply(ok=True, result=self._do(connection, request.verb, params))
        except Exception as error:  # noqa: BLE001 - a defect must reach the client as text
            return Reply(ok=False, error=self._failure(request.verb, error))
        finally:
            for fd in params.fds:  # that no verb took
                os.close(fd)

    def _do(self, connection: Connection, verb: str, params: Params) -> object:
        engine = self._the_engine
        if verb in EVENTFUL or verb == "subscribe":
            connection.subscribed = True  # before the work: its first event may come at once
        if verb in WORK:
            job = Job(verb, lambda: WORK[verb](engine, params), connection)
            return self._queue.put(job).wait()
        if verb in READ:
            return READ[verb](engine, params)
        match verb:
            case "status":
                return {"daemon": self._status(), "targets": engine.targets()}
            case "subscribe":
                return None
            case "wait":
                return self._wait(params)
            case "stop":
                self.stop()
                return {"pid": os.getpid()}
            case _:
                problem = "this daemon knows no such verb"
                raise RequestError(verb, problem)

    def _status(self) -> DaemonAnswer:
        job = self._queue.current
        return {
            "pid": os.getpid(),
            "folder": str(self.folder),
            "began": self._began,
            "busy": job.verb if job else None,
            "queued": self._queue.waiting(),
        }

    def _wait(self, params: Params) -> ReloadAnswer:
        generation, timeout = params.maybe("generation", int), params.maybe("timeout", float)
        if timeout is not None and not timeout >= 0:
            problem = f"`timeout` is {timeout}, it must be 0 or more"
            raise RequestError(params.verb, problem)
        deadline = None if timeout is None else time.monotonic() + timeout
        while not self._stopping:
            decided = self._decided  # before looking: what comes meanwhile ends the wait below
            ready = generation is not None or self._queue.idle()
            found = ready and self._the_engine.reached(generation, params.target())
            if found:
                return found
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                what = f"generation {generation}" if generation else "the program to settle"
                raise NotAnsweredInTimeError(what, timeout or 0, self._newest(params))
            with self._progressed:
                longest = _LONGEST_WAIT_S if left is None else min(left, _LONGEST_WAIT_S)
                self._progressed.wait_for(partial(self._decided_since, decided), longest)
        raise StoppingError(params.verb)

    def _decided_since(self, decided: int) -> bool:
        return self._decided != decided

    def _newest(self, params: Params) -> int:
        rows = self._the_engine.history(params.target(), 1)
        return rows[0]["generation"] if rows else 0

    @property
    def _the_engine(self) -> Engine:
        if self._engine is None:
            problem = "the daemon is not ready"
            raise StoppingError(problem)
        return self._engine

    def _failure(self, verb: str, error: Exception) -> Failure:
        if isinstance(error, ReloaderError | StateError):
            self.log.info(log.Name.REFUSED, verb=verb, code=error.code, text=str(error))
            return Failure(error.code, str(error))
        self.log.error(log.Name.DEFECT, verb=verb, exc_info=error)
        text = f"{verb}: a defect in the daemon: {type(error).__name__}: {error}"
        return Failure("defect", f"{text}. See {self.project.log} for where.")
