"""Who keeps the arena's memfd: a small process, so that the target needs no descriptor of ours.

A later daemon of the same user opens it again through /proc/HOLDER/fd. Opening the target's own
/proc/PID/map_files would do as well, but needs privileges.
"""

import contextlib
import os
from pathlib import Path
from typing import Final

from reloader.errors.live import ArenaLostError
from reloader.live.target import Mapping
from stubs import layout

MEMFD_NAME: Final = "memfd:reloader (deleted)"
_STARTED: Final[set[int]] = set()  # children of ours that nobody waited for yet


def start_holder(memfd: int, pid: int) -> int:
    """Start the holder of an arena, and return its pid; it ends when process `pid` has ended.

    In a session of its own, since Ctrl-C at the daemon's terminal is not for it.
    """
    program = str(layout.holder_path())
    actions: list[tuple[int, int, int] | tuple[int, int, str, int, int]] = [
        (os.POSIX_SPAWN_DUP2, memfd, layout.HOLDER_FD),
        *((os.POSIX_SPAWN_OPEN, fd, os.devnull, os.O_RDWR, 0) for fd in range(3)),
    ]
    argv = [program, str(layout.HOLDER_FD), str(pid)]
    reap_holders()
    holder = os.posix_spawn(program, argv, {}, file_actions=actions, setsid=True)
    _STARTED.add(holder)
    return holder


def reap_holders() -> None:
    """Forget the holders that we started and that have ended since, of whatever program."""
    for holder in tuple(_STARTED):
        with contextlib.suppress(ChildProcessError):
            if os.waitpid(holder, os.WNOHANG) == (0, 0):
                continue
        _STARTED.discard(holder)


def _same_file(fd: int, mapping: Mapping) -> bool:
    return os.fstat(fd).st_ino == mapping.inode


def _open_checked(path: Path, mapping: Mapping) -> int:
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    if _same_file(fd, mapping):
        return fd
    os.close(fd)
    raise FileNotFoundError(2, "it now is another process's number")


def left_descriptors(pid: int, control: Mapping) -> dict[int, Path]:
    """Return descriptors of the memfd that a killed daemon left in the target."""
    found: dict[int, Path] = {}
    with contextlib.suppress(OSError):
        for path in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(OSError):
                if path.stat().st_ino == control.inode and path.readlink().name == MEMFD_NAME:
                    found[int(path.name)] = path
    return found


def reopen_arena(pid: int, control: Mapping, holder: int) -> int:
    """Return a descriptor of a running arena's memfd.

    Raises:
        ArenaLostError: The holder was killed and we are not root.
    """
    try:
        return _open_checked(Path(f"/proc/{holder}/fd/{layout.HOLDER_FD}"), control)
    except OSError as error:
        why = error.strerror or str(error)
    for path in left_descriptors(pid, control).values():
        with contextlib.suppress(OSError):
            return _open_checked(path, control)
    try:
        name = f"{control.start:x}-{control.end:x}"
        return _open_checked(Path(f"/proc/{pid}/map_files/{name}"), control)
    except OSError as error:
        raise ArenaLostError(pid, holder, why) from error
