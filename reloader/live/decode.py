"""The shapes of x86-64 instructions that redirecting has to know.

Two ways to find branches. `raw_branches` looks at every byte offset as if an instruction began
there; it is a few array expressions for a whole program and misses none, but also reports bytes
that only look like one. `branches` decodes, which is exact and costs about a microsecond an
instruction; it is asked only where the raw look-up found something that matters.
"""

import re
from collections.abc import Callable
from functools import cache
from typing import Final

import numpy as np
from capstone import CS_ARCH_X86, CS_MODE_64, Cs

from reloader.ids import I64, U8, U64, Addr, Bool

ENDBR64: Final = b"\xf3\x0f\x1e\xfa"
JUMP_SIZE: Final = 5  # jmp rel32
SHORT_JUMP_SIZE: Final = 2  # jmp rel8
SHORT_REACH: Final = 128
LONG_REACH: Final = 1 << 31
LONGEST: Final = 15  # bytes of an instruction
_PAGE: Final = 4096

# What assemblers and linkers put between functions: int3, and the nops of gas and lld.
_PADDING: Final = re.compile(
    rb"(?:\xcc|[\x66\x2e]*(?:\x90|\x0f\x1f(?:\x00|\x40.|\x44..|\x80....|\x84.....)))*",
    re.DOTALL,
)
# call *%reg, call *disp(%rip), call *disp8(%reg), ...: ff /2 seen from the end of its operands
_INDIRECT_CALL_SIZES: Final = (2, 3, 4, 6, 7)
_CALL_REL32: Final = 0xE8


def _table(*opcodes: int) -> Bool:
    table = np.zeros(256, np.bool_)
    table[list(opcodes)] = True
    return table


_REL8: Final = _table(*range(0x70, 0x80), *range(0xE0, 0xE4), 0xEB)  # jcc, loop, jrcxz, jmp
_REL32: Final = _table(0xE8, 0xE9)  # call, jmp
_JCC_TAIL: Final = _table(*range(0x80, 0x90))  # after 0f
_XBEGIN_TAIL: Final = 0xF8  # after c7


@cache
def _decoder() -> Cs:
    return Cs(CS_ARCH_X86, CS_MODE_64)


def jump(at: int, to: int) -> bytes | None:
    """Return `jmp rel32` from one address to another, None beyond its reach."""
    distance = to - (at + JUMP_SIZE)
    if not -LONG_REACH <= distance < LONG_REACH:
        return None
    return b"\xe9" + distance.to_bytes(4, "little", signed=True)


def short_jump(at: int, to: int) -> bytes | None:
    """Return `jmp rel8` from one address to another, None beyond its reach."""
    distance = to - (at + SHORT_JUMP_SIZE)
    if not -SHORT_REACH <= distance < SHORT_REACH:
        return None
    return b"\xeb" + distance.to_bytes(1, "little", signed=True)


def padding_size(code: bytes) -> int:
    """Return how many leading bytes are whole filler instructions."""
    match = _PADDING.match(code)
    return match.end() if match else 0


def raw_branches(code: U8, base: int) -> tuple[I64, I64]:
    """Find everything that may be a direct branch.

    Args:
        code: The bytes.
        base: The address of the first.

    Returns:
        The address after each branch, where it goes to. A superset of the true ones.
    """
    short = np.flatnonzero(_REL8[code[:-1]])
    near = _rel32_opcodes(code)
    # an int8 view is the displacement itself; a rel32 needs four bytes put together
    to_short = short + 2 + code[short + 1].view(np.int8)
    field = code[near[:, None] + np.arange(1, 5)].copy().view("<i4").reshape(-1)
    to_near = near + JUMP_SIZE + field
    ends = np.concatenate([short + 2, near + JUMP_SIZE])
    return ends + base, np.concatenate([to_short, to_near]) + base


def _rel32_opcodes(code: U8) -> I64:
    """Return the index of each byte that a rel32 may follow."""
    if len(code) < JUMP_SIZE:
        return np.empty(0, np.int64)
    last = code[: len(code) - 4]
    before = np.empty_like(last)
    before[0], before[1:] = 0, last[:-1]
    found = _REL32[last]
    found |= _JCC_TAIL[last] & (before == 0x0F)
    found |= (last == _XBEGIN_TAIL) & (before == 0xC7)
    return np.flatnonzero(found).astype(np.int64)


