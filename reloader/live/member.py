"""Member: one process of a target's family. Memory by process_vm_*, threads by ptrace.

What only the inside can do its agent does. A forked child has none: it is made when the first
command comes, on a thread borrowed for a moment. Until then the child has exactly the threads
that the program gave it, which some system calls count on (`unshare`).
"""

import contextlib
import os
import threading
from collections.abc import Callable, Generator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from reloader.errors.live import AgentStartError, TargetGoneError, TargetMemoryError
from reloader.ids import U8, U64, Addr
from reloader.live import ptrace, sigframes, threads
from reloader.live.arena import MappedArena
from reloader.live.channel import Channel, open_pidfd
from reloader.live.choose import borrow_thread, survey
from reloader.live.maps import read_maps
from reloader.live.pagemap import Pagemap
from reloader.live.target import Allocation, Mapping, SymbolFile
from reloader.live.thread_room import ThreadRoom
from stubs import layout

USERFAULTFD: Final = "anon_inode:[userfaultfd]"


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

    spaces: sigframes.Spaces = (np.empty(0, np.uint64), np.empty(0, np.uint64))
    restorers: U64 = np.empty(0, np.uint64)

    def program_counters(self) -> U64:
        """Return (p,) every rip, and the one each signal frame on a stack will return to."""
        pointers = self.registers[:, ptrace.R_RSP].copy()
        starts, ends = sigframes.stack_ranges(self.spaces, pointers)
        if (starts == ends).any():  # a stack newer than our look at the mappings
            self.spaces = sigframes.writable(read_maps(self.pid))
        hidden = sigframes.interrupted_counters(self.pid, self.spaces, pointers, self.restorers)
        return np.concatenate((self.registers[:, ptrace.R_RIP], hidden))


class Restorers:
    """Where signal handlers return to, found once for the same code: children share it."""

    def __init__(self) -> None:
        """Know nothing yet."""
        self._known: dict[tuple[Mapping, ...], U64] = {}

    def find(self, maps: Sequence[Mapping], read: sigframes.Read) -> U64:
        """Return the addresses; looked up again when libraries changed."""
        code = tuple(row for row in maps if "x" in row.protection)
        if code not in self._known:
            self._known = {code: sigframes.find_restorers(code, read)}
        return self._known[code]


@dataclass(frozen=True, slots=True)
class Shared:
    """What all processes of a family have in common, as we see it."""

    arena: MappedArena
    control: U8  # the control region's bytes
    thread_room: ThreadRoom
    ring: threading.Lock  # one command at a time
    restorers: Restorers


