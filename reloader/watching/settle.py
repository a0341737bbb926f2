"""Finished files, and their grouping into the sets that one reload takes.

There is no debounce delay: events arrive in a fraction of a millisecond, and a fixed wait would
be most of a reload's time. The grouping comes from the reload itself: the first finished file
is taken at once; what finishes while its reload runs is the next set. A file saved again while
it waits is there once, with its last content. So a hundred saves in a second cost as many
reloads as fit into that second, and the last content always arrives.
"""

import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class FinishedFile:
    """A complete file, read after its event; the disk may change again without harm."""

    path: Path  # absolute, as watched (links not resolved)
    data: bytes
    digest: str  # hex blake2b-128 of `data`
    mtime_ns: int
    event_ns: int  # time.monotonic_ns() when its event was read


Files = tuple[FinishedFile, ...]


class Settle:
    """Hands sets of finished files to one callback, one set at a time, on its own thread."""

    def __init__(
        self, deliver: Callable[[Files], None], on_error: Callable[[Exception], None]
    ) -> None:
        """Start the delivering thread.

        Args:
            deliver: Called with each set, never twice at the same time; may take long.
            on_error: Called with what `deliver` raised; delivering goes on.
        """
        self._deliver = deliver
        self._on_error = on_error
        self._waiting: dict[Path, FinishedFile] = {}
        self._changed = threading.Condition()
        self._running = False
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="settle", daemon=True)
        self._thread.start()

    def put(self, files: Iterable[FinishedFile]) -> None:
        """Add files that belong together: they are delivered in the same set."""
        with self._changed:
            for file in files:
                self._waiting.pop(file.path, None)
                self._waiting[file.path] = file
            self._changed.notify_all()

    def put_one(self, file: FinishedFile) -> None:
        """Add one file."""
        self.put((file,))

    def drop(self) -> Files:
        """Take back what has not been delivered yet."""
        with self._changed:
            return self._take()

    def wait_idle(self, timeout: float) -> bool:
        """Return whether everything put so far was delivered within the time (seconds)."""
        with self._changed:
            return self._changed.wait_for(
                lambda: not self._running and not self._waiting, timeout
            )

    def close(self) -> None:
        """Finish the running delivery, drop what waits, end the thread."""
        with self._changed:
            self._closed = True
            self._waiting.clear()
            self._changed.notify_all()
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def _take(self) -> Files:
        files = tuple(self._waiting.values())
        self._waiting.clear()
        return files

    def _run(self) -> None:
        while files := self._next():
            try:
                self._deliver(files)
            except Exception as error:  # noqa: BLE001 - whatever it is, watching must go on
                self._on_error(error)

    def _next(self) -> Files:
        """Wait for the next set; empty when closed."""
        with self._changed:
            self._running = False
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._waiting or self._closed)
            self._running = not self._closed
            return () if self._closed else self._take()
