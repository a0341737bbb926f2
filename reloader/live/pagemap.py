"""Which pages of a process may hold a pointer: those it has of its own, or wrote since.

Looked at are all pages that the process has of its own (private memory it wrote, whatever its
protection now; relocated read-only data is there too), and shared memory it may write. Pages
never touched hold nothing, and unwritten pages of a file cannot hold an address that we chose.
"""

import os
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from fcntl import ioctl
from typing import Final

import numpy as np

from reloader.errors.live import TargetGoneError
from reloader.live.frames import Span
from reloader.live.target import Mapping

PAGE: Final = 4096
USER_END: Final = 0x7FFF_FFFF_F000
SHARED_WHOLE: Final = 64 << 20  # a larger shared mapping is looked at where it was touched

# linux/fs.h, since 6.7
_PAGEMAP_SCAN: Final = 0xC0606610
_WRITE_PROTECT: Final = 1  # PM_SCAN_WP_MATCHING
_IS_TRACKED, IS_WRITTEN = 1 << 0, 1 << 1  # PAGE_IS_WPALLOWED, PAGE_IS_WRITTEN
_IS_FILE, _IS_PRESENT, _IS_SWAPPED, _IS_ZERO = 1 << 2, 1 << 3, 1 << 4, 1 << 5
_REGIONS: Final = 4096
# bits of a pagemap entry
_PRESENT, _SWAPPED, _FILE = 1 << 63, 1 << 62, 1 << 61


_POPULATED: Final = _IS_PRESENT | _IS_SWAPPED


@dataclass(frozen=True, slots=True)
class Wanted:
    """Bits of the pages that are wanted: all of `like`, none of `unlike`, one of `anyof`."""

    like: int = 0
    unlike: int = 0
    anyof: int = _POPULATED


OWN: Final = Wanted(unlike=_IS_FILE | _IS_ZERO)
OWN_WRITTEN: Final = Wanted(_IS_TRACKED | IS_WRITTEN, OWN.unlike)
OWN_UNWRITTEN: Final = Wanted(_IS_TRACKED, OWN.unlike | IS_WRITTEN)
OWN_UNTRACKED: Final = Wanted(unlike=OWN.unlike | _IS_TRACKED)
ANY_WRITTEN: Final = Wanted(IS_WRITTEN)
# The one question for which the kernel has a quick way, ten times as fast; its answer has
# pages in it that are not there.
QUICK_WRITTEN: Final = Wanted(IS_WRITTEN, anyof=0)


class Pagemap:
    """What the kernel tells of a process's pages."""

    def __init__(self, pid: int) -> None:
        """Open /proc/PID/pagemap.

        Raises:
            TargetGoneError: The process has ended.
        """
        try:
            self.fd = os.open(f"/proc/{pid}/pagemap", os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError as error:
            raise TargetGoneError(pid, "looking for pointers to old code") from error
        self.can_scan = True
        self._room = np.zeros((_REGIONS, 3), np.uint64)

    def close(self) -> None:
        """Close the descriptor."""
        os.close(self.fd)

    def find(
        self, wanted: Wanted, start: int = 0, end: int = USER_END, *, protect: bool = False
    ) -> list[Span]:
        """Return the ranges of pages with the wanted bits.

        Args:
            wanted: Which pages.
            start: First address.
            end: Address behind the last.
            protect: Begin anew to wait for a write to each page that is returned.

        Raises:
            OSError: ENOTTY before Linux 6.7.
        """
        flags = _WRITE_PROTECT if protect else 0
        spans: list[Span] = []
        while start < end:
            request = bytearray(
                struct.pack(
                    "12Q", 96, flags, start, end, 0, self._room.ctypes.data, _REGIONS, 0,
                    wanted.unlike, wanted.like | wanted.unlike, wanted.anyof,
                    wanted.anyof or IS_WRITTEN,
                )
            )  # fmt: skip
            count = ioctl(self.fd, _PAGEMAP_SCAN, request)
            rows: list[list[int]] = self._room[:count, :2].tolist()
            spans += [(first, last) for first, last in rows]
            start = int(struct.unpack_from("Q", request, 32)[0]) if count == _REGIONS else end
        return spans

    def own_pages(self, mappings: list[Mapping]) -> list[Span]:
        """Return where the process has pages of its own, private and not a file's."""
        if self.can_scan:
            try:
                return self.find(OWN)
            except OSError:
                self.can_scan = False
        private = [m for m in mappings if m.protection[3] == "p" and m.end <= USER_END]
        return [span for m in private for span in self.pages(m.start, m.end, own=True)]

    def pages(self, start: int, end: int, *, own: bool) -> list[Span]:
        """Return the populated pages of a range; with `own` only those not a file's."""
        spans: list[Span] = []
        for first in range(start, end, PAGE << 16):
            last = min(end, first + (PAGE << 16))
            data = os.pread(self.fd, (last - first) // PAGE * 8, first // PAGE * 8)
            entries = np.frombuffer(data, np.uint64)
            there = (entries & np.uint64(_PRESENT | _SWAPPED)) != 0
            if own:
                there &= (entries & np.uint64(_FILE)) == 0
            edges = np.flatnonzero(np.diff(there, prepend=False, append=False))
            spans += [
                (first + int(a) * PAGE, first + int(b) * PAGE)
                for a, b in edges.reshape(-1, 2).tolist()
            ]
        return spans

    def areas(self, mappings: list[Mapping]) -> list[Span]:
        """Return everything that may hold a pointer, in address order."""
        spans = self.own_pages(mappings)
        for mapping in mappings:
            if is_shared_memory(mapping):
                whole = mapping.end - mapping.start <= SHARED_WHOLE
                part = (int(mapping.start), int(mapping.end))
                spans += [part] if whole else self.pages(*part, own=False)
        return sorted(spans)


def is_device(mapping: Mapping) -> bool:
    """Return whether a mapping is a device's, and not memory."""
    return mapping.name.startswith("/dev/") and not mapping.name.startswith(
        ("/dev/shm/", "/dev/zero")  # noqa: S108  what shared memory is called in maps
    )


def is_shared_memory(mapping: Mapping) -> bool:
    """Return whether a mapping is shared, writable memory, and not a device or ours."""
    if mapping.protection[1] != "w" or mapping.protection[3] != "s":
        return False
    return not is_device(mapping) and not mapping.name.startswith("/memfd:reloader")


def joined(spans: Iterable[Span]) -> list[Span]:
    """Return ranges in address order, those that overlap or touch as one."""
    result: list[Span] = []
    for start, end in sorted(spans):
        if result and start <= result[-1][1]:
            result[-1] = (result[-1][0], max(end, result[-1][1]))
        else:
            result.append((start, end))
    return result


def without(areas: Iterable[Span], holes: Iterable[Span]) -> list[Span]:
    """Return areas (in address order) with some ranges cut out."""
    result: list[Span] = []
    cuts = joined(holes)
    at = 0
    for area in areas:
        start, end = area
        while at < len(cuts) and cuts[at][1] <= start:
            at += 1
        for first, last in cuts[at:]:
            if first >= end:
                break
            if first > start:
                result.append((start, first))
            start = last
        if start < end:
            result.append((start, end))
    return result


def total(spans: Iterable[Span]) -> int:
    """Return the bytes of ranges that do not overlap."""
    return sum(end - start for start, end in spans)
