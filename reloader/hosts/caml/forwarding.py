"""Captured functions: one slot for each closed function of a module, for ever.

Code of the executable is redirected by an entry jump to the stub, as in C. Function values of
loaded versions lead to the stub from the start: the word that holds their code is overwritten
once their unit is initialised. So whoever captured one, of whatever version, runs the newest.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from reloader.errors.redirect import CodeChangedError, PcInPatchError
from reloader.hosts.caml.changed_types import Meanings
from reloader.hosts.caml.closures import Closure, closure_at, value_at
from reloader.hosts.caml.transaction import Change
from reloader.hosts.caml.units import Slot
from reloader.ids import NO_ROW, Addr, SlotId
from reloader.live.host import HostPlan
from reloader.live.patching import apply_redirects
from reloader.live.program import Key, Program
from reloader.live.redirect import survey
from reloader.live.surroundings import surroundings
from reloader.live.switch import in_code
from stubs.table import SlotKey

WORD: Final = 8


@dataclass(frozen=True, slots=True)
class Value:
    """A closed function of a version that is live."""

    slot: Slot
    closure: Closure
    meaning: int  # of its type


def slot_key(key: Key, slot: Slot, arity: int, meaning: int) -> SlotKey:
    """Return what identifies a function over all versions of its unit.

    A function of another type is another one: who captured the old one calls it as that. So is
    one whose type has the same text and is made of another record: see `Meanings`.
    """
    return SlotKey(*key, f"{slot.path}/{arity} {meaning:08x}".encode())


def take_original_slots(
    program: Program, changes: Sequence[Change], meanings: Meanings
) -> list[int]:
    """Give a slot to each function whose code is still the executable's; return new slots."""
    fresh: dict[SlotKey, int] = {}
    read = program.target.read
    for change in changes:
        unit = change.before
        if unit is None or unit.code_begin:
            continue
        for slot in (old for old, _ in change.functions if old):
            found = closure_at(read, value_at(read, unit.block, slot.chain))
            if found and in_code(program.image, np.array([found.code], np.uint64))[0]:
                fresh[slot_key(unit.key, slot, found.arity, meanings.of(slot))] = found.code
    keys = [key for key in fresh if key not in program.table.rows]
    first = len(program.table)
    slots = program.table.take(keys, [fresh[key] for key in keys])
    write_new_stubs(program, first)
    return slots.tolist()


def lead(program: Program, key: Key, values: Sequence[Value]) -> set[int]:
    """Let the slots of functions lead to a new version, and its function values to the slots.

    So who captures a value now reaches the versions after it too.

    Args:
        program: The process; the version is live.
        key: The unit's object.
        values: Its closed functions.

    Returns:
        The slots of these functions.
    """
    target, first = program.target, len(program.table)
    keys = [slot_key(key, row.slot, row.closure.arity, row.meaning) for row in values]
    slots = program.table.take(keys, [0] * len(keys))
    write_new_stubs(program, first)
    for slot, value in zip(slots.tolist(), values, strict=True):
        stub = int(target.arena.stub_addr(SlotId(slot)))
        if value.closure.code == stub:
            continue  # an earlier daemon has come as far as this
        target.arena.slots[slot] = np.uint64(value.closure.code)
        target.write_data(Addr(value.closure.pointer), stub.to_bytes(WORD, "little"))
    return set(slots.tolist())


def write_new_stubs(program: Program, first: int) -> None:
    """Write the stubs of slots from `first` on; each leads to its original, if it has one."""
    arena, table = program.target.arena, program.table
    arena.write_stubs(program.arch, first, len(table))
    arena.slots[first : len(table)] = np.array(table.original[first:], np.uint64)


def plan_jumps(program: Program, slots: Sequence[int], plan: HostPlan) -> None:
    """Plan the entry jumps of original functions; one that cannot have it keeps its callers."""
    if not slots:
        return
    arena, table = program.target.arena, program.table
    originals = np.array([table.original[slot] for slot in slots], np.uint64)
    stubs = np.array([arena.stub_addr(SlotId(slot)) for slot in slots], np.uint64)
    around = surroundings(program, originals, stubs)
    plan.redirects, refusals = survey(around, program.target.read)
    slot_of_stub = dict(zip(stubs.tolist(), slots, strict=True))
    plan.redirected = [slot_of_stub.get(stub, NO_ROW) for stub in around.stub_addr.tolist()]
    plan.notes += [
        f"whoever captured {refusal.name} goes on with the old code: {refusal.reason}"
        for refusal in refusals
    ]


def jump(program: Program, plan: HostPlan) -> None:
    """Write the entry jumps of a transaction that is live; its slots lead to new code.

    A function without a closed version now has nowhere to jump to but itself.
    """
    if plan.redirects is None:
        return
    slots, original = program.target.arena.slots, program.table.original
    moved = [slot != NO_ROW and int(slots[slot]) != original[slot] for slot in plan.redirected]
    plan.redirects = plan.redirects.only(np.array(moved, np.bool_))
    if not len(plan.redirects):
        return
    try:
        result = apply_redirects(plan.redirects, program.target)
    except (CodeChangedError, PcInPatchError) as error:
        plan.redirects = plan.redirects.only(np.zeros(len(moved), np.bool_))
        plan.notes.append(f"whoever captured its functions goes on with the old code: {error}")
    else:
        plan.stop_us += result.stop_us + result.lost_us
