"""The client's half of `run`: an environment with the agent in it, and the program started.

The program is the client's own child with the terminal, signals and process group it would
have had without us. The agent in it says hello over a socket whose other end the daemon has; it
takes itself out of the environment again before `main` runs.
"""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Final

from reloader.errors.daemon import AgentMissingError, ProgramError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

AGENT: Final = Path(__file__).resolve().parents[2] / "stubs" / "agent" / "agent.so"
_FD_FLOOR: Final = 200  # out of the way of programs that expect 3 to be free
# what Python set to "ignored" for itself and a program must not inherit
_PYTHON_IGNORES: Final = (signal.SIGPIPE, signal.SIGXFSZ)


def find_program(name: str, env: Mapping[str, str]) -> str:
    """Return the file that executing a name runs, found as a shell finds it.

    Raises:
        ProgramError: There is none, or it is not executable.
    """
    places = [name] if "/" in name else _candidates(name, env)
    found = [place for place in places if Path(place).is_file()]
    usable = [place for place in found if os.access(place, os.X_OK)]
    if usable:
        return usable[0]
    if found:
        raise ProgramError(name, "it is not executable")
    reason = "no such file" if "/" in name else "no such file on the PATH"
    raise ProgramError(name, reason)


def agent_environment(
    env: Mapping[str, str], fd: int, daemon_pid: int, program: str | None
) -> dict[str, str]:
    """Return the environment that brings the agent into a program.

    Args:
        env: The user's; an own LD_PRELOAD stays behind the agent.
        fd: The program's end of the socket.
        daemon_pid: Which process the agent lets trace the program.
        program: Basename of the process that is meant, under wrappers.
    """
    # an empty LD_PRELOAD of the user's is kept too: the agent restores what follows the colon
    preload = f"{AGENT}:{env['LD_PRELOAD']}" if "LD_PRELOAD" in env else str(AGENT)
    added = {"LD_PRELOAD": preload, "RELOADER_FD": str(fd)}
    added["RELOADER_DAEMON_PID"] = str(daemon_pid)
    if program:
        added["RELOADER_PROGRAM"] = program
    return {**env, **added}


def socket_pair() -> tuple[int, int]:
    """Return the program's end, with a high number, and the daemon's.

    Raises:
        AgentMissingError: There is nothing that could say hello.
    """
    if not AGENT.exists():
        raise AgentMissingError(AGENT)
    near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with near, far:
        # before the agent sends: a wrapper's pid would stand for the program's
        far.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        high = fcntl.fcntl(near, fcntl.F_DUPFD_CLOEXEC, _FD_FLOOR)
        return high, os.dup(far.fileno())


def start_program(path: str, argv: Sequence[str], env: Mapping[str, str], fd: int) -> int:
    """Start the program as a child and return its pid.

    Returns once it is executing: a failed `exec` is this function's error, not an exit status.

    Raises:
        ProgramError: It could not be executed.
    """
    failed, theirs = os.pipe()  # both close on exec: its end is the good news
    child = os.fork()
    if child == 0:
        _become_program(path, argv, env, fd, theirs)
    os.close(theirs)
    try:
        number = os.read(failed, 16)
    finally:
        os.close(failed)
    if number:
        os.waitpid(child, 0)
        raise ProgramError(argv[0], os.strerror(int(number)))
    return child


def _become_program(
    path: str, argv: Sequence[str], env: Mapping[str, str], fd: int, failed: int
) -> None:
    """Execute the program in this forked child; never returns."""
    try:
        for number in _PYTHON_IGNORES:
            signal.signal(number, signal.SIG_DFL)
        os.set_inheritable(fd, True)  # noqa: FBT003 - the os module's own signature
        os.execve(path, list(argv), dict(env))  # noqa: S606 - what the user asked for
    except OSError as error:
        os.write(failed, str(error.errno or errno.ENOEXEC).encode())
    finally:
        os._exit(127)


def _candidates(name: str, env: Mapping[str, str]) -> list[str]:
    folders = env.get("PATH", os.defpath).split(os.pathsep)
    return [str(Path(folder or ".") / name) for folder in folders]
