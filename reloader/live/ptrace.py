"""The kernel calls that Python does not offer: ptrace, futex, process_vm_*, pidfds.

Each function here is one system call with its error turned into OSError; what they are used for
stands in `threads.py`, `inject.py` and `process.py`. ptrace belongs to the calling thread:
whoever seized must also detach.
"""

import ctypes
import os
from typing import Final

import numpy as np

from reloader.ids import U8, U64

PTRACE_CONT: Final = 7
PTRACE_GETREGS: Final = 12
PTRACE_SETREGS: Final = 13
PTRACE_DETACH: Final = 17
PTRACE_SYSCALL: Final = 24
PTRACE_GETREGSET: Final = 0x4204
PTRACE_SETREGSET: Final = 0x4205
PTRACE_SEIZE: Final = 0x4206
PTRACE_INTERRUPT: Final = 0x4207
PTRACE_GETSIGMASK: Final = 0x420A
PTRACE_SETSIGMASK: Final = 0x420B
PTRACE_SECCOMP_GET_FILTER: Final = 0x420C
PTRACE_O_TRACESYSGOOD: Final = 1
NT_X86_XSTATE: Final = 0x202
WALL: Final = 0x40000000  # wait for threads that are not children of ours, too

MOST_RANGES: Final = 1024  # of one process_vm_readv (UIO_MAXIOV)

REGISTER_COUNT: Final = 27
# columns of user_regs_struct (sys/user.h)
R_RBX, R_R11, R_RAX, R_RCX, R_RDX, R_RSI, R_RDI = 5, 6, 10, 11, 12, 13, 14
R_R10, R_R8, R_R9, R_ORIG_RAX, R_RIP, R_EFLAGS, R_RSP = 7, 9, 8, 15, 16, 18, 19

FUTEX_WAIT: Final = 0
FUTEX_WAKE: Final = 1
SYS_FUTEX: Final = 202
SYS_KCMP: Final = 312
KCMP_VM: Final = 1
SYS_PIDFD_GETFD: Final = 438
FALLOC_PUNCH: Final = 3  # FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE

_libc = ctypes.CDLL(None, use_errno=True)
_ptrace = _libc.ptrace
_ptrace.restype = ctypes.c_long
_ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
_syscall = _libc.syscall
_syscall.restype = ctypes.c_long


class IoVec(ctypes.Structure):
    """struct iovec."""

    _fields_ = (("base", ctypes.c_void_p), ("size", ctypes.c_size_t))


class _TimeSpec(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long))


_vm_readv = _libc.process_vm_readv
_vm_writev = _libc.process_vm_writev
for _function in (_vm_readv, _vm_writev):
    _function.restype = ctypes.c_ssize_t
    _function.argtypes = [
        ctypes.c_int,
        ctypes.POINTER(IoVec),
        ctypes.c_ulong,
        ctypes.POINTER(IoVec),
        ctypes.c_ulong,
        ctypes.c_ulong,
    ]
_fallocate = _libc.fallocate
_fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]


def _checked(result: int) -> int:
    if result < 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
    return result


def stop_soon(tid: int) -> bool:
    """Ask a thread to stop; return False if it is gone. 64 of these are part of a pause."""
    return _ptrace(PTRACE_INTERRUPT, tid, 0, 0) == 0


def take_registers(tid: int, place: int) -> None:
    """Store a stopped thread's user_regs_struct at an address of ours, unless it is gone."""
    _ptrace(PTRACE_GETREGS, tid, 0, place)


def detach(tid: int, signal: int) -> bool:
    """Let a stopped thread go with a signal; return False if it is gone."""
    return _ptrace(PTRACE_DETACH, tid, 0, signal) == 0


def ptrace(request: int, tid: int, addr: int = 0, data: int = 0) -> int:
    """Make one ptrace request; raises OSError (ProcessLookupError if the thread is gone)."""
    return _checked(_ptrace(request, tid, addr, data))


def get_registers(tid: int, out: U64) -> None:
    """Fill (27,) user_regs_struct of a stopped thread."""
    ptrace(PTRACE_GETREGS, tid, 0, out.ctypes.data)


def set_registers(tid: int, registers: U64) -> None:
    """Replace the registers of a stopped thread."""
    ptrace(PTRACE_SETREGS, tid, 0, registers.ctypes.data)


def get_seccomp_filter(tid: int, index: int) -> bytes:
    """Return the instructions of a stopped thread's filter; 0 is the newest.

    Raises:
        FileNotFoundError: It has no more.
        PermissionError: We have not CAP_SYS_ADMIN, or are filtered ourselves.
    """
    count = ptrace(PTRACE_SECCOMP_GET_FILTER, tid, index)
    space = ctypes.create_string_buffer(8 * count)
    ptrace(PTRACE_SECCOMP_GET_FILTER, tid, index, ctypes.addressof(space))
    return space.raw


def get_vector_state(tid: int) -> bytes:
    """Return a stopped thread's x87, SSE, AVX and further state in the kernel's layout."""
    space = ctypes.create_string_buffer(16384)
    part = IoVec(ctypes.addressof(space), len(space))
    ptrace(PTRACE_GETREGSET, tid, NT_X86_XSTATE, ctypes.addressof(part))
    return space.raw[: int(part.size)]


