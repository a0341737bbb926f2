"""A real process to patch and to scan: compiled, stopped by ptrace, no agent in it."""

import os
import re
import signal
import subprocess
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from reloader.arch.base import Architecture
from reloader.ids import NO_ADDR, U8, U64, Addr, SlotId
from reloader.live import ptrace
from reloader.live.maps import read_maps
from reloader.live.redirect import OriginalFunctions
from reloader.live.target import Allocation, Arena, Mapping, SymbolFile
from reloader.live.thread_room import ThreadRoom


@dataclass(slots=True)
class Stop:
    """All threads of a process, stopped by ptrace."""

    pid: int
    tids: list[int]
    registers: U64
    extra: list[int] = field(default_factory=list[int])
    writes: list[int] = field(default_factory=list[int])
    fail_at: int = -1  # the number of the write that fails

    @property
    def parts(self) -> "list[Stop]":
        return [self]

    def read(self, addr: Addr, size: int) -> bytes:
        out = np.zeros(size, np.uint8)
        return out[: ptrace.read_memory(self.pid, addr, out)].tobytes()

    def write(self, addr: Addr, data: bytes) -> None:
        self.writes.append(int(addr))
        if len(self.writes) - 1 == self.fail_at:
            message = "no more writes"
            raise OSError(message)
        with Path(f"/proc/{self.pid}/mem").open("r+b", buffering=0) as memory:
            memory.seek(addr)
            assert memory.write(data) == len(data)

    def program_counters(self) -> U64:
        extra = np.array(self.extra, np.uint64)
        return np.concatenate([self.registers[:, ptrace.R_RIP], extra])


class Notes:
    """An arena that writes down what it is told; its code reads as zeros."""

    def __init__(self) -> None:
        self.slots = np.zeros(16, np.uint64)
        self.page_size = 4096
        self.freed: list[Allocation] = []

    def allocate(self, region: int, size: int) -> Allocation:
        raise AssertionError((region, size))

    def allocate_all(self, wanted: Sequence[tuple[int, int]]) -> list[Allocation]:
        return [self.allocate(*each) for each in wanted]

    def free(self, allocation: Allocation) -> None:
        self.freed.append(allocation)

    def view(self, addr: Addr, size: int) -> U8:
        assert addr
        return np.zeros(size, np.uint8)

    def reserve(self, allocation: Allocation) -> None:
        raise AssertionError(allocation)

    def span(self) -> tuple[Addr, Addr]:
        raise AssertionError

    def write_stubs(self, arch: Architecture, first: int, end: int) -> None:
        raise AssertionError((arch, first, end))

    def stub_addr(self, slot: SlotId) -> Addr:
        return Addr(int(slot) * 16)

    def slot_addr(self, slot: SlotId) -> Addr:
        return Addr(int(slot) * 8)


