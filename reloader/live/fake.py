"""A target over plain memory, with faults on demand, under the real one's contract tests.

Its memory is a few numpy arrays at chosen addresses and a real arena's books over an array
instead of a memfd. Functions that the road wants called are Python callables registered by
address.
"""

from collections.abc import Callable, Generator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Final

import numpy as np

from reloader.errors.live import TargetGoneError, TargetMemoryError
from reloader.ids import U8, U64, Addr, Region
from reloader.live.arena import MappedArena, Window
from reloader.live.ptrace import R_RIP, empty_registers
from reloader.live.target import Allocation, Mapping, SymbolFile
from reloader.live.thread_room import ThreadRoom
from stubs import layout

BASE: Final = 0x5555_0000_0000
REGION_SIZE: Final = 4 << 20


def fake_windows(size: int = REGION_SIZE, base: int = BASE) -> list[Window]:
    """Return the five regions one after the other, in `stubs.layout` order."""
    sizes = {
        layout.CONTROL_REGION: layout.CONTROL_SIZE,
        layout.SLOTS: layout.SLOT_COUNT * 8,
        layout.CODE: layout.SLOT_COUNT * layout.STUB_SIZE + size,
        layout.RODATA: size,
        layout.DATA: size,
    }
    windows: dict[int, Window] = {}
    at = 0
    for region, region_size in sizes.items():
        windows[region] = Window(base + at, region_size, at)
        at += region_size
    return [windows[region] for region in range(layout.REGION_COUNT)]


class FakeStopped:
    """A fake's threads standing still."""

    def __init__(self, target: "FakeTarget") -> None:
        """Take the threads' registers as they are set on the target."""
        self._target = target
        self.tids = list(target.counters)
        self.registers = empty_registers(len(self.tids))
        self.registers[:, R_RIP] = list(target.counters.values())

    @property
    def parts(self) -> "list[FakeStopped]":
        """Itself: there is one process."""
        return [self]

    def read(self, addr: Addr | int, size: int) -> bytes:
        """Return memory."""
        return self._target.read(addr, size).tobytes()

    def write(self, addr: Addr | int, data: bytes) -> None:
        """Write memory whatever its protection."""
        self._target.step("stopped.write")
        self._target.poke(addr, data)

    def program_counters(self) -> U64:
        """Return every rip, and those that the test put into signal frames."""
        hidden = np.array(self._target.signal_frames, np.uint64)
        return np.concatenate((self.registers[:, R_RIP], hidden))


