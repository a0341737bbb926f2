"""x86-64: how long the instruction at each byte would be, for many places at once.

Decoding one instruction after the other costs about two microseconds each. Where only the
borders between instructions matter, the length is a function of a few bytes: prefixes, opcode,
ModRM, SIB. It is computed here for every byte of some code, as if an instruction began there;
whoever knows one true border then follows the lengths. Tables: Intel SDM volume 2, appendix A.
What is not surely known (XOP, 3DNow!, invalid opcodes, unusual prefixes) has the length 0.
"""

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from reloader.ids import I64, U8, U16

LONGEST: Final = 15  # bytes an instruction may have
_PADDING: Final = 32  # readable bytes after the last one
_SPARE: Final = 16  # of them an instruction behind prefixes may begin in
_PIECE: Final = 1 << 16  # bytes at a time: what is computed stays in the processor's cache
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
_PLAIN_MAP, _MAP_0F, _MAP_38, _MAP_3A, _MAP_VECTOR, _NO_MAP = range(6)
_FLAGS: Final = (
    _ONE, _TWO, np.full(256, _MODRM, np.uint8), np.full(256, _MODRM | _BYTE, np.uint8),
    _VECTOR, np.full(256, _BAD, np.uint8),
)  # fmt: skip
_MAP_OF_VEX: Final = np.array([5, 4, 2, 3, 5, 5, 5, 5], np.int64)
_LEGACY: Final = np.zeros(256, np.bool_)
_LEGACY[[0x26, 0x2E, 0x36, 0x3E, 0x64, 0x65, 0x66, 0x67, 0xF0, 0xF2, 0xF3]] = True


# What an entry of _LENGTHS says beside the length, and what a prefix does to an instruction.
_ASKS_SIB: Final = 0x40  # there is a displacement if the SIB byte's base is 5
_SHORTER, _UNSURE, _OFFSET_HALF, _UNPREFIXED = 1, 2, 4, 8


def _pair_tables() -> tuple[U8, U8]:
    """Return (6 * 65536,) the length and the traits of an opcode, by map, ModRM and opcode.

    The length counts from the opcode, with 4-byte operands; 0: not surely known.
    """
    modrm, opcode = (axis.reshape(-1) for axis in np.divmod(np.arange(1 << 16), 256))
    mod, rm = modrm >> 6, modrm & 7
    has_sib = (rm == 4) & (mod != 3)
    bare = (rm == 5) & (mod == 0)
    operand = 1 + has_sib + np.where(mod == 1, 1, np.where((mod == 2) | bare, 4, 0))
    lengths: list[U8] = []
    traits: list[U8] = []
    for number, table in enumerate(_FLAGS):
        flags = table[opcode]

        def has(flag: int, flags: U8 = flags) -> NDArray[np.bool_]:
            return (flags & np.uint8(flag)) != 0

        test = has(_TEST) & ((modrm & 0x30) == 0)  # `test`, not `not`, `neg`, `mul`
        size = 1 + operand * has(_MODRM) + has(_BYTE) + 2 * has(_WORD) + 4 * has(_LONG)
        size += 4 * has(_MOVE) + 8 * has(_OFFSET) + test * np.where(opcode == 0xF6, 1, 4)
        size += _ASKS_SIB * (has(_MODRM) & has_sib & (mod == 0))
        size[has(_BAD)] = 0
        lengths.append(size.astype(np.uint8))
        near = has(_LONG) & ((opcode == 0xE8) | (opcode == 0xE9) | (number == _MAP_0F))
        less = (has(_LONG) & ~near) | has(_MOVE) | (test & (opcode == 0xF7))
        kind = _SHORTER * less + _UNSURE * near + _OFFSET_HALF * has(_OFFSET)
        kind += _UNPREFIXED * (number >= _MAP_VECTOR)
        traits.append(kind.astype(np.uint8))
    return np.concatenate(lengths), np.concatenate(traits)


_LENGTHS, _TRAITS = _pair_tables()


def instruction_lengths(code: U8) -> U8:
    """Return (n,) the length of an instruction that begins at each byte; 0: not surely known.

    Args:
        code: What the last instructions would have after its end is taken for zeros.
    """
    data = np.concatenate([code, np.zeros(_PADDING, np.uint8)])
    result = np.empty(len(code), np.uint8)
    for first in range(0, len(code), _PIECE):
        last = min(first + _PIECE, len(code))
        result[first:last] = _lengths(data[first : last + _PADDING])[: last - first]
    return result


