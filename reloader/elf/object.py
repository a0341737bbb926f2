"""ObjectFile: one relocatable object as an immutable snapshot of columns.

Everything above the reader works on this; a file on disk may change again without harm.
"""

from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from reloader.elf.fingerprint import Fingerprint
from reloader.ids import I32, U8, U32

UNDEFINED: Final = -1  # symbol_sections: defined elsewhere (SHN_UNDEF)
ABSOLUTE: Final = -2  # symbol_sections: the value is the address (SHN_ABS)
COMMON: Final = -3  # symbol_sections: the value is the alignment (SHN_COMMON)


@dataclass(frozen=True, slots=True, eq=False)
class ObjectFile:
    """A relocatable object or archive member.

    All tables are views into `data` where the file's own layout allows it. Index 0 of sections
    and symbols is the
    null entry, as in the file, so indices agree with readelf.
    """

    path: str  # absolute path of the file
    member: str  # archive member name, "" for a plain object
    fingerprint: Fingerprint  # of `data`
    data: U8  # (size,) the bytes, read-only
    machine: int  # e_machine
    sections: NDArray[np.void]  # (s,) SHDR
    section_names: list[bytes]  # (s,)
    symbols: NDArray[np.void]  # (n,) SYM
    symbol_names: list[bytes]  # (n,) section symbols carry their section's name
    # (n,) section index, or UNDEFINED, ABSOLUTE, COMMON; SHN_XINDEX already resolved
    symbol_sections: I32
    # (r,) RELA of every table, tables one after the other, in file order
    relocations: NDArray[np.void]
    relocation_sections: I32  # (r,) the section each relocation patches
    group_sections: I32  # (s,) the SHT_GROUP section a section belongs to, or 0
    group_signatures: dict[int, bytes]  # COMDAT group section -> its signature symbol's name
    # the same for versions that share all of these but `data` (see `alike`)
    tables: object = field(default_factory=object, init=False, repr=False)

    @property
    def name(self) -> str:
        """The object as shown to people: `path` or `path(member)`."""
        return f"{self.path}({self.member})" if self.member else self.path

    @property
    def digest(self) -> str:
        """The bytes' name: hex blake2b-128 of `data`."""
        return self.fingerprint.hex()

    @property
    def key(self) -> tuple[str, str]:
        """What stays the same over the object's versions: (path, member)."""
        return (self.path, self.member)

    def section_bytes(self, section: int) -> U8:
        """Return the bytes of a section; empty for SHT_NOBITS."""
        header: Any = self.sections[section]
        if header["sh_type"] == 8:  # SHT_NOBITS
            return self.data[:0]
        start = int(header["sh_offset"])
        return self.data[start : start + int(header["sh_size"])]

    def bindings(self) -> U8:
        """Return (n,) STB_* of every symbol."""
        return self.symbols["st_info"].astype(np.uint8) >> np.uint8(4)

    def types(self) -> U8:
        """Return (n,) STT_* of every symbol."""
        return self.symbols["st_info"].astype(np.uint8) & np.uint8(15)

    def defined_in(self, section: int) -> U32:
        """Return the indices of the symbols defined in a section."""
        return np.flatnonzero(self.symbol_sections == section).astype(np.uint32)
