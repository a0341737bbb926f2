"""Which loaded sections of two versions of an object differ, by their bytes alone.

An edit of one function leaves thousands of sections as they were. Where both versions have the
same sections and symbols, bytes and relocation tables can be compared where they lie, in long
runs: a run is what both files have at one distance from each other. Nothing is decoded, so
equal here is certain, and different only means that somebody has to look closer.
"""

from typing import Any, Final

import numpy as np

from reloader.elf.alike import changed_places, contents
from reloader.elf.constants import SHF_ALLOC, SHT_NOBITS, SHT_RELA
from reloader.elf.object import ObjectFile
from reloader.ids import I64, U8, Bool

_GAP: Final = 4096  # bytes between two sections that cost less to compare than to skip
_ALIKE: Final = ("sh_type", "sh_flags", "sh_addralign", "sh_entsize", "sh_link", "sh_info")


def same_shape(old: ObjectFile, new: ObjectFile) -> bool:
    """Return whether sections and symbols of both versions agree by index in all but size."""
    if old.tables is new.tables:
        return True
    if len(old.sections) != len(new.sections) or len(old.symbols) != len(new.symbols):
        return False
    a, b = old.sections, new.sections
    x, y = old.symbols, new.symbols
    return (
        all(np.array_equal(a[name], b[name]) for name in _ALIKE)
        and np.array_equal(old.symbol_sections, new.symbol_sections)
        and all(np.array_equal(x[name], y[name]) for name in ("st_info", "st_other"))
        and np.array_equal(old.group_sections, new.group_sections)
        and old.group_signatures == new.group_signatures
        and old.section_names == new.section_names
        and old.symbol_names == new.symbol_names
    )


def moved_symbols(old: ObjectFile, new: ObjectFile) -> Bool:
    """Return (n,) which symbols of two files of one shape have another value or size."""
    a, b = old.symbols, new.symbols
    return (a["st_value"] != b["st_value"]) | (a["st_size"] != b["st_size"])


def differing_sections(old: ObjectFile, new: ObjectFile) -> Bool:
    """Return (s,) which loaded sections of two files of one shape differ.

    In size, in bytes, or in a relocation.
    """
    if old.tables is new.tables:
        return _holding(new, changed_places(old.data, new.data))
    headers: Any = new.sections
    kind, size = headers["sh_type"], headers["sh_size"]
    loaded = (headers["sh_flags"] & SHF_ALLOC) != 0
    table = kind == SHT_RELA
    table[table] = loaded[headers["sh_info"][table]]
    other_size = (size != old.sections["sh_size"]) & (loaded | table)
    stored = ((loaded & (kind != SHT_NOBITS)) | table) & ~other_size & (size > 0)
    rows = np.flatnonzero(stored)
    differs = other_size
    differs[rows[_differing_ranges(old, new, rows)]] = True
    users = headers["sh_info"][differs & table]
    differs[table] = False
    differs[users] = True
    return differs & loaded


def _holding(file: ObjectFile, places: I64) -> Bool:
    """Return (s,) which sections have loaded bytes at some places of a file."""
    start, end, section = contents(file)
    row = start.searchsorted(places, side="right") - 1
    held = np.zeros(len(file.sections), np.bool_)
    held[section[row[places < end[row]]]] = True
    return held


def _differing_ranges(old: ObjectFile, new: ObjectFile, rows: I64) -> I64:
    """Return the distinct places in `rows`, sections of equal sizes, whose bytes differ."""
    if not len(rows):
        return rows
    start = new.sections["sh_offset"][rows].astype(np.int64)
    order = np.argsort(start, kind="stable")
    start = start[order]
    before = old.sections["sh_offset"][rows[order]].astype(np.int64)
    end = start + new.sections["sh_size"][rows[order]].astype(np.int64)
    shift = before - start
    if bool((start[1:] < end[:-1]).any()):
        return np.arange(len(rows))  # sections of a damaged file overlap
    breaks = (np.diff(shift) != 0) | (start[1:] > end[:-1] + _GAP)
    heads = np.append(0, np.flatnonzero(breaks) + 1)
    tails = np.append(heads[1:], len(rows)) - 1
    hits = [
        _differing_bytes(old.data, new.data, first, last, distance)
        for first, last, distance in zip(
            start[heads].tolist(), end[tails].tolist(), shift[heads].tolist(), strict=True
        )
    ]
    found = np.concatenate(hits)
    at = start.searchsorted(found, side="right") - 1
    inside = (at >= 0) & (found < end[at])
    return np.unique(order[at[inside]])


def _differing_bytes(old: U8, new: U8, first: int, last: int, shift: int) -> I64:
    """Return the places in `new` from `first` to `last` where `old` has another byte."""
    return np.flatnonzero(new[first:last] != old[first + shift : last + shift]) + first