class Member:
    """One process; implements `live.target.Target` for a family of itself alone."""

    def __init__(self, pid: int, shared: Shared) -> None:
        """Open a process of a family.

        Raises:
            TargetGoneError: The process has ended.
        """
        self.pid = pid
        self.arena = shared.arena
        self.thread_room = shared.thread_room
        self.start_time = start_time(pid)
        self._pidfd = open_pidfd(pid)
        self._channel = Channel(pid, shared.control, self._pidfd, shared.ring)
        self._has_agent = self._channel.field("first_pid") in {0, pid}
        if not self._has_agent:
            self._channel.number = pid
        self.clock = threads.StopClock()
        self._restorers = shared.restorers
        # for the next stop
        self._spaces: sigframes.Spaces = sigframes.writable([])
        self._found: U64 = np.empty(0, np.uint64)

    @property
    def channel(self) -> Channel:
        """The way to its agent, which is started if there is none yet.

        Raises:
            NoSafeThreadError: No thread could be borrowed for that.
            AgentStartError: The process may not have another thread.
        """
        if not self._has_agent:
            self._start_agent()
            self._has_agent = True
        return self._channel

    @property
    def header(self) -> NDArray[np.void]:
        """The control region's first struct, which all processes share."""
        return self._channel.header

    def _start_agent(self) -> None:
        entrance = survey(self.pid)
        thread = borrow_thread(entrance)
        try:
            thread.prepare()
            enter = self._channel.field("enter_addr")
            error = thread.call(enter, self._channel.number)
        finally:
            thread.give_back()
        if error:
            raise AgentStartError(self.pid, layout.STATUS_NO_THREAD, error)

    @property
    def last_stop_us(self) -> float:
        """Microseconds from the first thread's stop to the last one's resumption, last time."""
        return self.clock.last_us

    def members(self) -> "list[Member]":
        """Return itself."""
        return [self]

    def follow(self) -> bool:
        """Return whether it runs: nobody else stands for it."""
        return self.alive()

    def alive(self) -> bool:
        """Return whether the process still runs."""
        return self._channel.alive()

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

    def prepare_stop(self) -> None:
        """Find out before a stop what it needs."""
        maps = self.maps()
        self._spaces = sigframes.writable(maps)
        self._found = self._restorers.find(maps, self.read)

    def stop(self) -> AbstractContextManager[StoppedProcess]:
        """Stop every thread; on leaving all go on, interrupted system calls are re-issued."""
        self.prepare_stop()
        return self.stop_prepared()

    @contextlib.contextmanager
    def stop_prepared(self) -> Generator[StoppedProcess]:
        """Do the same, all else being done already."""
        with threads.stopped(self.pid, self.clock, StoppedProcess) as stop:
            stop.spaces, stop.restorers = self._spaces, self._found
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

    def signal_handlers(self) -> U64 | None:
        """Return (64,) what is called at each signal, from 1 on; None without an agent."""
        return self.channel.signal_handlers() if self._has_agent else None

    def synchronise(self) -> None:
        """Pass every thread through a serialising event.

        A process without an agent has passed one: the proof stopped it.
        """
        if self._has_agent:
            self.channel.checked(layout.OP_SYNC_CORE)

    def discard(self, allocations: Sequence[Allocation]) -> None:
        """Drop the target's private copies of arena pages before they are reused."""
        parts = [(int(a.addr), a.size) for a in allocations]
        if not self._has_agent:
            parts = [part for part in parts if self._has_copies(*part)]
        if parts:
            self.channel.discard(parts)

    def show_symbols(self, files: Sequence[SymbolFile]) -> None:
        """Tell debuggers of code, if the process has an agent: a debugger is not worth one."""
        if self._has_agent:
            rows = [(int(file.code.addr), file.code.size, file.content) for file in files]
            self.channel.show_symbols(rows)

    def _has_copies(self, addr: int, size: int) -> bool:
        pagemap = Pagemap(self.pid)
        try:
            return bool(pagemap.pages(addr, addr + size, own=True))
        finally:
            pagemap.close()

    def progress(self) -> int:
        """Return how far this process is with new objects; a forked child has its parent's."""
        return self._own("progress")

    def set_progress(self, value: int) -> None:
        """Say how far it is."""
        self._set_own("progress", value)

    def forks(self) -> int:
        """Return how often this process has forked, a forked child's parent until then."""
        return self._own("forks")

    def want_forks(self, count: int | None) -> None:
        """Let OCaml work be refused once the process has forked more often; None: whenever."""
        self._set_own("forks_wanted", 0 if count is None else count + 1)

    def _own(self, name: str) -> int:
        size = layout.OWN.itemsize
        row = self.read(self._channel.field("own_addr"), size).view(layout.OWN)
        return int(row[name][0])

    def _set_own(self, name: str, value: int) -> None:
        addr = self._channel.field("own_addr") + 8 * layout.OWN_FIELDS.index(name)
        self.write_data(addr, value.to_bytes(8, "little"))

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
        """Give back what was opened."""
        os.close(self._pidfd)

    def _transfer(self, move: Callable[[], int]) -> int:
        try:
            return move()
        except ProcessLookupError as error:
            raise TargetGoneError(self.pid) from error
