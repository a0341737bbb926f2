"""Which files may become code in the user's process: those nobody else could have written.

As ssh does with keys: the file, and every folder and link on the way to it, must belong to the
user (or root) and be writable by nobody else. A folder that others may write is harmless only
with the sticky bit (`/tmp`), where they can neither rename nor remove what is ours. A link is
followed if it was made by somebody trusted; one planted by another user never is.
"""

import errno
import grp
import os
import pwd
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from reloader.errors.watch import UntrustedPathError

_MAX_LINKS = 40  # the kernel's own limit (path_resolution(7))
_READ_TRIES = 3


@dataclass(frozen=True, slots=True)
class Trust:
    """Whose files are loaded.

    A daemon of root beside another user's program trusts that user too.
    """

    owners: frozenset[int]  # user ids
    allowed: tuple[Path, ...] = ()  # the user said: what lies here is trusted whatever its mode

    @classmethod
    def of_this_user(cls, allowed: Sequence[Path] = ()) -> "Trust":
        """Return the usual policy: this user and root."""
        real = tuple(path.resolve() for path in allowed)
        return cls(frozenset({os.geteuid(), 0}), real)

    def allows(self, path: Path) -> bool:
        """Return whether the user vouched for a path by configuration."""
        return any(path.is_relative_to(folder) for folder in self.allowed)


def check_trusted(path: Path, roots: Sequence[Path], trust: Trust | None = None) -> Path:
    """Return the real path of a file that is safe to load.

    Args:
        path: An absolute path, links allowed.
        roots: The watched folders; a path that does not start in one of them is refused.
        trust: Whose files are loaded; this user's and root's if None.

    Raises:
        UntrustedPathError: Names the folder, link or file at fault and what to do.
        OSError: The path cannot be walked (it vanished, no permission).
    """
    trust = trust or Trust.of_this_user()
    if not _is_text(path):
        reason = "has a name that is no UTF-8"
        raise UntrustedPathError(path, path, reason, "Rename it, or its folder.")
    if not any(path.is_relative_to(root) for root in roots):
        reason = "lies outside the watched folders"
        raise UntrustedPathError(path, path, reason, "Watch its folder with --watch.")
    return _walk(path, trust)


def read_trusted(
    path: Path, roots: Sequence[Path], trust: Trust | None = None
) -> tuple[bytes, os.stat_result]:
    """Return a trusted file's bytes and the state they were read in.

    The checks are made again on the opened file, so a path swapped in between is refused.

    Args:
        path: As for `check_trusted`.
        roots: As for `check_trusted`.
        trust: As for `check_trusted`.

    Raises:
        UntrustedPathError: As for `check_trusted`.
        OSError: It vanished or cannot be read.
    """
    trust = trust or Trust.of_this_user()
    real = check_trusted(path, roots, trust)
    # O_NONBLOCK: a FIFO of that name must not hang the watcher
    handle = os.open(real, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        before = os.fstat(handle)
        if not stat.S_ISREG(before.st_mode):
            raise OSError(errno.EINVAL, "not a regular file", str(path))
        if not trust.allows(real):
            _check_mode(path, real, before, trust)
        return _read_still(handle, before)
    finally:
        os.close(handle)


def _read_still(handle: int, before: os.stat_result) -> tuple[bytes, os.stat_result]:
    """Read a file that does not change meanwhile, as well as that can be had.

    One that goes on changing has an event to come; one whose times somebody is setting has not,
    so the last reading is returned either way.
    """
    data, after = _read_all(handle, before.st_size), os.fstat(handle)
    for _ in range(_READ_TRIES - 1):
        if (after.st_mtime_ns, after.st_size) == (before.st_mtime_ns, before.st_size):
            break
        before = after
        data, after = _read_all(handle, before.st_size), os.fstat(handle)
    return data, after


def _read_all(handle: int, size: int) -> bytes:
    """Return the whole file, in one call where it did not grow."""
    parts: list[bytes] = []
    offset = 0
    while part := os.pread(handle, max(size - offset, 4096), offset):
        parts.append(part)
        offset += len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def _is_text(path: Path) -> bool:
    """Return whether a path can be written down: a name may be any bytes."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        return False
    return True


def _walk(path: Path, trust: Trust) -> Path:
    """Walk a path as the kernel does, one component at a time, and check each."""
    here, rest, links = "/", path.as_posix().split("/"), 0
    _check_at(path, here, trust)
    while rest:
        name = rest.pop(0)
        if name in {"", "."}:
            continue
        if name == "..":
            here = os.path.dirname(here)  # noqa: PTH120 - strings: ten of these a file event
            continue
        step = here.rstrip("/") + "/" + name
        if _check_at(path, step, trust):
            links += 1
            if links > _MAX_LINKS:
                raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path))
            to = os.readlink(step)  # noqa: PTH115 - as above
            rest = to.split("/") + rest
            here = "/" if to.startswith("/") else here
        else:
            here = step
    return Path(here)


def _check_at(path: Path, step: str, trust: Trust) -> bool:
    """Check one component; return whether it is a link to be followed."""
    state = os.lstat(step)
    if stat.S_ISLNK(state.st_mode):
        if state.st_uid not in trust.owners:
            reason = f"is a link made by {_user(state.st_uid)}"
            raise UntrustedPathError(path, Path(step), reason, "Replace it by your own link.")
        return True
    if not trust.allowed or not trust.allows(Path(step)):
        _check_mode(path, Path(step), state, trust)
    return False


def _check_mode(path: Path, step: Path, state: os.stat_result, trust: Trust) -> None:
    """Refuse what belongs to, or may be written by, somebody else."""
    allow = "or trust its folder in reloader.toml."
    if state.st_uid not in trust.owners:
        reason = f"belongs to {_user(state.st_uid)}"
        raise UntrustedPathError(path, step, reason, f"Make it yours (chown), {allow}")
    sticky = stat.S_ISDIR(state.st_mode) and bool(state.st_mode & stat.S_ISVTX)
    if sticky:
        return
    if state.st_mode & stat.S_IWOTH:
        reason = f"may be written by every user (mode {stat.S_IMODE(state.st_mode):04o})"
        raise UntrustedPathError(path, step, reason, f"Run `chmod o-w {step}`, {allow}")
    if state.st_mode & stat.S_IWGRP and not _is_private(state.st_gid, state.st_uid):
        reason = (
            f"may be written by group {_group(state.st_gid)} "
            f"(mode {stat.S_IMODE(state.st_mode):04o})"
        )
        raise UntrustedPathError(path, step, reason, f"Run `chmod g-w {step}`, {allow}")


@lru_cache(maxsize=64)
def _is_private(gid: int, uid: int) -> bool:
    """Return whether a group is its user's own: same name, primary, no other members.

    Many systems give new files mode 664 in such a group (umask 002); it adds no writer.
    """
    try:
        user, group = pwd.getpwuid(uid), grp.getgrgid(gid)
    except KeyError:
        return False
    return (
        user.pw_gid == gid
        and group.gr_name == user.pw_name
        and set(group.gr_mem) <= {user.pw_name}
    )


def _user(uid: int) -> str:
    """Return a user's name, or the number where there is none."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"user {uid}"


def _group(gid: int) -> str:
    """Return a group's name, or the number where there is none."""
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return str(gid)
