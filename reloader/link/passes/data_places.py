"""Look-ups that binding data needs: places in variables, edges at fields, names of sections."""

from typing import Any

import numpy as np

from reloader.elf.layout import variable_layout
from reloader.elf.object import COMMON, ObjectFile
from reloader.errors.data import Layout
from reloader.ids import I32, I64, NO_ADDR, NO_ROW, U64, Bool
from reloader.link.graph import LinkGraph
from reloader.link.passes.pair_variables import Variables
from reloader.link.passes.references import Side
from reloader.live.objects import DataMap


def users_of(side: Side) -> dict[int, set[bytes]]:
    """Return the functions that refer to each variable of one version, by row."""
    table, variables = side.references, side.variables
    users: dict[int, set[bytes]] = {}
    for row in table.code.nonzero()[0].tolist():
        target, section = side.target(row), int(table.section[row])
        own = (variables.section == section) & (variables.offset <= target)
        name = side.code.function_at(int(table.source[row]), int(table.field[row])).name
        for variable in (own & (target < variables.end())).nonzero()[0].tolist():
            users.setdefault(variable, set()).add(name)
    return users


def inside_variables(variables: Variables, chosen: Bool, section: I32, offset: I64) -> Bool:
    """Return which places are in one of the chosen variables."""
    rows = (chosen & (variables.section >= 0)).nonzero()[0]
    if not len(rows):
        return np.zeros(len(section), np.bool_)
    start = (variables.section[rows].astype(np.int64) << 40) | variables.offset[rows]
    end = (variables.section[rows].astype(np.int64) << 40) | variables.end()[rows]
    place = (section.astype(np.int64) << 40) | offset
    at = start.searchsorted(place, side="right") - 1
    reached = np.maximum.accumulate(end)
    return (at >= 0) & (place < reached[np.maximum(at, 0)])


def live_addrs(data: DataMap, section: I32, offset: I64) -> U64:
    """Return the live address of each byte of writable sections, NO_ADDR if it has none."""
    if not len(data.section):
        return np.full(len(section), NO_ADDR, np.uint64)
    start = data.offset.astype(np.int64)
    key = (data.section.astype(np.int64) << 40) + start
    row = key.searchsorted((section.astype(np.int64) << 40) + offset, side="right") - 1
    row = np.maximum(row, 0)
    distance = offset - start[row]
    inside = (data.section[row] == section) & (distance >= 0)
    inside &= distance < data.size[row].astype(np.int64)
    return np.where(inside, data.addr[row] + distance.astype(np.uint64), np.uint64(NO_ADDR))


def find_edges(graph: LinkGraph, block: I32, offset: I64) -> I64:
    """Return the edges whose fields are at some places; every place has one."""
    edges = graph.edges
    key = (edges.block.astype(np.int64) << 32) | edges.offset
    return key.searchsorted((block.astype(np.int64) << 32) | offset)


def header(file: ObjectFile, section: int, column: str) -> int:
    """Return a field of a section header."""
    headers: Any = file.sections
    return int(headers[column][section])


def section_called(file: ObjectFile, name: bytes) -> int:
    """Return the section of a name, NO_ROW if there is none or several."""
    rows = [row for row, found in enumerate(file.section_names) if found == name]
    return rows[0] if len(rows) == 1 else NO_ROW


def section_name(file: ObjectFile, section: int) -> str:
    """Return the name of a section as people know it."""
    if section == COMMON:
        return "COMMON"
    return file.section_names[section].decode("utf-8", "replace")


def layout_at(side: Side, row: int) -> Layout | None:
    """Return the layout of a variable as its debug information tells it."""
    table = side.variables
    return variable_layout(side.file, int(table.section[row]), int(table.offset[row]))
