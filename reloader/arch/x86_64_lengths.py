"""x86-64: how long the instruction at each byte would be, for many places at once.

Decoding one instruction after the other costs about two microseconds each. Where only the
borders between instructions matter, the length is a function of a few bytes: prefixes, opcode,
ModRM, SIB. It is computed here for every byte of some code, as if an instruction began there;
whoever knows one true border then follows the lengths. Tables: Intel SDM volume 2, appendix A.
What is not surely known (XOP, 3DNow!, invalid opcodes, unusual prefixes) has the length 0.
"""

from typing import Final

import numpy as np
from numpy.typing import NDArray

from reloader.ids import I64, U8

LONGEST: Final = 15  # bytes an instruction may have
_PADDING: Final = 32  # readable bytes after the last one
_PIECE: Final = 1 << 13  # bytes at a time: what is computed stays in the processor's cache
_PREFIXES: Final = 4  # legacy prefixes that are followed
_MODRM, _BYTE, _LONG, _WORD, _TEST, _MOVE, _OFFSET, _BAD = (1 << bit for bit in range(8))


def _opcodes(*ranges: int | tuple[int, int]) -> list[int]:
    spans = [(item, item) if isinstance(item, int) else item for item in ranges]
    return [code for first, last in spans for code in range(first, last + 1)]


def _table(rules: dict[int, list[int]], otherwise: int) -> U8:
    """Return (256,) the flags of each opcode: those of every rule that lists it."""
    table = np.zeros(256, np.uint8)
    for flag, codes in rules.items():
        table[codes] |= np.uint8(flag)
    listed = sorted({code for codes in rules.values() for code in codes})
    rest = np.setdiff1d(np.arange(256), listed)
    table[rest] = otherwise
    return table


def _arithmetic(low: int) -> list[int]:
    """Return the opcodes of `add` to `cmp` of one form."""
    return [row * 8 + low for row in range(8)]


_ONE: Final = _table(
    {
        _MODRM: [
            *(code for low in range(4) for code in _arithmetic(low)),
            *_opcodes(0x63, 0x69, 0x6B, 0x80, 0x81, 0x83, (0x84, 0x8E), 0xC0, 0xC1, 0xC6, 0xC7),
            *_opcodes((0xD0, 0xD3), (0xD8, 0xDF), 0xF6, 0xF7, 0xFE, 0xFF),
        ],
        _BYTE: [
            *_arithmetic(4),
            *_opcodes(0x6A, 0x6B, (0x70, 0x7F), 0x80, 0x83, 0xA8, (0xB0, 0xB7), 0xC0, 0xC1),
            *_opcodes(0xC6, 0xC8, 0xCD, (0xE0, 0xE7), 0xEB),
        ],
        _LONG: [*_arithmetic(5), *_opcodes(0x68, 0x69, 0x81, 0xA9, 0xC7, 0xE8, 0xE9)],
        _WORD: _opcodes(0xC2, 0xC8, 0xCA),
        _TEST: _opcodes(0xF6, 0xF7),
        _MOVE: _opcodes((0xB8, 0xBF)),
        _OFFSET: _opcodes((0xA0, 0xA3)),
        0: _opcodes((0x50, 0x5F), (0x6C, 0x6F), (0x90, 0x99), (0x9B, 0x9F), (0xA4, 0xA7),
                    (0xAA, 0xAF), 0xC3, 0xC9, 0xCB, 0xCC, 0xCF, 0xD7, (0xEC, 0xEF), 0xF1,
                    0xF4, 0xF5, (0xF8, 0xFD)),
    },
    _BAD,
)  # fmt: skip
_IMMEDIATE_0F: Final = _opcodes((0x70, 0x73), 0xC2, (0xC4, 0xC6))  # VEX and EVEX forms, too
_TWO: Final = _table(
    {
        _BYTE: [*_IMMEDIATE_0F, 0xA4, 0xAC, 0xBA],
        _LONG: _opcodes((0x80, 0x8F)),
        0: _opcodes(0x05, 0x06, 0x08, 0x09, 0x0B, (0x30, 0x35), 0x37, 0x77, (0xA0, 0xA2),
                    (0xA8, 0xAA), (0xC8, 0xCF)),
        _MODRM: _opcodes((0x00, 0x03), 0x0D, (0x10, 0x23), (0x28, 0x2F), (0x40, 0x76),
                         (0x7C, 0x7F), (0x90, 0x9F), (0xA3, 0xA5), (0xAB, 0xB7), 0xB8, 0xBA,
                         (0xBB, 0xC7), (0xD0, 0xFE)),
    },
    _BAD,
)  # fmt: skip
_VECTOR: Final = np.full(256, _MODRM, np.uint8)
_VECTOR[_IMMEDIATE_0F] |= np.uint8(_BYTE)
_VECTOR[0x77] = 0
# rows: one byte; 0f; 0f 38; 0f 3a; VEX and EVEX with map 0f; no such map
_MAPS: Final = np.stack(
    [_ONE, _TWO, np.full(256, _MODRM, np.uint8), np.full(256, _MODRM | _BYTE, np.uint8),
     _VECTOR, np.full(256, _BAD, np.uint8)]
).reshape(-1)  # fmt: skip
_MAP_OF_VEX: Final = np.array([5, 4, 2, 3, 5, 5, 5, 5], np.uint8)
_LEGACY: Final = np.zeros(256, np.bool_)
_LEGACY[[0x26, 0x2E, 0x36, 0x3E, 0x64, 0x65, 0x66, 0x67, 0xF0, 0xF2, 0xF3]] = True


