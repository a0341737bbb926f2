"""What a running process wrote since we looked: the reason why a proof needs no long stop.

The facts of the matter. A userfaultfd can only be made inside the process (the agent does) and
then be used from outside. Its asynchronous write protection (Linux 6.7) sends nothing and makes
nobody wait: the first write to a protected page is let through, also one by a system call, and
noted in the page table, where PAGEMAP_SCAN finds it and protects the page anew. The first write
to each page costs the program 0.75 us, and a huge page that is written becomes small ones: so
everything is let go when the attempt ends. The registration lives in our descriptor; it goes
with us if we are killed.

What the program might notice, and our answers:

* A mapping that is registered in part is two, and mremap() of both fails. So whole stretches of
  the address space are registered in one call, cut only at mappings that cannot be (`_cuts`).
  A mapping made later beside a registered one is not merged with it until we let go.
* mremap() and fork() take a mapping out of the registration: it counts as written, whole.
* Two userfaultfds exclude each other: a program that has its own is left alone; so is one that
  a seccomp filter watches, which might be ended for the call.

What remains unseen: writes that do not go through the process's own page table. These are
direct I/O that was under way before (a pointer would have to come from a device), and, in
shared memory, those of other processes and of write() to its file. Small shared memory is
therefore always looked at under the stop; in more than that (`_SHARED_SMALL`) only writes
through this process's mappings are seen.
"""

import errno
import os
import struct
from collections.abc import Iterable
from contextlib import suppress
from fcntl import ioctl
from pathlib import Path
from typing import Final, Protocol, runtime_checkable

from reloader.errors.base import ReloaderError
from reloader.errors.live import TargetGoneError
from reloader.live.frames import Span
from reloader.live.pagemap import (
    ANY_WRITTEN,
    OWN_UNTRACKED,
    OWN_UNWRITTEN,
    OWN_WRITTEN,
    QUICK_WRITTEN,
    USER_END,
    Pagemap,
    is_device,
    is_shared_memory,
    joined,
    total,
    without,
)
from reloader.live.target import Mapping, Target

_SHARED_SMALL: Final = 1 << 20  # bytes of shared memory that every stop looks at
_MOST_MAPPINGS: Final = 30_000  # half of vm.max_map_count: letting nothing merge adds some
_LARGE: Final = 2 << 20  # bytes from which on a quick question is worth a call of its own
# bytes that are let go at once: unregistering alone would block page faults for 20 ms per GB
_CHUNK: Final = 16 << 20
_LOWEST: Final = 0x10000  # the usual vm.mmap_min_addr

# linux/userfaultfd.h
_UFFDIO_WRITEPROTECT: Final = 0xC018AA06
_UFFDIO_API, _UFFDIO_REGISTER, _UFFDIO_UNREGISTER = 0xC018AA3F, 0xC020AA00, 0x8010AA01
_API: Final = 0xAA
# what every kernel with _WP_ASYNC has: protection of pages that are not there yet, and of
# shared memory
_WP, _WP_SHARED, _WP_UNPOPULATED, _WP_ASYNC = 1 << 0, 1 << 12, 1 << 13, 1 << 15
_FEATURES: Final = _WP | _WP_SHARED | _WP_UNPOPULATED | _WP_ASYNC
_MODE_WP: Final = 2
_USERFAULTFD: Final = "anon_inode:[userfaultfd]"


@runtime_checkable
class TracksWrites(Protocol):
    """A target whose agent can make a userfaultfd."""

    def track_writes(self) -> tuple[int, int]:
        """Return our descriptor of a userfaultfd of the process, and its glibc's guard."""
        ...


class CannotTrackError(Exception):
    """Writes cannot be followed; the text says why, as the end of a sentence."""


