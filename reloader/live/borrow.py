"""Borrows one thread of a running process to call functions in it, and gives it back unchanged.

The thread is stopped wherever it is, in user code or blocked in the kernel. Its registers,
vector state and signal mask are saved; it then runs on a stack of our own (a fiber's or an
alternate stack may be small) with every signal blocked. Control comes back at a marker system
call, seen with PTRACE_SYSCALL: a breakpoint would be a SIGTRAP, which the kernel turns to its
default action where the program ignores it. At the end the thread is brought into a plain
ptrace-stop again before its registers are restored, because only from there the kernel restarts
the system call that was interrupted.
"""

import contextlib
import os
import signal
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Final

from reloader.errors.live import InjectionError, TargetGoneError
from reloader.ids import U8, U64
from reloader.live import ptrace
from reloader.live.guard import build_guard, frame_size
from reloader.live.ptrace import (
    R_ORIG_RAX,
    R_R8,
    R_R9,
    R_R10,
    R_RAX,
    R_RCX,
    R_RDI,
    R_RDX,
    R_RIP,
    R_RSI,
    R_RSP,
)
from reloader.live.threads import PRIORITY, STOP_SECONDS, Tracee, reissue, thread_state

SYS_MMAP, SYS_MUNMAP, SYS_CLOSE, SYS_GETPID = 9, 11, 3, 39
PROT_RX, PROT_RW = 5, 3
MAP_PRIVATE_ANONYMOUS: Final = 0x22
AREA_SIZE: Final = 512 << 10  # a page of code, then the stack
# mov %rax,%rbx; mov $SYS_getpid,%eax; syscall
MARKER: Final = bytes.fromhex("4889c3b8270000000f05")
RED_ZONE: Final = 128  # bytes below rsp that a function may use
NO_CALL: Final = (1 << 64) - 1
ALL_SIGNALS: Final = (1 << 64) - 1
SYSCALL_STOP: Final = 0x80 | 5
FATAL: Final = frozenset(
    (signal.SIGSEGV, signal.SIGBUS, signal.SIGILL, signal.SIGFPE, signal.SIGTRAP)
)
CALL_FLAGS: Final = 0x202  # interrupts on; direction clear, as the ABI wants it at a call
CALL_SECONDS: Final = 20.0
FUNCTION_REGISTERS: Final = (R_RDI, R_RSI, R_RDX, R_RCX, R_R8, R_R9)
SYSCALL_REGISTERS: Final = (R_RDI, R_RSI, R_RDX, R_R10, R_R8, R_R9)


@dataclass(frozen=True, slots=True)
class Gadgets:
    """Code of the C library that a borrowed thread uses."""

    syscall: int  # address of `syscall; ret`
    restorer: int  # address of `mov $SYS_rt_sigreturn,%rax; syscall`