class FakeTarget:
    """A process that is not there; implements `live.target.Target`.

    Set `fail_at` to the number of the operation (from 1) that shall find the process gone;
    `operations` lists what was done.
    """

    def __init__(self, pid: int = 1 << 22, base: int = BASE) -> None:
        """Start with an empty arena, no memory and one thread."""
        self.pid = pid
        windows = fake_windows(base=base)
        size = max(window.file_offset + window.size for window in windows)
        self.arena = MappedArena(np.zeros(size, np.uint8), windows)
        self.memory: dict[int, tuple[U8, str]] = {}
        self.functions: dict[int, Callable[..., int]] = {}
        self.names: dict[bytes, int] = {}
        self.counters: dict[int, int] = {pid: 0}
        self.signal_frames: list[int] = []
        self.operations: list[str] = []
        self.fail_at = 0
        self.discarded: list[Allocation] = []
        self.shown: list[SymbolFile] = []
        self._last_stop_us = 0.0
        self.thread_room = ThreadRoom(-4096, 4096, np.zeros(8, np.uint64))
        self.thread_image = np.zeros(4096, np.uint8)
        self.throws: dict[int, str] = {}  # functions that throw, and what
        self._progress = 0

    def add_memory(self, addr: int, content: bytes, protection: str = "rw-p") -> None:
        """Map bytes at an address."""
        self.memory[addr] = (np.frombuffer(bytearray(content), np.uint8), protection)

    def members(self) -> "list[FakeTarget]":
        """Return itself."""
        return [self]

    def follow(self) -> bool:
        """Return that it runs: it never ends."""
        return True

    def progress(self) -> int:
        """Return what was said last."""
        return self._progress

    def set_progress(self, value: int) -> None:
        """Say how far it is with new objects."""
        self._progress = value

    def step(self, name: str) -> None:
        """Count an operation, and fail if it is the chosen one; later ones fail, too."""
        self.operations.append(name)
        if self.fail_at and len(self.operations) >= self.fail_at:
            raise TargetGoneError(self.pid, name)

    @property
    def last_stop_us(self) -> float:
        """Microseconds of the last stop: one for each stop made."""
        return self._last_stop_us

    def read(self, addr: Addr | int, size: int) -> U8:
        """Return a copy of memory."""
        self.step("read")
        found = self._find(addr, size)
        if found is None:
            raise TargetMemoryError(self.pid, addr, size, verb="read")
        return found[0].copy()

    def write_data(self, addr: Addr | int, data: bytes) -> None:
        """Write memory that is writable."""
        self.step("write_data")
        found = self._find(addr, len(data))
        if found is None or "w" not in found[1]:
            raise TargetMemoryError(self.pid, addr, len(data), verb="write")
        found[0][:] = np.frombuffer(data, np.uint8)

    def poke(self, addr: Addr | int, data: bytes) -> None:
        """Write memory whatever its protection."""
        found = self._find(addr, len(data))
        if found is None:
            raise TargetMemoryError(self.pid, addr, len(data), verb="write")
        found[0][:] = np.frombuffer(data, np.uint8)

    def maps(self) -> list[Mapping]:
        """Return the arena's and the test's mappings in address order."""
        self.step("maps")
        protections = ("r-xp", "r--p", "rw-p", "r--s", "rw-s")
        rows = [
            Mapping(
                Addr(w.addr),
                Addr(w.addr + w.size),
                p,
                w.file_offset,
                1,
                "/memfd:reloader (deleted)",
            )
            for w, p in zip(self.arena.windows, protections, strict=True)
        ]
        for start, (content, protection) in self.memory.items():
            rows.append(Mapping(Addr(start), Addr(start + len(content)), protection, 0, 0, ""))
        return sorted(rows, key=lambda row: row.start)

    def stop(self) -> AbstractContextManager[FakeStopped]:
        """Stop every thread."""
        return self._stop()

    @contextmanager
    def _stop(self) -> Generator[FakeStopped]:
        self.step("stop")
        yield FakeStopped(self)
        self._last_stop_us += 1.0

    def resolve(self, names: Sequence[bytes]) -> U64:
        """Return the address registered for each name, 0 for an unknown one."""
        self.step("resolve")
        return np.array([self.names.get(name, 0) for name in names], np.uint64)

    def call(self, function: Addr | int, *arguments: int, timeout: float = 10.0) -> int:
        """Call the Python callable registered at an address; the result is unsigned."""
        del timeout
        self.step("call")
        return self.functions[function](*arguments) & (1 << 64) - 1

    def call_catching(self, function: Addr | int, *arguments: int) -> tuple[int, str | None]:
        """Call, or say what was thrown."""
        if function in self.throws:
            return 0, self.throws[function]
        return self.call(function, *arguments), None

    def write_thread_image(self, offset: int, data: bytes) -> None:
        """Keep what new threads would begin with."""
        self.step("write_thread_image")
        self.thread_image[offset : offset + len(data)] = np.frombuffer(data, np.uint8)

    def thread_offsets(self, names: Sequence[bytes]) -> U64:
        """Know none."""
        return np.zeros(len(names), np.uint64)

    def signal_handlers(self) -> U64 | None:
        """Return none: it gets no signals."""
        return np.zeros(64, np.uint64)

    def thread_destructors(self, handle: int) -> int:
        """Know none."""
        del handle
        return 0

    def synchronise(self) -> None:
        """Count the event."""
        self.step("synchronise")

    def discard(self, allocations: Sequence[Allocation]) -> None:
        """Note what was dropped."""
        self.step("discard")
        self.discarded += allocations

    def show_symbols(self, files: Sequence[SymbolFile]) -> None:
        """Keep what debuggers would see."""
        self.step("show_symbols")
        self.shown += files

    def _find(self, addr: Addr | int, size: int) -> tuple[U8, str] | None:
        for region in (Region.CODE, Region.RODATA, Region.DATA):
            window = self.arena.windows[region]
            if window.addr <= addr and addr + size <= window.addr + window.size:
                return self.arena.view(addr, size), ("r-xp", "r--p", "rw-p")[region]
        for start, (content, protection) in self.memory.items():
            if start <= addr and addr + size <= start + len(content):
                return content[addr - start : addr - start + size], protection
        return None
