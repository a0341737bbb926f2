"""Where things are: the project folder, the socket, and which daemon serves it.

    PROJECT/.reloader/           0700: state, log, daemon.json, two lock files
    $XDG_RUNTIME_DIR/reloader/   0700: sockets (else /tmp/reloader-UID)

`daemon.lock` is held for the daemon's whole life, so the kernel itself says whether one lives;
`daemon.json` says which (pid and start time) and where its socket is. `start.lock` is held by
a client while it starts one.
"""

from __future__ import annotations

import fcntl
import json
import os
import stat
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from reloader.errors.daemon import UntrustedPlaceError, UnusablePlaceError

if TYPE_CHECKING:
    from collections.abc import Generator

FOLDER_NAME: Final = ".reloader"
_OTHERS: Final = stat.S_IRWXG | stat.S_IRWXO


@dataclass(frozen=True, slots=True)
class DaemonInfo:
    """What `daemon.json` says."""

    pid: int
    start_time: int  # clock ticks after boot
    socket: str

    def is_alive(self) -> bool:
        """Return whether that very process still lives."""
        return start_time_of(self.pid) == self.start_time


@dataclass(frozen=True, slots=True)
class Project:
    """A project folder and the files of ours in it."""

    folder: Path

    @property
    def state(self) -> Path:
        """The folder of everything we keep."""
        return self.folder / FOLDER_NAME

    @property
    def log(self) -> Path:
        """The daemon's JSON lines."""
        return self.state / "log.jsonl"

    @property
    def output(self) -> Path:
        """What the daemon wrote to its standard output and error, tracebacks above all."""
        return self.state / "daemon.out"

    @property
    def socket(self) -> Path:
        """The socket's path; its length does not depend on the project's."""
        import hashlib  # noqa: PLC0415 - a client reads the path from daemon.json instead

        key = hashlib.blake2b(os.fsencode(self.folder), digest_size=8).hexdigest()
        return socket_folder() / f"{key}.sock"

    def prepare(self) -> None:
        """Make the state folder; git is told to leave it alone.

        Raises:
            UntrustedPlaceError: It belongs to another user, or others may write to it.
            UnusablePlaceError: It cannot be made or written.
        """
        try:
            self.state.mkdir(mode=0o700, exist_ok=True)
            check_private(self.state, write_only=True)
            ignore = self.state / ".gitignore"
            if not ignore.exists():
                ignore.write_text("*\n")
        except OSError as error:
            raise UnusablePlaceError(self.state, error.strerror or str(error)) from error

    def daemon(self) -> DaemonInfo | None:
        """Return the daemon that serves this project, if one lives."""
        try:
            body: Any = json.loads((self.state / "daemon.json").read_bytes())
            info = DaemonInfo(int(body["pid"]), int(body["start_time"]), str(body["socket"]))
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return info if info.is_alive() else None

    def write_daemon(self, info: DaemonInfo) -> None:
        """Say which daemon serves this project; readers see the old file or the new one."""
        part = self.state / f".daemon.json.{os.getpid()}"
        part.write_text(json.dumps(asdict(info)) + "\n")
        part.replace(self.state / "daemon.json")

    def forget_daemon(self) -> None:
        """Remove what `write_daemon` wrote."""
        (self.state / "daemon.json").unlink(missing_ok=True)

    @contextmanager
    def locked(self, name: str) -> Generator[None]:
        """Hold a lock file of the state folder; the kernel lets it go when we die."""
        fd = os.open(self.state / f"{name}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            yield
        finally:
            os.close(fd)


def find_project(start: Path | None = None) -> Project:
    """Return the nearest project at or above a folder; one that has none becomes it.

    A `.reloader` that belongs to another user is passed over: anyone may make one in /tmp.

    Raises:
        UnusablePlaceError: The working directory was deleted.
    """
    try:
        here = (start or Path.cwd()).resolve()
    except OSError as error:
        raise UnusablePlaceError(Path(), "the working directory is gone") from error
    for folder in (here, *here.parents):
        try:
            found = (folder / FOLDER_NAME).lstat()
        except OSError:
            continue
        if stat.S_ISDIR(found.st_mode) and (found.st_uid == os.geteuid() or not os.geteuid()):
            return Project(folder)
    return Project(here)


def socket_folder() -> Path:
    """Return the folder of this user's sockets, made if it is missing.

    Raises:
        UntrustedPlaceError: Another user could have planted it.
    """
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    folder = Path(runtime) / "reloader" if runtime else Path(f"/tmp/reloader-{os.geteuid()}")  # noqa: S108 - checked below
    if runtime and not Path(runtime).is_dir():
        folder = Path(f"/tmp/reloader-{os.geteuid()}")  # noqa: S108 - checked below
    folder.mkdir(mode=0o700, exist_ok=True)
    check_private(folder)
    return folder


def check_private(folder: Path, *, write_only: bool = False) -> None:
    """Refuse a folder that is not this user's alone.

    Args:
        folder: Not followed if it is a link.
        write_only: Others may read it, only not write.

    Raises:
        UntrustedPlaceError: With what to do.
    """
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode):
        reason, remedy = "it is not a folder", "Move it away"
        raise UntrustedPlaceError(folder, reason, remedy)
    own = os.geteuid()
    if own not in {found.st_uid, 0}:
        reason = f"it belongs to user {found.st_uid}, not to {own}"
        raise UntrustedPlaceError(folder, reason, "Remove it, or run as its owner")
    bad = _OTHERS & (0o022 if write_only else 0o077) & found.st_mode
    if bad:
        reason = f"other users have access to it (mode {stat.S_IMODE(found.st_mode):04o})"
        raise UntrustedPlaceError(folder, reason, f"Run `chmod 700 {folder}`")


def start_time_of(pid: int) -> int | None:
    """Return a process's start in clock ticks after boot; None if it is gone or a zombie.

    With the pid this names one process: pids are used again.
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    except OSError:
        return None
    return None if fields[0] in {b"Z", b"X"} else int(fields[19])
