"""A part of an object, and of its live version, as objects of their own; and the way back.

Both get the same sections and symbols, so what is paired in them is what is paired in the
whole. Sections whose relocations are left out are there only for what is defined in them.
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from reloader.elf.constants import SHT_NOBITS
from reloader.elf.fingerprint import Fingerprint
from reloader.elf.gather import rows_of
from reloader.elf.object import COMMON, ObjectFile
from reloader.ids import I32, I64, NO_ROW, U8, Bool
from reloader.live.objects import DataMap, LiveObject

_BEGIN = 8  # of the start of the code in an FDE: length, CIE pointer, then it
_WORD = np.arange(4)


@dataclass(frozen=True, slots=True, eq=False)
class Records:
    """Some records of an unwind table: their bytes, closed up, and their relocations."""

    data: U8
    rows: I64  # (r,) of the file's relocations
    offset: I64  # (r,) of each in `data`


NO_RECORDS = Records(np.zeros(0, np.uint8), np.zeros(0, np.int64), np.zeros(0, np.int64))


@dataclass(frozen=True, slots=True, eq=False)
class Cut:
    """A part of a new version, to be linked instead of the whole."""

    whole: ObjectFile  # the new version
    before: LiveObject  # what is live of the object
    file: ObjectFile  # the part
    live: LiveObject  # the same part of what is live
    sections: I64  # (s,) of each section of the part its index in the whole, ascending
    symbols: I64  # (n,) of each symbol

    def widened(self, version: LiveObject) -> LiveObject:
        """Return what the whole object is once a version of its part is live."""
        before = self.before
        section_addr, symbol_addr = before.section_addr.copy(), before.symbol_addr.copy()
        symbol_slot = before.symbol_slot.copy()
        section_addr[self.sections] = version.section_addr
        symbol_addr[self.symbols] = version.symbol_addr
        symbol_slot[self.symbols] = version.symbol_slot
        return replace(
            version,
            file=self.whole,
            section_addr=section_addr,
            symbol_addr=symbol_addr,
            symbol_slot=symbol_slot,
            data=before.data,  # no variable is placed or moves
        )


def unwind_records(file: ObjectFile, table: int, rows: I64, begins: Bool) -> Records | None:
    """Return the records that describe some code, with what they share; None: it is broken.

    Args:
        file: The object.
        table: Its unwind table, 0: it has none.
        rows: (r,) its relocations there.
        begins: (r,) which of them name that code.
    """
    if not bool(begins.any()):
        return NO_RECORDS
    data = file.section_bytes(table)
    offsets = file.relocations["r_offset"][rows].astype(np.int64)
    start = np.unique(offsets[begins] - _BEGIN)
    size = _sizes(data, start)
    if size is None:
        return None
    back = _words(data, start + 4)
    common = np.unique(start + 4 - back)
    common_size = _sizes(data, common)
    if common_size is None or not bool(back.all()) or bool(_words(data, common + 4).any()):
        return None
    starts, sizes = np.append(common, start), np.append(common_size, size)
    order = np.argsort(starts, kind="stable")
    starts, sizes = starts[order], sizes[order]
    moved = np.cumsum(sizes) - sizes
    kept = data[rows_of(starts, sizes)]
    to = moved[np.searchsorted(starts, start)]
    distance = to + 4 - moved[np.searchsorted(starts, start + 4 - back)]
    kept[(to + 4)[:, None] + _WORD] = distance.astype("<u4").view(np.uint8).reshape(-1, 4)
    at = np.searchsorted(starts, offsets, side="right") - 1
    inner = offsets - starts[np.maximum(at, 0)]
    inside = (at >= 0) & (inner < sizes[np.maximum(at, 0)])
    return Records(kept, rows[inside], (moved[at] + inner)[inside])


def _sizes(data: U8, start: I64) -> I64 | None:
    """Return the bytes of the records at some places, None if one leaves the table."""
    if int(start[0]) < 0 or int(start[-1]) + _BEGIN > len(data):
        return None
    size = _words(data, start) + 4
    whole = (size >= _BEGIN) & (start + size <= len(data))
    whole[:-1] &= start[1:] >= (start + size)[:-1]
    return size if bool(whole.all()) else None


def _words(data: U8, at: I64) -> I64:
    return data[at[:, None] + _WORD].view("<u4").reshape(-1).astype(np.int64)


def cut_of(  # noqa: PLR0913, PLR0917  one argument a fact
    live: LiveObject,
    new: ObjectFile,
    chosen: Bool,
    unwind: int,
    tables: tuple[Records, Records],
    linked: tuple[I64, I64],
) -> Cut:
    """Return a part of both versions.

    Args:
        live: What is live.
        new: Of the same sections and symbols.
        chosen: (s,) sections.
        unwind: The unwind table, 0: there is none.
        tables: What is kept of it in the live and in the new version.
        linked: Relocations that are kept, of both; the other sections are there for what they
            define.
    """
    old = live.file
    chosen = chosen.copy()
    chosen[0] = chosen[unwind] = True
    sections = np.flatnonzero(chosen)
    rows = [np.append(own, table.rows) for own, table in zip(linked, tables, strict=True)]
    named = chosen[np.maximum(new.symbol_sections, 0)] & (new.symbol_sections > 0)
    named[0] = True
    for file, own in zip((old, new), rows, strict=True):
        named[file.relocations["r_sym"][own]] = True
    symbols = np.flatnonzero(named)
    section_of, symbol_of = _inverse(sections, len(chosen)), _inverse(symbols, len(named))
    # a symbol that is only named may be defined in a section that is not there
    before, after = (
        _part(file, sections, symbols, (section_of, symbol_of), own, (unwind, table))
        for file, own, table in zip((old, new), rows, tables, strict=True)
    )
    part = LiveObject(
        file=before,
        generation=live.generation,
        section_addr=live.section_addr[sections],
        symbol_addr=live.symbol_addr[symbols],
        symbol_slot=live.symbol_slot[symbols],
        data=_part_of_map(live.data, section_of, symbol_of),
    )
    return Cut(new, live, after, part, sections, symbols)


def _inverse(rows: I64, count: int) -> I32:
    """Return (count,) the place of each row among the chosen ones, or NO_ROW."""
    result = np.full(count, NO_ROW, np.int32)
    result[rows] = np.arange(len(rows), dtype=np.int32)
    return result


def _part(  # noqa: PLR0913, PLR0917  one argument a fact
    file: ObjectFile,
    sections: I64,
    symbols: I64,
    places: tuple[I32, I32],
    rows: I64,
    unwind: tuple[int, Records],
) -> ObjectFile:
    """Return an object of some sections, symbols and relocations of another."""
    section_of, symbol_of = places
    table, records = unwind
    headers: Any = file.sections[sections]
    if table:
        headers["sh_size"][section_of[table]] = len(records.data)
    data = _content(file, sections, headers, table, records)
    relocations = file.relocations[rows]
    relocations["r_sym"] = symbol_of[relocations["r_sym"]]
    if len(records.rows):
        relocations["r_offset"][len(rows) - len(records.rows) :] = records.offset
    home = file.symbol_sections[symbols]
    names, called = file.section_names, file.symbol_names
    return replace(
        file,
        fingerprint=Fingerprint(data),
        data=data,
        sections=headers,
        section_names=[names[row] for row in sections.tolist()],
        symbols=file.symbols[symbols],
        symbol_names=[called[row] for row in symbols.tolist()],
        symbol_sections=np.where(home >= 0, section_of[np.maximum(home, 0)], home),
        relocations=relocations,
        relocation_sections=section_of[file.relocation_sections[rows]],
        group_sections=file.group_sections[sections],
    )


def _content(
    file: ObjectFile,
    sections: I64,
    headers: Any,  # noqa: ANN401  record columns
    table: int,
    records: Records,
) -> U8:
    """Return the bytes of some sections, and write into their headers where each begins."""
    parts: list[U8] = []
    at = 0
    kinds: list[int] = headers["sh_type"].tolist()
    for place, (section, kind) in enumerate(zip(sections.tolist(), kinds, strict=True)):
        own = records.data if table and section == table else file.section_bytes(section)
        headers["sh_offset"][place] = at
        if kind != SHT_NOBITS and section:
            parts.append(own)
            at += len(own)
    return np.concatenate([np.zeros(0, np.uint8), *parts])


def _part_of_map(data: DataMap, section_of: I32, symbol_of: I32) -> DataMap:
    """Return where the variables of some sections are."""
    common = data.section == COMMON
    offset = data.offset.copy()
    section = np.where(common, COMMON, section_of[np.maximum(data.section, 0)])
    symbol = symbol_of[np.where(common, offset, 0).astype(np.int64)]
    kept = np.where(common, symbol, section) >= 0
    offset[common] = np.maximum(symbol[common], 0).astype(np.uint64)
    return DataMap(
        section=section[kept].astype(np.int32),
        offset=offset[kept],
        size=data.size[kept],
        addr=data.addr[kept],
    )
