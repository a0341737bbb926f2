"""Stops every thread of a process, and lets all go on as if nothing had happened.

The facts of the matter. Resuming busy threads one by one costs most, because each resumed
thread takes our processor: under SCHED_FIFO it does not. Threads are seized before the measured
window and detached after it, so that a killed daemon leaves nothing behind (the kernel detaches
and resumes). A stop makes some system calls return EINTR although no signal came (`epoll_wait`,
`semop`, `accept` with a timeout...): those are issued again. Signals that arrive meanwhile are
delivered on leaving, and a process that was stopped by job control stays stopped.

A thread in vfork cannot stop before its child has called exec; that is waited for, up to a
limit.
"""

import contextlib
import itertools
import os
import time
from collections.abc import Generator, Iterable
from pathlib import Path
from typing import Final, TypeVar

import numpy as np

from reloader.errors.live import StopTimeoutError, TargetGoneError, TargetMemoryError
from reloader.ids import U64
from reloader.live import ptrace
from reloader.live.ptrace import R_ORIG_RAX, R_RAX, R_RIP
from reloader.live.tracing import untraceable

ENDED: Final = frozenset(("Z", "X", ""))  # states of a thread
EINTR_RESULT: Final = (1 << 64) - 4
SYS_CLOSE: Final = 3  # its descriptor is gone even when it says EINTR
SYSCALL: Final = b"\x0f\x05"
PRIORITY: Final = 50
STOP_SECONDS: Final = 2.0
FAST_LOOKS: Final = 20  # looks without asking why a thread does not stop


def list_threads(pid: int) -> list[int]:
    """Return the thread ids of a process; empty once it has ended."""
    try:
        return [int(name) for name in os.listdir(f"/proc/{pid}/task")]  # noqa: PTH208 - thrice as fast
    except (FileNotFoundError, ProcessLookupError):
        return []


def thread_state(pid: int, tid: int) -> str:
    """Return the state letter of a thread (R, S, D, T, t, Z), or "" if it is gone."""
    try:
        text = Path(f"/proc/{pid}/task/{tid}/stat").read_text("utf-8", "replace")
    except (FileNotFoundError, ProcessLookupError):
        return ""
    return text[text.rindex(")") + 2]


def status_fields(pid: int, tid: int) -> dict[str, str]:
    """Return the `Name: value` lines of a thread's status file."""
    text = Path(f"/proc/{pid}/task/{tid}/status").read_text("utf-8", "replace")
    return {k: v.strip() for k, _, v in (line.partition(":") for line in text.splitlines())}


@contextlib.contextmanager
def first_in_line() -> Generator[bool]:
    """Run this thread under SCHED_FIFO where allowed; yields whether it is."""
    policy, parameters = os.sched_getscheduler(0), os.sched_getparam(0)
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(PRIORITY))
    except PermissionError:
        yield False
        return
    try:
        yield True
    finally:
        os.sched_setscheduler(0, policy, parameters)


