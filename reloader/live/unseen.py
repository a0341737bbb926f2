"""Who refers to a function from code and data of the executable that no watched object has.

Where only some objects are watched, the others' relocations are not known. Their branches are
found in the bytes: a four-byte field that leads to the function is one if decoding the function
around it says so. What else leads there, or cannot be decoded for want of symbols, counts as
somebody who holds the address: then calls alone are not enough, and nothing is changed.
"""

from collections.abc import Iterator
from typing import Final

import numpy as np

from reloader.ids import I64, NO_ADDR, U8, U64
from reloader.live import decode
from reloader.live.program import Program

SHF_EXECINSTR: Final = 4
STT_FUNC: Final = 2
_FIELD: Final = 4  # bytes of a branch's displacement
_WORD: Final = 8


class Unseen:
    """The executable's code beside that of watched objects, and its data."""

    def __init__(self, program: Program) -> None:
        """Find out which code is nobody's."""
        self.image = program.image
        self._gaps = list(gaps(program))
        table = self.image.symtab
        functions = (table.type == STT_FUNC) & (table.section != 0) & (table.size != 0)
        order = np.argsort(table.addr[functions], kind="stable")
        self._starts: U64 = table.addr[functions][order]
        self._sizes: U64 = table.size[functions][order]

    def references(self, addr: int) -> tuple[list[int], bool]:
        """Return the fields of direct branches to a function, and whether others hold it."""
        fields: list[int] = []
        held = self._in_data(addr)
        for base, code in self._gaps:
            for at in leading_to(code, base, addr):
                if at + _FIELD == addr:
                    continue  # zeros of the filler before it
                if self._is_branch(at, addr):
                    fields.append(at)
                else:
                    held = True
            held |= self._short_branch(base, code, addr)
            held |= addr >> 32 == 0 and addr.to_bytes(_FIELD, "little") in code.tobytes()
        return fields, held

    def _in_data(self, addr: int) -> bool:
        """Return whether a word of the executable holds an address."""
        first = -self.image.low % _WORD
        last = first + (len(self.image.memory) - first) // _WORD * _WORD
        words = self.image.memory[first:last].view(np.uint64)
        return bool((words == np.uint64(addr)).any())

    def _is_branch(self, field: int, addr: int) -> bool:
        """Return whether four bytes that lead to a function are a branch's."""
        return (field + _FIELD, addr) in self._branches_around(field)

    def _short_branch(self, base: int, code: U8, addr: int) -> bool:
        """Return whether a branch of two bytes may lead to a function: it reaches no stub."""
        first = max(addr - base - decode.SHORT_REACH - 2, 0)
        near = code[first : max(addr - base + decode.SHORT_REACH, 0)]
        if len(near) < decode.JUMP_SIZE:
            return False
        ends, targets = decode.raw_branches(near, base + first)
        for end in ends[targets == addr].tolist():
            before = near[end - base - first - 2 : end - base - first - 1]
            short = int.from_bytes(near[end - base - first - 1 :][:1].tobytes(), "little")
            if not len(before) or end + short - (short >> 7 << 8) != addr:
                continue  # a long one, which has been found already
            known = self._branches_around(end - 1)
            if (end, addr) in known or not known:
                return True
        return False

    def _branches_around(self, at: int) -> set[tuple[int, int]]:
        """Return the branches of the function around an address; none if that is not known."""
        row = int(np.searchsorted(self._starts, np.uint64(at), side="right")) - 1
        if row < 0 or at >= int(self._starts[row] + self._sizes[row]):
            return set()
        start, size = int(self._starts[row]), int(self._sizes[row])
        found, _ = decode.branches(self.image.bytes_at(start, size).tobytes(), start)
        return found


def gaps(program: Program) -> Iterator[tuple[int, U8]]:
    """Yield address and bytes of each stretch of code that no watched object has."""
    starts, ends = watched_code(program)
    for low, high in program.image.executable.tolist():
        at = low
        rows = np.flatnonzero((ends > np.uint64(low)) & (starts < np.uint64(high)))
        pairs = zip(starts[rows].tolist(), ends[rows].tolist(), strict=True)
        for start, end in [*pairs, (high, high)]:
            code = program.image.bytes_at(at, max(start - at, 0))
            if decode.padding_size(code.tobytes()) < len(code):
                yield at, code
            at = max(at, end)


def watched_code(program: Program) -> tuple[U64, U64]:
    """Return the sorted starts, and the ends, of watched objects' code."""
    starts, sizes = [np.empty(0, np.uint64)], [np.empty(0, np.uint64)]
    for placement in program.baseline.placements:
        sections = placement.file.sections
        code = (sections["sh_flags"] & SHF_EXECINSTR) != 0
        code &= placement.section_addr != np.uint64(NO_ADDR)
        starts.append(placement.section_addr[code])
        sizes.append(sections["sh_size"][code].astype(np.uint64))
    start, size = np.concatenate(starts), np.concatenate(sizes)
    order = np.argsort(start, kind="stable")
    return start[order], (start + size)[order]


def leading_to(code: U8, base: int, addr: int) -> list[int]:
    """Return the addresses of all four-byte fields that lead to an address."""
    found: list[I64] = []
    for shift in range(_FIELD):
        count = (len(code) - shift) // _FIELD
        if count <= 0:
            continue
        field = code[shift : shift + count * _FIELD].view("<i4")
        at = np.arange(count, dtype=np.int64) * _FIELD + (base + shift)
        found.append(at[field == addr - (at + _FIELD)])
    return np.sort(np.concatenate([np.empty(0, np.int64), *found])).tolist()