class WriteTracker:
    """Everything registered, until closed."""

    def __init__(self, target: Target, pagemap: Pagemap) -> None:
        """Register the whole process.

        Raises:
            CannotTrackError: The kernel, or the process, does not allow it.
        """
        self.pagemap, self.pid = pagemap, target.pid
        self._spans: list[Span] = []
        self._large: list[Span] | None = None  # where all pages were there at the first look
        mappings = target.maps()
        if not isinstance(target, TracksWrites) or not pagemap.can_scan:
            message = "the kernel does not tell what was written since (Linux 6.7 does)"
            raise CannotTrackError(message)
        if why := obstacle(target.pid, mappings):
            raise CannotTrackError(why)
        try:
            self._fd, self.guard = target.track_writes()
        except (ReloaderError, OSError) as error:
            message = f"the process could not make a userfaultfd ({error})"
            raise CannotTrackError(message) from error
        try:
            self._begin(target, mappings)
        except OSError as error:
            self.close()
            message = f"the kernel does not follow writes ({error.strerror})"
            raise CannotTrackError(message) from error
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Let the process be as it was."""
        for start, end in self._large or []:
            for first in range(start, end, _CHUNK):
                size = min(end - first, _CHUNK)
                request = bytearray(struct.pack("QQQ", first, size, 0))
                with suppress(OSError):  # it went out of the registration, or away
                    ioctl(self._fd, _UFFDIO_WRITEPROTECT, request)
        # Not left to the close: before Linux 6.12 that let marks stay in the page table
        self._unregister()
        os.close(self._fd)

    def changed(self, mappings: list[Mapping], *, protect: bool) -> list[Span]:
        """Return what may have been written since it was last protected, in address order.

        Args:
            mappings: As they are now.
            protect: Protect it anew; what is returned has to be looked at after this call.
        """
        find = self.pagemap.find
        spans = find(OWN_UNTRACKED)
        if self._large is None:
            own = find(OWN_WRITTEN, protect=protect)
            self._large = [span for span in own if span[1] - span[0] >= _LARGE]
            spans += own
        else:
            for span in self._large:
                spans += find(QUICK_WRITTEN, *span, protect=protect)
            for span in without([(0, USER_END)], self._large):
                spans += find(OWN_WRITTEN, *span, protect=protect)
        return joined(spans + self._shared(mappings, protect=protect))

    def _shared(self, mappings: list[Mapping], *, protect: bool) -> list[Span]:
        shared = [(int(m.start), int(m.end)) for m in mappings if is_shared_memory(m)]
        if total(shared) <= _SHARED_SMALL:
            return shared
        spans: list[Span] = []
        for start, end in shared:
            if protect:
                spans += self.pagemap.find(ANY_WRITTEN, start, end, protect=True)
            # what cannot be protected is found as written every time
            spans += self.pagemap.find(ANY_WRITTEN, start, end)
        return spans

    def _begin(self, target: Target, mappings: list[Mapping]) -> None:
        ioctl(self._fd, _UFFDIO_API, bytearray(struct.pack("QQQ", _API, _FEATURES, 0)))
        try:
            self._register(stretches(mappings, guessed_cuts(mappings)))
        except OSError as error:
            if error.errno not in {errno.EPERM, errno.EINVAL}:
                raise
            self._unregister()
            self._register(stretches(target.maps(), told_cuts(self.pid)))
        if self.pagemap.find(OWN_UNWRITTEN):
            # marks of a daemon that was killed (before Linux 6.12): leaving removes them
            spans = self._spans
            self._unregister()
            self._register(spans)
            if self.pagemap.find(OWN_UNWRITTEN):
                raise OSError(errno.EBUSY, "somebody else follows them")

    def _register(self, spans: list[Span]) -> None:
        for start, end in spans:
            request = struct.pack("QQQQ", start, end - start, _MODE_WP, 0)
            ioctl(self._fd, _UFFDIO_REGISTER, bytearray(request))
            self._spans.append((start, end))

    def _unregister(self) -> None:
        for start, end in self._spans:
            try:
                ioctl(self._fd, _UFFDIO_UNREGISTER, struct.pack("QQ", start, end - start))
            except OSError:
                break  # the process has ended
        self._spans = []


def obstacle(pid: int, mappings: list[Mapping]) -> str:
    """Return why a process must not be asked for a userfaultfd, or ""."""
    if len(mappings) > _MOST_MAPPINGS:
        return f"with {len(mappings)} mappings it is near the kernel's limit of them"
    try:
        if any(_is_filtered(pid, tid) for tid in os.listdir(f"/proc/{pid}/task")):  # noqa: PTH208 - thrice as fast
            return "a seccomp filter watches the program's system calls"
        folder = f"/proc/{pid}/fd"
        links = [_link(f"{folder}/{name}") for name in os.listdir(folder)]  # noqa: PTH208 - same
    except FileNotFoundError as error:
        raise TargetGoneError(pid, "looking for what it writes") from error
    return "the program uses userfaultfd itself" if _USERFAULTFD in links else ""


def _is_filtered(pid: int, tid: str) -> bool:
    try:
        status = Path(f"/proc/{pid}/task/{tid}/status").read_text("utf-8", "replace")
    except OSError:  # this thread has ended
        return False
    return "\nSeccomp:" in status and "\nSeccomp:\t0" not in status


def _link(path: str) -> str:
    try:
        return os.readlink(path)  # noqa: PTH115 - thrice as fast
    except OSError:  # closed meanwhile
        return ""


def guessed_cuts(mappings: list[Mapping]) -> list[Span]:
    """Return the mappings that can surely not be registered, as far as their lines tell."""
    return [
        (int(m.start), int(m.end))
        for m in mappings
        if m.start < USER_END
        and (
            m.name.startswith(("[vvar", "[vdso", "[vsyscall"))
            or is_device(m)
            or (m.protection[3] == "s" and not is_shared_memory(m))
        )
    ]


def told_cuts(pid: int) -> list[Span]:
    """Return the same as the kernel tells it, which takes it longer.

    That they may be made writable (`mw`) is needed; special mappings (`io`, `de`, `pf`, `mm`)
    and memory that the kernel may drop (`dp`: random numbers' state) cannot be.
    """
    cuts: list[Span] = []
    span = (0, 0)
    text = Path(f"/proc/{pid}/smaps").read_text("utf-8", "surrogateescape")
    for line in text.splitlines():
        words = line.split()
        if words[0] == "VmFlags:":
            flags = set(words[1:])
            if ("mw" not in flags or flags & {"io", "de", "pf", "mm", "dp"}) and span[
                0
            ] < USER_END:
                cuts.append(span)
        elif "-" in words[0]:
            start, _, end = words[0].partition("-")
            span = (int(start, 16), int(end, 16))
    return cuts


def stretches(mappings: Iterable[Mapping], cuts: list[Span]) -> list[Span]:
    """Return the address space between the cuts, where anything is mapped.

    No end of these lies where a mapping could grow over it.
    """
    borders = [_LOWEST, *(addr for cut in sorted(cuts) for addr in cut), USER_END]
    starts = [int(m.start) for m in mappings]
    return [
        (start, end)
        for start, end in zip(borders[::2], borders[1::2], strict=True)
        if start < end and any(start <= addr < end for addr in starts)
    ]
