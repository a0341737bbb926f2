"""Executing what was linked: a host process, its names, and the call of the entry function.

The host is our child with the terminal, signals and environment of the user. It waits before
its main until `begin` says what to call; constructors, entry and destructors run on its main
thread, as in a program that was started from a file.
"""

import difflib
import mmap
import os
import signal
import socket
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Final

import numpy as np

from reloader.arch.x86_64 import X86_64
from reloader.elf.sources import source_line
from reloader.errors.linker import EntryMissingError, LibraryLoadError
from reloader.ids import Addr, Generation, Region, SlotId
from reloader.link.layout import image
from reloader.link.pipeline import Setting
from reloader.linker.alone import definitions, link_alone, symbol_addr
from reloader.linker.facts import LinkedFacts
from reloader.linker.jitdump import Function, dump_folder, write_dump
from reloader.linker.names import Names
from reloader.linker.request import Request, Result, Times, arrays
from reloader.live.baseline import match_baseline
from reloader.live.commit import assign_slots
from reloader.live.inject import Adopted, adopt
from reloader.live.linking import take_thread_room, unwind_header
from reloader.live.next_version import hold
from reloader.live.opening import empty_program, index_symbols, running_image
from reloader.live.process import Process
from reloader.live.program import Program
from reloader.live.thread_local import ThreadValue, ThreadValues, initialise
from reloader.live.unwind import publish
from reloader.wire.spawn import agent_environment, socket_pair, start_program
from stubs import layout

