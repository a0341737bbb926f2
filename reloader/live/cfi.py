"""Unwinds a stopped thread from outside, by the `.eh_frame` tables in the process's memory.

Only what is needed to walk x86-64 frames is kept: the CFA, the saved general registers, the
return address. Rules that cannot be followed end the walk as incomplete; who asks must then
take the thread for doubtful. Sources: DWARF 4 section 6.4, LSB "Exception Frames", and the
kernel's rt_sigframe for signal handlers.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from reloader.elf.dtypes import EHDR, PHDR
from reloader.errors.base import ReloaderError
from reloader.ids import I32, U8
from reloader.live.target import Mapping

Read = Callable[[int, int], U8]

PT_GNU_EH_FRAME: Final = 0x6474E550
MASK: Final = (1 << 64) - 1
MAX_FRAMES: Final = 4096
# DWARF number -> column of user_regs_struct: rax rdx rcx rbx rsi rdi rbp rsp r8..r15 rip
COLUMNS: Final = (10, 12, 11, 5, 13, 14, 4, 19, 9, 8, 7, 6, 3, 2, 1, 0, 16)
RSP, RA = 7, 16
# words of a ucontext, from its start, in DWARF order
UCONTEXT: Final = (18, 17, 19, 16, 14, 13, 15, 20, 5, 6, 7, 8, 9, 10, 11, 12, 21)


class UnwindStopped(ReloaderError):  # noqa: N818 - not a failure of anything, only the end of a walk
    """A frame's rules cannot be followed."""


class Cursor:
    """Reads the encodings of DWARF from bytes."""

    def __init__(self, data: bytes, addr: int) -> None:
        """Start at the first byte, which is at `addr` in the target."""
        self.data, self.addr, self.at = data, addr, 0

    def number(self, size: int, *, signed: bool = False) -> int:
        """Return a fixed-size number."""
        self.at += size
        return int.from_bytes(self.data[self.at - size : self.at], "little", signed=signed)

    def uleb(self) -> int:
        """Return an unsigned LEB128 number."""
        value = shift = 0
        while True:
            byte = self.data[self.at]
            self.at += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value

    def sleb(self) -> int:
        """Return a signed LEB128 number."""
        start = self.at
        value = self.uleb()
        bits = 7 * (self.at - start)
        return value - (1 << bits) if value >> (bits - 1) & 1 else value

    def pointer(self, encoding: int) -> int:
        """Return a DW_EH_PE pointer; what we read has absolute and pc-relative ones."""
        base = self.addr + self.at if encoding & 0x70 == 0x10 else 0
        sizes = {0: (8, False), 2: (2, False), 3: (4, False), 4: (8, False)}
        sizes |= {10: (2, True), 11: (4, True), 12: (8, True)}
        size, signed = sizes[encoding & 0x0F]
        return (base + self.number(size, signed=signed)) & MASK


@dataclass(slots=True)
class Row:
    """The unwind rules at one address."""

    cfa_register: int = RSP
    cfa_offset: int = 8
    cfa_expression: bytes = b""
    saved: dict[int, int | None] = field(default_factory=dict[int, int | None])  # None: unknown

    def copy(self) -> "Row":
        """Return an independent copy."""
        return Row(self.cfa_register, self.cfa_offset, self.cfa_expression, dict(self.saved))


@dataclass(slots=True)
class Cie:
    """What a group of FDEs has in common."""

    code_align: int
    data_align: int
    encoding: int
    augmented: bool
    program: bytes


def _parse_cie(data: bytes, addr: int) -> Cie:
    cursor = Cursor(data, addr)
    version = cursor.number(1)
    end = data.index(b"\0", 1)
    augmentation = data[1:end]
    cursor.at = end + 1
    code_align, data_align = cursor.uleb(), cursor.sleb()
    _ = cursor.number(1) if version == 1 else cursor.uleb()
    encoding = 0
    if augmentation.startswith(b"z"):
        stop = cursor.uleb() + cursor.at
        for letter in augmentation[1:]:
            if letter == ord("R"):
                encoding = cursor.number(1)
            elif letter == ord("L"):
                cursor.number(1)
            elif letter == ord("P"):
                cursor.pointer(cursor.number(1))
        cursor.at = stop
    return Cie(code_align, data_align, encoding, augmentation[:1] == b"z", data[cursor.at :])