def _lengths(data: U8) -> U8:
    """Return the lengths at all bytes but the last ones.

    Most bytes need one look into a table; the others are few, and each group of them counts
    on lengths behind it that are known by then.
    """
    pair = np.left_shift(data[1:], 8, dtype=np.uint16)
    pair |= data[:-1]
    code = data[: len(data) - _SPARE]
    length = _behind(data, pair, slice(0, len(code)), _PLAIN_MAP)
    at = np.flatnonzero(code == 0x0F)
    skip, table = _escapes(data, at)
    length[at] = _longer(_behind(data, pair, at + skip, table), skip)
    at = np.flatnonzero((code[:-1] & np.uint8(0xF0)) == 0x40)
    moves = ((pair[at] & np.uint16(0xF808)) == 0xB808) * np.uint8(4)  # movabs to a register
    length[at] = _longer(length[at + 1], moves + np.uint8(1))
    at = np.flatnonzero((code == 0xC4) | (code == 0xC5) | (code == 0x62))
    skip, table = _vectors(data, at)
    length[at] = _longer(_behind(data, pair, at + skip, table), skip)
    at = np.flatnonzero(_LEGACY[code[:-_PREFIXES]])
    length[at] = _prefixed(data, pair, at, length)
    length[length > LONGEST] = 0
    return length


def _behind(data: U8, pair: U16, at: Any, table: Any) -> U8:  # noqa: ANN401  rows, or all
    """Return the length from an opcode on, by its place and its map; 0: not surely known."""
    rows = pair[at]
    row = rows if table is _PLAIN_MAP else (table << 16) + rows
    length = _LENGTHS[row]
    asks = np.flatnonzero(length & np.uint8(_ASKS_SIB))
    sib = data[(asks if isinstance(at, slice) else at[asks]) + 2]
    length[asks] += ((sib & np.uint8(7)) == 5) * np.uint8(4) - np.uint8(_ASKS_SIB)
    return length


def _longer(length: U8, more: Any) -> U8:  # noqa: ANN401  any integer column
    """Return lengths with some bytes more; what is not known stays so."""
    return np.where(length > 0, length + more, 0).astype(np.uint8)


def _escapes(data: U8, at: I64) -> tuple[I64, I64]:
    """Return how far behind a 0f its opcode is, and which map it is of."""
    second = data[at + 1]
    longer = (second == 0x38) | (second == 0x3A)
    table = np.where(second == 0x38, _MAP_38, np.where(longer, _MAP_3A, _MAP_0F))
    return np.where(longer, 2, 1), table


def _vectors(data: U8, at: I64) -> tuple[I64, I64]:
    """Return how far behind a VEX or EVEX prefix its opcode is, and which map it is of."""
    first, second = data[at], data[at + 1]
    table = _MAP_OF_VEX[second & np.uint8(7)]
    table[(first == 0xC4) & ((second & np.uint8(0x18)) != 0)] = _NO_MAP
    table[first == 0xC5] = _MAP_VECTOR
    return np.where(first == 0xC5, 2, np.where(first == 0xC4, 3, 4)), table


def _prefixed(data: U8, pair: U16, at: I64, length: U8) -> U8:
    """Return the lengths where legacy prefixes begin, given those behind them."""
    to = at.copy()
    short, small = np.zeros(len(at), np.bool_), np.zeros(len(at), np.bool_)
    for _ in range(_PREFIXES):
        byte = data[to]
        short |= byte == 0x66
        small |= byte == 0x67
        to += _LEGACY[byte]
    byte = data[to]
    rex = (byte & np.uint8(0xF0)) == 0x40
    opcode = to + rex
    escaped = data[opcode] == 0x0F
    traits = _TRAITS[(escaped << 16) + pair[opcode + escaped]]
    traits[(byte == 0xC4) | (byte == 0xC5) | (byte == 0x62)] = _UNPREFIXED
    short &= ~(rex & ((byte & np.uint8(8)) != 0))
    known = (traits & np.uint8(_UNPREFIXED)) == 0
    known &= ~short | ((traits & np.uint8(_UNSURE)) == 0)  # processors disagree on its size
    found = _longer(length[to] * known, (to - at).astype(np.uint8))
    found -= np.uint8(2) * (short & ((traits & np.uint8(_SHORTER)) != 0) & (found > 0))
    found -= np.uint8(4) * (small & ((traits & np.uint8(_OFFSET_HALF)) != 0) & (found > 0))
    return found
