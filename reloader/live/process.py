"""Process: a real target. Memory by process_vm_*, threads by ptrace, the rest by the agent."""

import contextlib
import os
from collections.abc import Callable, Generator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np

from reloader.errors.live import (
    AgentVersionError,
    AlreadyAttachedError,
    ArenaLostError,
    TargetGoneError,
    TargetMemoryError,
)
from reloader.ids import U8, U64, Addr
from reloader.live import ptrace, sigframes, threads
from reloader.live.arena import MappedArena, Window, map_file
from reloader.live.channel import Channel, open_pidfd
from reloader.live.holder import left_descriptors, reap_holder, reopen_arena, start_holder
from reloader.live.maps import arena_control, read_maps
from reloader.live.target import Allocation, Mapping
from reloader.live.thread_room import ThreadRoom
from stubs import layout

USERFAULTFD = "anon_inode:[userfaultfd]"


def start_time(pid: int) -> int:
    """Return when a process started, in clock ticks since boot; 0 if it is gone or a zombie."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text("utf-8", "replace")
    except (FileNotFoundError, ProcessLookupError):
        return 0
    fields = text[text.rindex(")") + 2 :].split()
    return 0 if fields[0] in {"Z", "X"} else int(fields[19])


class StoppedProcess(threads.StoppedThreads):
    """A stop that also knows the signal frames."""

    maps: Sequence[Mapping] = ()
    restorers: U64 = np.empty(0, np.uint64)

    def program_counters(self) -> U64:
        """Return (p,) every rip, and the one each signal frame on a stack will return to."""
        pointers = self.registers[:, ptrace.R_RSP].copy()
        starts, ends = sigframes.stack_ranges(self.maps, pointers)
        if (starts == ends).any():  # a stack newer than our look at the mappings
            self.maps = read_maps(self.pid)
        hidden = sigframes.interrupted_counters(self.pid, self.maps, pointers, self.restorers)
        return np.concatenate((self.registers[:, ptrace.R_RIP], hidden))


class Process:
    """One live process with the agent in it; implements `live.target.Target`."""

    def __init__(self, pid: int, memfd: int, size: int) -> None:
        """Map the arena; takes the descriptor over.

        Raises:
            TargetGoneError: The process has ended.
            AgentVersionError: Another reloader's agent is in it.
        """
        self.pid = pid
        self.start_time = start_time(pid)
        self._pidfd = open_pidfd(pid)
        self.memfd = memfd
        content = map_file(memfd, size)
        self.channel = Channel(pid, content[: layout.CONTROL_SIZE], self._pidfd)
        found = self.channel.field("version")
        if self.channel.field("magic") != layout.MAGIC or found != layout.VERSION:
            raise AgentVersionError(pid, found, layout.VERSION)
        rows = self.channel.header["regions"][0]
        windows = [Window(int(r["addr"]), int(r["size"]), int(r["file_offset"])) for r in rows]
        self.arena = MappedArena(content, windows, memfd)
        offset = int(self.channel.header["thread_offset"].view(np.int64)[0])
        self.thread_room = ThreadRoom(
            offset, self.channel.field("thread_size"), self.channel.header["thread_taken"][0]
        )
        self.clock = threads.StopClock()
        self._restorers: tuple[list[Mapping], U64] = ([], np.empty(0, np.uint64))

    @property
    def last_stop_us(self) -> float:
        """Microseconds from the first thread's stop to the last one's resumption, last time."""
        return self.clock.last_us

    def claim(self) -> None:
        """Say in the header that this daemon works here; start the holder if there is none.

        Raises:
            AlreadyAttachedError: A daemon that still lives does, which may be this one.
        """
        other = self.channel.field("daemon_pid")
        live = other and start_time(other) == self.channel.field("daemon_start")
        if live:
            raise AlreadyAttachedError(self.pid, other)
        self.channel.set_field("target_pid", self.pid)
        self.channel.set_field("daemon_start", start_time(os.getpid()))
        self.channel.set_field("daemon_pid", os.getpid())
        holder = self.channel.field("holder_pid")
        if not holder or not Path(f"/proc/{holder}/fd/{layout.HOLDER_FD}").exists():
            holder = start_holder(self.memfd, self.pid)
            self.channel.set_field("holder_fd", layout.HOLDER_FD)
            self.channel.set_field("holder_pid", holder)

    def alive(self) -> bool:
        """Return whether the process still runs."""
        return self.channel.alive()

    def pidfd(self) -> int:
        """Return a descriptor that becomes readable when the process ends; it stays ours."""
        return self._pidfd

    def read(self, addr: Addr | int, size: int) -> U8:
        """Return a copy of memory.

        Raises:
            TargetMemoryError: Part of the range is not mapped.
        """
        out = np.empty(size, np.uint8)
        done = self._transfer(lambda: ptrace.read_memory(self.pid, addr, out)) if size else 0
        if done != size:
            raise TargetMemoryError(self.pid, addr, size, done=done, verb="read")
        return out

    def write_data(self, addr: Addr | int, data: bytes) -> None:
        """Write memory that is writable in the target, while it runs."""
        done = self._transfer(lambda: ptrace.write_memory(self.pid, addr, data)) if data else 0
        if done != len(data):
            raise TargetMemoryError(self.pid, addr, len(data), done=done, verb="write")

    def maps(self) -> list[Mapping]:
        """Return the mappings as they are now."""
        return read_maps(self.pid)

    def stop(self) -> AbstractContextManager[StoppedProcess]:
        """Stop every thread; on leaving all go on, interrupted system calls are re-issued."""
        return self._stop()

    @contextlib.contextmanager
    def _stop(self) -> Generator[StoppedProcess]:
        maps = self.maps()
        restorers = self._find_restorers(maps)
        with threads.stopped(self.pid, self.clock, StoppedProcess) as stop:
            stop.maps, stop.restorers = maps, restorers
            yield stop

    def resolve(self, names: Sequence[bytes]) -> U64:
        """Return the address `dlsym` gives for each name, 0 for an unknown one."""
        return self.channel.resolve(names)

    def call(self, function: Addr | int, *arguments: int, timeout: float = 10.0) -> int:
        """Call a function on the agent's thread and return its result (unsigned)."""
        return self.channel.command(layout.OP_CALL, function, *arguments, timeout=timeout)

    def call_catching(self, function: Addr | int, *arguments: int) -> tuple[int, str | None]:
        """Call a function that may throw; return its result, and the exception's type."""
        return self.channel.call_catching(function, *arguments)

    def write_thread_image(self, offset: int, data: bytes) -> None:
        """Write bytes of the thread-local room as threads made from now on begin with."""
        self.channel.write_thread_image(offset, data)

    def thread_offsets(self, names: Sequence[bytes]) -> U64:
        """Return each name's offset from the thread pointer; 0: unknown, 1: not one for all."""
        return self.channel.resolve(names, layout.OP_THREAD_OFFSETS)

    def thread_destructors(self, handle: int) -> int:
        """Return how many destructors threads still have to call for a `__dso_handle`."""
        return self.channel.command(layout.OP_THREAD_ATEXITS, handle)

    def synchronise(self) -> None:
        """Pass every thread through a serialising event."""
        self.channel.checked(layout.OP_SYNC_CORE)

    def discard(self, allocations: Sequence[Allocation]) -> None:
        """Drop the target's private copies of arena pages before they are reused."""
        self.channel.discard([(a.addr, a.size) for a in allocations])

    def track_writes(self) -> tuple[int, int]:
        """Return a userfaultfd of the process that is ours alone, and its C library's guard.

        Raises:
            AgentCommandError: The kernel does not give one.
            OSError: The program closed it before we had it.
        """
        fd, guard = self.channel.track_writes()
        link = Path(f"/proc/{self.pid}/fd/{fd}")
        try:
            return ptrace.take_descriptor(self._pidfd, fd), guard
        finally:
            with contextlib.suppress(FileNotFoundError):  # closed by the program
                if str(link.readlink()) == USERFAULTFD:
                    self.channel.checked(layout.OP_CLOSE, fd)

    def close(self) -> None:
        """Let go of the process: the program runs on, a later daemon may claim it."""
        if self.channel.alive():
            self.channel.set_field("daemon_pid", 0)
        reap_holder(self.channel.field("holder_pid"))
        self.close_descriptors()

    def close_descriptors(self) -> None:
        """Give back what was opened, where the process is another daemon's."""
        os.close(self._pidfd)
        os.close(self.memfd)

    def _transfer(self, move: Callable[[], int]) -> int:
        try:
            return move()
        except ProcessLookupError as error:
            raise TargetGoneError(self.pid) from error

    def _find_restorers(self, maps: list[Mapping]) -> U64:
        """Return where signal handlers return to; looked up again when libraries changed."""
        code = [row for row in maps if "x" in row.protection]
        if code != self._restorers[0]:
            self._restorers = (code, sigframes.find_restorers(code, self.read))
        return self._restorers[1]


def reattach(pid: int) -> Process:
    """Take over a process whose agent already runs; its daemon has ended.

    Raises:
        AlreadyAttachedError: That daemon still works on it.
        ArenaLostError: There is no arena, or its memory cannot be opened again.
    """
    control = arena_control(read_maps(pid))
    if control is None:
        raise ArenaLostError(pid, 0, "there is no arena in it")
    raw = np.zeros(layout.CONTROL.itemsize, np.uint8)
    ptrace.read_memory(pid, control.start, raw)
    header = raw.view(layout.CONTROL)[0]
    memfd = reopen_arena(pid, control, int(header["holder_pid"]))
    process = Process(pid, memfd, int(header["file_size"]))
    try:
        process.claim()
    except AlreadyAttachedError:
        process.close_descriptors()
        raise
    for fd in left_descriptors(pid, control):
        process.channel.checked(layout.OP_CLOSE, fd)
    return process
