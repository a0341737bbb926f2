"""Who keeps the arena's memfd: a small process, so that the target needs no descriptor of ours.

A later daemon of the same user opens it again through /proc/HOLDER/fd. Opening the target's own
/proc/PID/map_files would do as well, but needs privileges.
"""

import os
import subprocess
from pathlib import Path

from reloader.errors.live import ArenaLostError
from reloader.live.target import Mapping
from stubs import layout


def start_holder(memfd: int, pid: int) -> subprocess.Popen[bytes]:
    """Start the holder of an arena; it ends by itself when process `pid` has ended."""
    command = [str(layout.holder_path()), str(memfd), str(pid)]
    return subprocess.Popen(  # noqa: S603 - our own program, with two numbers
        command,
        pass_fds=[memfd],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,  # Ctrl-C at the daemon's terminal is not for it
        cwd="/",
        env={},
    )


def _same_file(fd: int, mapping: Mapping) -> bool:
    return os.fstat(fd).st_ino == mapping.inode


def _open_checked(path: Path, mapping: Mapping) -> int:
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    if _same_file(fd, mapping):
        return fd
    os.close(fd)
    raise FileNotFoundError(2, "it now is another process's number")


def reopen_arena(pid: int, control: Mapping, holder: int) -> int:
    """Return a descriptor of a running arena's memfd.

    Raises:
        ArenaLostError: The holder was killed and we are not root.
    """
    try:
        return _open_checked(Path(f"/proc/{holder}/fd/{layout.HOLDER_FD}"), control)
    except OSError as error:
        why = error.strerror or str(error)
    try:
        name = f"{control.start:x}-{control.end:x}"
        return _open_checked(Path(f"/proc/{pid}/map_files/{name}"), control)
    except OSError as error:
        raise ArenaLostError(pid, holder, why) from error
