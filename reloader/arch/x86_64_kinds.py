"""The kinds of x86-64 relocations, as data (x86-64 psABI 1.0, section 4.4).

The mask columns say how far a linker may rewrite the instruction around a field, which is
what a comparison with a linked image has to ignore: `mov foo@GOTPCREL(%rip)` becomes `lea` or
`mov $imm`, `call *` becomes `addr32 call`, `jmp *` becomes `jmp rel32; nop` with the field
one byte earlier.

Letters beside the psABI's own: T is the symbol's offset from the thread pointer, which is also
what a linker stores for DTPOFF once the sequence around it was relaxed to local-exec. Absolute
fields of 8 and 16 bits accept both readings, -2**(n-1) to 2**n-1, as GNU ld does.
"""

from typing import Final

import numpy as np
from numpy.typing import NDArray

from reloader.arch.base import KIND, Table
from reloader.ids import NO_ROW

_NONE, _GOT, _BASE, _PLT = Table.NONE, Table.GOT, Table.GOT_BASE, Table.PLT
_GD, _LD, _IE, _DESC = Table.TLS_GD, Table.TLS_LD, Table.TLS_IE, Table.TLS_DESC

# fmt: off
_ROWS: Final = [
    # name, number, formula, width, signed, checked, pc, branch, table, mask_before, mask_after
    ("R_X86_64_NONE", 0, "", 0, False, False, False, False, _NONE, 0, 0),
    ("R_X86_64_64", 1, "S + A", 8, False, False, False, False, _NONE, 0, 8),
    ("R_X86_64_PC32", 2, "S + A - P", 4, True, True, True, False, _NONE, 0, 4),
    ("R_X86_64_GOT32", 3, "G + A", 4, True, True, False, False, _GOT, 0, 4),
    ("R_X86_64_PLT32", 4, "L + A - P", 4, True, True, True, True, _PLT, 0, 4),
    ("R_X86_64_GOTPCREL", 9, "G + GOT + A - P", 4, True, True, True, False, _GOT, -2, 4),
    ("R_X86_64_32", 10, "S + A", 4, False, True, False, False, _NONE, 0, 4),
    ("R_X86_64_32S", 11, "S + A", 4, True, True, False, False, _NONE, 0, 4),
    ("R_X86_64_16", 12, "S + A", 2, False, True, False, False, _NONE, 0, 2),
    ("R_X86_64_PC16", 13, "S + A - P", 2, True, True, True, False, _NONE, 0, 2),
    ("R_X86_64_8", 14, "S + A", 1, False, True, False, False, _NONE, 0, 1),
    ("R_X86_64_PC8", 15, "S + A - P", 1, True, True, True, False, _NONE, 0, 1),
    ("R_X86_64_DTPOFF64", 17, "T + A", 8, True, False, False, False, _NONE, 0, 8),
    ("R_X86_64_TPOFF64", 18, "T + A", 8, True, False, False, False, _NONE, 0, 8),
    ("R_X86_64_TLSGD", 19, "G + GOT + A - P", 4, True, True, True, False, _GD, -4, 12),
    ("R_X86_64_TLSLD", 20, "G + GOT + A - P", 4, True, True, True, False, _LD, -3, 9),
    ("R_X86_64_DTPOFF32", 21, "T + A", 4, True, True, False, False, _NONE, 0, 4),
    ("R_X86_64_GOTTPOFF", 22, "G + GOT + A - P", 4, True, True, True, False, _IE, -3, 4),
    ("R_X86_64_TPOFF32", 23, "T + A", 4, True, True, False, False, _NONE, 0, 4),
    ("R_X86_64_PC64", 24, "S + A - P", 8, True, False, True, False, _NONE, 0, 8),
    ("R_X86_64_GOTOFF64", 25, "S + A - GOT", 8, True, False, False, False, _BASE, 0, 8),
    ("R_X86_64_GOTPC32", 26, "GOT + A - P", 4, True, True, True, False, _BASE, 0, 4),
    ("R_X86_64_GOT64", 27, "G + A", 8, True, False, False, False, _GOT, 0, 8),
    ("R_X86_64_GOTPCREL64", 28, "G + GOT + A - P", 8, True, False, True, False, _GOT, 0, 8),
    ("R_X86_64_GOTPC64", 29, "GOT + A - P", 8, True, False, True, False, _BASE, 0, 8),
    ("R_X86_64_GOTPLT64", 30, "G + A", 8, True, False, False, False, _GOT, 0, 8),
    ("R_X86_64_PLTOFF64", 31, "L + A - GOT", 8, True, False, False, True, _BASE, 0, 8),
    ("R_X86_64_SIZE32", 32, "Z + A", 4, False, True, False, False, _NONE, 0, 4),
    ("R_X86_64_SIZE64", 33, "Z + A", 8, False, False, False, False, _NONE, 0, 8),
    ("R_X86_64_GOTPC32_TLSDESC", 34, "G + GOT + A - P", 4, True, True, True, False, _DESC,
     -3, 4),
    ("R_X86_64_TLSDESC_CALL", 35, "", 0, False, False, False, False, _DESC, 0, 2),
    ("R_X86_64_GOTPCRELX", 41, "G + GOT + A - P", 4, True, True, True, False, _GOT, -2, 4),
    ("R_X86_64_REX_GOTPCRELX", 42, "G + GOT + A - P", 4, True, True, True, False, _GOT, -3, 4),
]
# fmt: on
KINDS: Final[NDArray[np.void]] = np.array(_ROWS, dtype=KIND)

NAMES: Final[list[str]] = [str(name) for name in KINDS["name"]]


def kind(name: str) -> int:
    """Return the row of a kind by its name without `R_X86_64_`."""
    return NAMES.index("R_X86_64_" + name)


def _rows_by_number() -> NDArray[np.int32]:
    numbers = KINDS["number"].astype(np.int64)
    rows = np.full(int(numbers.max()) + 1, NO_ROW, np.int32)
    rows[numbers] = np.arange(len(KINDS), dtype=np.int32)
    return rows


NUMBERS: Final = _rows_by_number()  # row of each relocation number