class Tracee:
    """One seized thread."""

    __slots__ = ("_place", "pid", "registers", "signal", "stopped", "tid")

    def __init__(self, pid: int, tid: int) -> None:
        """Seize a thread; it goes on running.

        Raises:
            OSError: It is gone (ESRCH), or may not be traced (EPERM).
        """
        ptrace.ptrace(ptrace.PTRACE_SEIZE, tid, 0, ptrace.PTRACE_O_TRACESYSGOOD)
        self.pid, self.tid, self.signal, self.stopped = pid, tid, 0, False
        self.registers = ptrace.empty_registers(1)[0]  # as they were when it stopped
        self._place = self.registers.ctypes.data

    def interrupt(self) -> None:
        """Ask the thread to stop."""
        ptrace.stop_soon(self.tid)

    def poll(self) -> int | None:
        """Return the thread's new wait status: None while it runs, 0 if it is gone.

        Only stops are consumed of the first thread: its end is the process's, and belongs to
        the parent, which may be us.
        """
        try:
            if self.tid != self.pid:
                tid, status = os.waitpid(self.tid, os.WNOHANG | ptrace.WALL)
                if not tid:
                    return None
                return status if os.WIFSTOPPED(status) else 0
            options = os.WSTOPPED | ptrace.WALL
            ended = os.WEXITED | os.WNOWAIT
            seen = os.waitid(os.P_PID, self.tid, options | ended | os.WNOHANG)
            if seen is None or seen.si_pid == 0:
                return None
            if seen.si_code in {os.CLD_EXITED, os.CLD_KILLED, os.CLD_DUMPED}:
                return 0
            seen = os.waitid(os.P_PID, self.tid, options | os.WNOHANG)
        except ChildProcessError:
            return 0
        # si_status is the wait status without its 0x7f byte
        return None if seen is None else seen.si_status << 8 | 0x7F

    def settle(self, status: int) -> bool:
        """Note a wait status; return False if the thread is gone.

        Any ptrace-stop will do for a stop: a signal that was about to be delivered is kept for
        later. Its registers are read now, since the other processors still stop others.
        """
        if not status:
            return False
        ptrace.take_registers(self.tid, self._place)
        event, number = status >> 16, status >> 8 & 0xFF
        self.signal = 0 if event or number == 0x80 | 5 else number
        self.stopped = True
        return True

    def wait(self, deadline: float) -> bool:
        """Wait for the stop; return False if the thread ended instead.

        Never by a blocking call: a first thread that ends before the others is reported to
        nobody.
        """
        for look in itertools.count():
            status = self.poll()
            if status is not None:
                return self.settle(status)
            if look:
                time.sleep(20e-6)  # a FIFO thread that spins would keep the other from stopping
            if look % FAST_LOOKS != FAST_LOOKS - 1:
                continue
            state = thread_state(self.pid, self.tid)
            if state in ENDED:
                return False
            if time.monotonic() > deadline:
                raise StopTimeoutError(self.pid, self.tid, STOP_SECONDS, state)
        return False

    def detach(self) -> None:
        """Let the thread go, with the signal that it was about to get."""
        if not self.stopped:  # only a stopped thread can be detached
            self.interrupt()
            try:
                if not self.wait(time.monotonic() + STOP_SECONDS):
                    return
            except StopTimeoutError:
                return
        if ptrace.detach(self.tid, self.signal):
            self.stopped = False

    def reap(self, deadline: float) -> None:
        """Ask for the end of a thread that was killed while we had it.

        Until its tracer has asked, the kernel keeps it, and does not tell the program's parent.
        The status of a child of our own stays for whoever started it.
        """
        if self.tid == self.pid and parent_of(self.pid) == os.getpid():
            return
        with contextlib.suppress(ChildProcessError):
            while not os.waitpid(self.tid, os.WNOHANG | ptrace.WALL)[0]:
                if time.monotonic() > deadline:
                    return
                time.sleep(200e-6)


