"""A way back for a borrowed thread whose daemon is killed meanwhile.

The kernel detaches and resumes it then, wherever we had it. So everything that we have a thread
do returns into `rt_sigreturn` with a frame that restores the whole state it was stopped with:
registers, vector state, signal mask. The layout is the kernel's (`struct ucontext`, `struct
sigcontext`, `struct _fpx_sw_bytes` in its uapi headers).
"""

import struct
from typing import Final

import numpy as np

from reloader.ids import U64
from reloader.live.ptrace import R_EFLAGS, R_ORIG_RAX, R_RAX, R_RIP

# columns of user_regs_struct in sigcontext order: r8-r15 rdi rsi rbp rbx rdx rax rcx rsp rip
# eflags
SIGCONTEXT: Final = (9, 8, 7, 6, 3, 2, 1, 0, 14, 13, 4, 5, 12, 10, 11, 19, 16, 18)
UC_FLAGS: Final = 7  # extended state, SS saved, SS restored strictly
SEGMENTS: Final = 0x33 | 0x2B << 48  # cs, ss of 64-bit user code
KEEP_ALTSTACK: Final = (
    0x7FFF_FFFF  # an invalid mode: the kernel then leaves the alternate stack alone
)
UCONTEXT_SIZE: Final = 304
MAGIC1, MAGIC2 = 0x46505853, 0x46505845
SW_RESERVED: Final = 464  # in the FXSAVE area
# -ERESTARTSYS, -ERESTARTNOINTR, -ERESTARTNOHAND, and -EINTR, which our stop made
RESTART: Final = frozenset((1 << 64) - code for code in (512, 513, 514, 4))
RESTART_BLOCK: Final = (1 << 64) - 516
SYS_RESTART_SYSCALL: Final = 219


def restarted(registers: U64) -> U64:
    """Return registers with which an interrupted system call is made again."""
    result = registers.copy()
    value, number = int(registers[R_RAX]), int(registers[R_ORIG_RAX])
    if not number >> 63 and (value in RESTART or value == RESTART_BLOCK):
        result[R_RAX] = SYS_RESTART_SYSCALL if value == RESTART_BLOCK else number
        result[R_RIP] -= np.uint64(2)
    return result


def frame_size(vectors: bytes) -> int:
    """Return how many bytes a guard needs, alignment included."""
    return 64 + 8 + UCONTEXT_SIZE + 64 + len(vectors) + 4


def build_guard(
    end: int, restorer: int, registers: U64, vectors: bytes, mask: int
) -> tuple[int, bytes]:
    """Return address and bytes of a guard that ends below `end`.

    Its first word is the restorer's address: a function that returns to it, or a `ret`,
    restores everything.
    """
    state = (end - len(vectors) - 4) & ~63
    start = (state - UCONTEXT_SIZE) & ~15
    row = restarted(registers)
    row[R_EFLAGS] &= np.uint64(~0x100 & 0xFFFFFFFF)  # never single-stepping
    context = struct.pack("<QQQiIQ", UC_FLAGS, 0, 0, KEEP_ALTSTACK, 0, 0)
    context += row[list(SIGCONTEXT)].tobytes()
    context += struct.pack("<QQQQQQ64xQ", SEGMENTS, 0, 0, 0, 0, state, mask)
    gap = state - start - len(context)
    extended = bytearray(vectors)
    (features,) = struct.unpack_from("<Q", vectors, SW_RESERVED)
    size = len(vectors)
    struct.pack_into("<IIQI28x", extended, SW_RESERVED, MAGIC1, size + 4, features, size)
    body = context + bytes(gap) + bytes(extended) + struct.pack("<I", MAGIC2)
    return start - 8, struct.pack("<Q", restorer) + body