class Rules:
    """Runs the call-frame instructions of one function up to an address."""

    def __init__(self, cie: Cie, location: int) -> None:
        """Begin with the CIE's own instructions."""
        self.cie, self.location = cie, location
        self.row, self.initial = Row(), Row()
        self.stack: list[Row] = []
        self.run(cie.program, MASK)
        self.initial = self.row.copy()

    def run(self, program: bytes, pc: int) -> None:
        """Execute instructions until the location is past `pc`."""
        cursor = Cursor(program, 0)
        while cursor.at < len(program):
            op = cursor.number(1)
            high, low = op & 0xC0, op & 0x3F
            step = self._advance(op, cursor)
            if step is not None:
                self.location += step * self.cie.code_align
                if self.location > pc:
                    return
            elif high == 0x80:
                self.row.saved[low] = cursor.uleb() * self.cie.data_align
            elif high == 0xC0:
                self._restore(low)
            else:
                self._extended(op, cursor)

    @staticmethod
    def _advance(op: int, cursor: Cursor) -> int | None:
        if op & 0xC0 == 0x40:
            return op & 0x3F
        return cursor.number(1 << (op - 2)) if op in {2, 3, 4} else None

    def _restore(self, register: int) -> None:
        if register in self.initial.saved:
            self.row.saved[register] = self.initial.saved[register]
        else:
            self.row.saved.pop(register, None)

    def _extended(self, op: int, cursor: Cursor) -> None:
        row = self.row
        match op:
            case 0x00:  # nop
                pass
            case 0x0A:  # remember_state
                self.stack.append(row.copy())
            case 0x0B:  # restore_state
                self.row = self.stack.pop()
            case 0x0C | 0x12:  # def_cfa, def_cfa_sf
                row.cfa_register, row.cfa_expression = cursor.uleb(), b""
                row.cfa_offset = self._offset(op == 0x12, cursor)
            case 0x0D:  # def_cfa_register
                row.cfa_register, row.cfa_expression = cursor.uleb(), b""
            case 0x0E | 0x13:  # def_cfa_offset, def_cfa_offset_sf
                row.cfa_offset = self._offset(op == 0x13, cursor)
            case 0x0F:  # def_cfa_expression
                size = cursor.uleb()
                row.cfa_expression = cursor.data[cursor.at : cursor.at + size]
                cursor.at += size
            case 0x2E:  # GNU_args_size
                cursor.uleb()
            case _:
                self._register_rule(op, cursor)

    def _offset(self, factored: bool, cursor: Cursor) -> int:  # noqa: FBT001 - the two spellings of one instruction
        return cursor.sleb() * self.cie.data_align if factored else cursor.uleb()

    def _register_rule(self, op: int, cursor: Cursor) -> None:
        register = cursor.uleb()
        match op:
            case 0x05:  # offset_extended
                self.row.saved[register] = cursor.uleb() * self.cie.data_align
            case 0x11:  # offset_extended_sf
                self.row.saved[register] = cursor.sleb() * self.cie.data_align
            case 0x06:  # restore_extended
                self._restore(register)
            case 0x07:  # undefined
                self.row.saved[register] = None
            case 0x08:  # same_value
                self.row.saved.pop(register, None)
            case 0x10 | 0x16:  # expression, val_expression
                cursor.at += cursor.uleb()
                self.row.saved[register] = None
            case _:
                message = f"call-frame instruction {op:#x}"
                raise UnwindStopped(message)


def evaluate(expression: bytes, registers: Sequence[int], read: Read) -> int:
    """Return the value of an expression: linkers' for PLT entries, OCaml's between stacks."""
    cursor, stack = Cursor(expression, 0), list[int]()
    while cursor.at < len(expression):
        op = cursor.number(1)
        if 0x30 <= op <= 0x4F:  # lit
            stack.append(op - 0x30)
        elif 0x70 <= op <= 0x80:  # breg
            stack.append((registers[op - 0x70] + cursor.sleb()) & MASK)
        elif op == 0x06:  # deref
            stack.append(int(read(stack.pop(), 8).view(np.uint64)[0]))
        elif op == 0x23:  # plus_uconst
            stack.append((stack.pop() + cursor.uleb()) & MASK)
        else:
            right, left = stack.pop(), stack.pop()
            if op == 0x24:  # shl; its right side is small in every linker's text
                stack.append(left << right & MASK)
            elif op in {0x1A, 0x22, 0x2A}:
                stack.append({0x1A: left & right, 0x22: left + right, 0x2A: left >= right}[op])
            else:
                message = f"expression operator {op:#x}"
                raise UnwindStopped(message)
    return stack[-1]


@dataclass(frozen=True, slots=True)
class Table:
    """The `.eh_frame_hdr` of one module."""

    addr: int
    starts: I32  # (f,) function starts, relative to addr
    entries: I32  # (f,) FDEs, relative to addr