def parent_of(pid: int) -> int:
    """Return a process's parent, 0 if it is gone."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text("utf-8", "replace")
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return int(text[text.rindex(")") + 2 :].split()[1])


def let_go(tracees: Iterable[Tracee]) -> None:
    """Detach from threads; ask for those that were killed meanwhile, the first one last."""
    held = list(tracees)
    for tracee in held:
        tracee.detach()
    killed = [tracee for tracee in held if tracee.stopped]
    for tracee in sorted(killed, key=lambda tracee: tracee.tid == tracee.pid):
        tracee.reap(time.monotonic() + STOP_SECONDS)


def seize(pid: int, tid: int) -> Tracee | None:
    """Seize one thread; None if it has ended, the first one included.

    Raises:
        UntraceableError: It may not be traced; who is in the way is named.
    """
    try:
        return Tracee(pid, tid)
    except ProcessLookupError:
        return None
    except PermissionError as error:
        if thread_state(pid, tid) in ENDED:
            return None
        raise untraceable(pid, tid) from error


def seize_all(pid: int, have: dict[int, Tracee]) -> list[Tracee]:
    """Seize the threads that are not yet; return them. Ended ones are skipped.

    Raises:
        UntraceableError: One may not be traced; those that were seized here are let go.
    """
    fresh: list[Tracee] = []
    for tid in list_threads(pid):
        if tid in have:
            continue
        try:
            tracee = seize(pid, tid)
        except BaseException:
            for other in fresh:
                other.detach()
                del have[other.tid]
            raise
        if tracee is None:
            continue
        have[tid] = tracee
        fresh.append(tracee)
    return fresh


def signal_is_due(pid: int, tracee: Tracee) -> bool:
    """Return whether a handler of the program will run in a stopped thread once it goes on.

    Then an EINTR is the program's own. A signal that is ignored never interrupts an untraced
    thread.
    """
    fields = status_fields(pid, tracee.tid)
    caught, blocked = int(fields["SigCgt"], 16), int(fields["SigBlk"], 16)
    waiting = (int(fields["SigPnd"], 16) | int(fields["ShdPnd"], 16)) & ~blocked
    if tracee.signal:
        waiting |= 1 << (tracee.signal - 1)
    return bool(waiting & caught)


def reissue(pid: int, tracee: Tracee, registers: U64) -> bool:
    """Have a thread repeat the system call that our stop made return EINTR; return whether.

    The kernel restarts most calls itself (they show -ERESTART* here); what shows -EINTR would
    be seen by the program.
    """
    number = int(registers[R_ORIG_RAX])
    if int(registers[R_RAX]) != EINTR_RESULT or number >> 63 or number == SYS_CLOSE:
        return False
    at = int(registers[R_RIP]) - len(SYSCALL)
    before = np.zeros(len(SYSCALL), np.uint8)
    if ptrace.read_memory(pid, at, before) != len(SYSCALL) or before.tobytes() != SYSCALL:
        return False
    if signal_is_due(pid, tracee):
        return False
    registers[R_RAX], registers[R_RIP] = number, at
    ptrace.set_registers(tracee.tid, registers)
    return True


class StoppedThreads:
    """All threads of one process, standing still; implements `live.target.Stopped`."""

    def __init__(self, pid: int, tracees: list[Tracee]) -> None:
        """Gather the registers of stopped threads."""
        self.pid = pid
        self.tracees = tracees
        self.tids = [tracee.tid for tracee in tracees]
        self.registers = np.array([tracee.registers for tracee in tracees])
        self._memory = os.open(f"/proc/{pid}/mem", os.O_RDWR | os.O_CLOEXEC)

    def write(self, addr: int, data: bytes) -> None:
        """Write private memory whatever its protection; the page becomes the target's own.

        Raises:
            TargetGoneError: The process was killed: it has no memory any more, which the kernel
                tells by writing nothing (fs/proc/base.c: mem_rw), before its threads can be
                waited for.
            TargetMemoryError: It is not mapped.
        """
        try:
            done = os.pwrite(self._memory, data, addr)
        except OSError as error:
            raise TargetMemoryError(self.pid, addr, len(data), verb="write") from error
        if not done:
            raise TargetGoneError(self.pid)
        if done != len(data):
            raise TargetMemoryError(self.pid, addr, len(data), done=done, verb="write")

    @property
    def parts(self) -> "list[StoppedThreads]":
        """Itself: there is one process."""
        return [self]

    def read(self, addr: int, size: int) -> bytes:
        """Return memory, less than `size` bytes where there is no more."""
        try:
            return os.pread(self._memory, size, addr)
        except OSError:
            return b""

    def program_counters(self) -> U64:
        """Return (t,) every rip; the process adds those of signal frames."""
        return self.registers[:, R_RIP].copy()

    def release(self) -> None:
        """Let every thread go on."""
        os.close(self._memory)
        interrupted = (self.registers[:, R_RAX] == np.uint64(EINTR_RESULT)).tolist()
        for row, tracee in enumerate(self.tracees):
            if interrupted[row]:
                with contextlib.suppress(ProcessLookupError, FileNotFoundError):
                    reissue(self.pid, tracee, self.registers[row].copy())
            tracee.detach()
        let_go(tracee for tracee in self.tracees if tracee.stopped)


S = TypeVar("S", bound=StoppedThreads)


class StopClock:
    """How long the last stop took, and whether we ran under SCHED_FIFO."""

    def __init__(self) -> None:
        """Start with no stop."""
        self.last_us = 0.0
        self.realtime = False
        self.count = 0


def _halt(pid: int, seized: dict[int, Tracee], fresh: list[Tracee]) -> None:
    """Interrupt and await threads, and those they created meanwhile, until none is new."""
    deadline = time.monotonic() + STOP_SECONDS
    ended: list[Tracee] = []
    while fresh:
        for tracee in fresh:
            tracee.interrupt()
        for tracee in fresh:
            if not tracee.wait(deadline):
                del seized[tracee.tid]
                ended.append(tracee)
        fresh = seize_all(pid, seized)
    if not seized:  # the process has ended: its parent may be told
        for tracee in sorted(ended, key=lambda tracee: tracee.tid == pid):
            tracee.reap(deadline)


@contextlib.contextmanager
def stopped(pid: int, clock: StopClock, kind: type[S]) -> Generator[S]:
    """Stop every thread of a process for the body of the `with`.

    Raises:
        TargetGoneError: The process has ended.
        StopTimeoutError: A thread cannot stop now.
        UntraceableError: A thread may not be traced.
    """
    seized: dict[int, Tracee] = {}
    seize_all(pid, seized)
    try:
        with first_in_line() as clock.realtime:
            started = time.perf_counter_ns()
            try:
                _halt(pid, seized, list(seized.values()))
                if not seized:
                    raise TargetGoneError(pid, "stopping its threads")
                threads = kind(pid, list(seized.values()))
                try:
                    yield threads
                finally:
                    seized.clear()
                    threads.release()
            finally:
                let_go(seized.values())
                seized.clear()
                clock.last_us = (time.perf_counter_ns() - started) / 1e3
                clock.count += 1
    finally:
        let_go(seized.values())
