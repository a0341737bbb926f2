"""LiveObject: what a watched object is in the running process right now.

For generation 0 it comes from the baseline; each reload makes a new one. It describes the
newest version of the file that
is live, with the address of each of its sections, kept ones included, so the next diff needs
nothing else.
"""

from dataclasses import dataclass

import numpy as np

from reloader.elf.object import ObjectFile
from reloader.ids import I32, U64, Generation


@dataclass(frozen=True, slots=True, eq=False)
class DataMap:
    """(m,) columns, sorted by section, then offset: where writable bytes of an object live.

    A baseline has one row a section. After a layout change there is one row for each run of
    variables that stayed together.
    COMMON symbols stand as rows of section `elf.object.COMMON` with the symbol's index as
    offset.
    """

    section: I32
    offset: U64  # in the section as this version of the file lays it out
    size: U64  # bytes
    addr: U64  # in the target

    def find(self, section: int, offset: int) -> int:
        """Return the address of a byte of a writable section, or NO_ADDR if it is in no row."""
        first, last = (int(i) for i in np.searchsorted(self.section, [section, section + 1]))
        rows = self.offset[first:last]
        row = first + int(np.searchsorted(rows, offset, side="right")) - 1
        if row < first or offset >= int(self.offset[row]) + int(self.size[row]):
            return 0xFFFF_FFFF_FFFF_FFFF
        return int(self.addr[row]) + offset - int(self.offset[row])


@dataclass(frozen=True, slots=True, eq=False)
class LiveObject:
    """One version of one object, live."""

    file: ObjectFile
    # the one that made this version live; 0: the executable was linked with it
    generation: Generation
    # (s,) address of each section's single copy, or NO_ADDR (not loaded, merged, split,
    # unplaced)
    section_addr: U64
    symbol_addr: U64  # (n,) canonical address of each defined symbol, or NO_ADDR
    symbol_slot: I32  # (n,) SlotId of each function that has a stub, or NO_ROW
    data: DataMap
