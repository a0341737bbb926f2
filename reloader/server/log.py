"""structlog's set-up: JSON lines in `.reloader/log.jsonl`, human lines on a terminal.

A line that cannot be written is lost: what it tells of goes on, whatever the disk says.
"""

from __future__ import annotations

import contextlib
import sys
import threading
import traceback
from enum import StrEnum
from typing import TYPE_CHECKING, Any, BinaryIO, Final

import structlog

if TYPE_CHECKING:
    from collections.abc import Mapping, MutableMapping
    from pathlib import Path

_ROTATE_SIZE: Final = 8 << 20  # bytes; the previous file stays beside it as log.jsonl.1


class Name(StrEnum):
    """Every event name of the log, once."""

    DAEMON_BEGAN = "daemon began"
    DAEMON_STOPPING = "daemon stopping"
    DAEMON_ENDED = "daemon ended"
    CLIENT_REFUSED = "client refused"
    REQUEST = "request"
    REFUSED = "refused"
    FAILED = "failed"
    DEFECT = "defect"  # an exception nobody foresaw, with its traceback
    ATTACHED = "attached"
    RELOAD = "reload"
    BUILD = "build"
    RETIRED = "retired"
    WARNING = "warning"
    TARGET_ENDED = "target ended"


class _Lines:
    """The last processor: one JSON line into the file, one human line on the terminal."""

    def __init__(self, path: Path, *, terminal: bool) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._file = _begin(path)
        self._json = structlog.processors.JSONRenderer(default=str)
        self._human = structlog.dev.ConsoleRenderer(colors=True) if terminal else None

    def __call__(
        self, logger: object, method: str, event: MutableMapping[str, Any]
    ) -> str | Mapping[str, Any]:
        shown = dict(event)
        if exception := event.pop("exc_info", None):
            event["exception"] = _traceback(exception)
        line = self._json(logger, method, event)
        self._append(f"{line}\n".encode("utf-8", "backslashreplace"))
        if self._human:
            sys.stderr.write(f"{self._human(logger, method, shown)}\n")
        raise structlog.DropEvent

    def _append(self, line: bytes) -> None:
        with self._lock, contextlib.suppress(OSError):
            if self._file.tell() > _ROTATE_SIZE:
                full, self._file = self._file, _begin(self._path)
                full.close()
            self._file.write(line)


def set_up(path: Path, *, terminal: bool = False) -> structlog.typing.FilteringBoundLogger:
    """Begin to log.

    Args:
        path: The JSON lines' file; an overlong one is put aside first.
        terminal: Also write human lines on standard error.
    """
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            _Lines(path, terminal=terminal),
        ],
        cache_logger_on_first_use=False,
    )
    return structlog.get_logger()


_EVENTS: Final = {
    "attached": Name.ATTACHED,
    "reload": Name.RELOAD,
    "build": Name.BUILD,
    "retired": Name.RETIRED,
    "warning": Name.WARNING,
    "ended": Name.TARGET_ENDED,
}


def note(
    logger: structlog.typing.FilteringBoundLogger, kind: str, data: Mapping[str, Any]
) -> None:
    """Write an event that clients are told about into the log, too."""
    name = _EVENTS.get(kind)
    if name is not None:
        logger.info(name, **data)


def _begin(path: Path) -> BinaryIO:
    """Return the file to append to, unbuffered; an overlong one is put aside first."""
    if path.exists() and path.stat().st_size > _ROTATE_SIZE:
        path.replace(path.with_name(f"{path.name}.1"))
    file = path.open("ab", buffering=0)
    path.chmod(0o600)
    return file


def _traceback(exception: object) -> str:
    if isinstance(exception, BaseException):
        error: BaseException | None = exception
    else:
        error = sys.exc_info()[1]
    return "".join(traceback.format_exception(error)) if error else ""
