"""From a linked graph to code that runs: slots taken, bytes written, slots flipped.

Nothing here can be seen by the target before `flip`: memory is fresh, and a new slot is known
to nobody yet.
"""

import numpy as np

from reloader.ids import I32, NO_ADDR, NO_ROW, U64, Bool, SlotId
from reloader.link.graph import LinkGraph, Origin
from reloader.link.grow import lookup
from reloader.link.layout import body_addr, fresh_blocks, image
from reloader.link.passes.build_tables import WANTS_SLOT
from reloader.live.plan import Flips, Plan
from reloader.live.program import Program
from reloader.live.target import Arena
from stubs.table import RESERVED, SlotKey

STB_LOCAL = 0


def slot_keys(graph: LinkGraph, rows: I32) -> list[SlotKey]:
    """Return who functions are: local ones belong to their object, others to their name."""
    keys: list[SlotKey] = []
    symbols = graph.symbols
    for row in rows:
        owner = int(symbols.object[row])
        local = symbols.binding[row] == STB_LOCAL and owner != NO_ROW
        path, member = graph.objects[owner].key if local else ("", "")
        keys.append(SlotKey(path, member, symbols.name[row]))
    return keys


def assign_slots(graph: LinkGraph, program: Program) -> None:
    """Give a slot and a stub to every symbol that wants one, and say where branches to it go.

    A function that exists outside of the arena keeps that address as its canonical one, and its
    new slot points there at once; a function without gets its stub's address.
    """
    symbols, arena, table = graph.symbols, program.target.arena, program.table
    rows = np.flatnonzero(symbols.slot == WANTS_SLOT).astype(np.int32)
    before = len(table)
    original = np.where(symbols.addr[rows] == np.uint64(NO_ADDR), 0, symbols.addr[rows])
    symbols.slot[rows] = table.take(slot_keys(graph, rows), [int(addr) for addr in original])
    arena.write_stubs(program.arch, before, len(table))
    for slot in range(before, len(table)):
        arena.slots[slot] = np.uint64(table.original[slot])
    has = np.flatnonzero(symbols.slot >= RESERVED)
    stubs = np.uint64(arena.stub_addr(SlotId(0))) + symbols.slot[has].astype(
        np.uint64
    ) * np.uint64(program.arch.stub_size)
    symbols.entry[has] = stubs
    nameless = symbols.addr[has] == np.uint64(NO_ADDR)
    symbols.addr[has[nameless]] = stubs[nameless]


def write_blocks(program: Program, plan: Plan) -> int:
    """Write all bytes of a transaction's memory into the arena; return how many."""
    written = 0
    for item in plan.placed:
        data = image(plan.graph, item, program.arch)
        program.target.arena.view(item.allocation.addr, len(data))[:] = data
        written += len(data)
    return written


def open_new_slots(program: Program, plan: Plan) -> None:
    """Let stubs of new functions lead to their code, which is written: constructors run next.

    Nobody has these stubs' addresses yet. A function that the executable has keeps its code.
    """
    flips, slots = plan.flips, program.target.arena.slots
    for slot, value in zip(flips.slot.tolist(), flips.new.tolist(), strict=True):
        if slot >= plan.first_slot and not program.table.original[slot]:
            slots[slot] = np.uint64(value)


def in_placed_block(graph: LinkGraph) -> Bool:
    """Return (n,) whether a symbol's bytes are in a block that this transaction places."""
    symbols = graph.symbols
    inside = symbols.origin == Origin.BLOCK
    return inside & lookup(fresh_blocks(graph), np.where(inside, symbols.block, NO_ROW), 0)


def plan_flips(graph: LinkGraph, program: Program) -> Flips:
    """Return the slots to change: changed functions, and others that run older code of ours.

    An unchanged function whose live body is the executable's stays there: it calls the new code
    through entry jumps, and one place less is patched. One that lives in an older block of ours
    moves along, since the branches inside that block would call its old neighbours for ever.
    """
    symbols, slots = graph.symbols, program.target.arena.slots
    rows = np.flatnonzero(
        in_placed_block(graph) & symbols.reloadable & (symbols.slot >= RESERVED)
    ).astype(np.int32)
    now = slots[symbols.slot[rows]]
    _, held = program.ledger.find(now)
    flips = symbols.changed[rows] | (held != NO_ROW)
    rows = rows[flips]
    return Flips(symbols.slot[rows], now[flips].copy(), body_addr(graph)[rows], rows)


def flip(arena: Arena, slots: I32, values: U64) -> None:
    """Store each slot, one aligned store each; a thread sees the old or the new address."""
    for slot, value in zip(slots, values, strict=True):
        arena.slots[slot] = value
