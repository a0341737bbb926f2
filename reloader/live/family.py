"""Which processes belong to a target: all that have its arena mapped.

A forked child inherits the mappings; `exec` drops them, and with them the membership. Who was
forked by whom does not matter, so a daemon that forks twice and lets its parents end is found
as well. Looking is cheap enough for every stop: processes get their numbers in turn, so only
the numbers that were given since the last look are looked at. Where the numbers have begun
anew, or more were given than that is good for, all processes are.

A child of vfork shares its parent's memory until it calls exec. It is no process of its own for
us: a stop of the parent waits for it.
"""

import os
from collections.abc import Iterable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Final

import numpy as np

from reloader.errors.live import TargetGoneError
from reloader.ids import Addr
from reloader.live import ptrace
from reloader.live.maps import arena_control, read_maps
from reloader.live.target import Mapping
from stubs import layout

_MAGIC: Final = layout.MAGIC.to_bytes(8, "little")
_FEW: Final = 2000  # new numbers that are looked at one by one
_YOUNG: Final = 32  # numbers of processes that may be under way
_PARENT: Final = 1  # column of /proc/PID/stat behind the name


class Census:
    """Counts the processes that have one arena."""

    def __init__(self, control: Addr | int, inode: int) -> None:
        """Take the address of the control region, and the memory file's inode."""
        self.control, self.inode = int(control), inode
        self._members: set[int] = set()
        self._last = self._made = 0
        self._missing: set[int] = set()  # numbers given out whose process was not there

    def look(self) -> list[int]:
        """Return the processes that have the arena now, in the order of their numbers."""
        last = last_number()
        fresh = self._missing
        if last != self._last:
            made = numbers_given()
            few = self._last < last and made - self._made < _FEW
            # where all are looked at, the youngest can be too young to be among them
            since = self._last if few else max(last - _YOUNG, 0)
            every = set[int]() if few else every_process()
            fresh = fresh | set(range(since + 1, last + 1)) | every
            self._last, self._made = last, made
        # a number is given before its process can be seen: the next look sees it
        self._missing = {pid for pid in fresh - self._missing if not exists(pid)}
        self._members |= {pid for pid in fresh if self._is_member(pid)}
        self._members = {pid for pid in self._members if self.has_arena(pid)}
        return sorted(self._members)

    def has_arena(self, pid: int) -> bool:
        """Return whether a member still is one."""
        return has_magic(pid, self.control)

    def _is_member(self, pid: int) -> bool:
        if not has_magic(pid, self.control) or not is_own_process(pid):
            return False
        with suppress(TargetGoneError, OSError):
            found = arena_control(read_maps(pid))
            return found is not None and self.is_ours(found)
        return False

    def is_ours(self, mapping: Mapping) -> bool:
        """Return whether a control region is this family's."""
        return (mapping.start, mapping.inode) == (self.control, self.inode)


def last_number() -> int:
    """Return the number that was last given to a process or thread."""
    return int(_content("/proc/loadavg").rsplit(b" ", 1)[-1])


def numbers_given() -> int:
    """Return how many processes and threads were made since the machine started."""
    text = _content("/proc/stat")
    return int(text[text.index(b"\nprocesses ") + 11 :].split(b"\n", 1)[0])


def _content(path: str) -> bytes:
    """Return what a file of procfs says; each look at the family asks: no Path."""
    file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return b"".join(iter(partial(os.read, file, 1 << 16), b""))
    finally:
        os.close(file)


def every_process() -> set[int]:
    """Return the numbers of all processes."""
    return {int(name) for name in os.listdir("/proc") if name.isdecimal()}  # noqa: PTH208 - thrice as fast


def exists(pid: int) -> bool:
    """Return whether a number is a process's or a thread's."""
    return Path(f"/proc/{pid}").exists()


def is_own_process(pid: int) -> bool:
    """Return whether a number is a process with memory of its own: no thread, no vfork."""
    with suppress(OSError):
        text = Path(f"/proc/{pid}/status").read_bytes()
        return f"\nTgid:\t{pid}\n".encode() in text and not shares_parents_memory(pid)
    return False


def has_magic(pid: int, control: int) -> bool:
    """Return whether a process has some arena's control region at an address."""
    word = np.zeros(8, np.uint8)
    with suppress(OSError):  # it has ended, or is not for us to look at
        return ptrace.read_memory(pid, control, word) == 8 and word.tobytes() == _MAGIC
    return False


def shares_parents_memory(pid: int) -> bool:
    """Return whether a process is a child of vfork that has not called exec yet."""
    parent = parent_of(pid)
    return bool(parent) and ptrace.shares_memory(pid, parent)


def parent_of(pid: int) -> int:
    """Return a process's parent, 0 if it is gone."""
    with suppress(OSError):
        text = Path(f"/proc/{pid}/stat").read_text("utf-8", "replace")
        return int(text[text.rindex(")") + 2 :].split()[_PARENT])
    return 0


def outsiders(pid: int, members: Iterable[int]) -> list[int]:
    """Return the processes below one that run its executable without our arena.

    They were forked before we came: no reload reaches them.
    """
    try:
        program = Path(f"/proc/{pid}/exe").stat()
    except OSError:
        return []
    found: list[int] = []
    todo, inside = [pid], set(members)
    while todo:
        for child in direct_children(todo.pop()):
            todo.append(child)
            if child in inside:
                continue
            try:
                other = Path(f"/proc/{child}/exe").stat()
            except OSError:  # it has ended, or is a zombie
                continue
            same = (other.st_dev, other.st_ino) == (program.st_dev, program.st_ino)
            if same and not shares_parents_memory(child):
                found.append(child)
    return sorted(found)


def direct_children(pid: int) -> list[int]:
    """Return the children of all threads of a process."""
    found: list[int] = []
    try:
        for thread in Path(f"/proc/{pid}/task").iterdir():
            found += [int(word) for word in (thread / "children").read_text().split()]
    except OSError:  # it, or the thread, has ended
        return found
    return found