GO: Final = b"reloader_host_go"
STT_FUNC: Final = 2
_RTLD_NOW_GLOBAL: Final = 0x102
_PASSED_ON: Final = (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
_LEFT_TO_HOST: Final = (signal.SIGINT, signal.SIGQUIT)  # the terminal sends them to both


@dataclass(slots=True)
class Host:
    """A started host that has not begun yet."""

    pid: int
    program: Program
    adopted: Adopted

    @property
    def process(self) -> Process:
        """The live process."""
        return self.adopted.process


@contextmanager
def started(argv: Sequence[str], env: Mapping[str, str]) -> Generator[Host]:
    """Start a host; one that was not waited for is ended.

    Args:
        argv: What its main gets, its own name first.
        env: Its environment.
    """
    near, far = socket_pair()
    path = str(layout.host_path())
    pid = start_program(path, argv, agent_environment(env, near, os.getpid(), None), near)
    os.close(near)
    try:
        adopted = adopt(pid, socket.socket(fileno=far))
        try:
            yield Host(pid, host_program(adopted.process), adopted)
        finally:
            adopted.process.close()
    except BaseException:
        os.kill(pid, signal.SIGKILL)  # our own child, not yet waited for
        os.waitpid(pid, 0)
        raise


def host_program(process: Process) -> Program:
    """Return a program of which nothing is watched: the host."""
    seen = running_image(process.pid, process.maps())
    program = empty_program(process, seen, match_baseline([], seen, X86_64().kinds))
    index_symbols(program)
    return program


def load_libraries(process: Process, paths: Sequence[str]) -> None:
    """Load shared libraries, their names visible to everything.

    Raises:
        LibraryLoadError: The dynamic loader's own reason.
    """
    if not paths:
        return
    dlopen, dlerror = process.resolve([b"dlopen", b"dlerror"]).tolist()
    for path in paths:
        handle = with_bytes(
            process,
            os.fsencode(path) + b"\0",
            lambda addr: process.call(dlopen, addr, _RTLD_NOW_GLOBAL),
        )
        if not handle:
            why = process.call(dlerror)
            raw = bytes(process.read(why, 300)) if why else b"no reason"
            raise LibraryLoadError(path, raw.split(b"\0")[0].decode("utf-8", "replace"))


def with_bytes(process: Process, data: bytes, use: Callable[[int], int]) -> int:
    """Return what a call with the address of some bytes in the process returns."""
    arena = process.arena
    allocation = arena.allocate(Region.RODATA, len(data))
    arena.view(allocation.addr, len(data))[:] = np.frombuffer(data, np.uint8)
    try:
        return use(int(allocation.addr))
    finally:
        arena.free(allocation)


def begin(
    process: Process, entry: int, init: Sequence[int] = (), fini: Sequence[int] = ()
) -> None:
    """Let the host call constructors and the entry; without an entry it ends with status 1.

    Args:
        process: The host.
        entry: Address of a function like `main`, or 0.
        init: Functions to call before, in order.
        fini: Functions to call at exit, the last first.
    """
    arena = process.arena
    words = np.array([*init, *fini, 0], np.uint64)
    tables = arena.allocate(Region.RODATA, words.nbytes)  # stays: destructors are read at exit
    arena.view(tables.addr, words.nbytes)[:] = words.view(np.uint8)
    last = tables.addr + 8 * len(init)
    plan = np.array([entry, tables.addr, len(init), last, len(fini)], np.uint64)
    go = int(process.resolve([GO])[0])
    with_bytes(process, plan.tobytes(), lambda addr: process.call(Addr(go), addr))


def link_executed(request: Request, host: Host, times: Times) -> Result:
    """Link into the host; nothing runs yet.

    Raises:
        ReloaderError: Says what cannot be linked.
    """
    program, process = host.program, host.process
    with times.step("read"):
        inputs = request.read()
        load_libraries(process, inputs.libraries)
        objects = inputs.all_objects([request.entry.encode()])
    names = Names(request.absolutes, request.aliases, program.index, request.phony)
    arena = process.arena
    with times.step("link"):
        setting = Setting(
            arch=program.arch,
            live=[None] * len(objects),
            source=names,
            arena=arena.span(),
            assign_slots=partial(assign_slots, program=program),
            allocate=arena.allocate_all,
            lines=source_line,
            take_thread_room=partial(take_thread_room, program, ExitStack()),
        )
        linked = link_alone(objects, setting, names, request.wishes())
    with times.step("write"):
        for item in linked.placed:
            data = image(linked.graph, item, program.arch)
            arena.view(item.allocation.addr, len(data))[:] = data
        values = [ThreadValue(*pair) for pair in linked.thread_values]
        initialise(process, ThreadValues(values))
        header = unwind_header(linked)
        held = hold(linked.graph, linked.placed, program.ledger, Generation(0), header)
        publish(program, held, ExitStack())
        for slot, resolver in linked.choices:  # IFUNCs
            arena.slots[slot] = np.uint64(process.call(Addr(resolver)))
    facts = LinkedFacts(
        linked.graph,
        process.read,
        lambda slot: arena.stub_addr(SlotId(slot)),
        lambda slot: arena.slot_addr(SlotId(slot)),
        program.arch,
    )
    return Result(linked, facts, objects, times)


def dump_for_perf(result: Result, host: Host) -> Path:
    """Write a jitdump of the linked functions, and let the host map it, for perf to find."""
    symbols, process = result.graph.symbols, host.process
    rows = [row for row in definitions(result.graph, local=True).values()
            if symbols.type[row] == STT_FUNC and symbol_addr(result.graph, row)]  # fmt: skip
    functions: list[Function] = []
    for row in rows:
        addr, size = int(symbols.addr[row]), int(symbols.size[row])
        name = symbols.name[row].decode("utf-8", "replace")
        functions.append(Function(name, addr, process.read(addr, size).tobytes()))
    path = write_dump(dump_folder(), host.pid, functions)
    opener, mapper, closer = process.resolve([b"open", b"mmap", b"close"]).tolist()
    fd = with_bytes(process, os.fsencode(path) + b"\0", lambda at: process.call(opener, at, 0))
    protection = mmap.PROT_READ | mmap.PROT_EXEC
    process.call(mapper, 0, mmap.PAGESIZE, protection, mmap.MAP_PRIVATE, fd, 0)
    process.call(closer, fd)
    return path


def entry_of(result: Result, name: str) -> int:
    """Return the address of the function to call.

    Raises:
        EntryMissingError: No linked object defines it.
    """
    known = definitions(result.graph)
    row = known.get(name.encode())
    addr = None if row is None else symbol_addr(result.graph, row)
    if addr is None:
        words = [word.decode("utf-8", "replace") for word in known]
        raise EntryMissingError(name, difflib.get_close_matches(name, words, 3))
    return addr


def run(request: Request, result: Result, host: Host) -> int:
    """Call the entry and return the host's exit status as a shell has it."""
    graph = result.graph
    entry = entry_of(result, request.entry)
    init = [*arrays(graph, b".preinit_array"), *arrays(graph, b".init_array")]
    with minded(host.pid):
        begin(host.process, entry, init, arrays(graph, b".fini_array"))
        host.adopted.release()
        with result.times.step("run"):
            _, status = os.waitpid(host.pid, 0)
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code


@contextmanager
def minded(pid: int) -> Generator[None]:
    """Pass signals that are meant for the host on to it; Ctrl-C reaches it by itself."""

    def forward(number: int, _frame: FrameType | None) -> None:
        with suppress(ProcessLookupError):
            os.kill(pid, number)

    def nothing(_number: int, _frame: FrameType | None) -> None:
        """Live until the host has ended."""

    old = {number: signal.signal(number, forward) for number in _PASSED_ON}
    old |= {number: signal.signal(number, nothing) for number in _LEFT_TO_HOST}
    try:
        yield
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
