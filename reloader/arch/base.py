"""What an architecture provides.

Everything a CPU decides stands in one file beside this one, mostly as data.
"""

from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray

from reloader.ids import I64, U8, U64, Bool

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


class Architecture(Protocol):
    """One CPU."""

    name: str  # `x86-64`
    machine: int  # e_machine
    kinds: NDArray[np.void]  # (k,) KIND
    kind_of_number: NDArray[np.int32]  # (max number + 1,) row of `kinds`, or NO_ROW
    stub_size: int
    trap: bytes  # fills freed code and the gaps between functions
    capstone: tuple[int, int]  # arguments of capstone.Cs

    def write_stubs(self, stubs: U8, stub_addr: U64, slot_addr: U64) -> None:
        """Write (n, stub_size) jumps through slots."""
        ...

    def entry_jump(self, at: int, to: int) -> bytes:
        """Return the jump that replaces a function's first bytes.

        Raises FixupRangeError beyond its reach.
        """
        ...

    def is_branch(self, content: U8, field: I64) -> Bool:
        """Return (e,) whether the field at a content offset belongs to a call, jmp or jcc."""
        ...
