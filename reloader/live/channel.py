"""The command ring in the control region: what an agent is asked, and its answers.

One daemon writes; the agent thread of the process that is addressed reads, those of others in
its family sleep on. All sleep on futexes in the shared file, so no descriptor and no signal is
needed. A daemon that was killed may leave commands behind; the agent answers them, and the next
daemon waits for that first. What a process was asked that has ended nobody answers: it counts
as answered.
"""

import os
import select
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, TypeVar

import numpy as np

from reloader.errors.live import AgentBusyError, AgentCommandError, TargetGoneError
from reloader.ids import U8, U64
from reloader.live import ptrace
from stubs import layout

NAMES: Final = (
    "ping", "name look-up", "function call", "discarding of pages", "membarrier", "close",
    "permission for a tracer", "patching of unwind look-ups", "tracking of writes",
    "initial values of thread-locals", "look-up of thread-locals", "count of destructors",
    "function call that may throw", "entering of the OCaml runtime", "OCaml script",
    "retirement of OCaml units", "hold at an OCaml unit", "registration of symbols",
    "list of signal handlers",
)  # fmt: skip
SLICE: Final = 0.05  # seconds between looks whether the process still lives
PATIENCE_S: Final = 10.0  # with an answer that takes no time
FAILED: Final = (1 << 64) - 1
T = TypeVar("T")
NAMES_AT_ONCE: Final = 4096
SIGNALS: Final = 64


