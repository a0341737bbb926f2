"""A live object's symbols as rows for the state: where each one's bytes are right now."""

import numpy as np

from reloader.elf.object import ABSOLUTE, ObjectFile
from reloader.ids import I64, NO_ADDR, U64, Bool, SlotId
from reloader.live.objects import LiveObject
from reloader.live.plan import Plan
from reloader.live.program import Program
from state.rows import SymbolColumns
from stubs.table import RESERVED

STT_OBJECT, STT_FUNC, STT_SECTION, STT_FILE, STT_COMMON, STT_TLS, STT_GNU_IFUNC = (
    1,
    2,
    3,
    4,
    5,
    6,
    10,
)
_KINDS = {
    STT_FUNC: "function",
    STT_GNU_IFUNC: "function",
    STT_OBJECT: "variable",
    STT_COMMON: "variable",
    STT_TLS: "variable",
}


def named(file: ObjectFile) -> I64:
    """Return the symbols that people know by name: defined, no section and no file symbols."""
    kinds = file.types()
    defined = (file.symbol_sections >= 0) | (file.symbol_sections < ABSOLUTE)
    return np.flatnonzero(defined & (kinds != STT_SECTION) & (kinds != STT_FILE))


def bodies(program: Program, live: LiveObject) -> U64:
    """Return (n,) where each symbol's bytes are: its slot's target, else its own address."""
    slots = np.maximum(live.symbol_slot, 0)
    return np.where(
        live.symbol_slot >= RESERVED, program.target.arena.slots[slots], live.symbol_addr
    ).astype(np.uint64)


def columns(program: Program, live: LiveObject, rows: I64) -> SymbolColumns:
    """Return some symbols of a live object as the state keeps them."""
    file, arena = live.file, program.target.arena
    sections = file.symbol_sections[rows].tolist()
    names: list[bytes] = [file.symbol_names[row] for row in rows]
    slots = live.symbol_slot[rows]
    base = int(arena.stub_addr(SlotId(0)))
    stubs = base + slots.astype(np.int64) * program.arch.stub_size
    return SymbolColumns(
        name=[name.decode("utf-8", "replace") for name in names],
        kind=[_KINDS.get(kind, "other") for kind in file.types()[rows].tolist()],
        section=[section_name(file, section) for section in sections],
        offset=file.symbols["st_value"][rows].tolist(),
        addr=bodies(program, live)[rows].tolist(),
        size=file.symbols["st_size"][rows].tolist(),
        slot=slots.tolist(),
        stub_addr=np.where(slots >= RESERVED, stubs, 0).tolist(),
    )


def section_name(file: ObjectFile, section: int) -> str:
    """Return a section's name; COMMON symbols have none."""
    return file.section_names[section].decode("utf-8", "replace") if section >= 0 else "COMMON"


def all_symbols(program: Program, live: LiveObject) -> SymbolColumns:
    """Return every named symbol of an object that is in the process."""
    rows = named(live.file)
    return columns(program, live, rows[live.symbol_addr[rows] != np.uint64(NO_ADDR)])


def changed_symbols(program: Program, plan: Plan, row: int) -> SymbolColumns:
    """Return an object's symbols that moved: flipped functions, new variables."""
    graph, file = plan.graph, plan.graph.objects[row]
    live = program.objects[file.key]
    first, last = int(graph.first_symbol[row]), int(graph.first_symbol[row + 1])
    flipped = plan.flips.symbol
    own = flipped[(flipped >= first) & (flipped < last)] - first
    fresh = np.flatnonzero(in_new_memory(plan, first, last))
    rows = np.union1d(own, np.intersect1d(fresh, named(file))).astype(np.int64)
    return columns(program, live, plan.parts.symbols(file, rows))


def in_new_memory(plan: Plan, first: int, last: int) -> Bool:
    """Return (n,) which symbols of an object are data in memory that this transaction took."""
    addrs = plan.graph.symbols.addr[first:last]
    inside = np.zeros(len(addrs), np.bool_)
    for row in plan.held:
        start, end = row.allocation.addr, row.allocation.addr + row.allocation.size
        inside |= (addrs >= np.uint64(start)) & (addrs < np.uint64(end))
    return inside
