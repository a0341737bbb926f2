"""Client: the daemon's verbs as typed calls.

It imports nothing heavy: a command's whole life is mostly the start of Python.
"""

from __future__ import annotations

import contextlib
import os
import select
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self, cast

from reloader.errors.daemon import DaemonGoneError, ProtocolError, RemoteError
from reloader.wire.project import Project, find_project
from reloader.wire.protocol import Channel, Event, Reply, Request
from reloader.wire.start import connect

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from reloader.wire.answers import (
        CheckAnswer,
        FindingAnswer,
        HolderAnswer,
        MemoryAnswer,
        ObjectAnswer,
        OwnerAnswer,
        ReloadAnswer,
        SpawnAnswer,
        StatusAnswer,
        TargetAnswer,
    )
    from reloader.wire.protocol import Json

_STOP_S: Final = 30.0


class Client:
    """A connection to a project's daemon; one request at a time.

    Args:
        channel: Connected.
        project: Whose daemon it is.
        target: Which program is meant where several run: a session, pid or name.
        on_event: Gets what arrives before a reply, progress above all.
    """

    def __init__(
        self,
        channel: Channel,
        project: Project,
        *,
        target: str | None = None,
        on_event: Callable[[Event], None] | None = None,
    ) -> None:
        self.channel = channel
        self.project = project
        self._target = target
        self._on_event = on_event

    @classmethod
    def open(
        cls,
        project: Project | None = None,
        *,
        start: bool = True,
        target: str | None = None,
        on_event: Callable[[Event], None] | None = None,
    ) -> Self:
        """Connect to the daemon of a project, by default that of the working directory.

        Raises:
            ReloaderError: None runs and `start` is False, or it could not be started.
        """
        project = project or find_project()
        channel = Channel(connect(project, start=start))
        return cls(channel, project, target=target, on_event=on_event)

    def call(self, verb: str, fds: Sequence[int] = (), **params: object) -> Any:  # noqa: ANN401 - the typed methods below say what
        """Send a request and return its result.

        Raises:
            RemoteError: The daemon refused or failed.
            DaemonGoneError: It ended before it answered.
        """
        body: Json = {name: value for name, value in params.items() if value is not None}
        if self._target is not None:
            body.setdefault("target", self._target)
        try:
            self.channel.send(Request(verb, body), fds)
            while message := self.channel.receive():
                if isinstance(message, Reply):
                    return _result(message)
                if isinstance(message, Event) and self._on_event:
                    self._on_event(message)
        except (ConnectionError, ProtocolError) as error:
            raise DaemonGoneError(verb) from error
        raise DaemonGoneError(verb)

    def next_event(self) -> Event | None:
        """Wait for the next event of a subscribed connection; None once the daemon ended."""
        try:
            while message := self.channel.receive():
                if isinstance(message, Event):
                    return message
        except (ConnectionError, ProtocolError):
            pass
        return None

    def events_so_far(self, limit_s: float) -> Iterator[Event]:
        """Yield the events of a subscribed connection up to now; never waits for longer.

        Replies come in the order of the events before them, on the daemon's reading thread, so
        that a request which does nothing is as good as a mark.
        """
        with contextlib.suppress(ConnectionError, ProtocolError):
            self.channel.send(Request("subscribe", {}))
            while select.select([self.channel], [], [], limit_s)[0]:
                message = self.channel.receive()
                if not isinstance(message, Event):
                    return
                yield message

    def status(self) -> StatusAnswer:
        """Return what runs."""
        return self.call("status")

    def attach(
        self,
        pid: int,
        *,
        watch: Sequence[str] = (),
        build: str | None = None,
        source: Sequence[str] = (),
        **modes: bool | None,
    ) -> TargetAnswer:
        """Go beside a running program."""
        return self.call(
            "attach",
            pid=pid,
            build=build,
            watch=list(watch),
            source=list(source),
            cwd=str(Path.cwd()),
            build_env=dict(os.environ),
            consistent=modes.get("consistent"),
            replay=modes.get("replay"),
            replay_crashed=modes.get("replay_crashed"),
        )

    def spawn(self, fd: int, **params: object) -> SpawnAnswer:
        """Let the daemon expect a program's agent on the other end of a socket."""
        return self.call("spawn", [fd], **params)

    def detach(self) -> TargetAnswer:
        """Let the program go on without the daemon."""
        return self.call("detach")

    def objects(self) -> list[ObjectAnswer]:
        """Return what is watched and loaded."""
        return self.call("objects")

    def history(self, limit: int = 20) -> list[ReloadAnswer]:
        """Return attempts, newest first."""
        return self.call("history", limit=limit)

    def generations(self) -> list[ReloadAnswer]:
        """Return generations that became live, newest first."""
        return self.call("generations")

    def memory(self) -> MemoryAnswer:
        """Return the bytes held, per object and generation."""
        return self.call("memory")

    def owner(self, what: str) -> list[OwnerAnswer]:
        """Return whom a symbol or an address belongs to, best first."""
        return self.call("owner", what=what)

    def why(self, name: str) -> list[HolderAnswer]:
        """Return what keeps superseded versions of an object."""
        return self.call("why", object=name)

    def check(self, paths: Sequence[str]) -> list[CheckAnswer]:
        """Return whether objects would load, with every reason why not."""
        return self.call("check", paths=list(paths))

    def load(
        self, paths: Sequence[str], reinit: Sequence[str] = (), *, consistent: bool = False
    ) -> ReloadAnswer:
        """Reload objects as one transaction."""
        paths, reinit = list(paths), list(reinit)
        return self.call("load", paths=paths, reinit=reinit, consistent=consistent)

    def unload(self, path: str) -> ReloadAnswer:
        """Take a loaded object out."""
        return self.call("unload", path=path)

    def remap(self, path: str) -> ReloadAnswer:
        """Give the code and constants of a live object another place."""
        return self.call("remap", path=path)

    def rollback(self, generation: int | None = None) -> ReloadAnswer:
        """Make an earlier generation's versions live again."""
        return self.call("rollback", generation=generation)

    def wait(self, generation: int | None = None, timeout: float | None = None) -> ReloadAnswer:
        """Wait until an attempt is decided; without a number, until all is."""
        return self.call("wait", generation=generation, timeout=timeout)

    def doctor(self, subject: str | None = None) -> list[FindingAnswer]:
        """Return what would stand in the way."""
        return self.call("doctor", subject=subject)

    def subscribe(self) -> None:
        """Ask for events; read them with `next_event`."""
        self.call("subscribe")

    def stop(self) -> int:
        """End the daemon, wait until it is gone, and return its pid."""
        info = self.project.daemon()
        gone = os.pidfd_open(info.pid) if info else None
        try:
            pid = int(cast("Json", self.call("stop"))["pid"])
            if gone is not None:
                poll = select.poll()
                poll.register(gone, select.POLLIN)
                poll.poll(_STOP_S * 1000)
            return pid
        finally:
            if gone is not None:
                os.close(gone)

    def close(self) -> None:
        """Close the connection."""
        self.channel.close()

    def __enter__(self) -> Self:
        """Return the client itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the connection."""
        self.close()


def _result(reply: Reply) -> Any:  # noqa: ANN401 - its shape is the verb's
    if reply.error:
        raise RemoteError(reply.error.code, reply.error.text)
    return reply.result
