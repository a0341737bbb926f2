"""Getting the agent into a process: preloaded at its start, or brought in while it runs.

Preloaded (`wire/spawn.py`, `adopt`): the client starts the program with our library and one end
of a socket pair; the agent reports on it, and main() waits until `release`. Injected
(`attach`): one thread is borrowed for some milliseconds; a memory file inside the process gets
the agent's bytes and is opened by the program's own dlopen.
"""

import contextlib
import os
import socket
import struct
import time
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from reloader.errors.live import AgentStartError, HelloError, InjectionError
from reloader.live.borrow import BorrowedThread
from reloader.live.choose import Entrance, borrow_thread, survey
from reloader.live.claim import alone_with
from reloader.live.doctor import raise_obstacles
from reloader.live.maps import arena_control, read_maps
from reloader.live.process import Process, reattach
from reloader.live.threads import first_in_line
from stubs import layout

HELLO_SECONDS: Final = 30.0
RTLD_NOW: Final = 2
NO_THREAD_ROOM: Final = "static TLS block"  # what dlopen says when its surplus is used up
SYS_MEMFD_CREATE, SYS_CLOSE = 319, 3
MFD_CLOEXEC: Final = 1
AGENT_NAME: Final = b"reloader-agent\0"
SCM_CREDENTIALS: Final = 2


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
    """Take over a program that the client started; the daemon's side.

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


def _load_agent(thread: BorrowedThread, entrance: Entrance, agent: Path) -> tuple[int, int]:
    """Bring the agent's bytes in and open them as a library; return its handle and address."""
    known_as = bytes(agent) + b"\0"
    pid = entrance.pid
    thread.write(thread.scratch, AGENT_NAME)
    fd = thread.syscall(SYS_MEMFD_CREATE, thread.scratch, MFD_CLOEXEC)
    if fd < 0:
        raise InjectionError(pid, "memfd_create", os.strerror(-fd))
    try:
        with open(f"/proc/{pid}/fd/{fd}", "r+b", buffering=0) as file:  # noqa: PTH123 - a descriptor, not a path
            file.write(agent.read_bytes())
        # with room for the other name; any number of slashes is one
        name = f"/proc/self/fd/{fd}".encode().rjust(len(known_as), b"/")
        thread.write(thread.scratch, name + b"\0")
        handle = thread.call(entrance.dlopen, thread.scratch, RTLD_NOW)
        if not handle:
            raise InjectionError(pid, "dlopen", _last_dl_error(thread, entrance))
        # A debugger would open the name in its own /proc/self/fd, a pipe perhaps, and hang.
        # In the agent's file it finds where code is announced (agent/jit.c).
        thread.write(int.from_bytes(thread.read(handle + 8, 8), "little"), known_as)  # l_name
        return handle, int.from_bytes(thread.read(handle, 8), "little")  # link_map.l_addr
    finally:
        thread.syscall(SYS_CLOSE, fd)


def _last_dl_error(thread: BorrowedThread, entrance: Entrance) -> str:
    text = thread.call(entrance.dlerror) if entrance.dlerror else 0
    return (
        thread.read(text, 300).split(b"\0")[0].decode("utf-8", "replace")
        if text
        else "no reason"
    )


def _start_agent(thread: BorrowedThread, entrance: Entrance, base: int) -> tuple[int, int]:
    """Run reloader_start inside; return our own descriptor of the memfd, and its size."""
    params = np.zeros(1, layout.PARAMS)
    params["injected"] = 1
    thread.write(thread.scratch, params.tobytes())
    thread.call(base + entrance.start_offset, thread.scratch)
    raw = thread.read(thread.scratch, layout.PARAMS.itemsize)
    result = np.frombuffer(raw, layout.PARAMS)[0]
    fd = int(result["memfd"])
    if int(result["status"]) or fd < 0:
        raise AgentStartError(entrance.pid, int(result["status"]), int(result["error"]))
    try:
        ours = os.open(f"/proc/{entrance.pid}/fd/{fd}", os.O_RDWR | os.O_CLOEXEC)
    finally:
        thread.syscall(SYS_CLOSE, fd)
    return ours, int(result["file_size"])


@contextlib.contextmanager
def _borrowed(entrance: Entrance) -> Generator[BorrowedThread]:
    thread = borrow_thread(entrance)
    try:
        thread.prepare()
        yield thread
    finally:
        thread.give_back()


def attach(pid: int) -> Process:
    """Enter a process that knows nothing of us, or take it over from a daemon that has ended.

    Raises:
        AttachError: Something stands in the way; it carries every reason and remedy.
        NoSafeThreadError: Every thread was inside the allocator or the loader, each time.
        InjectionError: A step inside the process failed; it goes on as before.
        AgentStartError: The agent could not set itself up.
        AlreadyAttachedError: Another daemon works on it.
    """
    with alone_with(pid):
        if _has_arena(pid):
            return reattach(pid)
        raise_obstacles(pid)
        late, bare = layout.late_agent_paths()
        try:
            return _enter(pid, late)
        except InjectionError as error:
            if NO_THREAD_ROOM not in error.why:
                raise
            return _enter(pid, bare)


def _has_arena(pid: int) -> bool:
    try:
        return arena_control(read_maps(pid)) is not None
    except PermissionError:  # why not is among the obstacles
        return False


def _enter(pid: int, agent: Path) -> Process:
    """Bring an agent in and start it."""
    entrance = survey(pid, agent.read_bytes())
    with first_in_line():
        started = time.perf_counter_ns()
        with _borrowed(entrance) as thread:
            handle, base = _load_agent(thread, entrance, agent)
            try:
                memfd, size = _start_agent(thread, entrance, base)
            except AgentStartError:
                thread.call(entrance.dlclose, handle)
                raise
        pause_us = (time.perf_counter_ns() - started) / 1e3
    process = Process(pid, memfd, size)
    process.clock.last_us = pause_us
    process.claim()
    return process
