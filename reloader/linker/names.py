"""Where undefined names lead: to what the user defined, the host process, or nowhere."""

import difflib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from reloader.elf.image import read_image
from reloader.ids import NO_ADDR, NO_ROW
from reloader.link.passes.resolve import Definitions, SymbolSource

_LIBRARY_STEP = 1 << 32  # between the made-up addresses of two libraries
_FIRST_LIBRARY = 0x7F00_0000_0000


@dataclass(slots=True)
class Names:
    """A SymbolSource: the user's own definitions, before those of the process."""

    absolutes: Mapping[bytes, int] = field(default_factory=dict[bytes, int])
    aliases: Mapping[bytes, bytes] = field(default_factory=dict[bytes, bytes])
    process: SymbolSource | None = None  # None: nothing is executed
    phony: bool = False  # what is defined nowhere is at address 0
    # names that the objects define: a weak one is asked for, but is not nowhere
    defined: Collection[bytes] = ()

    def find(self, names: Sequence[bytes]) -> Definitions:
        """Return what each name means."""
        real = [self.aliases.get(name, name) for name in names]
        found = self.process.find(real) if self.process else _nothing(len(names))
        given = np.array([name in self.absolutes for name in real], np.bool_)
        value = np.array([self.absolutes.get(n, 0) & NO_ADDR for n in real], np.uint64)
        known = given | found.found
        nowhere = np.array([name not in self.defined for name in names], np.bool_)
        phony = ~known & nowhere & self.phony
        addr = np.where(given, value, found.addr)
        addr[phony] = 0
        return Definitions(
            found=known | phony,
            addr=addr.astype(np.uint64),
            slot=np.where(given, NO_ROW, found.slot).astype(np.int32),
            type=np.where(given, 0, found.type).astype(np.uint8),
            size=np.where(given, 0, found.size).astype(np.uint64),
        )

    def nearest(self, name: bytes) -> list[bytes]:
        """Return up to three known names that look like this one."""
        words = [known.decode("utf-8", "replace") for known in self.absolutes]
        close = difflib.get_close_matches(name.decode("utf-8", "replace"), words, 3, 0.75)
        own = [word.encode() for word in close]
        return own + (self.process.nearest(name) if self.process else [])


def _nothing(count: int) -> Definitions:
    return Definitions(
        found=np.zeros(count, np.bool_),
        addr=np.full(count, NO_ADDR, np.uint64),
        slot=np.full(count, NO_ROW, np.int32),
        type=np.zeros(count, np.uint8),
        size=np.zeros(count, np.uint64),
    )


def exported_names(libraries: Sequence[str]) -> dict[bytes, int]:
    """Return made-up addresses for what shared libraries export, where nothing is executed."""
    found: dict[bytes, int] = {}
    for row, path in enumerate(libraries):
        data = np.frombuffer(Path(path).read_bytes(), np.uint8)
        table = read_image(data, _FIRST_LIBRARY + row * _LIBRARY_STEP, path).dynsym
        for at in np.flatnonzero((table.section != 0) & (table.binding != 0)).tolist():
            found.setdefault(table.name[at], int(table.addr[at]))
    return found