def read_vector_state(tid: int, out: U8) -> int:
    """Fill `out` with what `get_vector_state` returns; return how many bytes that is."""
    part = IoVec(out.ctypes.data, out.nbytes)
    ptrace(PTRACE_GETREGSET, tid, NT_X86_XSTATE, ctypes.addressof(part))
    return int(part.size)


def take_descriptor(pidfd: int, fd: int) -> int:
    """Return a duplicate of another process's descriptor."""
    none = ctypes.c_long(0)
    number, ours, theirs = map(ctypes.c_long, (SYS_PIDFD_GETFD, pidfd, fd))
    return _checked(_syscall(number, ours, theirs, none))


def shares_memory(pid: int, other: int) -> bool:
    """Return whether two processes have one memory, as in vfork; False if nobody tells."""
    none = ctypes.c_long(0)
    arguments = map(ctypes.c_long, (SYS_KCMP, pid, other, KCMP_VM))
    return _syscall(*arguments, none, none) == 0


def set_vector_state(tid: int, state: bytes) -> None:
    """Restore what `get_vector_state` returned."""
    space = ctypes.create_string_buffer(state, len(state))
    part = IoVec(ctypes.addressof(space), len(state))
    ptrace(PTRACE_SETREGSET, tid, NT_X86_XSTATE, ctypes.addressof(part))


def get_signal_mask(tid: int) -> int:
    """Return the blocked signals of a stopped thread as a bit set."""
    mask = ctypes.c_uint64()
    ptrace(PTRACE_GETSIGMASK, tid, 8, ctypes.addressof(mask))
    return mask.value


def set_signal_mask(tid: int, mask: int) -> None:
    """Replace the blocked signals of a stopped thread."""
    ptrace(PTRACE_SETSIGMASK, tid, 8, ctypes.addressof(ctypes.c_uint64(mask)))


def read_memory(pid: int, addr: int, out: U8) -> int:
    """Copy target memory into `out`; return how many bytes could be read."""
    local = IoVec(out.ctypes.data, out.nbytes)
    remote = IoVec(addr, out.nbytes)
    done = _vm_readv(pid, ctypes.byref(local), 1, ctypes.byref(remote), 1, 0)
    if done < 0 and ctypes.get_errno() == 14:  # EFAULT: not even the first byte
        return 0
    return _checked(done)


def read_ranges(pid: int, ranges: U64, out: U8) -> int:
    """Copy many ranges, one behind the other, into `out`; return how many bytes came.

    Args:
        pid: Whose memory.
        ranges: (r, 2) address and size; the first that cannot be read whole ends it.
        out: As long as all of them together.
    """
    local = IoVec(out.ctypes.data, out.nbytes)
    done = total = 0
    for first in range(0, len(ranges), MOST_RANGES):
        some = np.ascontiguousarray(ranges[first : first + MOST_RANGES])
        total += int(some[:, 1].sum())
        remote = ctypes.cast(some.ctypes.data, ctypes.POINTER(IoVec))
        done += max(_vm_readv(pid, ctypes.byref(local), 1, remote, len(some), 0), 0)
        if done < total:
            break
        local = IoVec(out.ctypes.data + done, out.nbytes - done)
    return done


def write_memory(pid: int, addr: int, data: bytes) -> int:
    """Copy bytes into writable target memory; return how many could be written."""
    local = IoVec(ctypes.cast(ctypes.c_char_p(data), ctypes.c_void_p), len(data))
    remote = IoVec(addr, len(data))
    done = _vm_writev(pid, ctypes.byref(local), 1, ctypes.byref(remote), 1, 0)
    if done < 0 and ctypes.get_errno() == 14:
        return 0
    return _checked(done)


def futex_wait(word_addr: int, expected: int, seconds: float) -> None:
    """Sleep until the word (in our memory) is woken or has changed, or time is up."""
    limit = _TimeSpec(int(seconds), int(seconds % 1 * 1e9))
    _syscall(
        ctypes.c_long(SYS_FUTEX), ctypes.c_void_p(word_addr), ctypes.c_long(FUTEX_WAIT),
        ctypes.c_uint32(expected), ctypes.byref(limit), ctypes.c_void_p(0), ctypes.c_long(0),
    )  # fmt: skip


def futex_wake(word_addr: int) -> None:
    """Wake every waiter of a word, in whatever process."""
    _syscall(
        ctypes.c_long(SYS_FUTEX), ctypes.c_void_p(word_addr), ctypes.c_long(FUTEX_WAKE),
        ctypes.c_long(0x7FFFFFFF), ctypes.c_void_p(0), ctypes.c_void_p(0), ctypes.c_long(0),
    )  # fmt: skip


def punch_hole(fd: int, offset: int, size: int) -> None:
    """Give a file range's pages back to the system; it reads as zeros from then on."""
    _checked(_fallocate(fd, FALLOC_PUNCH, offset, size))


def empty_registers(count: int) -> U64:
    """Return room for the registers of `count` threads."""
    return np.zeros((count, REGISTER_COUNT), np.uint64)
