"""Runs a classic BPF program, of the kind that seccomp filters are, over one system call."""

import operator
import struct
from collections.abc import Callable
from typing import Final

LD, LDX, ST, STX, ALU, JMP, RET, MISC = range(8)  # the class: the code's lowest bits
IMM, ABS, MEM, LEN = 0x00, 0x20, 0x60, 0x80  # modes of a load
SOURCE_X: Final = 0x08
RETURN_A: Final = 0x10
TXA: Final = 0x80
WORD: Final = 0xFFFF_FFFF
ARITHMETIC: Final[dict[int, Callable[[int, int], int]]] = {
    0x00: operator.add, 0x10: operator.sub, 0x20: operator.mul,
    0x30: lambda a, b: a // b if b else 0, 0x40: int.__or__, 0x50: int.__and__,
    0x60: lambda a, b: a << (b & 31), 0x70: lambda a, b: a >> (b & 31),
    0x80: lambda a, _: -a, 0x90: lambda a, b: a % b if b else 0, 0xA0: int.__xor__,
}  # fmt: skip
CONDITIONS: Final[dict[int, Callable[[int, int], object]]] = {
    0x10: operator.eq, 0x20: operator.gt, 0x30: operator.ge, 0x40: int.__and__,
}  # fmt: skip


def run(program: bytes, data: bytes) -> int:
    """Return what a filter returns.

    Args:
        program: struct sock_filter rows; the kernel has checked that it ends.
        data: struct seccomp_data.
    """
    rows = list(struct.iter_unpack("<HBBI", program))
    a = x = at = 0
    memory = [0] * 16
    while True:
        code, yes, no, k = rows[at]
        at += 1
        kind, operation = code & 7, code & 0xF0
        other = x if code & SOURCE_X else k
        if kind in {LD, LDX}:
            value = _load(code & 0xE0, k, data, memory)
            a, x = (value, x) if kind == LD else (a, value)
        elif kind in {ST, STX}:
            memory[k] = a if kind == ST else x
        elif kind == ALU:
            a = ARITHMETIC[operation](a, other) & WORD
        elif kind == JMP and operation:
            at += yes if CONDITIONS[operation](a, other) else no
        elif kind == JMP:
            at += k
        elif kind == RET:
            return a if code & 0x18 == RETURN_A else k
        elif code & 0xF8 == TXA:
            a = x
        else:
            x = a


def _load(mode: int, k: int, data: bytes, memory: list[int]) -> int:
    if mode == ABS:
        return int.from_bytes(data[k : k + 4], "little")
    if mode == MEM:
        return memory[k]
    return len(data) if mode == LEN else k
