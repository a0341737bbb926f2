"""Target: the live process as the road sees it.

The real process (`live/process.py`) and a fake over a bytearray (`live/fake.py`) pass the same
contract tests; a remote
executor can implement it later. Addresses are the target's. Every method raises TargetGoneError
once the process has ended.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from reloader.arch.base import Architecture
from reloader.ids import U8, U64, Addr, SlotId
from reloader.live.thread_room import ThreadRoom


@dataclass(frozen=True, slots=True)
class Mapping:
    """One line of /proc/PID/maps."""

    start: Addr
    end: Addr
    protection: str  # `r-xp`
    file_offset: int
    inode: int
    name: str  # path, `[heap]`, `/memfd:reloader (deleted)`, or ""


@dataclass(frozen=True, slots=True)
class Allocation:
    """Address space that we hold in the arena.

    Page-granular, of one generation and one object.
    """

    region: int  # ids.Region
    addr: Addr
    size: int  # bytes, a multiple of the page size


@dataclass(frozen=True, slots=True)
class SymbolFile:
    """What debuggers need to know of some code."""

    code: Allocation  # with whose pages it goes
    content: bytes  # an ELF file


class Stopped(Protocol):
    """All threads of the target stand still; memory may be written."""

    @property
    def tids(self) -> list[int]:
        """The threads of every process."""
        ...

    @property
    def registers(self) -> NDArray[np.uint64]:
        """(t, 27) user_regs_struct of each thread, in struct order (sys/user.h)."""
        ...

    @property
    def parts(self) -> Sequence["Stopped"]:
        """The stop of each process by itself."""
        ...

    def read(self, addr: Addr, size: int) -> bytes:
        """Return memory of the first process, less than `size` bytes where it has no more."""
        ...

    def write(self, addr: Addr, data: bytes) -> None:
        """Write private memory of every process, whatever its protection.

        A copy-on-write page becomes the target's own.
        """
        ...

    def program_counters(self) -> U64:
        """Return (p,) every rip, and the one each signal frame on a stack will return to."""
        ...


class Arena(Protocol):
    """Our address space in the target, seen from outside through the memfd."""

    @property
    def slots(self) -> U64:
        """(capacity,) the live slot table: storing one element flips one function at once."""
        ...

    @property
    def page_size(self) -> int:
        """Bytes of the smallest piece that can be allocated."""
        ...

    def allocate(self, region: int, size: int) -> Allocation:
        """Take fresh zero-filled pages no thread can reach yet.

        Raises ArenaFullError with the numbers.
        """
        ...

    def allocate_all(self, wanted: Sequence[tuple[int, int]]) -> list[Allocation]:
        """Take memory for several (region, size), all of it or none."""
        ...

    def free(self, allocation: Allocation) -> None:
        """Give pages back that nothing can reach; they hold traps until reused."""
        ...

    def view(self, addr: Addr, size: int) -> U8:
        """Return a writable window over arena bytes of a range.

        What is stored there the target sees.
        """
        ...

    def reserve(self, allocation: Allocation) -> None:
        """Mark known memory as taken: how a later daemon rebuilds the books."""
        ...

    def span(self) -> tuple[Addr, Addr]:
        """Return the first address of the arena and the one past its last."""
        ...

    def write_stubs(self, arch: Architecture, first: int, end: int) -> None:
        """Write the jumps of slots [first, end)."""
        ...

    def stub_addr(self, slot: SlotId) -> Addr:
        """Return the address of the jump that goes through a slot."""
        ...

    def slot_addr(self, slot: SlotId) -> Addr:
        """Return the address of a slot in the target."""
        ...


class Target(Protocol):
    """A live process with the agent in it, and the family that was forked from it.

    Memory is read and functions are called in the one that stands for all; what has to be done
    in each is done by way of `members`. Stops, slots, `discard` and `synchronise` are for all.
    """

    @property
    def pid(self) -> int:
        """The process that stands for all, as we see it."""
        ...

    def progress(self) -> int:
        """Return how far the process is with new objects; a forked child has its parent's."""
        ...

    def set_progress(self, value: int) -> None:
        """Say how far it is."""
        ...

    def members(self) -> Sequence["Target"]:
        """Return the target of each process alone, as they are now, itself first."""
        ...

    def follow(self) -> bool:
        """Let another one stand for all if that one has ended; return whether any is left."""
        ...

    @property
    def arena(self) -> Arena:
        """Our memory in it."""
        ...

    def read(self, addr: Addr, size: int) -> U8:
        """Return a copy of memory; raises TargetMemoryError for an unmapped range."""
        ...

    def write_data(self, addr: Addr, data: bytes) -> None:
        """Write memory that is writable in the target, while it runs."""
        ...

    def maps(self) -> list[Mapping]:
        """Return the mappings as they are now."""
        ...

    def stop(self) -> AbstractContextManager[Stopped]:
        """Stop every thread.

        On leaving, all go on and interrupted system calls are re-issued.
        """
        ...

    @property
    def last_stop_us(self) -> float:
        """Microseconds from the first thread's stop to the last one's resumption, last time."""
        ...

    @property
    def thread_room(self) -> ThreadRoom:
        """Room for thread-local variables in every thread."""
        ...

    def write_thread_image(self, offset: int, data: bytes) -> None:
        """Write bytes of that room as threads made from now on begin with."""
        ...

    def thread_offsets(self, names: Sequence[bytes]) -> U64:
        """Return each name's offset from the thread pointer; 0: unknown, 1: not one for all."""
        ...

    def resolve(self, names: Sequence[bytes]) -> U64:
        """Return the address `dlsym` gives for each name, 0 for an unknown one.

        `name@VERSION` asks `dlvsym`.
        """
        ...

    def call(self, function: Addr, *arguments: int, timeout: float = 10.0) -> int:
        """Call a function on the agent's thread and return its result."""
        ...

    def call_catching(self, function: Addr, *arguments: int) -> tuple[int, str | None]:
        """Call a function that may throw; return its result, and the exception's type.

        None: it did not throw; "": it did, and the type is not known.
        """
        ...

    def thread_destructors(self, handle: int) -> int:
        """Return how many destructors threads still have to call for a `__dso_handle`."""
        ...

    def signal_handlers(self) -> U64 | None:
        """Return (64,) what is called at each signal, from 1 on; None without an agent."""
        ...

    def synchronise(self) -> None:
        """Pass every thread through a serialising event (`membarrier` SYNC_CORE)."""
        ...

    def discard(self, allocations: Sequence[Allocation]) -> None:
        """Drop the target's private copies of arena pages before they are reused.

        What debuggers were told of code there goes with them.
        """
        ...

    def show_symbols(self, files: Sequence[SymbolFile]) -> None:
        """Tell debuggers of code; processes without an agent of their own are left out."""
        ...
