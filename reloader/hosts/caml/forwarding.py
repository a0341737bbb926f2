"""Captured functions: one slot for each closed function of a module, for ever.

Code of the executable is redirected by an entry jump to the stub, as in C. Function values of
loaded versions lead to the stub from the start: the word that holds their code is overwritten
once their unit is initialised. So whoever captured one, of whatever version, runs the newest.
"""

from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

import numpy as np

from reloader.errors.live import TargetGoneError
from reloader.hosts.caml.changed_types import Meanings
from reloader.hosts.caml.closures import Closure, closure_at, value_at
from reloader.hosts.caml.transaction import Change
from reloader.hosts.caml.units import Slot
from reloader.ids import NO_ROW, Addr, Bool, SlotId
from reloader.live.host import HostPlan
from reloader.live.patching import apply_redirects
from reloader.live.program import Key, Program
from reloader.live.redirect import RedirectPlan, pack, survey
from reloader.live.surroundings import surroundings
from reloader.live.switch import in_code
from reloader.live.target import Target
from stubs.table import SlotKey, SlotTableFullError

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


def require_room(program: Program, changes: Sequence[Change], meanings: Meanings) -> None:
    """Require slots for all functions that new versions may have.

    Raises:
        SlotTableFullError: There are too few.
    """
    table, more = program.table, 0
    free = table.capacity - len(table)
    if sum(len(change.functions) for change in changes) <= free:
        return
    for change in changes:
        known = {without_arity(name) for name in table.rows.get(change.file.key, {})}
        keys = [
            slot_key(change.file.key, slot, 0, meanings.of(slot))
            for _, slot in change.functions
        ]
        more += len({without_arity(key.name) for key in keys} - known)
    if more > free:
        raise SlotTableFullError(len(table) + more, table.capacity)


def without_arity(name: bytes) -> tuple[bytes, bytes]:
    """Return what a slot's name says that is known before a unit is initialised."""
    path, _, rest = name.rpartition(b"/")
    return path, rest.rpartition(b" ")[2]


def take_original_slots(
    program: Program, changes: Sequence[Change], meanings: Meanings
) -> None:
    """Give a slot to each function whose code is still the executable's."""
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
    arena, table, first = program.target.arena, program.table, len(program.table)
    table.take(list(fresh), list(fresh.values()))
    arena.write_stubs(program.arch, first, len(table))
    arena.slots[first : len(table)] = np.array(table.original[first:], np.uint64)


def without_jump(program: Program, keys: Iterable[Key]) -> list[int]:
    """Return the slots of units' original functions from which no jump leads to them yet.

    It may be that one could not be written when its unit was reloaded.
    """
    table = program.table
    return [
        slot
        for key in keys
        for slot in table.rows.get(key, {}).values()
        if table.original[slot] and slot not in program.redirects
    ]


def take_slots(program: Program, key: Key, values: Sequence[Value]) -> list[int]:
    """Return the slot of each closed function of a unit's version that is live.

    What is in a slot stays: an earlier daemon may have let it lead to the version.
    """
    first = len(program.table)
    keys = [slot_key(key, row.slot, row.closure.arity, row.meaning) for row in values]
    slots = program.table.take(keys, [0] * len(keys))
    program.target.arena.write_stubs(program.arch, first, len(program.table))
    return slots.tolist()


def lead(program: Program, slots: Sequence[int], values: Sequence[Value]) -> None:
    """Let the slots of functions lead to a new version, and its function values to the slots.

    So who captures a value now reaches the versions after it too. May be repeated.

    Args:
        program: The process; the version is live.
        slots: Of these functions.
        values: The closed functions of a unit.
    """
    arena, words = program.target.arena, list[tuple[int, int]]()
    for slot, value in zip(slots, values, strict=True):
        stub = int(arena.stub_addr(SlotId(slot)))
        if value.closure.code != stub:  # else an earlier daemon has come as far as this
            arena.slots[slot] = np.uint64(value.closure.code)
            words.append((value.closure.pointer, stub))
    write_words(program.target, words)


def write_words(target: Target, words: Sequence[tuple[int, int]]) -> None:
    """Write words of units' data; a child that was forked since they are live has a copy."""
    for addr, word in words:
        target.write_data(Addr(addr), word.to_bytes(WORD, "little"))
    for child in target.members()[1:] if words else ():
        with suppress(TargetGoneError):
            for addr, word in words:
                child.write_data(Addr(addr), word.to_bytes(WORD, "little"))


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

    Raises:
        ReloaderError: They cannot be written now.
    """
    if plan.redirects is None:
        return
    slots, original = program.target.arena.slots, program.table.original
    moved = [slot != NO_ROW and int(slots[slot]) != original[slot] for slot in plan.redirected]
    planned = keep_jumps(plan, np.array(moved, np.bool_))
    if not len(planned):
        return
    result = apply_redirects(planned, program.target)
    plan.stop_us += result.stop_us + result.lost_us


def drop_jumps(plan: HostPlan) -> None:
    """Take note that no jump was written."""
    if plan.redirects is not None:
        keep_jumps(plan, np.zeros(len(plan.redirected), np.bool_))


def keep_jumps(plan: HostPlan, kept: Bool) -> RedirectPlan:
    """Drop the other jumps of a plan: the next reload of their unit tries again.

    A function that can have none stays in `redirected`, so that nobody tries again.
    """
    planned = plan.redirects or pack([], [])
    dropped = set(planned.function[~kept[planned.function]].tolist())
    plan.redirected = [
        NO_ROW if row in dropped else slot for row, slot in enumerate(plan.redirected)
    ]
    plan.redirects = planned.only(kept)
    return plan.redirects
