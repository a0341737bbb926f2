"""WorkQueue: one thread that does one thing at a time, in order."""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from reloader.errors.daemon import StoppingError

if TYPE_CHECKING:
    from collections.abc import Callable

    from reloader.server.connection import Connection


@dataclass(slots=True, eq=False)
class Job:
    """One piece of work and, once done, its result or error."""

    verb: str
    run: Callable[[], Any]
    client: Connection | None = None  # whose request it is; gets the progress events
    done: threading.Event = field(default_factory=threading.Event)
    result: Any = None
    error: Exception | None = None

    def wait(self) -> Any:  # noqa: ANN401 - the result of whatever `run` does
        """Wait until it is done and return its result, or raise its error."""
        self.done.wait()
        if self.error:
            raise self.error
        return self.result


class WorkQueue:
    """The daemon's one work thread."""

    def __init__(self, on_done: Callable[[Job], None]) -> None:
        """Make the queue; `on_done` is called on the work thread after every job."""
        self._on_done = on_done
        self._jobs: deque[Job] = deque()
        self._wake = threading.Condition()
        self._refusing = False
        self._closed = False
        self.current: Job | None = None
        self._changed: set[str] = set()
        self._changed_job: Job | None = None
        self._thread = threading.Thread(target=self._loop, name="work")

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def put(self, job: Job) -> Job:
        """Queue a job.

        Raises:
            StoppingError: The queue is closed.
        """
        with self._wake:
            if self._refusing:
                raise StoppingError(job.verb)
            self._jobs.append(job)
            self._wake.notify()
        return job

    def put_files(self, paths: frozenset[str], run: Callable[[frozenset[str]], object]) -> None:
        """Queue changed files; a set that nobody began yet takes them in."""
        with self._wake:
            if self._refusing:
                return
            self._changed |= paths
            if self._changed_job is None:
                job = Job("files changed", lambda: run(self._take_files()))
                self._changed_job = job
                self._jobs.append(job)
                self._wake.notify()

    def waiting(self) -> int:
        """Return how many jobs wait behind the current one."""
        with self._wake:
            return len(self._jobs)

    def idle(self) -> bool:
        """Return whether nothing is queued or under way."""
        with self._wake:
            return not self._jobs and self.current is None

    def refuse(self) -> None:
        """Take no more jobs, and refuse those that nobody began."""
        with self._wake:
            self._refusing = True
            refused = list(self._jobs)
            self._jobs.clear()
        for job in refused:
            job.error = StoppingError(job.verb)
            job.done.set()

    def close(self, last: Callable[[], object]) -> None:
        """Refuse what waits, finish the current job, run `last`, and end the thread."""
        self.refuse()
        with self._wake:
            self._jobs.append(Job("close", last))
            self._closed = True
            self._wake.notify()
        self._thread.join()

    def _take_files(self) -> frozenset[str]:
        with self._wake:
            paths = frozenset(self._changed)
            self._changed.clear()
            self._changed_job = None
        return paths

    def _loop(self) -> None:
        while True:
            with self._wake:
                self._wake.wait_for(lambda: self._jobs or self._closed)
                if not self._jobs:
                    return
                job = self.current = self._jobs.popleft()
            try:
                job.result = job.run()
            except Exception as error:  # noqa: BLE001 - handed to whoever waits for the job
                job.error = error
            with self._wake:
                self.current = None
            job.done.set()
            with contextlib.suppress(Exception):  # this thread's end would end all work
                self._on_done(job)