class Child:
    """A child process that stops, reads and is written like a Target."""

    def __init__(self, program: Path, *arguments: str) -> None:
        self.process = subprocess.Popen(
            [program, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.pid = self.process.pid
        self.program = program
        self.last_stop_us = 0.0
        self.stops = 0
        self.extra: list[list[int]] = []  # further program counters of the next stops
        self.fail_at = -1
        self.notes = Notes()
        self.arena: Arena = self.notes
        self.told: list[str] = []

    def progress(self) -> int:
        raise AssertionError

    def set_progress(self, value: int) -> None:
        raise AssertionError(value)

    def members(self) -> "list[Child]":
        return [self]

    def follow(self) -> bool:
        return True

    def show_symbols(self, files: Sequence[SymbolFile]) -> None:
        assert files

    def write_data(self, addr: Addr, data: bytes) -> None:
        assert ptrace.write_memory(self.pid, addr, data) == len(data)

    def resolve(self, names: Sequence[bytes]) -> U64:
        return np.zeros(len(names), np.uint64)

    def call(self, function: Addr, *arguments: int, timeout: float = 10.0) -> int:
        raise AssertionError((function, arguments, timeout))

    @property
    def thread_room(self) -> ThreadRoom:
        raise AssertionError

    def write_thread_image(self, offset: int, data: bytes) -> None:
        raise AssertionError((offset, data))

    def thread_offsets(self, names: Sequence[bytes]) -> U64:
        raise AssertionError(names)

    def call_catching(self, function: Addr, *arguments: int) -> tuple[int, str | None]:
        raise AssertionError((function, arguments))

    def thread_destructors(self, handle: int) -> int:
        raise AssertionError(handle)

    def signal_handlers(self) -> U64 | None:
        raise AssertionError

    def synchronise(self) -> None:
        self.told.append("synchronise")

    def discard(self, allocations: Sequence[Allocation]) -> None:
        self.told.append(f"discard {len(allocations)}")

    def line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def ask(self, text: str) -> str:
        """Send a line, return the answer."""
        assert self.process.stdin is not None
        self.process.stdin.write(text + "\n")
        self.process.stdin.flush()
        return self.line()

    def end(self) -> int:
        """Close its input; the program ends by itself."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        self.process.stdout.read()
        self.process.stdout.close()
        return self.process.wait(30)

    def read(self, addr: Addr, size: int) -> U8:
        out = np.zeros(size, np.uint8)
        assert ptrace.read_memory(self.pid, addr, out) == size
        return out

    def maps(self) -> list[Mapping]:
        return read_maps(self.pid)

    def _tids(self) -> list[int]:
        return sorted(int(task.name) for task in Path(f"/proc/{self.pid}/task").iterdir())

    @contextmanager
    def stop(self) -> Generator[Stop]:
        begun = time.perf_counter()
        pending = {tid: self._halt(tid) for tid in self._tids()}
        registers = ptrace.empty_registers(len(pending))
        for row, tid in enumerate(pending):
            ptrace.get_registers(tid, registers[row])
        self.stops += 1
        extra = self.extra.pop(0) if self.extra else []
        try:
            yield Stop(self.pid, list(pending), registers, extra, fail_at=self.fail_at)
        finally:
            for tid, signal_number in pending.items():
                ptrace.ptrace(ptrace.PTRACE_DETACH, tid, 0, signal_number)
            self.last_stop_us = (time.perf_counter() - begun) * 1e6

    def _halt(self, tid: int) -> int:
        """Stop one thread; return a signal that has to be delivered afterwards."""
        ptrace.ptrace(ptrace.PTRACE_SEIZE, tid)
        ptrace.ptrace(ptrace.PTRACE_INTERRUPT, tid)
        _, status = os.waitpid(tid, ptrace.WALL)
        assert os.WIFSTOPPED(status)
        found = os.WSTOPSIG(status)
        return 0 if found == signal.SIGTRAP else found

    def base(self) -> int:
        """Return what to add to the program file's addresses."""
        first = next(row for row in self.maps() if row.name == str(self.program))
        return 0 if first.start == 0x400000 else int(first.start)

    def functions(self, stubs: dict[str, str]) -> OriginalFunctions:
        """Return the program's functions; `stubs` names what takes the place of which."""
        return functions(self.program, stubs, self.base())

    def address(self, name: str) -> int:
        return self.base() + next(row[0] for row in symbols(self.program) if row[2] == name)


def compiled(folder: Path, source: str, *flags: str) -> Path:
    """Compile a C or assembly text to a program."""
    text = folder / ("program.s" if source.startswith("\t.") else "program.c")
    text.write_text(source)
    program = folder / "program"
    command = ["gcc", *flags, "-pthread", "-o", str(program), str(text)]
    subprocess.run(command, check=True)
    return program


_NM = re.compile(r"([0-9a-f]+) (?:([0-9a-f]+) )?(\w) (\S+)")


def symbols(program: Path) -> list[tuple[int, int, str, str]]:
    """Return (address, size, name, letter of its kind) of every symbol, by address."""
    text = subprocess.run(
        ["nm", "-nS", program],  # noqa: S607  the system's, wherever it is
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    rows = [match.groups() for match in map(_NM.match, text.splitlines()) if match]
    return [
        (int(addr, 16), int(size or "0", 16), name, kind) for addr, size, kind, name in rows
    ]


def functions(program: Path, stubs: dict[str, str], base: int = 0) -> OriginalFunctions:
    """Return the functions of a program as columns."""
    every = [row for row in symbols(program) if row[3] in "tTwWi"]
    rows = [row for row in every if row[1]]
    starts = np.unique(np.array([row[0] for row in every], np.uint64))
    addr = np.array([row[0] for row in rows], np.uint64)
    size = np.array([row[1] for row in rows], np.uint64)
    behind = np.searchsorted(starts, addr, side="right")
    following = np.where(
        behind < len(starts), starts[np.minimum(behind, len(starts) - 1)], addr + size
    )
    where = {row[2]: row[0] + base for row in rows}
    stub = [where[stubs[row[2]]] if row[2] in stubs else NO_ADDR for row in rows]
    return OriginalFunctions(
        addr + np.uint64(base),
        size,
        [row[2].encode() for row in rows],
        np.array(stub, np.uint64),
        np.maximum(following, addr + size) + np.uint64(base),
        np.ones(len(rows), np.bool_),
    )


def rows_of(table: OriginalFunctions, names: Sequence[str]) -> list[int]:
    """Return the rows of functions by name."""
    return [table.name.index(name.encode()) for name in names]