class BorrowedThread:
    """A seized and stopped thread that calls what we say."""

    def __init__(self, tracee: Tracee, gadgets: Gadgets) -> None:
        """Save the state of a stopped thread."""
        self.tracee, self.pid, self.tid = tracee, tracee.pid, tracee.tid
        self._gadgets = gadgets
        self._saved = ptrace.empty_registers(1)[0]
        ptrace.get_registers(self.tid, self._saved)
        self._vectors = ptrace.get_vector_state(self.tid)
        self._mask = ptrace.get_signal_mask(self.tid)
        self._memory = os.open(f"/proc/{self.pid}/mem", os.O_RDWR | os.O_CLOEXEC)
        self.area = self._code = self._guard = 0
        self._was_told_to_stop = False
        self._result: U64 = ptrace.empty_registers(1)[0]
        self._scheduling: tuple[int, os.sched_param] | None = None

    @property
    def scratch(self) -> int:
        """The first byte that may be used for arguments: the low end of our stack."""
        return self.area + 4096

    def prepare(self) -> None:
        """Map our area inside: a page of code that ends every call, and a stack."""
        self._hurry()
        ptrace.set_signal_mask(self.tid, ALL_SIGNALS)
        with self._guard_on_its_stack():
            self.area = self._map(AREA_SIZE, PROT_RW)
            self._code = self._map(4096, PROT_RX)
            guard = self._put_guard(self.area + AREA_SIZE)
            # after the marker: mov $guard+8,%rsp; mov $15,%eax; syscall (rt_sigreturn)
            back = b"\x48\xbc" + (guard + 8).to_bytes(8, "little") + b"\xb8\x0f\0\0\0\x0f\x05"
            self.write(self._code, MARKER + back)
        self._guard = guard

    def write(self, addr: int, data: bytes) -> None:
        """Write target memory, whatever its protection."""
        os.pwrite(self._memory, data, addr)

    def read(self, addr: int, size: int) -> bytes:
        """Read target memory."""
        return os.pread(self._memory, size, addr)

    def syscall(self, number: int, *arguments: int) -> int:
        """Make one system call inside; the result is negative for an error."""
        registers = self._saved.copy()
        for column, value in zip(SYSCALL_REGISTERS, arguments, strict=False):
            registers[column] = value & NO_CALL
        self._go(registers, number)
        end = self._gadgets.syscall + 2
        self._run_until(lambda now: int(now[R_RIP]) == end and int(now[R_ORIG_RAX]) == number)
        self._run_until(lambda now: int(now[R_RIP]) == end)
        result = int(self._result[R_RAX])
        return result - (1 << 64) if result >> 63 else result

    def call(self, function: int, *arguments: int) -> int:
        """Call a function on our stack and return its result, unsigned."""
        registers = self._saved.copy()
        for column, value in zip(FUNCTION_REGISTERS, arguments, strict=False):
            registers[column] = value & NO_CALL
        top = (self._guard - 64) & ~63
        self.write(top - 8, self._code.to_bytes(8, "little"))
        registers[R_RSP], registers[R_RIP] = top - 8, function
        registers[R_RAX], registers[R_ORIG_RAX] = 0, NO_CALL
        registers[ptrace.R_EFLAGS] = CALL_FLAGS
        ptrace.set_registers(self.tid, registers)
        marker = self._code + len(MARKER)
        self._run_until(
            lambda now: int(now[R_RIP]) == marker and int(now[R_ORIG_RAX]) == SYS_GETPID
        )
        return int(self._result[ptrace.R_RBX])

    def give_back(self) -> None:
        """Take away our area, restore everything, and let the thread go on where it was."""
        with contextlib.suppress(ProcessLookupError, TargetGoneError):
            with self._guard_on_its_stack():
                for addr, size in ((self.area, AREA_SIZE), (self._code, 4096)):
                    if addr:
                        self.syscall(SYS_MUNMAP, addr, size)
                self._plain_stop()
            ptrace.set_vector_state(self.tid, self._vectors)
            ptrace.set_signal_mask(self.tid, self._mask)
            ptrace.set_registers(self.tid, self._saved)
            reissue(self.pid, self.tracee, self._saved.copy())
        self._calm_down()
        os.close(self._memory)
        self.tracee.detach()
        if self._was_told_to_stop:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGSTOP)

    @contextlib.contextmanager
    def _guard_on_its_stack(self) -> Generator[None]:
        """Keep the way back below the red zone of the thread's stack, for want of a place."""
        end = int(self._saved[R_RSP]) - RED_ZONE
        start = end - frame_size(self._vectors)
        kept = self.read(start, end - start)
        self._guard = self._put_guard(end)
        try:
            yield
        finally:
            self.write(start, kept)

    def _put_guard(self, end: int) -> int:
        """Write a guard that ends below an address; return where its first word is."""
        addr, content = build_guard(
            end, self._gadgets.restorer, self._saved, self._vectors, self._mask
        )
        self.write(addr, content)
        return addr

    def _hurry(self) -> None:
        """Run the thread before the program's other threads: we wait for it alone."""
        with contextlib.suppress(OSError):
            before = (os.sched_getscheduler(self.tid), os.sched_getparam(self.tid))
            # the agent's thread, created by it, must not inherit this
            policy = os.SCHED_FIFO | os.SCHED_RESET_ON_FORK
            os.sched_setscheduler(self.tid, policy, os.sched_param(PRIORITY))
            self._scheduling = before

    def _calm_down(self) -> None:
        if self._scheduling:
            with contextlib.suppress(OSError):
                os.sched_setscheduler(self.tid, *self._scheduling)

    def _go(self, registers: U64, number: int) -> None:
        """Set the thread before a `syscall; ret` that returns into the guard."""
        registers[R_RAX], registers[R_ORIG_RAX] = number, NO_CALL
        registers[R_RIP], registers[R_RSP] = self._gadgets.syscall, self._guard
        ptrace.set_registers(self.tid, registers)

    def _map(self, size: int, protection: int) -> int:
        at = self.syscall(SYS_MMAP, 0, size, protection, MAP_PRIVATE_ANONYMOUS, -1, 0)
        if at < 0:
            raise InjectionError(self.pid, "mmap", os.strerror(-at))
        return at

    def _plain_stop(self) -> None:
        """Leave the system-call-stop: restarting is decided where signals are."""
        # should it run on before the stop, it makes a harmless call
        self._go(self._saved.copy(), SYS_GETPID)
        self.tracee.interrupt()
        ptrace.ptrace(ptrace.PTRACE_CONT, self.tid)
        self._await_stop()

    def _run_until(self, reached: Callable[[U64], bool]) -> None:
        """Go from one system-call-stop to the next until one matches."""
        end = time.monotonic() + CALL_SECONDS
        while True:
            ptrace.ptrace(ptrace.PTRACE_SYSCALL, self.tid)
            status = self._await_stop(end)
            if status >> 8 in FATAL:
                ptrace.get_registers(self.tid, self._result)
                at = int(self._result[R_RIP])
                why = f"{signal.Signals(status >> 8).name} at {at:#x}"
                raise InjectionError(self.pid, "a call", why)
            if status >> 8 & 0xFF != SYSCALL_STOP:
                # SIGSTOP cannot be blocked: it is held back until the thread is given back
                self._was_told_to_stop |= status >> 8 == signal.SIGSTOP
                continue
            ptrace.get_registers(self.tid, self._result)
            if reached(self._result):
                return

    def _await_stop(self, end: float = 0.0) -> int:
        end = end or time.monotonic() + STOP_SECONDS
        looks = 0
        while True:
            status = self.tracee.poll()
            if status is not None:
                if not status:
                    raise TargetGoneError(self.pid, "entering it")
                return status
            looks += 1
            if looks > 50:
                time.sleep(20e-6)
            if looks % 5000 == 0 and time.monotonic() > end:
                state = thread_state(self.pid, self.tid)
                why = f"it did not come back within {CALL_SECONDS:g} s (state {state})"
                raise InjectionError(self.pid, "a call", why)


def find_gadget(read: Callable[[int, int], U8], start: int, end: int) -> int:
    """Return the address of a `syscall; ret` in a code range, or 0; getpid has one."""
    at = read(start, end - start).tobytes().find(b"\x0f\x05\xc3")
    return start + at if at >= 0 else 0