class Channel:
    """Commands to the agent of one process."""

    def __init__(
        self, pid: int, control: U8, pidfd: int, lock: threading.Lock, number: int = 0
    ) -> None:
        """Prepare to give commands.

        Args:
            pid: The process.
            control: The control region's bytes.
            pidfd: A descriptor that tells the process's end.
            lock: Of the ring: one for all processes of a family.
            number: By which its agent knows that a command is for it.
        """
        self.pid, self.number, self._pidfd, self._bytes = pid, number, pidfd, control
        self.header = control[: layout.CONTROL.itemsize].view(layout.CONTROL)
        self._lock = lock

    def field(self, name: str) -> int:
        """Return a number of the header."""
        return int(self.header[name][0])

    def set_field(self, name: str, value: int) -> None:
        """Store a number in the header."""
        self.header[name][0] = value

    def alive(self) -> bool:
        """Return whether the process still runs."""
        poll = select.poll()
        poll.register(self._pidfd, select.POLLIN)
        return not poll.poll(0)

    def command(self, op: int, *arguments: int, timeout: float = PATIENCE_S) -> int:
        """Give one command and return its result, an unsigned 64-bit number.

        Raises:
            AgentBusyError: No answer in time; the agent may still be at it.
            TargetGoneError: The process ended.
        """
        with self._lock:
            return self._command(op, arguments, time.monotonic() + timeout, timeout)

    def checked(self, op: int, *arguments: int) -> int:
        """Give a command whose result -1 means failure."""
        result = self.command(op, *arguments)
        if result == FAILED:
            error = int(self.header["ring"][0][self._last()]["error"])
            raise AgentCommandError(self.pid, NAMES[op], error)
        return result

    def resolve(self, names: Sequence[bytes], op: int = layout.OP_RESOLVE) -> U64:
        """Return the address the dynamic linker gives each name, 0 if none.

        With OP_THREAD_OFFSETS: each name's offset from the thread pointer.
        """
        found = np.zeros(len(names), np.uint64)
        done = 0
        while done < len(names):
            with self._lock:
                end = time.monotonic() + PATIENCE_S
                self._await_all(op, end, PATIENCE_S)
                count = self._pack(names, done)
                size = self._packed
                self._command(op, (count, size), end, PATIENCE_S)
                replies = self._bytes[layout.REPLY_OFFSET :][: count * 8].view(np.uint64)
                found[done : done + count] = replies
            done += count
        return found

    def signal_handlers(self) -> U64:
        """Return (64,) the address that the kernel calls at each signal, from 1 on."""
        none = np.empty(0, np.uint64)

        def take(result: int, error: int, reply: U8) -> U64:
            if result:
                raise AgentCommandError(self.pid, NAMES[layout.OP_SIGNAL_HANDLERS], error)
            return reply[: SIGNALS * 8].view(np.uint64).copy()

        return self.exchange(layout.OP_SIGNAL_HANDLERS, (), none, take, PATIENCE_S)

    def track_writes(self) -> tuple[int, int]:
        """Return a userfaultfd's number in the process, and glibc's pointer guard there."""
        with self._lock:
            end = time.monotonic() + PATIENCE_S
            fd = self._command(layout.OP_TRACK_WRITES, (), end, PATIENCE_S)
            if fd == FAILED:
                error = int(self.header["ring"][0][self._last()]["error"])
                raise AgentCommandError(self.pid, NAMES[layout.OP_TRACK_WRITES], error)
            guard = self._bytes[layout.REPLY_OFFSET :][:8].view(np.uint64)
            return fd, int(guard[0])

    def call_catching(self, *arguments: int) -> tuple[int, str | None]:
        """Call a function that may throw; return its result and the exception's type."""
        with self._lock:
            end = time.monotonic() + PATIENCE_S
            result = self._command(layout.OP_CALL_CATCHING, arguments, end, PATIENCE_S)
            reply = self._bytes[layout.REPLY_OFFSET :][:512]
            if not int(reply[:8].view(np.uint64)[0]):
                return result, None
            return result, reply[8:].tobytes().split(b"\0", 1)[0].decode("utf-8", "replace")

    def exchange(
        self,
        op: int,
        arguments: Sequence[int],
        words: U64,
        answer: Callable[[int, int, U8], T],
        timeout: float,
    ) -> T:
        """Give a command with words in the text area; return what `answer` makes of its reply.

        Args:
            op: The command.
            arguments: Its numbers.
            words: What goes into the text area.
            answer: Gets result, errno and the reply area, which belongs to it until it returns.
            timeout: Seconds.
        """
        with self._lock:
            end = time.monotonic() + timeout
            self._await_all(op, end, timeout)
            self._bytes[layout.TEXT_OFFSET :][: words.nbytes].view(np.uint64)[:] = words
            result = self._command(op, arguments, end, timeout)
            error = int(self.header["ring"][0][self._last()]["error"])
            return answer(result, error, self._bytes[layout.REPLY_OFFSET :])

    def write_thread_image(self, offset: int, data: bytes) -> None:
        """Write bytes of the thread-local room as new threads begin with."""
        with self._lock:
            end = time.monotonic() + PATIENCE_S
            self._await_all(layout.OP_THREAD_WRITE, end, PATIENCE_S)
            text = self._bytes[layout.TEXT_OFFSET :][: len(data)]
            text[:] = np.frombuffer(data, np.uint8)
            arguments = (offset, len(data))
            if self._command(layout.OP_THREAD_WRITE, arguments, end, PATIENCE_S) == FAILED:
                error = int(self.header["ring"][0][self._last()]["error"])
                raise AgentCommandError(self.pid, NAMES[layout.OP_THREAD_WRITE], error)

    def discard(self, ranges: Sequence[tuple[int, int]]) -> None:
        """Drop private copies of pages in (address, size) ranges."""
        for first in range(0, len(ranges), NAMES_AT_ONCE):
            part = np.array(ranges[first : first + NAMES_AT_ONCE], np.uint64).reshape(-1)
            self._exchange_checked(layout.OP_DISCARD, len(part) // 2, part)

    def show_symbols(self, files: Sequence[tuple[int, int, bytes]]) -> None:
        """Tell debuggers of code: its address, its size, and the file that describes it."""
        packed, count = bytearray(), 0
        for addr, size, content in files:
            head = np.array([addr, size, len(content)], np.uint64).tobytes()
            row = head + content + bytes(-len(content) % 8)
            if len(packed) + len(row) > layout.TEXT_SIZE:
                self._show_packed(packed, count)
                packed, count = bytearray(), 0
            if len(row) <= layout.TEXT_SIZE:  # with names of hundreds of bytes it may be more
                packed += row
                count += 1
        self._show_packed(packed, count)

    def _show_packed(self, packed: bytearray, count: int) -> None:
        words = np.frombuffer(bytes(packed), np.uint64)
        self._exchange_checked(layout.OP_JIT_REGISTER, count, words)

    def _exchange_checked(self, op: int, count: int, words: U64) -> None:
        """Give a command with words whose result -1 means failure."""

        def answer(result: int, error: int, _: U8) -> None:
            if result == FAILED:
                raise AgentCommandError(self.pid, NAMES[op], error)

        self.exchange(op, (count,), words, answer, PATIENCE_S)

    def _pack(self, names: Sequence[bytes], first: int) -> int:
        """Put as many names as fit into the text area; return how many."""
        packed = bytearray()
        count = 0
        for name in names[first : first + NAMES_AT_ONCE]:
            if len(packed) + len(name) + 1 > layout.TEXT_SIZE:
                break
            packed += name + b"\0"
            count += 1
        self._bytes[layout.TEXT_OFFSET : layout.TEXT_OFFSET + len(packed)] = np.frombuffer(
            bytes(packed), np.uint8
        )
        self._packed = len(packed)
        return count

    def _last(self) -> int:
        return (self.field("ring_head") - 1) % layout.RING_SIZE

    def _command(
        self, op: int, arguments: Sequence[int], deadline: float, timeout: float
    ) -> int:
        head = self._await_all(op, deadline, timeout)
        self.set_field("addressee", self.number)
        slot = self.header["ring"][0][head % layout.RING_SIZE]
        slot["op"] = op
        slot["args"][:] = 0
        for i, argument in enumerate(arguments):
            slot["args"][i] = argument & FAILED
        # x86-64 keeps the order of stores: the command is whole before it counts
        self.set_field("ring_head", head + 1 & 0xFFFF_FFFF)
        self.set_field("doorbell", self.field("doorbell") + 1 & 0xFFFF_FFFF)
        ptrace.futex_wake(self._word("doorbell"))
        wanted = head + 1 & 0xFFFF_FFFF
        try:
            self._await_tail(wanted, op, deadline, timeout)
        except AgentBusyError:
            slot["args"][-1] = 1  # what is not final by now never will be
            self._await_tail(wanted, op, time.monotonic() + SLICE, timeout)
        return int(slot["result"])

    def _await_all(self, op: int, deadline: float, timeout: float) -> int:
        """Wait until no command is left; return the ring's head.

        Before that nothing may be put into the text area: the agent may still read what an
        earlier command has there, one that was given up or whose daemon was killed.
        """
        head = self.field("ring_head")
        if self.field("ring_tail") != head and not self._will_be_answered():
            self.set_field("ring_tail", head)
        self._await_tail(head, op, deadline, timeout)
        return head

    def _will_be_answered(self) -> bool:
        """Return whether the process that has a command lives."""
        other = self.field("addressee") or self.field("first_pid")
        return self.field("addressee") == self.number or Path(f"/proc/{other}").exists()

    def _await_tail(self, wanted: int, op: int, deadline: float, timeout: float) -> None:
        while True:
            bell = self.field("done_bell")
            if self.field("ring_tail") == wanted:
                return
            if not self.alive():
                raise TargetGoneError(self.pid, f"waiting for the agent's {NAMES[op]}")
            left = deadline - time.monotonic()
            if left <= 0:
                raise AgentBusyError(self.pid, NAMES[op], timeout)
            ptrace.futex_wait(self._word("done_bell"), bell, min(left, SLICE))

    def _word(self, name: str) -> int:
        return int(self.header[name].ctypes.data)


def open_pidfd(pid: int) -> int:
    """Return a descriptor that becomes readable when the process ends."""
    try:
        return os.pidfd_open(pid)
    except ProcessLookupError as error:
        raise TargetGoneError(pid) from error
