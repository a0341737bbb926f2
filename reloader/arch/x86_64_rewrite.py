"""x86-64 instruction sequences that a linker may rewrite once it knows the addresses.

Thread-local sequences are those of the psABI's chapter on TLS (section "Linker
optimisation"); a GOT load or call becomes direct where the symbol is near ("Optimize
GOTPCRELX relocations"). Every function works on columns: one row a field, `field` its place
in the content.
"""

from typing import Final

import numpy as np

from reloader.arch.base import Rewritten, Table
from reloader.arch.x86_64_kinds import kind
from reloader.ids import I64, NO_ROW, U8, Bool

_NONE, _TPOFF32, _PC32, _PLT32 = (kind(n) for n in ("NONE", "TPOFF32", "PC32", "PLT32"))
_TO_NEXT: Final = 4  # from a pc-relative field to the end of its instruction


def _at(content: U8, field: I64, pattern: str, offset: int) -> Bool:
    """Return (e,) whether the bytes at field + offset are those of a hex pattern, `..` any."""
    same = (field + offset >= 0) & (field + offset + len(pattern.split()) <= len(content))
    for step, byte in enumerate(pattern.split()):
        if byte != "..":
            place = np.clip(field + offset + step, 0, len(content) - 1)
            same &= content[place] == int(byte, 16)
    return same


def _put(content: U8, field: I64, pattern: str, offset: int) -> None:
    data = np.frombuffer(bytes.fromhex(pattern), np.uint8)
    content[field[:, None] + (offset + np.arange(len(data)))] = data


def thread_local(content: U8, field: I64, table: U8) -> Rewritten:
    """Rewrite general-dynamic, local-dynamic and TLSDESC sequences to local-exec."""
    count = len(field)
    out = Rewritten(
        done=np.zeros(count, np.bool_),
        kind=np.full(count, _NONE, np.int32),
        shift=np.zeros(count, np.int64),
        addend=np.zeros(count, np.int64),
        void=np.full(count, NO_ROW, np.int64),
    )
    _general(content, field, table == Table.TLS_GD, out)
    _local(content, field, table == Table.TLS_LD, out)
    _descriptor(content, field, table == Table.TLS_DESC, out)
    return out


def _general(content: U8, field: I64, among: Bool, out: Rewritten) -> None:
    """`lea x@tlsgd, %rdi; call __tls_get_addr` -> `mov %fs:0, %rax; lea x@tpoff(%rax)`."""
    head = among & _at(content, field, "66 48 8d 3d", -4)
    direct = _at(content, field, "66 66 48 e8", 4)
    through_got = _at(content, field, "66 48 ff 15", 4)
    rows = np.flatnonzero(head & (direct | through_got))
    _put(content, field[rows], "64 48 8b 04 25 00 00 00 00  48 8d 80 00 00 00 00", -4)
    out.done[rows], out.kind[rows] = True, _TPOFF32
    out.shift[rows], out.addend[rows] = 8, _TO_NEXT
    out.void[rows] = field[rows] + 8


def _local(content: U8, field: I64, among: Bool, out: Rewritten) -> None:
    """`lea x@tlsld, %rdi; call __tls_get_addr` -> `mov %fs:0, %rax`, as long as it was."""
    head = among & _at(content, field, "48 8d 3d", -3)
    rows = np.flatnonzero(head & _at(content, field, "e8", 4))
    _put(content, field[rows], "66 66 66 64 48 8b 04 25 00 00 00 00", -3)
    out.done[rows], out.void[rows] = True, field[rows] + 5
    rows = np.flatnonzero(head & _at(content, field, "ff 15", 4))
    _put(content, field[rows], "66 66 66 66 64 48 8b 04 25 00 00 00 00", -3)
    out.done[rows], out.void[rows] = True, field[rows] + 6


def _descriptor(content: U8, field: I64, among: Bool, out: Rewritten) -> None:
    """`lea x@tlsdesc, %reg; call *x@tlscall(%reg)` -> `mov $x@tpoff, %reg; xchg %ax, %ax`."""
    wide = _at(content, field, "48 8d", -3) | _at(content, field, "4c 8d", -3)
    # The call's relocation stands at its first byte, the other's at a displacement.
    call = among & _at(content, field, "ff", 0) & ~wide
    rows = np.flatnonzero(call & (content[field + 1] & np.uint8(0xF8) == 0x10))
    _put(content, field[rows], "66 90", 0)
    out.done[rows] = True
    rows = np.flatnonzero(among & wide)
    place = field[rows]
    register = (content[place - 1] >> np.uint8(3)) & np.uint8(7)
    content[place - 3] = np.where(content[place - 3] == 0x4C, 0x49, 0x48)  # REX.R -> REX.B
    content[place - 2] = 0xC7
    content[place - 1] = np.uint8(0xC0) | register
    out.done[rows], out.kind[rows], out.addend[rows] = True, _TPOFF32, _TO_NEXT


def _got_forms(content: U8, field: I64) -> tuple[Bool, Bool, Bool]:
    """Return which fields are those of `mov`, `call *` and `jmp *`."""
    call = _at(content, field, "ff 15", -2)
    jump = _at(content, field, "ff 25", -2)
    modrm = content[np.maximum(field - 1, 0)]
    load = _at(content, field, "8b", -2) & ((modrm & np.uint8(0xC7)) == 0x05)
    return load, call, jump


def plan_got(content: U8, field: I64) -> Rewritten:
    """Say what each load or call through a GOT entry would become."""
    load, call, jump = _got_forms(content, field)
    return Rewritten(
        done=load | call | jump,
        kind=np.where(load, _PC32, _PLT32).astype(np.int32),
        shift=np.where(jump, -1, 0).astype(np.int64),
        addend=np.zeros(len(field), np.int64),
        void=np.full(len(field), NO_ROW, np.int64),
    )


def rewrite_got(content: U8, field: I64) -> None:
    """Turn `mov` into `lea`, `call *` into `addr32 call`, `jmp *` into `jmp; nop`."""
    load, call, jump = (np.flatnonzero(form) for form in _got_forms(content, field))
    content[field[load] - 2] = 0x8D
    _put(content, field[call], "67 e8", -2)
    _put(content, field[jump], "e9 00 00 00 00 90", -2)
