"""Mergeable sections by content: which string or constant a reference means.

A linker merges SHF_MERGE sections piece by piece, so neither address nor offset of a piece
says anything; only what it holds does. Equal pieces of the two versions get the same number.
"""

from dataclasses import dataclass

import numpy as np

from reloader.elf.constants import SHF_MERGE, SHF_STRINGS
from reloader.ids import I64, NO_ROW, Bool
from reloader.link.passes.versions import Version, key_of


@dataclass(frozen=True, slots=True)
class Pieces:
    """The pieces of all mergeable sections of one version, sorted by place."""

    key: I64  # (p,) key_of(section, offset of the piece's first byte)
    end: I64  # (p,) key of the byte after it
    number: I64  # (p,) equal in both versions if and only if the content is equal

    def find(self, key: I64) -> tuple[I64, I64]:
        """Return the piece that holds each place as (number, distance from its start).

        A place in no piece has the number NO_ROW.
        """
        if not len(self.key):
            return np.full(len(key), NO_ROW, np.int64), key
        row = np.maximum(np.searchsorted(self.key, key, side="right") - 1, 0)
        inside = (key >= self.key[row]) & (key < self.end[row])
        return np.where(inside, self.number[row], NO_ROW), key - self.key[row]


def split_sections(version: Version, wanted: Bool, numbers: dict[bytes, int]) -> Pieces:
    """Cut the mergeable sections of a version into pieces.

    Args:
        version: Its bytes are looked at.
        wanted: (s,) sections that some reference asks for.
        numbers: Content -> number so far; the same dictionary serves both versions.
    """
    keys: list[I64] = []
    ends: list[I64] = []
    found: list[bytes] = []
    for section in np.flatnonzero(wanted & ((version.flags & SHF_MERGE) != 0)).tolist():
        start, parts = cut(version, section)
        sizes = np.fromiter(map(len, parts), np.int64, len(parts))
        key = key_of(np.full(len(parts), section, np.int64), start)
        keys.append(key)
        ends.append(key + sizes)
        # the entry size is part of what a piece is: "\0\0\0\0" is not an empty string
        mark = b"%d:" % entry_size(version, section)
        found += [mark + part for part in parts]
    rows = [numbers.setdefault(part, len(numbers)) for part in found]
    none = [np.zeros(0, np.int64)]
    return Pieces(
        np.concatenate(keys or none), np.concatenate(ends or none), np.array(rows, np.int64)
    )


def entry_size(version: Version, section: int) -> int:
    """Return the bytes of one character or constant, at least 1."""
    return max(int(version.file.sections["sh_entsize"][section]), 1)


def cut(version: Version, section: int) -> tuple[I64, list[bytes]]:
    """Return the offsets and contents of a section's pieces, in order."""
    data = version.file.section_bytes(section)
    entry = entry_size(version, section)
    text = data.tobytes()
    if not int(version.flags[section]) & SHF_STRINGS:
        starts = np.arange(0, len(text), entry, dtype=np.int64)
        return starts, [text[at : at + entry] for at in starts.tolist()]
    whole = data[: len(data) // entry * entry].reshape(-1, entry)
    ends = (np.flatnonzero(~whole.any(axis=1)) + 1) * entry
    if not len(ends) or int(ends[-1]) != len(text):
        ends = np.append(ends, len(text))
    starts = np.concatenate([np.zeros(1, np.int64), ends[:-1]])
    spans = zip(starts.tolist(), ends.tolist(), strict=True)
    return starts, [text[a:b] for a, b in spans]
