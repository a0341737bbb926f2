"""One run of the user's build command: its whole process group, its output, its end.

The group is signalled only while its leader is not yet reaped: until then the number cannot
belong to anybody else. The leader's end is not the build's end when it is killed, since a
compiler that it started may still write; a closed output pipe says that all of them are gone.
"""

import contextlib
import os
import selectors
import signal
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

from reloader.errors.watch import BuildStartError

_KEPT_BYTES = 64 * 1024  # at the start and again at the end of the output
_GRACE_SECONDS = 2.0  # from SIGTERM, in which make removes half-made targets, to SIGKILL


class BoundedOutput:
    """The first and the last part of what a build printed."""

    def __init__(self, kept_bytes: int = _KEPT_BYTES) -> None:
        """Start empty."""
        self._kept = kept_bytes
        self._head = bytearray()
        self._tail = bytearray()
        self._left_out = 0

    def add(self, data: bytes) -> None:
        """Take what was printed next."""
        room = self._kept - len(self._head)
        self._head += data[:room]
        self._tail += data[room:]
        if len(self._tail) > 2 * self._kept:
            self._left_out += len(self._tail) - self._kept
            del self._tail[: -self._kept]

    def text(self) -> str:
        """Return it, with a line that says how much is missing."""
        over = max(len(self._tail) - self._kept, 0)
        left_out = self._left_out + over
        tail = bytes(self._tail[over:])
        gap = f"\n... {left_out} bytes left out ...\n".encode() if left_out else b""
        return (bytes(self._head) + gap + tail).decode("utf-8", "replace")


class BuildChild:
    """The running build; a context that leaves no process of it behind when interrupted."""

    def __init__(self, command: str, cwd: Path, env: Mapping[str, str] | None = None) -> None:
        """Start the command in its own process group.

        Args:
            command: For the shell.
            cwd: Where to run it.
            env: Its environment; ours if None.

        Raises:
            BuildStartError: The system could not start it.
        """
        self.output = BoundedOutput()
        self._started = time.monotonic()
        try:
            self._process = subprocess.Popen(  # noqa: S602 - the user's own command line, by design
                command,
                shell=True,
                cwd=cwd,
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        except OSError as error:
            raise BuildStartError(command, cwd, error.strerror or str(error)) from error
        self._pipe = self._process.stdout.fileno() if self._process.stdout else -1
        os.set_blocking(self._pipe, False)
        self._pidfd = os.pidfd_open(self._process.pid)

    def __enter__(self) -> Self:
        """Return the running build."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        """Reap the leader and close what is ours."""
        if kind is not None:
            self.kill()
        self._process.wait()
        os.close(self._pidfd)
        if self._process.stdout is not None:
            self._process.stdout.close()

    @property
    def seconds(self) -> float:
        """How long it has been running."""
        return time.monotonic() - self._started

    def wait(self, interrupt_fd: int) -> int | None:
        """Wait for the end, or for something to read from `interrupt_fd`.

        Returns:
            The exit status, negative for a signal; None if interrupted.
        """
        with selectors.DefaultSelector() as selector:
            selector.register(self._pidfd, selectors.EVENT_READ)
            selector.register(self._pipe, selectors.EVENT_READ)
            selector.register(interrupt_fd, selectors.EVENT_READ)
            while True:
                ready = {key.fd for key, _ in selector.select()}
                if interrupt_fd in ready:
                    return None
                if self._pipe in ready and not self._read():
                    selector.unregister(self._pipe)
                if self._pidfd in ready:
                    self._read()
                    return self._process.wait()

    def kill(self) -> None:
        """End the whole process group, gently first."""
        self._signal(signal.SIGTERM)
        if not self._wait_all(_GRACE_SECONDS):
            self._signal(signal.SIGKILL)

    def _signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)

    def _wait_all(self, seconds: float) -> bool:
        """Wait until the leader ended and nobody holds the output pipe."""
        end = time.monotonic() + seconds
        with selectors.DefaultSelector() as selector:
            selector.register(self._pidfd, selectors.EVENT_READ)
            selector.register(self._pipe, selectors.EVENT_READ)
            while selector.get_map() and (left := end - time.monotonic()) > 0:
                for key, _ in selector.select(left):
                    if key.fd == self._pidfd or not self._read():
                        selector.unregister(key.fd)
            return not selector.get_map()

    def _read(self) -> bool:
        """Take what is in the pipe; False at its end."""
        try:
            while data := os.read(self._pipe, 65536):
                self.output.add(data)
        except BlockingIOError:
            return True
        return False
