"""From a linked graph to code that runs: slots taken, bytes written, slots flipped.

Nothing here can be seen by the target before `flip`: memory is fresh, and a new slot is known
to nobody yet.
"""

from contextlib import ExitStack

import numpy as np

from reloader.ids import I32, NO_ADDR, NO_ROW, U64, Bool, SlotId
from reloader.link.graph import LinkGraph, Origin
from reloader.link.grow import lookup
from reloader.link.layout import body_addr, fresh_blocks, write_images
from reloader.link.passes.resolve import WANTS_SLOT, names_of
from reloader.live.plan import Flips, Plan
from reloader.live.program import Program
from reloader.live.target import Arena
from stubs.table import RESERVED

STB_LOCAL = 0


def take_slots(graph: LinkGraph, program: Program, rows: I32) -> I32:
    """Return functions' slots: local ones belong to their object, others to their name."""
    symbols, table = graph.symbols, program.table
    known = symbols.addr[rows]
    original = np.where(known == np.uint64(NO_ADDR), 0, known)
    local = (symbols.binding[rows] == STB_LOCAL) & (symbols.object[rows] != NO_ROW)
    owner = np.where(local, symbols.object[rows], NO_ROW)
    order = np.argsort(owner, kind="stable")
    heads = np.diff(owner[order], prepend=NO_ROW - 1).nonzero()[0]
    slots = np.empty(len(rows), np.int32)
    for mine in np.split(order, heads[1:]):
        own = int(owner[mine[0]])
        home = ("", "") if own == NO_ROW else graph.objects[own].key
        names = names_of(graph, rows[mine])
        slots[mine] = table.take_names(home, names, original[mine].tolist())
    return slots


def assign_slots(graph: LinkGraph, program: Program) -> None:
    """Give a slot and a stub to every symbol that wants one, and say where branches to it go.

    A function that exists outside of the arena keeps that address as its canonical one, and its
    new slot points there at once; a function without gets its stub's address.
    """
    symbols, arena, table = graph.symbols, program.target.arena, program.table
    rows = (symbols.slot == WANTS_SLOT).nonzero()[0].astype(np.int32)
    if len(rows):
        before = len(table)
        symbols.slot[rows] = take_slots(graph, program, rows)
        arena.write_stubs(program.arch, before, len(table))
        arena.slots[before : len(table)] = np.array(table.original[before:], np.uint64)
    has = (symbols.slot >= RESERVED).nonzero()[0]
    stubs = np.uint64(arena.stub_addr(SlotId(0))) + symbols.slot[has].astype(
        np.uint64
    ) * np.uint64(program.arch.stub_size)
    symbols.entry[has] = stubs
    nameless = symbols.addr[has] == np.uint64(NO_ADDR)
    symbols.addr[has[nameless]] = stubs[nameless]


def write_blocks(program: Program, plan: Plan) -> int:
    """Write all bytes of a transaction's memory into the arena; return how many."""
    write_images(plan.graph, plan.placed, program.target.arena.view, program.arch)
    return sum(item.allocation.size for item in plan.placed)


def open_new_slots(program: Program, plan: Plan, undo: ExitStack) -> None:
    """Let stubs of new functions lead to their code, which is written: constructors run next.

    Nobody has these stubs' addresses yet, or nobody but code of an object that is gone. A
    function that the executable has keeps its code.

    Args:
        program: The process.
        plan: Its bytes are in the arena.
        undo: Gets what takes this back.
    """
    flips = plan.flips
    new = (flips.old == 0).nonzero()[0]
    rows = new[program.table.originals(flips.slot[new]) == 0]
    slots = program.target.arena.slots
    before = slots[flips.slot[rows]].copy()
    slots[flips.slot[rows]] = flips.new[rows]
    undo.callback(_close_again, program, plan, flips.slot[rows], before)


def _close_again(program: Program, plan: Plan, slots: I32, before: U64) -> None:
    if not plan.retained:
        program.target.arena.slots[slots] = before


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
    rows = (
        (in_placed_block(graph) & symbols.reloadable & (symbols.slot >= RESERVED))
        .nonzero()[0]
        .astype(np.int32)
    )
    now = slots[symbols.slot[rows]]
    _, held = program.ledger.find(now)
    flips = symbols.changed[rows] | (held != NO_ROW)
    rows, now = rows[flips], now[flips].copy()
    now[_of_nobody(graph, program, symbols.slot[rows])] = 0
    return Flips(symbols.slot[rows], now, body_addr(graph)[rows], rows)


def runs_code_of_ours(graph: LinkGraph, program: Program, rows: I32) -> Bool:
    """Return which functions run code of an earlier reload: `plan_flips` takes them along."""
    slot = graph.symbols.slot[rows]
    _, held = program.ledger.find(program.target.arena.slots[np.maximum(slot, 0)])
    return (slot >= RESERVED) & (held != NO_ROW)


def _of_nobody(graph: LinkGraph, program: Program, slots: I32) -> Bool:
    """Return which slots no live object has: of an object that is loaded again, mostly."""
    if all(file.key in program.objects for file in graph.objects):
        return np.zeros(len(slots), np.bool_)
    used = [live.symbol_slot for live in program.objects.values()]
    original = program.table.originals(slots)
    return ~np.isin(slots, np.concatenate([*used, slots[:0]])) & (original == 0)


def flip(arena: Arena, slots: I32, values: U64) -> None:
    """Store each slot, one aligned store each; a thread sees the old or the new address."""
    table = arena.slots
    rows = (table[slots] != values).nonzero()[0]  # new slots were opened already
    for slot, value in zip(slots[rows].tolist(), values[rows].tolist(), strict=True):
        table[slot] = value
