"""x86-64: what a relocated field of a linked image says about its symbol.

A linker may have rewritten the instruction around the field, so its bytes decide how to read
it:

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


@dataclass(slots=True)
class Places:
    """(r,) columns: relocations, in the object and in the image."""

    memory: U8  # the linked image's bytes
    low: int  # the address of memory[0]
    content: U8  # the bytes of the objects' sections
    kind: I64  # row of the kind table
    at: I64  # index in memory of the place that the relocation names
    original: I64  # index in content of the same place
    addend: I64  # A


def read_fields(places: Places, kinds: NDArray[np.void]) -> LinkedFields:
    """Solve each field's formula for its symbol."""
    count = len(places.at)
    formula, table, kind = kinds["formula"], kinds["table"], places.kind
    fields = LinkedFields(
        target=np.zeros(count, np.int64),
        known=np.zeros(count, np.bool_),
        got=np.zeros(count, np.bool_),
        tls=(formula == "T + A")[kind],
        field=places.at.copy(),
    )
    _read_plain(fields, places, kinds)
    loads = (table == Table.GOT) & (formula == "G + GOT + A - P") & (kinds["width"] == 4)
    _read_got(fields, places, np.flatnonzero(loads[kind]))
    _read_initial_exec(fields, places, np.flatnonzero((table == Table.TLS_IE)[kind]))
    _read_general_dynamic(fields, places, np.flatnonzero((table == Table.TLS_GD)[kind]))
    return fields


def _read_plain(fields: LinkedFields, places: Places, kinds: NDArray[np.void]) -> None:
    """Fill in the fields that no linker moves or rewrites."""
    relative = np.isin(kinds["formula"], ["S + A - P", "L + A - P"])
    plain = relative | np.isin(kinds["formula"], ["S + A", "T + A"])
    for size, signed in ((4, True), (4, False), (8, True)):
        wide = (kinds["width"] == size) & ((kinds["signed"] == signed) | (size == 8))
        rows = np.flatnonzero((plain & wide)[places.kind])
        at = places.at[rows]
        value = _load(places.memory, at, size, signed=signed)
        origin = np.where(relative[places.kind[rows]], at + places.low, 0)
        fields.target[rows] = value + origin - places.addend[rows]
        fields.known[rows] = True


def _read_got(fields: LinkedFields, places: Places, rows: I64) -> None:
    """Fill in the GOT loads and calls, relaxed or not."""
    at, before = places.at[rows], places.original[rows]
    opcode, modrm = _byte(places.memory, at - 2), _byte(places.memory, at - 1)
    old_opcode = _byte(places.content, before - 2)
    kept = (opcode == old_opcode) & (modrm == _byte(places.content, before - 1))
    jump = (old_opcode == GROUP5) & (opcode == JMP)
    call = (old_opcode == GROUP5) & (opcode == ADDR32) & (modrm == CALL)
    immediate = ~kept & np.isin(opcode, IMMEDIATE) & (modrm >= 0xC0)
    relative = kept | call | jump | ((opcode == LEA) & ~kept)
    field = at - jump
    value = _load(places.memory, field, 4, signed=True)
    # an immediate holds S itself; the -4 of a displacement's addend has no meaning there
    origin = np.where(relative, field + places.low, -4)
    fields.target[rows] = value + origin - places.addend[rows]
    fields.known[rows] = relative | immediate
    fields.got[rows] = kept
    fields.field[rows] = field


def _read_initial_exec(fields: LinkedFields, places: Places, rows: I64) -> None:
    """Fill in thread-local accesses that were relaxed from the GOT to an immediate."""
    at, before = places.at[rows], places.original[rows]
    opcode, modrm = _byte(places.memory, at - 2), _byte(places.memory, at - 1)
    kept = (opcode == _byte(places.content, before - 2)) & (
        modrm == _byte(places.content, before - 1)
    )
    immediate = (np.isin(opcode, IMMEDIATE) & (modrm >= 0xC0)) | (
        (opcode == LEA) & (modrm >= 0x80) & (modrm < 0xC0)
    )
    value = _load(places.memory, at, 4, signed=True)
    fields.target[rows] = value - places.addend[rows] - 4
    fields.known[rows] = ~kept & immediate
    fields.tls[rows] = True


def _read_general_dynamic(fields: LinkedFields, places: Places, rows: I64) -> None:
    """Fill in `__tls_get_addr` sequences that were relaxed to local-exec."""
    field = places.at[rows] + TLSGD_FIELD
    value = _load(places.memory, field, 4, signed=True)
    fields.field[rows] = field
    fields.target[rows] = value - places.addend[rows] - 4
    lea = _byte(places.memory, field - 2) == LEA
    fields.known[rows] = lea & (_byte(places.memory, places.at[rows] - 4) == FS)
    fields.tls[rows] = True


def _byte(content: U8, index: I64) -> U8:
    return content[np.clip(index, 0, len(content) - 1)]


def _load(memory: U8, at: I64, size: int, *, signed: bool) -> I64:
    """Read little-endian fields; those beyond the end read as the last bytes."""
    index = np.clip(at, 0, len(memory) - size)[:, None] + np.arange(size)
    word = memory[index].reshape(-1).view(f"<{'i' if signed else 'u'}{size}")
    return word.astype(np.int64)
