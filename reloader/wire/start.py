"""Starting the daemon from a client, and waiting until it is ready.

The daemon is a grandchild in a session of its own with none of our descriptors, so neither a
closed terminal nor a pipe that someone reads to its end notices it. Readiness comes over a
pipe: one JSON line when the socket listens, or the error, or the end of the pipe if it died.
"""

from __future__ import annotations

import fcntl
import json
import os
import select
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from reloader.errors.daemon import DaemonStartError, NoDaemonError, RemoteError
from reloader.wire.protocol import check_peer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from reloader.wire.project import Project

START_TIMEOUT_S: Final = 30.0
_FD_FLOOR: Final = 10
_ROOT: Final = Path(__file__).resolve().parents[2]
# -P and the explicit path: `python -m` would import the user's own `state` or `stubs` folder
_CODE: Final = (
    f"import sys; sys.path.insert(0, {str(_ROOT)!r}); "
    "from reloader.server.serve import main; sys.exit(main())"
)


def daemon_command() -> list[str]:
    """Return the command that is the daemon, without its arguments."""
    return [sys.executable, "-P", "-c", _CODE]


def connect(
    project: Project, *, start: bool = True, command: Sequence[str] | None = None
) -> socket.socket:
    """Return a connection to the project's daemon.

    Args:
        project: Whose daemon.
        start: Start one if none runs.
        command: The daemon to start, for tests.

    Raises:
        NoDaemonError: None runs, and none was to be started.
        DaemonStartError: It did not start; carries why.
    """
    found = _connect_running(project)
    if found:
        return found
    if not start:
        raise NoDaemonError(project.folder)
    project.prepare()
    with project.locked("start"):  # two clients at once: the second finds the first one's
        found = _connect_running(project)
        if found:
            return found
        start_daemon(project, command or daemon_command())
    found = _connect_running(project)
    if not found:
        reason = "it ended as soon as it was ready"
        raise DaemonStartError(project.folder, reason, _output(project))
    return found


def start_daemon(project: Project, command: Sequence[str]) -> None:
    """Start a daemon and wait until it listens.

    Raises:
        DaemonStartError: It did not; carries its output's last lines.
        RemoteError: It said why not.
    """
    ready, theirs = os.pipe()
    theirs = _out_of_the_way(theirs)
    child = os.fork()
    if child == 0:
        _become_daemon(project, command, theirs)
    os.close(theirs)
    os.waitpid(child, 0)
    try:
        said = _read_all(ready, START_TIMEOUT_S)
    except TimeoutError:
        reason = f"it was not ready after {START_TIMEOUT_S:g} s"
        raise DaemonStartError(project.folder, reason, _output(project)) from None
    finally:
        os.close(ready)
    if not said:
        reason = "it ended before it was ready"
        raise DaemonStartError(project.folder, reason, _output(project))
    answer: Any = json.loads(said)
    if not answer["ok"]:
        raise RemoteError(answer["code"], answer["text"])


def _become_daemon(project: Project, command: Sequence[str], ready: int) -> None:
    """Turn this forked child into the daemon; never returns."""
    try:
        os.setsid()
        if os.fork():
            os._exit(0)
        to_log = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
        log = _out_of_the_way(os.open(project.output, to_log, 0o600))
        nothing = _out_of_the_way(os.open(os.devnull, os.O_RDONLY))
        for target, source in ((0, nothing), (1, log), (2, log)):
            os.dup2(source, target)
        os.dup2(ready, 3)
        os.closerange(4, os.sysconf("SC_OPEN_MAX"))
        os.chdir(project.folder)
        os.execv(command[0], [*command, str(project.folder), "--ready-fd", "3"])  # noqa: S606 - our own command
    finally:
        os._exit(127)


def _out_of_the_way(fd: int) -> int:
    """Give a descriptor a number above those that the daemon is given.

    Where ours were closed (`<&-`) it has one of them.
    """
    high = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, _FD_FLOOR)
    os.close(fd)
    return high


def _connect_running(project: Project) -> socket.socket | None:
    info = project.daemon()
    if not info:
        return None
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.connect(info.socket)
        check_peer(sock)
    except (ConnectionRefusedError, FileNotFoundError):  # it is just ending
        sock.close()
        return None
    except BaseException:
        sock.close()
        raise
    return sock


def _read_all(fd: int, timeout: float) -> bytes:
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    said = b""
    while True:
        if not poll.poll(timeout * 1000):
            raise TimeoutError
        part = os.read(fd, 65536)
        said += part
        if not part or said.endswith(b"\n"):
            return said


def _output(project: Project) -> str:
    try:
        return project.output.read_text(errors="replace")
    except OSError:
        return ""
