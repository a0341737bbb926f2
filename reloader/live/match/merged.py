"""Merged strings and constants: compared piece by piece with what the code refers to."""

from collections.abc import Iterator

import numpy as np

from reloader.ids import I64, Bool
from reloader.live.match.evidence import Evidence
from reloader.live.match.place import Placing
from reloader.live.match.tables import SHF_STRINGS, spans

STT_SECTION = 3


def check_merged(placing: Placing, found: Evidence) -> Iterator[tuple[int, int, str]]:
    """Yield (section, offset, text) of pieces that the program has otherwise."""
    section, offset, addr = _pieces(placing, found)
    length = _lengths(placing, section, offset)
    start = placing.tables.start[section] + offset
    spot = addr - placing.image.low
    inside = (spot >= 0) & (spot + length <= len(placing.image.memory))
    section, offset, addr = section[inside], offset[inside], addr[inside]
    start, spot, length = start[inside], spot[inside], length[inside]
    wanted = placing.tables.content[spans(start, start + length)]
    there = placing.image.memory[spans(spot, spot + length)]
    piece = np.repeat(np.arange(len(length)), length)
    for row in np.unique(piece[wanted != there]).tolist():
        at, size = int(start[row]), min(int(length[row]), 40)
        text = placing.tables.content[at : at + size].tobytes().rstrip(b"\0")
        name, where = placing.tables.section_name(int(section[row])), int(offset[row])
        shown = f"{name}+{where:#x} ({text.decode('utf-8', 'replace')!r})"
        yield (
            int(section[row]),
            where,
            f"{shown} is not what the program has at {int(addr[row]):#x}",
        )


def _pieces(placing: Placing, found: Evidence) -> tuple[I64, I64, I64]:
    """Return section, offset and address of every merged piece that a field refers to.

    With a section symbol the addend chooses the piece, so only absolute fields, whose addend is
    just that, are told; assemblers name the piece by a symbol in all others.
    """
    tables = placing.tables
    symbol = tables.relocation_symbol[found.relocation]
    section = tables.symbol_section[symbol]
    merged = (section >= 0) & tables.merge[np.maximum(section, 0)]
    whole = tables.symbol_type[symbol] == STT_SECTION
    kind = tables.relocation_kind[found.relocation]
    absolute: Bool = tables.kinds["formula"][kind] == "S + A"
    rows = np.flatnonzero(merged & (~whole | absolute))
    symbol, section = symbol[rows], section[rows]
    addend = np.where(whole[rows], tables.relocation_addend[found.relocation[rows]], 0)
    offset = tables.value[symbol] + addend
    addr = found.target[rows] + addend
    valid = (offset >= 0) & (offset < tables.size[section])
    table = np.unique(np.stack([section, offset, addr])[:, valid], axis=1)
    return table[0], table[1], table[2]


def _lengths(placing: Placing, section: I64, offset: I64) -> I64:
    """Return how many bytes belong to each piece: to the NUL of a string, else one entity."""
    tables = placing.tables
    entity = np.maximum(_entity_sizes(placing)[section], 1)
    start, end = tables.start[section] + offset, tables.start[section] + tables.size[section]
    length = entity.copy()
    text = ((tables.flags[section] & SHF_STRINGS) != 0) & (entity == 1)
    zeros = np.append(np.flatnonzero(tables.content == 0), len(tables.content))
    length[text] = zeros[np.searchsorted(zeros, start[text])] + 1 - start[text]
    wide = np.flatnonzero(((tables.flags[section] & SHF_STRINGS) != 0) & (entity > 1))
    for row in wide.tolist():
        size = int(entity[row])
        units = tables.content[int(start[row]) : int(end[row])]
        units = units[: len(units) // size * size].reshape(-1, size)
        stops = np.flatnonzero(~units.any(axis=1))
        length[row] = size * (int(stops[0]) + 1) if len(stops) else size
    return np.minimum(length, end - start)


def _entity_sizes(placing: Placing) -> I64:
    files = placing.tables.objects
    return np.concatenate([file.sections["sh_entsize"] for file in files]).astype(np.int64)
