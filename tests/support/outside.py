"""A process and the books of its project, read from outside; for the checker."""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any, Final, cast

import numpy as np
from sqlite_utils import Database

from stubs import layout

REGIONS: Final = ("code", "rodata", "data")
_PAGE: Final = layout.PAGE
Query = Callable[[str, Sequence[object]], Iterator[dict[str, Any]]]


def start_time(pid: int) -> int:
    """Return when a process began, in clock ticks, or 0 if there is none."""
    with suppress(OSError):
        text = Path(f"/proc/{pid}/stat").read_text("utf-8")
        return int(text.rsplit(")", 1)[1].split()[19])
    return 0


class Outside:
    """What /proc, the arena's file and the database say."""

    def __init__(self, pid: int, project: Path) -> None:
        self.pid = pid
        self.folder = project / ".reloader"
        self.db = Database(self.folder / "state.db")
        self.query = cast("Query", self.db.query)  # pyright: ignore[reportUnknownMemberType]
        self.memory = os.open(f"/proc/{pid}/mem", os.O_RDONLY)
        self.target = 0

    def close(self) -> None:
        """Let go of the process and of the database."""
        os.close(self.memory)
        self.db.close()

    def rows(self, sql: str, *parameters: object) -> list[dict[str, Any]]:
        """Return rows of the database."""
        return list(self.query(sql, parameters))

    def read(self, addr: int, size: int) -> bytes:
        """Return bytes of the process."""
        return os.pread(self.memory, size, addr)

    @cached_property
    def control(self) -> np.ndarray[Any, Any] | None:
        """The agent's header, or None where there is no agent."""
        for line in Path(f"/proc/{self.pid}/maps").read_text("utf-8").splitlines():
            addr = int(line.split("-", 1)[0], 16)
            if "memfd:reloader " in line and " rw-s " in line:
                header = self.read(addr, layout.CONTROL.itemsize)
                found = np.frombuffer(header, layout.CONTROL)
                if int(found["magic"][0]) == layout.MAGIC:
                    return found
        return None

    def region(self, row: int) -> tuple[int, int, int]:
        """Return address, size and offset in the file of a region."""
        assert self.control is not None
        place = self.control["regions"][0][row]
        return int(place["addr"]), int(place["size"]), int(place["file_offset"])

    @cached_property
    def slots(self) -> np.ndarray[Any, Any]:
        """Where each slot leads to, up to the last that leads anywhere."""
        data = self.from_file(self.region(layout.SLOTS)[2], layout.SLOT_COUNT * 8)
        words = np.frombuffer(data, np.uint64)
        used = np.flatnonzero(words)
        return words[: int(used[-1]) + 1 if used.size else 0]

    def from_file(self, offset: int, size: int) -> bytes:
        """Return bytes of the arena's file."""
        file = self.open_file()
        try:
            return os.pread(file, size, offset)
        finally:
            os.close(file)

    def open_file(self) -> int:
        """Open the arena's file, which a small process holds for later daemons."""
        assert self.control is not None
        holder, fd = int(self.control["holder_pid"][0]), int(self.control["holder_fd"][0])
        return os.open(f"/proc/{holder}/fd/{fd}", os.O_RDONLY)

    @cached_property
    def held(self) -> list[tuple[int, int, str]]:
        """Start, end and region of all memory that the books say is ours, sorted."""
        rows = self.rows(
            "SELECT addr, size, region FROM allocations WHERE target=? AND freed IS NULL",
            self.target,
        )
        return sorted((row["addr"], row["addr"] + row["size"], row["region"]) for row in rows)

    def holder_of(self, addr: int) -> tuple[int, int, str] | None:
        """Return the memory in the books that an address is in."""
        return next((row for row in self.held if row[0] <= addr < row[1]), None)

    def in_arena(self, addr: int) -> bool:
        """Return whether an address is in code, constants or data of ours."""
        places = [self.region(row) for row in range(len(REGIONS))]
        return any(start <= addr < start + size for start, size, _ in places)


def extents(file: int, start: int, end: int) -> Iterator[tuple[int, int]]:
    """Yield the parts of a sparse file that have something in them."""
    at = start
    while at < end:
        try:
            first = os.lseek(file, at, os.SEEK_DATA)
        except OSError:  # only a hole is left
            return
        if first >= end:
            return
        at = min(os.lseek(file, first, os.SEEK_HOLE), end)
        yield first // _PAGE * _PAGE, at