def _operand_sizes() -> U8:
    """Return (65536,) bytes of ModRM, SIB and displacement, by ModRM + 256 * SIB."""
    modrm, sib = np.meshgrid(np.arange(256), np.arange(256))
    mod, rm = modrm >> 6, modrm & 7
    has_sib = (rm == 4) & (mod != 3)
    bare = ((rm == 5) | (has_sib & ((sib & 7) == 5))) & (mod == 0)
    size = 1 + has_sib + np.where(mod == 1, 1, np.where((mod == 2) | bare, 4, 0))
    return size.astype(np.uint8).reshape(-1)


_OPERAND: Final = _operand_sizes()


def instruction_lengths(code: U8) -> U8:
    """Return (n,) the length of an instruction that begins at each byte; 0: not surely known.

    Args:
        code: What the last instructions would have after its end is taken for zeros.
    """
    data = np.concatenate([code, np.zeros(_PADDING, np.uint8)])
    result = np.empty(len(code), np.uint8)
    for first in range(0, len(code), _PIECE):
        last = min(first + _PIECE, len(code))
        result[first:last] = _lengths(data[first : last + _PADDING], last - first)
    return result


def _lengths(data: U8, count: int) -> U8:
    """Return the lengths at the first `count` bytes; padding follows them."""
    start = np.arange(count, dtype=np.int32)
    at = start.copy()
    short, small = np.zeros(count, np.bool_), np.zeros(count, np.bool_)
    for _ in range(_PREFIXES):
        byte = data[at]
        short |= byte == 0x66
        small |= byte == 0x67
        at += _LEGACY[byte]
    prefixed = at != start
    byte = data[at]
    rex = (byte & np.uint8(0xF0)) == 0x40
    wide = rex & ((byte & np.uint8(8)) != 0)
    at += rex
    table, opcode_at, bad = _opcode_maps(data, at, prefixed | rex)
    at = opcode_at
    flags = _MAPS[table.astype(np.int32) * 256 + data[at]]
    near = (flags == _LONG) & ((data[at] == 0xE8) | (data[at] == 0xE9) | (table == 1))
    bad |= _LEGACY[byte] | ((flags & np.uint8(_BAD)) != 0)
    bad |= near & short & ~wide  # processors disagree on its size
    at += 1
    modrm = data[at]
    operand = _OPERAND[modrm + data[at + 1].astype(np.int32) * 256]
    size = np.where((flags & np.uint8(_MODRM)) != 0, operand, 0).astype(np.int32)
    size += _immediates(flags, modrm, data[at - 1], short & ~wide, wide, small)
    length = at + size - start
    length[bad | (length > LONGEST)] = 0
    return length.astype(np.uint8)


def _opcode_maps(
    data: U8, at: NDArray[np.int32], plain_only: NDArray[np.bool_]
) -> tuple[U8, NDArray[np.int32], NDArray[np.bool_]]:
    """Return which map each opcode is of, where it is, and where none can be."""
    first, second = data[at], data[at + 1]
    table = np.zeros(len(at), np.uint8)
    opcode_at = at.copy()
    escape = first == 0x0F
    table[escape] = 1
    opcode_at += escape
    for number, byte in ((2, 0x38), (3, 0x3A)):
        longer = escape & (second == byte)
        table[longer] = number
        opcode_at += longer
    vex2, vex3, evex = first == 0xC5, first == 0xC4, first == 0x62
    table[vex2] = 4
    table[vex3] = np.where(second > 0, _MAP_OF_VEX[second & np.uint8(7)], 5)[vex3]
    table[vex3 & ((second & np.uint8(0x18)) != 0)] = 5
    table[evex] = _MAP_OF_VEX[second & np.uint8(7)][evex]
    opcode_at += 2 * vex2 + 3 * vex3 + 4 * evex
    return table, opcode_at, plain_only & (vex2 | vex3 | evex)


def _immediates(  # noqa: PLR0913, PLR0917  one argument a fact of the instruction
    flags: U8,
    modrm: U8,
    opcode: U8,
    short: NDArray[np.bool_],
    wide: NDArray[np.bool_],
    small: NDArray[np.bool_],
) -> I64:
    """Return the bytes of immediates and absolute offsets."""

    def has(flag: int) -> NDArray[np.bool_]:
        return (flags & np.uint8(flag)) != 0

    full = np.where(short, 2, 4)
    size = has(_BYTE) + 2 * has(_WORD) + np.where(has(_LONG), full, 0)
    tests = has(_TEST) & ((modrm & np.uint8(0x30)) == 0)  # `test`, not `not`, `neg`, `mul`
    size += np.where(tests, np.where(opcode == 0xF6, 1, full), 0)
    size += np.where(has(_MOVE), np.where(wide, 8, full), 0)
    return size + np.where(has(_OFFSET), np.where(small, 4, 8), 0)
