"""x86-64: what a relocated field of a linked image says about its symbol.

A linker may have rewritten the instruction around the field, so the bytes decide how it is read:

    object                          linked                           field
    mov foo@GOTPCREL(%rip), %r      lea foo(%rip), %r                in place, S + A - P
    mov foo@GOTPCREL(%rip), %r      mov $foo, %r (also test, binop)  in place, S
    call *foo@GOTPCREL(%rip)        addr32 call foo                  in place, S + A - P
    jmp *foo@GOTPCREL(%rip)         jmp foo; nop                     one byte earlier
    mov x@gottpoff(%rip), %r        mov $x@tpoff, %r (also add)      in place, T
    lea x@tlsgd(%rip); call         mov %fs:0; lea x@tpoff(%r), %r   eight bytes later

Whatever is not in this table stays undecoded; it is never guessed.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from reloader.arch.base import Table
from reloader.ids import I64, U8, Bool

LEA, CALL, ADDR32, JMP, FS = 0x8D, 0xE8, 0x67, 0xE9, 0x64
GROUP5 = 0xFF  # call *, jmp *
IMMEDIATE = (0xC7, 0x81, 0xF7)  # mov, binop, test with imm32
TLSGD_FIELD = 8  # from the object's field to the linked one


@dataclass(slots=True)
class LinkedFields:
    """(r,) columns."""

    target: I64  # S; for a thread-local variable its offset from the thread pointer
    known: Bool  # False: the field does not tell
    got: Bool  # `target` is the address of the GOT entry that holds S
    tls: Bool
    field: I64  # index in memory of the field as linked


def read_fields(  # noqa: PLR0913  columns of one table
    memory: U8, low: int, content: U8, kinds: NDArray[np.void], kind: I64, at: I64,
    original: I64, addend: I64,
) -> LinkedFields:  # fmt: skip
    """Solve each field's formula for its symbol.

    Args:
        memory: The linked image's bytes.
        low: The address of memory[0].
        content: The bytes of the objects' sections.
        kinds: (k,) KIND.
        kind: (r,) row of `kinds`.
        at: (r,) index in memory of the place that the relocation names.
        original: (r,) index of the same place in content.
        addend: (r,) A.
    """
    count = len(at)
    fields = LinkedFields(
        np.zeros(count, np.int64), np.zeros(count, np.bool_), np.zeros(count, np.bool_),
        np.zeros(count, np.bool_), at.copy(),
    )  # fmt: skip
    formula, width, table = kinds["formula"], kinds["width"], kinds["table"]
    relative = np.isin(formula, ["S + A - P", "L + A - P"])
    for size, signed in ((4, True), (4, False), (8, True)):
        same = (width == size) & ((kinds["signed"] == signed) | (size == 8))
        rows = np.flatnonzero((relative & same)[kind])
        value = _load(memory, at[rows], size, signed=signed)
        fields.target[rows] = value + at[rows] + low - addend[rows]
        fields.known[rows] = True
        rows = np.flatnonzero((np.isin(formula, ["S + A", "T + A"]) & same)[kind])
        value = _load(memory, at[rows], size, signed=signed)
        fields.target[rows] = value - addend[rows]
        fields.known[rows] = True
    fields.tls = (formula == "T + A")[kind]
    rows = np.flatnonzero(((table == Table.GOT) & (formula == "G + GOT + A - P"))[kind])
    _read_got(fields, memory, low, content, rows, at, original, addend)
    rows = np.flatnonzero((table == Table.TLS_IE)[kind])
    _read_initial_exec(fields, memory, content, rows, at, original, addend)
    rows = np.flatnonzero((table == Table.TLS_GD)[kind])
    _read_general_dynamic(fields, memory, rows, at, addend)
    return fields


def _read_got(  # noqa: PLR0913  columns of one table
    fields: LinkedFields, memory: U8, low: int, content: U8, rows: I64, at: I64,
    original: I64, addend: I64,
) -> None:  # fmt: skip
    """Fill in the GOT loads and calls, relaxed or not."""
    place, before = at[rows], original[rows]
    opcode, modrm = _byte(memory, place - 2), _byte(memory, place - 1)
    old_opcode, old_modrm = _byte(content, before - 2), _byte(content, before - 1)
    kept = (opcode == old_opcode) & (modrm == old_modrm)
    jump = (old_opcode == GROUP5) & (opcode == JMP)
    call = (old_opcode == GROUP5) & (opcode == ADDR32) & (modrm == CALL)
    immediate = ~kept & np.isin(opcode, IMMEDIATE) & (modrm >= 0xC0)
    relative = kept | call | jump | ((opcode == LEA) & ~kept)
    field = place - jump
    value = _load(memory, field, 4, signed=True)
    # an immediate holds S itself; the -4 of a displacement's addend has no meaning there
    target = np.where(relative, value + field + low - addend[rows], value - addend[rows] - 4)
    fields.target[rows] = target
    fields.known[rows] = relative | immediate
    fields.got[rows] = kept
    fields.field[rows] = field


def _read_initial_exec(  # noqa: PLR0913  columns of one table
    fields: LinkedFields, memory: U8, content: U8, rows: I64, at: I64, original: I64,
    addend: I64,
) -> None:  # fmt: skip
    """Fill in thread-local accesses that were relaxed from the GOT to an immediate."""
    place, before = at[rows], original[rows]
    opcode, modrm = _byte(memory, place - 2), _byte(memory, place - 1)
    changed = (opcode != _byte(content, before - 2)) | (modrm != _byte(content, before - 1))
    immediate = (np.isin(opcode, IMMEDIATE) & (modrm >= 0xC0)) | (
        (opcode == LEA) & (modrm >= 0x80) & (modrm < 0xC0)
    )
    fields.target[rows] = _load(memory, place, 4, signed=True) - addend[rows] - 4
    fields.known[rows] = changed & immediate
    fields.tls[rows] = True


def _read_general_dynamic(
    fields: LinkedFields, memory: U8, rows: I64, at: I64, addend: I64
) -> None:
    """Fill in `__tls_get_addr` sequences that were relaxed to local-exec."""
    place = at[rows]
    fields.field[rows] = place + TLSGD_FIELD
    value = _load(memory, place + TLSGD_FIELD, 4, signed=True)
    fields.target[rows] = value - addend[rows] - 4
    lea = _byte(memory, place + TLSGD_FIELD - 2) == LEA
    fields.known[rows] = lea & (_byte(memory, place - 4) == FS)
    fields.tls[rows] = True


def _byte(content: U8, index: I64) -> U8:
    return content[np.clip(index, 0, len(content) - 1)]


def _load(memory: U8, at: I64, size: int, *, signed: bool) -> I64:
    """Read little-endian fields; those beyond the end read as the last bytes."""
    index = np.clip(at, 0, len(memory) - size)[:, None] + np.arange(size)
    word = memory[index].reshape(-1).view(f"<{'i' if signed else 'u'}{size}")
    return word.astype(np.int64)
