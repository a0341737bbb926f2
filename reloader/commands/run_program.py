"""Minding the program that `reloader run` started: signals, stops, events, its exit status.

Facts: Ctrl-C and Ctrl-Z go from the terminal to the whole process group, so the program gets
them without us; we must only not die of Ctrl-C before it, and stop when it stops. A signal
sent to us alone (`kill`, a closed terminal) is meant for the program.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import socket
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Generator
    from types import FrameType

    from reloader.client import Client
    from reloader.wire.protocol import Event

_LATE_S: Final = 2.0  # how long the daemon may take to tell what it has to tell already
_LEFT_TO_PROGRAM: Final = (signal.SIGINT, signal.SIGQUIT)  # the terminal sends them to both
_FORWARDED: Final = (
    signal.SIGTERM,
    signal.SIGHUP,
    signal.SIGUSR1,
    signal.SIGUSR2,
    signal.SIGCONT,
)


class Minder:
    """Waits for a child while it shows the daemon's events."""

    def __init__(
        self, client: Client, show: Callable[[Event | None], None], wake: socket.socket
    ) -> None:
        """Make it; `show` gets each event, and None once the daemon has ended."""
        self._client = client
        self._show = show
        self._wake = wake
        self.pid = 0

    def wait(self) -> int:
        """Return the program's status as a shell has it: 128 + N for one killed by signal N."""
        with selectors.DefaultSelector() as selector:
            selector.register(self._wake, selectors.EVENT_READ)
            selector.register(self._client.channel, selectors.EVENT_READ)
            while True:
                status = self._look()
                if status is not None:
                    for event in self._client.events_so_far(_LATE_S):
                        self._show(event)  # the last reload may be why the program ended
                    return status
                for key, _ in selector.select():
                    if key.fileobj is self._wake:
                        self._wake.recv(4096)
                    else:
                        self._one_event(selector)

    def forward(self, number: int, _frame: FrameType | None) -> None:
        """Pass a signal on to the program."""
        if self.pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def _look(self) -> int | None:
        """Return the child's exit status; stop with it if it stopped."""
        pid, status = os.waitpid(self.pid, os.WNOHANG | os.WUNTRACED)
        if not pid:
            return None
        if os.WIFSTOPPED(status):
            # the shell must see its job stop; SIGCONT wakes us and is forwarded
            os.kill(os.getpid(), signal.SIGSTOP)
            return None
        if os.WIFSIGNALED(status):
            return 128 + os.WTERMSIG(status)
        return os.WEXITSTATUS(status)

    def _one_event(self, selector: selectors.BaseSelector) -> None:
        event = self._client.next_event()
        self._show(event)
        if event is None:
            selector.unregister(self._client.channel)


@contextlib.contextmanager
def minding(client: Client, show: Callable[[Event | None], None]) -> Generator[Minder]:
    """Take over the signals, from before the program starts until after it ended."""
    woken, wake = socket.socketpair()
    with woken, wake:
        for end in (woken, wake):
            end.setblocking(False)  # noqa: FBT003 - the socket module's own signature
        minder = Minder(client, show, woken)
        old_fd = signal.set_wakeup_fd(wake.fileno(), warn_on_full_buffer=False)
        old = _take_signals(minder)
        try:
            yield minder
        finally:
            signal.set_wakeup_fd(old_fd)
            for number, handler in old.items():
                signal.signal(number, handler)


def _take_signals(minder: Minder) -> dict[signal.Signals, Any]:
    """Set the handlers and return the old ones.

    A handler, not "ignored", for Ctrl-C too: handlers end with `exec`, so the program starts
    with the default, while what the user had ignored (nohup) stays ignored in both.
    """
    handlers: dict[signal.Signals, Callable[[int, FrameType | None], None]] = {
        **dict.fromkeys(_FORWARDED, minder.forward),
        **dict.fromkeys(_LEFT_TO_PROGRAM, _nothing),
    }
    handlers[signal.SIGCHLD] = _nothing
    return {
        number: signal.signal(number, handler)
        for number, handler in handlers.items()
        if number == signal.SIGCHLD or signal.getsignal(number) is not signal.SIG_IGN
    }


def _nothing(_number: int, _frame: FrameType | None) -> None:
    """Only wake the loop."""