class Unwinder:
    """Walks stacks of one process; tables are read once."""

    def __init__(
        self,
        maps: Sequence[Mapping],
        read: Read,
        restorers: Sequence[int],
        ours: Sequence[tuple[int, int, int]] = (),
    ) -> None:
        """Take the mappings as they are, a reader, and where signal handlers return to.

        Args:
            maps: Of the process.
            read: Reads its memory.
            restorers: Where signal handlers return to.
            ours: (start, end, .eh_frame_hdr) of code that no module has; 0: stubs, which use no
                stack.
        """
        self._maps, self._read, self._ours = maps, read, ours
        self._restorers = frozenset(restorers)
        self._tables: dict[int, Table | None] = {}

    def walk(self, registers: Sequence[int]) -> tuple[list[int], bool]:
        """Return the code addresses of all frames, innermost first, and whether that is all."""
        frame = [int(registers[column]) for column in COLUMNS]
        counters = [frame[RA]]
        exact = True  # the first address is that of an instruction, the others follow a call
        try:
            while len(counters) < MAX_FRAMES:
                if frame[RA] in self._restorers:
                    words = self._read(frame[RSP], 22 * 8).view(np.uint64)
                    frame, exact = [int(words[i]) for i in UCONTEXT], True
                else:
                    step = self._step(frame, frame[RA] - (0 if exact else 1))
                    if step is None:
                        return counters, True
                    frame, exact = step, False
                counters.append(frame[RA])
        except (ReloaderError, KeyError, IndexError, ValueError):
            pass
        return counters, False

    def function_start(self, pc: int) -> int:
        """Return where the function around a piece of code begins, 0 if no table tells."""
        try:
            table = self._table(pc)
        except ReloaderError:
            return 0
        index = int(np.searchsorted(table.starts, pc - table.addr, side="right")) - 1
        return table.addr + int(table.starts[index]) if index >= 0 else 0

    def _step(self, frame: list[int], pc: int) -> list[int] | None:
        """Return the caller's registers; None at the outermost frame."""
        if not frame[RA]:
            return None
        row = self._row(pc)
        if row.saved.get(RA, 0) is None:
            return None
        if row.cfa_expression:
            cfa = evaluate(row.cfa_expression, frame, self._read)
        else:
            cfa = (frame[row.cfa_register] + row.cfa_offset) & MASK
            if cfa <= frame[RSP]:
                message = f"a stack that does not end, at {cfa:#x}"
                raise UnwindStopped(message)
        caller = list(frame)
        for register, offset in row.saved.items():
            if offset is not None and register < len(caller):
                caller[register] = int(self._read(cfa + offset, 8).view(np.uint64)[0])
        caller[RSP] = cfa
        return caller if caller[RA] else None

    def _row(self, pc: int) -> Row:
        ours = next((row for row in self._ours if row[0] <= pc < row[1]), None)
        if ours is not None and not ours[2]:
            return Row(saved={RA: -8})
        table = self._table(pc) if ours is None else self._table_of_ours(ours[2])
        index = int(np.searchsorted(table.starts, pc - table.addr, side="right")) - 1
        if index < 0:
            message = f"no unwind table entry for {pc:#x}"
            raise UnwindStopped(message)
        at = table.addr + int(table.entries[index])
        size, pointer = (int(word) for word in self._read(at, 8).view(np.uint32))
        cie_at = at + 4 - pointer
        cie_size = int(self._read(cie_at, 4).view(np.uint32)[0])
        cie = _parse_cie(self._read(cie_at + 8, cie_size - 4).tobytes(), cie_at + 8)
        cursor = Cursor(self._read(at + 8, size - 4).tobytes(), at + 8)
        start = cursor.pointer(cie.encoding)
        if pc >= start + cursor.pointer(cie.encoding & 0x0F):
            message = f"no unwind table entry for {pc:#x}"
            raise UnwindStopped(message)
        if cie.augmented:
            cursor.at += cursor.uleb()
        rules = Rules(cie, start)
        rules.run(cursor.data[cursor.at :], pc)
        return rules.row

    def _table(self, pc: int) -> Table:
        row = next((m for m in self._maps if m.start <= pc < m.end), None)
        if row is None:
            message = f"{pc:#x} is in no mapping"
            raise UnwindStopped(message)
        first = next(m for m in self._maps if m.inode == row.inode and m.name == row.name)
        base = row.start if not row.inode else first.start
        if base not in self._tables:
            self._tables[base] = self._read_table(base)
        table = self._tables[base]
        if table is None:
            message = f"no unwind tables for {row.name}"
            raise UnwindStopped(message)
        return table

    def _table_of_ours(self, header: int) -> Table:
        table = self._tables.get(header) or self._read_entries(header)
        if table is None:
            message = f"no unwind tables at {header:#x}"
            raise UnwindStopped(message)
        self._tables[header] = table
        return table

    def _read_table(self, base: int) -> Table | None:
        header = self._read(base, EHDR.itemsize).view(EHDR)[0]
        at, count = base + int(header["e_phoff"]), int(header["e_phnum"])
        phdrs = self._read(at, count * PHDR.itemsize).view(PHDR)
        rows = phdrs[phdrs["p_type"] == PT_GNU_EH_FRAME]
        if not rows.size:
            return None
        loads = phdrs[phdrs["p_type"] == 1]
        bias = base - int(loads["p_vaddr"][0]) + int(loads["p_offset"][0])
        return self._read_entries(bias + int(rows["p_vaddr"][0]))

    def _read_entries(self, addr: int) -> Table | None:
        head = self._read(addr, 12)
        if head[:4].tobytes() != b"\x01\x1b\x03\x3b":  # the only form that linkers write
            return None
        size = int(head[8:12].view(np.uint32)[0])
        table = self._read(addr + 12, size * 8).view(np.int32).reshape(-1, 2)
        return Table(addr, table[:, 0].copy(), table[:, 1].copy())
