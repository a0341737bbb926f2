"""What an architecture provides.

Everything a CPU decides stands in one file beside this one, mostly as data.
"""

from dataclasses import dataclass
from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray

from reloader.ids import I32, I64, U8, U64, Bool

KIND: Final = np.dtype(
    [
        ("name", "U24"),  # `R_X86_64_PC32`
        ("number", "<u2"),  # r_type
        ("formula", "U16"),  # psABI letters: `S + A - P`
        ("width", "u1"),  # bytes written; 0: a marker
        ("signed", "?"),  # range check: signed, else unsigned; both limits are those of `width`
        ("checked", "?"),  # False: wraps silently by definition (64-bit fields)
        ("pc", "?"),  # relative to the field's own address
        ("branch", "?"),  # the field of a call or jump: may go through the stub
        ("table", "u1"),  # Table: what the edge asks to be built
        # first byte a linker may rewrite, relative to the field (-3 for REX_GOTPCRELX)
        ("mask_before", "i1"),
        # one past the last byte a linker may rewrite, relative to the field
        ("mask_after", "u1"),
    ]
)


class Table:
    """What an edge asks for; values of the kind table's `table` column."""

    NONE = 0
    GOT = 1  # an 8-byte entry holding the symbol's address
    GOT_BASE = 2  # the address of the GOT itself
    PLT = 3  # a stub, even for a local symbol
    TLS_GD = 4
    TLS_LD = 5
    TLS_IE = 6  # a GOT entry holding the offset from the thread pointer
    TLS_DESC = 7


@dataclass(frozen=True, slots=True, eq=False)
class Rewritten:
    """(e,) columns: what became of fields whose instructions were rewritten."""

    done: Bool  # False: not a sequence we know; its bytes are untouched
    kind: I32  # row of the kind table
    shift: I64  # bytes the field moved
    addend: I64  # what the addend changed by
    # place in content of a second field that the rewriting made void (the call), or NO_ROW
    void: I64


@dataclass(frozen=True, slots=True)
class FarAccess:
    """Another form of an instruction, for a variable that its displacement does not reach."""

    site: bytes  # replaces the instruction, as long as it was
    site_field: int  # offset of the field in it: a jump to the thunk, or a GOT load itself
    got_kind: int  # row of the kind table: a pc-relative field that goes through the GOT
    thunk: bytes = b""  # code elsewhere; empty: the site does it all
    thunk_got: int = 0  # offset of the field that goes through the GOT
    thunk_back: int = 0  # offset of the field of the jump back behind the site


@dataclass(frozen=True, slots=True)
class Shim:
    """A small function that the linker adds to an object."""

    code: bytes
    # (offset of a 4-byte field at the end of its instruction, row of the kind table, symbol)
    fields: tuple[tuple[int, int, bytes], ...]


class Architecture(Protocol):
    """One CPU."""

    name: str  # `x86-64`
    machine: int  # e_machine
    kinds: NDArray[np.void]  # (k,) KIND
    kind_of_number: NDArray[np.int32]  # (max number + 1,) row of `kinds`, or NO_ROW
    shims: dict[bytes, Shim]  # what the C library leaves to the linker, by name
    far_jump: Shim  # leads on through a GOT entry, whose symbol is that of its only field
    stub_size: int
    trap: bytes  # fills freed code and the gaps between functions
    capstone: tuple[int, int]  # arguments of capstone.Cs
    # rows of `kinds` that the linker itself makes edges of:
    pc32: int  # a 4-byte pc-relative operand
    word: int  # an 8-byte address: a GOT entry
    far_kinds: tuple[int, ...]  # operands that `far_access` may have another form for
    thread_word: int  # an 8-byte offset from the thread pointer: a GOT entry

    def write_stubs(self, stubs: U8, stub_addr: U64, slot_addr: U64) -> None:
        """Write (n, stub_size) jumps through slots."""
        ...

    def is_branch(self, content: U8, field: I64) -> Bool:
        """Return (e,) whether the field at a content offset belongs to a call, jmp or jcc."""
        ...

    def is_lea(self, content: U8, field: I64) -> Bool:
        """Return (e,) whether a field is the operand of one that takes an address."""
        ...

    def ends_instruction(self, content: U8, field: I64) -> Bool:
        """Return (e,) whether a pc-relative field is surely the last of its instruction."""
        ...

    def lea_fields(self, content: U8) -> I64:
        """Return every place in content that looks like the operand of such an instruction."""
        ...

    def instruction_lengths(self, code: U8) -> U8:
        """Return (n,) the length of an instruction at each byte; 0: not surely known."""
        ...

    def rewrite_thread_local(self, content: U8, field: I64, table: U8) -> Rewritten:
        """Turn dynamic thread-local sequences into ones with a known offset (local-exec)."""
        ...

    def plan_got(self, content: U8, field: I64) -> Rewritten:
        """Say what each access through a GOT entry would become without the entry."""
        ...

    def rewrite_got(self, content: U8, field: I64) -> None:
        """Do what `plan_got` said, for fields that it knows."""
        ...

    def far_access(self, instruction: bytes, field: int) -> FarAccess | None:
        """Return another form of an instruction with its operand at `field`, or None."""
        ...
