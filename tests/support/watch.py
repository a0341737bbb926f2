"""A watcher under test: its files arrive in a queue, and a fence says when all have."""

import queue
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from reloader.watching.finished import FinishedFile
from reloader.watching.globs import parse_pattern
from reloader.watching.trust import Trust
from reloader.watching.watch import Mode, Watcher

COMPLETE = b"whole:"  # a stand-in for an object: `whole:...;` is complete, less is not


def whole(text: str) -> bytes:
    """Return the bytes of a complete file."""
    return COMPLETE + text.encode() + b";"


def is_whole(data: bytes) -> bool:
    """Return whether bytes are a complete file of `whole`."""
    return data.startswith(COMPLETE) and data.endswith(b";")


@dataclass
class Seen:
    """What a watcher handed on."""

    watcher: Watcher
    arrived: "queue.SimpleQueue[FinishedFile]"
    problems: list[Exception] = field(default_factory=list[Exception])

    def next(self) -> FinishedFile:
        """Wait for the next file."""
        return self.arrived.get(timeout=20)

    def all(self) -> list[tuple[str, bytes]]:
        """Return name and content of all that happened so far, in order."""
        assert self.watcher.sync(20)
        return self.so_far()

    def so_far(self) -> list[tuple[str, bytes]]:
        """Return name and content of all that was handed on already."""
        files: list[tuple[str, bytes]] = []
        while not self.arrived.empty():
            file = self.arrived.get()
            files.append((file.path.name, file.data))
        return files


@contextmanager
def watching(  # noqa: PLR0913 - the watcher's own options
    cwd: Path,
    *texts: str,
    is_complete: Callable[[bytes], bool] = is_whole,
    mode: Mode = Mode.AUTO,
    trust: Trust | None = None,
    poll_seconds: float = 0.02,
    suffixes: Sequence[str] = (".o", ".a"),
) -> Generator[Seen]:
    """Watch patterns below a folder."""
    patterns = [p for text in texts for p in parse_pattern(text, cwd, suffixes)]
    arrived: queue.SimpleQueue[FinishedFile] = queue.SimpleQueue()
    problems: list[Exception] = []
    watcher = Watcher(
        patterns,
        arrived.put,
        problems.append,
        is_complete=is_complete,
        mode=mode,
        trust=trust,
        poll_seconds=poll_seconds,
    )
    with watcher:
        yield Seen(watcher, arrived, problems)
