"""Process: a real target, from one process to the whole family that was forked from it.

One of them, the first as long as it lives, stands for all: its memory is read, symbols are
looked up in it, and it is what the state calls the target. When it ends, the oldest of those it
leaves behind takes its place: so a server that goes into the background is followed.
"""

import contextlib
import os
import threading
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np

from reloader.errors.live import (
    AgentVersionError,
    AlreadyAttachedError,
    ArenaLostError,
    TargetGoneError,
)
from reloader.ids import U8, U64, Addr
from reloader.live import ptrace
from reloader.live.arena import MappedArena, Window, map_file
from reloader.live.channel import Channel
from reloader.live.claim import alone_in
from reloader.live.family import Census
from reloader.live.holder import left_descriptors, reap_holders, reopen_arena, start_holder
from reloader.live.maps import arena_control, read_maps
from reloader.live.member import Member, Restorers, Shared, start_time
from reloader.live.stopped_family import stopped_family
from reloader.live.target import Allocation, Mapping, Stopped, SymbolFile
from reloader.live.thread_room import ThreadRoom
from reloader.live.threads import StopClock
from stubs import layout


class Process:
    """Live processes with one arena; implements `live.target.Target`."""

    def __init__(self, pid: int, memfd: int, size: int) -> None:
        """Map the arena; takes the descriptor over.

        Raises:
            TargetGoneError: The process has ended.
            AgentVersionError: Another reloader's agent is in it.
        """
        self.memfd = memfd
        content = map_file(memfd, size)
        header = content[: layout.CONTROL.itemsize].view(layout.CONTROL)
        found = int(header["version"][0])
        if int(header["magic"][0]) != layout.MAGIC or found != layout.VERSION:
            raise AgentVersionError(pid, found, layout.VERSION)
        rows = header["regions"][0]
        windows = [Window(int(r["addr"]), int(r["size"]), int(r["file_offset"])) for r in rows]
        self.arena = MappedArena(content, windows, memfd)
        offset = int(header["thread_offset"].view(np.int64)[0])
        self.thread_room = ThreadRoom(
            offset, int(header["thread_size"][0]), header["thread_taken"][0]
        )
        control = content[: layout.CONTROL_SIZE]
        ring = threading.Lock()
        self._shared = Shared(self.arena, control, self.thread_room, ring, Restorers())
        self._looking = threading.Lock()
        at = windows[layout.CONTROL_REGION].addr
        self._census = Census(at, os.fstat(memfd).st_ino)
        self.leader = Member(pid, self._shared)
        self._members: dict[int, Member] = {pid: self.leader}

    @property
    def pid(self) -> int:
        """The process that stands for all."""
        return self.leader.pid

    @property
    def start_time(self) -> int:
        """When that one started, in clock ticks since boot."""
        return self.leader.start_time

    @property
    def first_pid(self) -> int:
        """The process that all others were forked from; it may have ended."""
        return int(self.leader.header["first_pid"][0])

    @property
    def channel(self) -> Channel:
        """The way to that one's agent."""
        return self.leader.channel

    @property
    def clock(self) -> StopClock:
        """How long that one's stops take: it is stopped first, and goes on last."""
        return self.leader.clock

    @property
    def last_stop_us(self) -> float:
        """Microseconds from the first thread's stop to the last one's resumption, last time."""
        return self.clock.last_us

    # the family

    def members(self) -> list[Member]:
        """Return the processes that have the arena now, the one that stands for all first.

        Raises:
            TargetGoneError: None is left.
        """
        with self._looking:
            pids = self._census.look()
            for pid in set(self._members) - set(pids):
                gone = self._members.pop(pid)
                if gone is not self.leader:
                    gone.close()
            for pid in pids:
                if pid not in self._members:
                    with contextlib.suppress(TargetGoneError):
                        self._members[pid] = Member(pid, self._shared)
            found = sorted(self._members.values(), key=self._age)
        if not found:
            raise TargetGoneError(self.pid, "looking for its processes")
        return found

    def _age(self, member: Member) -> tuple[bool, int, int]:
        return member is not self.leader, member.start_time, member.pid

    def pids(self) -> list[int]:
        """Return the numbers of all processes of the family; none if it has ended."""
        try:
            return [member.pid for member in self.members()]
        except TargetGoneError:
            return []

    def is_inside(self) -> bool:
        """Return whether the one that stands for all has the arena; `exec` drops it."""
        return self._census.has_arena(self.pid)

    def follow(self) -> bool:
        """Let another process stand for all if that one has ended.

        Returns:
            Whether any is left.
        """
        pids = self.pids()
        if self.pid in pids or not pids:
            return bool(pids)
        left, self.leader = self.leader, self._members[pids[0]]
        left.close()
        self._write_leader()
        return True

    # what concerns all

    def stop(self) -> AbstractContextManager[Stopped]:
        """Stop every thread of every process."""
        return stopped_family(self.members)

    def synchronise(self) -> None:
        """Pass every thread of every process through a serialising event."""
        for member in self.members():
            with contextlib.suppress(TargetGoneError):
                member.synchronise()

    def discard(self, allocations: Sequence[Allocation]) -> None:
        """Drop every process's private copies of arena pages before they are reused.

        One that is forked meanwhile may have its parent's: until nobody is new.
        """
        done: set[int] = set()
        while fresh := [member for member in self.members() if member.pid not in done]:
            for member in fresh:
                done.add(member.pid)
                with contextlib.suppress(TargetGoneError):
                    member.discard(allocations)

    def show_symbols(self, files: Sequence[SymbolFile]) -> None:
        """Tell debuggers of code in every process that has an agent."""
        for member in self.members():
            with contextlib.suppress(TargetGoneError):
                member.show_symbols(files)

    def thread_destructors(self, handle: int) -> int:
        """Return how many destructors threads of all processes still have to call."""
        count = 0
        for member in self.members():
            with contextlib.suppress(TargetGoneError):
                count += member.thread_destructors(handle)
        return count

    # what is asked of the one that stands for all

    def signal_handlers(self) -> U64 | None:
        """Return (64,) what is called at each signal, from 1 on; None without an agent."""
        return self.leader.signal_handlers()

    def alive(self) -> bool:
        """Return whether it still runs."""
        return self.leader.alive()

    def pidfd(self) -> int:
        """Return a descriptor that becomes readable when it ends; it stays ours."""
        return self.leader.pidfd()

    def read(self, addr: Addr | int, size: int) -> U8:
        """Return a copy of its memory; raises TargetMemoryError for an unmapped range."""
        return self.leader.read(addr, size)

    def write_data(self, addr: Addr | int, data: bytes) -> None:
        """Write its writable memory, while it runs."""
        self.leader.write_data(addr, data)

    def maps(self) -> list[Mapping]:
        """Return its mappings as they are now."""
        return self.leader.maps()

    def resolve(self, names: Sequence[bytes]) -> U64:
        """Return the address `dlsym` gives for each name, 0 for an unknown one."""
        return self.leader.resolve(names)

    def call(self, function: Addr | int, *arguments: int, timeout: float = 10.0) -> int:
        """Call a function on its agent's thread and return its result (unsigned)."""
        return self.leader.call(function, *arguments, timeout=timeout)

    def call_catching(self, function: Addr | int, *arguments: int) -> tuple[int, str | None]:
        """Call a function that may throw; return its result, and the exception's type."""
        return self.leader.call_catching(function, *arguments)

    def write_thread_image(self, offset: int, data: bytes) -> None:
        """Write bytes of the thread-local room as its new threads begin with."""
        self.leader.write_thread_image(offset, data)

    def thread_offsets(self, names: Sequence[bytes]) -> U64:
        """Return each name's offset from the thread pointer; 0: unknown, 1: not one for all."""
        return self.leader.thread_offsets(names)

    def track_writes(self) -> tuple[int, int]:
        """Return a userfaultfd of it that is ours alone, and its C library's guard."""
        return self.leader.track_writes()

    def progress(self) -> int:
        """Return how far it is with new objects."""
        return self.leader.progress()

    def set_progress(self, value: int) -> None:
        """Say how far it is."""
        self.leader.set_progress(value)

    # our own coming and going

    def claim(self) -> None:
        """Say in the header that this daemon works here; start the holder if there is none.

        Raises:
            AlreadyAttachedError: A daemon that still lives does, which may be this one.
        """
        header = self.leader.header
        with alone_in(self.memfd):
            other = int(header["daemon_pid"][0])
            live = other and start_time(other) == int(header["daemon_start"][0])
            if live:
                raise AlreadyAttachedError(self.pid, other)
            header["daemon_start"][0] = start_time(os.getpid())
            header["daemon_pid"][0] = os.getpid()
        if not header["first_pid"][0]:
            header["first_pid"][0] = self.pid
        self._write_leader()

    def _write_leader(self) -> None:
        header = self.leader.header
        header["target_pid"][0] = self.pid
        reap_holders()
        holder = int(header["holder_pid"][0])
        if not holder or not Path(f"/proc/{holder}/fd/{layout.HOLDER_FD}").exists():
            header["holder_fd"][0] = layout.HOLDER_FD
            header["holder_pid"][0] = start_holder(self.memfd, self.pid)

    def close(self) -> None:
        """Let go of the processes: they run on, a later daemon may claim them."""
        header = self.leader.header
        if self.pids():
            header["daemon_pid"][0] = 0
        reap_holders()
        self.close_descriptors()

    def close_descriptors(self) -> None:
        """Give back what was opened, where the process is another daemon's."""
        for member in {id(m): m for m in [self.leader, *self._members.values()]}.values():
            member.close()
        os.close(self.memfd)


def reattach(pid: int) -> Process:
    """Take over processes whose agent already runs; its daemon has ended.

    Args:
        pid: Any of the family; the one that stood for all does so again if it lives.

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
    process = Process(leader_of(pid, control, header), memfd, int(header["file_size"]))
    try:
        process.claim()
    except AlreadyAttachedError:
        process.close_descriptors()
        raise
    with contextlib.ExitStack() as undo:
        undo.callback(process.close)
        for member in process.members():
            for fd in left_descriptors(member.pid, control):
                member.channel.checked(layout.OP_CLOSE, fd)
        undo.pop_all()
    return process


def leader_of(pid: int, control: Mapping, header: np.void) -> int:
    """Return the process that stood for a process's family, or it if that one has ended."""
    other = int(header["target_pid"])
    with contextlib.suppress(TargetGoneError, OSError):
        found = arena_control(read_maps(other))
        if found is not None and (found.start, found.inode) == (control.start, control.inode):
            return other
    return pid
