"""Getting the agent into a process: preloaded at its start, or brought into one that already runs.

Preloaded (`prepare_spawn`, `adopt`): the client starts the program with our library and one end of a socket pair; the agent
reports on it, and main() waits until `release`. Injected (`attach`): one thread is borrowed for some milliseconds; a memory
file inside the process gets the agent's bytes and is opened by the program's own dlopen.
"""

import contextlib
import os
import socket
import struct
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from reloader.errors.live import (
    AgentStartError,
    AttachError,
    HelloError,
    InjectionError,
    NoSafeThreadError,
    TargetGoneError,
)
from reloader.ids import U8, U64
from reloader.live import ptrace, sigframes, threads
from reloader.live.borrow import BorrowedThread, find_syscall
from reloader.live.maps import arena_control, read_maps
from reloader.live.modules import (
    Module,
    find_libc,
    in_ranges,
    loader_base,
    read_module,
    read_modules,
    unsafe_ranges,
)
from reloader.live.process import Process, reattach
from reloader.live.target import Mapping as MapRow
from stubs import layout

HELLO_SECONDS: Final = 30.0
TRIES: Final = 300
RTLD_NOW: Final = 2
SYS_MEMFD_CREATE, SYS_CLOSE = 319, 3
MFD_CLOEXEC: Final = 1
SO_PASSCRED, SCM_CREDENTIALS = 16, 2


def prepare_spawn(
    argv: Sequence[str], env: Mapping[str, str], program: str = ""
) -> tuple[list[str], dict[str, str], int, int]:
    """Return argv, environment, the program's descriptor (to be inherited) and the daemon's.

    The user's own LD_PRELOAD stays behind ours; the agent restores it exactly for the program's children.
    """
    child, daemon = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    child.set_inheritable(True)
    added = {"RELOADER_FD": str(child.fileno()), "RELOADER_DAEMON_PID": str(os.getpid())}
    if program:
        added["RELOADER_PROGRAM"] = program
    preload = str(layout.agent_path())
    if "LD_PRELOAD" in env:
        preload += ":" + env["LD_PRELOAD"]
    full = {**env, **added, "LD_PRELOAD": preload}
    return list(argv), full, child.detach(), daemon.detach()


@dataclass(frozen=True, slots=True)
class Adopted:
    """A program that waits before main(), with the agent in it."""

    process: Process
    sock: socket.socket

    def release(self) -> None:
        """Let the program run its main()."""
        with contextlib.suppress(OSError):  # it may have ended, or gone on without us
            self.sock.send(b"g")
        self.sock.close()


def _receive_hello(pid: int, sock: socket.socket) -> tuple[np.void, int, int]:
    """Return the agent's hello, the memfd (or -1) and the sender's pid as we see it."""
    sock.settimeout(HELLO_SECONDS)
    sock.setsockopt(socket.SOL_SOCKET, SO_PASSCRED, 1)
    space = socket.CMSG_SPACE(4) + socket.CMSG_SPACE(12)
    try:
        data, parts, _, _ = sock.recvmsg(layout.HELLO.itemsize, space)
    except TimeoutError as error:
        raise HelloError(pid, f"nothing was heard within {HELLO_SECONDS:g} s") from error
    except OSError as error:
        raise HelloError(pid, str(error)) from error
    memfd, sender = -1, pid
    for level, kind, payload in parts:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            memfd = struct.unpack("i", payload[:4])[0]
        elif level == socket.SOL_SOCKET and kind == SCM_CREDENTIALS:
            sender = struct.unpack("i", payload[:4])[0]
    if len(data) != layout.HELLO.itemsize:
        raise HelloError(pid, "it ended, or ran on without the agent")
    return np.frombuffer(data, layout.HELLO)[0], memfd, sender


def adopt(pid: int, sock: socket.socket) -> Adopted:
    """Take over a program that was started with `prepare_spawn`; the daemon's side.

    Args:
        pid: What the client started; under a wrapper the target is another process.
        sock: The daemon's end. Until `release` the program waits (at most 10 s).

    Raises:
        HelloError: It never reported.
        AgentStartError: The agent could not set itself up; the program runs on without it.
    """
    hello, memfd, sender = _receive_hello(pid, sock)
    if int(hello["status"]) or memfd < 0:
        sock.close()
        raise AgentStartError(sender, int(hello["status"]), int(hello["error"]))
    process = Process(sender or pid, memfd, int(hello["file_size"]))
    process.claim()
    return Adopted(process, sock)


@dataclass(frozen=True, slots=True)
class Entrance:
    """What is known of a process before a thread of it is stopped."""

    pid: int
    maps: list[MapRow]
    dlopen: int
    dlerror: int
    syscall: int  # address of a `syscall` instruction
    unsafe: U64  # (r, 2) code in which locks are held
    restorers: U64
    start_offset: int  # of reloader_start in the agent


def _reader(pid: int) -> "sigframes.Read":
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
    module = read_module(lambda addr, size: content[addr : addr + size], "agent", 0, len(agent))
    return module.address(b"reloader_start")


def survey(pid: int, agent: bytes) -> Entrance:
    """Find out everything that can be known while the process runs."""
    maps, read = read_maps(pid), _reader(pid)
    modules = read_modules(maps, read)
    libc = find_libc(modules)
    if libc is None:
        raise AttachError(pid, ["it has no GNU C library: static and musl programs cannot be entered"])
    dlopen, dlerror = libc.address(b"dlopen"), libc.address(b"dlerror")
    code = next(m for m in maps if libc.start <= m.start < libc.end and "x" in m.protection)
    return Entrance(
        pid,
        maps,
        dlopen or _elsewhere(modules, b"dlopen"),
        dlerror or _elsewhere(modules, b"dlerror"),
        find_syscall(read, code.start, code.end),
        unsafe_ranges(modules, loader_base(pid)),
        sigframes.find_restorers(maps, read),
        _agent_start_offset(agent),
    )


def _elsewhere(modules: Sequence[Module], name: bytes) -> int:
    """Return a symbol of any other module: before glibc 2.34 dlopen lived in libdl."""
    return next((m.address(name) for m in modules if m.address(name)), 0)
