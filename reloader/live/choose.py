"""Which thread of a running process may be borrowed, found without harm to any.

A borrowed thread calls dlopen, which takes the locks of the allocator and of the dynamic
loader. One that was stopped while it held such a lock would wait for itself for ever. So all
that can be known is found out while the process runs, and then threads are stopped one after
the other until one stands elsewhere.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from reloader.errors.live import (
    AttachError,
    InjectionError,
    NoSafeThreadError,
    TargetGoneError,
)
from reloader.ids import U8, U64
from reloader.live import ptrace, sigframes, threads
from reloader.live.borrow import BorrowedThread, Gadgets, find_gadget
from reloader.live.cfi import Unwinder
from reloader.live.maps import read_maps
from reloader.live.modules import (
    Module,
    find_libc,
    in_ranges,
    loaded_image,
    loader_base,
    read_module,
    read_modules,
    unsafe_ranges,
)
from reloader.live.target import Mapping

TRIES: Final = 300


@dataclass(frozen=True, slots=True)
class Entrance:
    """What is known of a process before a thread of it is stopped."""

    pid: int
    maps: list[Mapping]
    dlopen: int
    dlerror: int
    dlclose: int
    gadgets: Gadgets
    unsafe: U64  # (r, 2) code in which locks are held
    unwinder: Unwinder
    start_offset: int  # of reloader_start in the agent


def _reader(pid: int) -> sigframes.Read:
    def read(addr: int, size: int) -> U8:
        out = np.empty(size, np.uint8)
        done = ptrace.read_memory(pid, addr, out)
        if done != size:
            raise InjectionError(pid, "reading memory", f"{size} bytes at {addr:#x}")
        return out

    return read


def _agent_start_offset(agent: bytes) -> int:
    """Return where reloader_start is in our own library, relative to its load address."""
    content = np.frombuffer(agent, np.uint8)
    image = loaded_image(content)
    module = read_module(lambda addr, size: image[addr : addr + size], "agent", 0, len(image))
    return module.address(b"reloader_start")


def survey(pid: int, agent: bytes = b"") -> Entrance:
    """Find out everything that can be known while the process runs.

    Args:
        pid: The process.
        agent: The library that is to be brought in; none where the agent is there already.
    """
    maps, read = read_maps(pid), _reader(pid)
    modules = read_modules(maps, read)
    libc = find_libc(modules)
    if libc is None:
        raise AttachError(
            pid, ["it has no GNU C library: static and musl programs cannot be entered"]
        )
    restorers = sigframes.find_restorers(maps, read).tolist()
    code = next(m for m in maps if libc.start <= m.start < libc.end and "x" in m.protection)
    return Entrance(
        pid,
        maps,
        _function(modules, libc, b"dlopen"),
        _function(modules, libc, b"dlerror"),
        _function(modules, libc, b"dlclose"),
        _gadgets(pid, find_gadget(read, code.start, code.end), restorers),
        unsafe_ranges(modules, loader_base(pid)),
        Unwinder(maps, read, restorers),
        _agent_start_offset(agent) if agent else 0,
    )


def _gadgets(pid: int, syscall: int, restorers: Sequence[int]) -> Gadgets:
    if not syscall or not restorers:
        raise AttachError(pid, ["its C library has no `syscall; ret` or no signal restorer"])
    return Gadgets(syscall, restorers[0])


def _function(modules: Sequence[Module], libc: Module, name: bytes) -> int:
    """Return a symbol of libc, else of any module: before glibc 2.34 dlopen lived in libdl."""
    return next((addr for m in (libc, *modules) if (addr := m.address(name))), 0)


def _stack_words(pid: int, maps: Sequence[Mapping], pointer: int) -> U64:
    spaces = sigframes.writable(maps)
    starts, ends = sigframes.stack_ranges(spaces, np.array([pointer], np.uint64))
    space = np.empty(int(ends[0] - starts[0]), np.uint8)
    return space[: ptrace.read_memory(pid, int(starts[0]), space) & ~7].view(np.uint64)


def _follows_call(code: bytes) -> bool:
    """Return whether seven bytes of code end in a call, so that a return address follows."""
    if code[2] == 0xE8:  # call rel32
        return True
    # call *r/m: ff /2, of these lengths
    return any(code[-n] == 0xFF and code[1 - n] >> 3 & 7 == 2 for n in (2, 3, 4, 6, 7))


def where_unsafe(entrance: Entrance, registers: U64) -> str:
    """Return what makes a stopped thread unfit to be borrowed, "" if nothing does.

    A word on its stack that could be a return address into the allocator or the loader counts
    as one, also a stale one.
    """
    pid, unsafe = entrance.pid, entrance.unsafe
    counter = int(registers[ptrace.R_RIP])
    if in_ranges(unsafe, np.array([counter], np.uint64)).size:
        return f"at {counter:#x}"
    words = _stack_words(pid, entrance.maps, int(registers[ptrace.R_RSP]))
    if not words.size:
        return "on an unknown stack"
    before = np.zeros(7, np.uint8)
    for row in in_ranges(unsafe, words).tolist():
        addr = int(words[row])
        if ptrace.read_memory(pid, addr - 7, before) == 7 and _follows_call(before.tobytes()):
            return "" if _frames_are_safe(entrance, registers) else f"called from {addr:#x}"
    return ""


def _frames_are_safe(entrance: Entrance, registers: U64) -> bool:
    """Return whether unwinding, to the outermost frame, meets no unsafe code.

    Settles what the words leave open: a big buffer of main() still holds what the loader left
    on the stack before.
    """
    counters, complete = entrance.unwinder.walk(registers.tolist())
    return complete and not in_ranges(entrance.unsafe, np.array(counters, np.uint64)).size


def _try_thread(entrance: Entrance, tid: int) -> tuple[BorrowedThread | None, str]:
    """Stop one thread and borrow it if it is fit; otherwise let it go and say why."""
    tracee = threads.seize(entrance.pid, tid)
    if tracee is None:
        return None, f"thread {tid} ended"
    tracee.interrupt()
    try:
        if not tracee.wait(time.monotonic() + threads.STOP_SECONDS):
            return None, f"thread {tid} ended"
        registers = ptrace.empty_registers(1)[0]
        ptrace.get_registers(tid, registers)
        # a signal that is about to be delivered, or a job-control stop: not now
        why = "getting a signal" if tracee.signal else where_unsafe(entrance, registers)
        if not why:
            return BorrowedThread(tracee, entrance.gadgets), ""
    except BaseException:
        tracee.detach()
        raise
    tracee.detach()
    return None, f"thread {tid} {why}"


def borrow_thread(entrance: Entrance) -> BorrowedThread:
    """Stop a thread that stands neither in the allocator nor in the loader, with patience."""
    why = "it has no threads"
    for attempt in range(TRIES):
        tids = threads.list_threads(entrance.pid)
        if not tids:
            raise TargetGoneError(entrance.pid, "entering it")
        for tid in tids:
            thread, reason = _try_thread(entrance, tid)
            if thread is not None:
                return thread
            why = reason or why
        time.sleep(min(1e-3 * (1 + attempt / 10), 0.02))
    raise NoSafeThreadError(entrance.pid, TRIES, why)
