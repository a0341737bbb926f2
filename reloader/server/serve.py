"""The daemon as a process: one a project, its start, its signals, its exit status."""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import os
import signal
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from reloader.errors.base import ReloaderError
from reloader.errors.daemon import DaemonStartError
from reloader.server.daemon import Daemon
from reloader.server.sessions import open_engine as open_sessions
from reloader.wire.project import Project
from state.errors import StateError

if TYPE_CHECKING:
    from collections.abc import Generator

    from reloader.server.engine import OpenEngine

_TAKEOVER_S: Final = 20  # an old daemon that is ending must have let go by then


def serve(project: Project, open_engine: OpenEngine, ready_fd: int | None = None) -> int:
    """Be the daemon of a project and return the exit status.

    Args:
        project: Its folder exists.
        open_engine: Makes the engine.
        ready_fd: Gets one JSON line once clients can connect, or the reason why never.
    """
    project.prepare()
    try:
        with _sole_daemon(project):
            daemon = Daemon(project)
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, _noted)
            signal.signal(signal.SIGHUP, signal.SIG_IGN)
            signal.set_wakeup_fd(daemon.wake_fd(), warn_on_full_buffer=False)
            daemon.run(open_engine, lambda: _say(ready_fd, {"ok": True}))
    except (ReloaderError, StateError) as error:
        _say(ready_fd, {"ok": False, "code": error.code, "text": str(error)})
        return 1
    return 0


@contextlib.contextmanager
def _sole_daemon(project: Project) -> Generator[None]:
    """Hold the project's daemon lock; an old daemon that is just ending is waited for."""
    signal.signal(signal.SIGALRM, partial(_too_late, project))
    signal.alarm(_TAKEOVER_S)
    with project.locked("daemon"):
        signal.alarm(0)
        yield


def _too_late(project: Project, *_: object) -> None:
    reason = f"another daemon held {project.state}/daemon.lock for {_TAKEOVER_S} s"
    raise DaemonStartError(project.folder, reason)


def _noted(*_: object) -> None:
    """Let the wake-up descriptor tell the main loop."""


def _say(fd: int | None, line: dict[str, Any]) -> None:
    if fd is not None:
        with contextlib.suppress(BrokenPipeError):  # the client did not wait
            os.write(fd, json.dumps(line).encode() + b"\n")
        os.close(fd)


def main() -> int:
    """Run as `python … FOLDER [--ready-fd N]`."""
    parser = argparse.ArgumentParser(prog="reloader-daemon")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--ready-fd", type=int)
    arguments = parser.parse_args()
    # what `ps` and `top` show; the kernel keeps 15 bytes
    Path("/proc/self/comm").write_text("reloader-daemon")
    # Little of ours is cyclic, and each collection is a pause in somebody's reload.
    gc.set_threshold(50_000, 20, 50)
    # The work thread must not wait 5 ms for a thread that reads events or answers a query.
    sys.setswitchinterval(0.0002)
    return serve(Project(arguments.folder), open_sessions, arguments.ready_fd)