def branches(code: bytes, base: int) -> tuple[set[tuple[int, int]], int]:
    """Decode a function whole.

    Returns:
        (address after the branch, target) of each direct branch and call, and the address up to
        which the bytes are instructions.
    """
    found: set[tuple[int, int]] = set()
    end = base
    for addr, size, mnemonic, operand in _decoder().disasm_lite(code, base):
        end = addr + size
        if operand.startswith("0x") and _is_branch(mnemonic):
            found.add((end, int(operand, 16)))
    return found, end


def _is_branch(mnemonic: str) -> bool:
    word = mnemonic.rpartition(" ")[2]  # without `bnd`, `notrack`
    return word.startswith(("j", "call", "loop", "xbegin"))


def call_end_inside(code: bytes, first: int, last: int) -> int | None:
    """Return where a call ends strictly after `first` and before `last`, if one does.

    Args:
        code: Bytes from an instruction's start, with an instruction more than `last`.
        first: Offset of the first byte that is going to be replaced.
        last: Offset behind the last one.
    """
    for addr, size, mnemonic, _ in _decoder().disasm_lite(code, 0):
        end = addr + size
        if end >= last:
            return None
        if end > first and mnemonic.rpartition(" ")[2] == "call":
            return end
    return None


def follows_call(before: bytes) -> bool:
    """Return whether the address after these (at least 7) bytes can be a return address."""
    if before[-JUMP_SIZE] == _CALL_REL32:
        return True
    return any(
        before[-size] == 0xFF and (before[1 - size] >> 3) & 7 == 2
        for size in _INDIRECT_CALL_SIZES
    )


class Text:
    """The code of some functions, and whether a branch lands somewhere in it."""

    def __init__(
        self, addr: U64, size: U64, next_addr: U64, read: Callable[[Addr, int], U8]
    ) -> None:
        """Read each function with the padding behind it, as far as a short jump can reach."""
        order = np.argsort(addr, kind="stable")
        self.addr, self.end = (
            addr[order].astype(np.int64),
            (addr + size)[order].astype(np.int64),
        )
        behind = next_addr[order].astype(np.int64)
        behind = np.clip(behind, self.end, self.end + SHORT_REACH)
        reach = np.maximum.accumulate(behind)
        # two functions less than a page apart: no unmapped page fits between them
        cut = np.flatnonzero(self.addr[1:] - reach[:-1] >= _PAGE) + 1
        firsts, lasts = np.r_[0, cut], np.r_[cut, len(order)] - 1
        self.bases = self.addr[firsts] if len(order) else np.empty(0, np.int64)
        sizes = (reach[lasts] - self.bases) if len(order) else self.bases
        self.codes = [
            read(Addr(base), count)
            for base, count in zip(self.bases.tolist(), sizes.tolist(), strict=True)
        ]
        found = [
            raw_branches(*run) for run in zip(self.codes, self.bases.tolist(), strict=True)
        ]
        self.ends = np.concatenate([ends for ends, _ in found] or [np.empty(0, np.int64)])
        targets = np.concatenate([hits for _, hits in found] or [np.empty(0, np.int64)])
        by_target = np.argsort(targets)
        self.ends, self.targets = self.ends[by_target], targets[by_target]
        self.decoded: dict[int, tuple[set[tuple[int, int]], int]] = {}

    def bytes(self, addr: int, size: int) -> bytes:
        """Return code from an address; less at the end of what was read."""
        run = int(np.searchsorted(self.bases, addr, side="right")) - 1
        if run < 0:
            return b""
        offset = addr - int(self.bases[run])
        return self.codes[run][offset : offset + max(size, 0)].tobytes()

    def landing(self, first: int, size: int, *, exact: bool = True) -> tuple[int, int] | None:
        """Return (end, target) of a branch that lands inside bytes but not at the first.

        Args:
            first: Address of the first byte.
            size: How many bytes.
            exact: Decode what looks like such a branch; else believe it.
        """
        low, high = np.searchsorted(self.targets, [first + 1, first + size]).tolist()
        hits = zip(self.ends[low:high].tolist(), self.targets[low:high].tolist(), strict=True)
        return next((hit for hit in hits if not exact or self._is_real(*hit)), None)

    def _is_real(self, end: int, target: int) -> bool:
        """Return whether bytes that look like a branch are one, as far as decoding can tell."""
        row = int(np.searchsorted(self.addr, end - 1, side="right")) - 1
        if row < 0 or end > self.end[row]:
            return True  # code of a function that nobody named
        if row not in self.decoded:
            start = int(self.addr[row])
            self.decoded[row] = branches(self.bytes(start, int(self.end[row]) - start), start)
        found, decoded_end = self.decoded[row]
        return end > decoded_end or (end, target) in found
