"""The names of all sections of a transaction, searched at once.

A call a name is ten times slower, and objects built with -ffunction-sections have tens of
thousands of sections.
"""

import re
from collections.abc import Sequence
from functools import lru_cache
from itertools import compress
from typing import Final

import numpy as np

from reloader.elf.object import ObjectFile
from reloader.ids import I64, U64

_ALLOC, _EXECINSTR = 2, 4  # SHF_ALLOC, SHF_EXECINSTR
_FEW: Final = 256  # sections of an object whose names are remembered
_RUN_ONCE: Final = (b".init", b".fini")


def holding(names: list[bytes], pattern: bytes) -> I64:
    """Return the rows of the names in which a pattern is found, ascending."""
    return found_in(b"\n".join(names), names, pattern)


def found_in(text: bytes, names: list[bytes], pattern: bytes) -> I64:
    """Return the rows of names in which a pattern is found, given them all as lines too."""
    hits = [m.start() for m in re.finditer(pattern, text)]
    if not hits:
        return np.zeros(0, np.int64)
    ends = np.cumsum(np.fromiter(map(len, names), np.int64, len(names)) + 1)
    return np.unique(np.searchsorted(ends, hits, side="right").astype(np.int64))


class SectionNames:
    """The sections of some files that may be known by their names, all in one text.

    Code and what is not loaded have nothing that is known by its name, `.init` and `.fini`
    aside: most sections are not even looked at.
    """

    __slots__ = ("_found", "_names", "_rows", "_text")

    def __init__(self, names: Sequence[bytes], flags: U64) -> None:
        """Take the names and the sh_flags of all sections of all files together."""
        plain = (flags & np.uint64(_ALLOC | _EXECINSTR)) == _ALLOC
        if any(name in names for name in _RUN_ONCE):
            run_once = [row for row, name in enumerate(names) if name in _RUN_ONCE]
            plain[run_once] = (flags[run_once] & np.uint64(_EXECINSTR)) != 0
        self._rows = np.flatnonzero(plain)
        self._names = list(compress(names, plain.tolist()))
        self._text = b"\n".join(self._names)
        self._found: dict[bytes, I64] = {}

    @classmethod
    def of(cls, files: Sequence[ObjectFile]) -> "SectionNames":
        """Return those of some files."""
        if len(files) == 1:
            names, flags = files[0].section_names, files[0].sections["sh_flags"]
            if len(names) <= _FEW:
                return _names_of_few(tuple(names), flags.tobytes())
            return cls(names, flags)
        flags = [file.sections["sh_flags"] for file in files]
        names = [name for file in files for name in file.section_names]
        return cls(names, np.concatenate([np.zeros(0, np.uint64), *flags]))

    def matching(self, pattern: bytes) -> I64:
        """Return the rows, in the sections of all files together, whose name matches."""
        found = self._found.get(pattern)
        if found is None:
            at = found_in(self._text, self._names, rb"(?m)^(?:" + pattern + rb")")
            found = self._found[pattern] = self._rows[at]
            found.flags.writeable = False
        return found


@lru_cache(maxsize=64)
def _names_of_few(names: tuple[bytes, ...], flags: bytes) -> SectionNames:
    """Return the names of a small object: the next version mostly has the same sections."""
    return SectionNames(names, np.frombuffer(flags, np.uint64))
