"""Settling: what becomes of a transaction that was under way when its daemon was killed.

The journal says what was intended, the slots say what is. One that has flipped any slot is
finished: its code was complete before the first flip, and threads may be running it. One that
has flipped none is undone. Its memory is not simply free again: it waits for its proof like
everything that is superseded. Where constructors may have run, they may have told somebody of
its functions: then its slots stay, and what they lead to.
"""

import base64
from collections.abc import Sequence
from functools import partial
from typing import Any, Final

import numpy as np

from reloader.errors.base import ReloaderError
from reloader.errors.live import TargetGoneError
from reloader.ids import U8, Addr, Generation
from reloader.live.patching import apply_redirects
from reloader.live.program import Program
from reloader.live.redirect import WIDEST, RedirectPlan, Way
from reloader.session.record import StateJournal, planned_memory, slot_key_rows, slot_rows
from reloader.session.return_record import MARK, AddLive, settle_return
from reloader.session.symbol_rows import all_symbols
from state.resume import LiveRow, RedirectRow, SlotKeyRow
from state.rows import GenerationRow, Summary
from state.store import Store
from stubs.table import SlotKey

_SHORT_JUMP: Final = 0xEB  # jumps of two bytes lead to a long one in padding near by


def settle(program: Program, journal: StateJournal, row: GenerationRow, add: AddLive) -> str:
    """Finish or undo a transaction that was under way; return a sentence that says which.

    Args:
        program: As it was before the transaction.
        journal: Of the program.
        row: The transaction, prepared.
        add: Takes a live object into the program.

    Raises:
        ReloaderError: It cannot be finished now; the row stays as it is.
    """
    if MARK in row.plan and row.generation > program.generation:
        return settle_return(program, journal, row, add)
    hosted = bool(row.plan.get("host"))
    if hosted and program.host.swapped(row.generation):
        return finish_swapped(program, journal, row, add)
    if not has_flipped(program, row):
        return undo(program, journal, row)
    if hosted:
        take_back(program, row)
        return undo(program, journal, row)
    store_new(program, row)
    redirects = leading_on(program, row.plan)
    try:
        finish_redirects(program, redirects)
    except TargetGoneError:
        raise
    except ReloaderError as error:
        if any(is_written(program, write) for write in planned_redirects(row.plan)):
            raise
        store_old(program, row)  # no original function leads to the new code yet
        return undo(program, journal, row, f" ({error})")
    return finish_record(program, journal, row, add, redirects)


def finish_swapped(
    program: Program, journal: StateJournal, row: GenerationRow, add: AddLive
) -> str:
    """Finish a transaction whose units the language's runtime has taken: nothing undoes that.

    Raises:
        ReloaderError: It cannot be finished now; the row stays as it is.
    """
    take_objects(program, journal.store, row, add)
    program.host.finish(row.plan["host"])
    store_new(program, row)
    redirects, why = leading_on(program, row.plan), ""
    try:
        finish_redirects(program, redirects)
    except TargetGoneError:
        raise
    except ReloaderError as error:
        why = f". Whoever captured functions of it goes on with the old code: {error}"
        redirects = [write for write in redirects if is_written(program, write)]
        finish_redirects(program, redirects)
    return finish_record(program, journal, row, add, redirects) + why


def store_new(program: Program, row: GenerationRow) -> None:
    """Let slots lead to a transaction's new code."""
    for slot, _, new in row.plan["flips"]:
        program.target.arena.slots[slot] = np.uint64(new)


def store_old(program: Program, row: GenerationRow) -> None:
    """Let slots lead again to where they led before."""
    for slot, old, _ in old_flips(row):
        program.target.arena.slots[slot] = np.uint64(old)


def old_flips(row: GenerationRow) -> list[list[int]]:
    """Return (slot, old, new) of the slots that led elsewhere before: others say nothing."""
    return [[slot, old, new] for slot, old, new in row.plan.get("flips", []) if old]


def has_flipped(program: Program, row: GenerationRow) -> bool:
    """Return whether any slot leads to a transaction's new code.

    A row that is older than what is live is no matter of slots any more: what it names may be
    another generation's memory by now.
    """
    slots = program.target.arena.slots
    later = row.generation < program.generation
    return not later and any(int(slots[s]) == new != old for s, old, new in old_flips(row))


def take_back(program: Program, row: GenerationRow) -> None:
    """Let callers run again what they ran before: units of the transaction were not swapped in.

    Raises:
        ReloaderError: Entry jumps cannot be taken back now.
    """
    written = [write for write in planned_redirects(row.plan) if is_written(program, write)]
    if written:
        back = as_plan(program, written).reversed()
        apply_redirects(back, program.target, partial(store_old, program, row))
    else:
        store_old(program, row)


def undo(program: Program, journal: StateJournal, row: GenerationRow, why: str = "") -> str:
    """Write down that a transaction did not become live; keep what constructors may know."""
    hosted = row.plan.get("host", {})
    program.host.suspect(hosted)
    text = f"the daemon ended before it became live; nothing was changed{why}"
    held = [
        memory
        for memory in planned_memory(row.plan, row.generation)
        if memory.allocation.addr not in program.ledger.rows
    ]
    keys = {(path, member) for path, member, *_ in row.plan.get("live", [])}
    slots = planned_slots(row.plan) if keys - program.objects.keys() else []
    with journal.store.transaction():
        summary = Summary(error_code="daemon-ended", error=text)
        journal.store.journal.fail(journal.target, row.generation, summary)
        journal.record_memory(held)
        journal.store.resume.put_slots(journal.target, slots)
        if hosted:
            journal.store.resume.put_host(journal.target, program.host.rows())
    for memory in held:
        program.target.arena.reserve(memory.allocation)
    program.ledger.add(held)
    take_slots(program, slots)
    return f"generation {row.generation}: {text}"


def take_slots(program: Program, rows: Sequence[SlotKeyRow]) -> None:
    """Enter slots into the table."""
    for row in rows:
        program.table.set(row.slot, SlotKey(row.path, row.member, row.name), row.original)


def planned_slots(plan: dict[str, Any]) -> list[SlotKeyRow]:
    """Return the slots that a plan takes."""
    return [
        SlotKeyRow(slot, path, member, base64.b64decode(name), original)
        for slot, path, member, name, original in plan.get("slots", [])
    ]


def planned_redirects(plan: dict[str, Any]) -> list[RedirectRow]:
    """Return the bytes that a plan replaces."""
    return [
        RedirectRow(slot, addr, bytes.fromhex(old), bytes.fromhex(new))
        for slot, addr, old, new in plan.get("redirects", [])
    ]


def is_written(program: Program, row: RedirectRow) -> bool:
    """Return whether the process holds the new bytes of a write."""
    return program.target.read(Addr(row.addr), len(row.new)).tobytes() == row.new


def leading_on(program: Program, plan: dict[str, Any]) -> list[RedirectRow]:
    """Return the writes whose function has newer code: others would lead back to themselves."""
    slots, original = program.target.arena.slots, dict(enumerate(program.table.original))
    original |= {row.slot: row.original for row in planned_slots(plan)}  # not in the table yet
    return [
        row for row in planned_redirects(plan) if int(slots[row.slot]) != original[row.slot]
    ]


def take_objects(program: Program, store: Store, row: GenerationRow, add: AddLive) -> None:
    """Take in the slots and objects that a transaction made."""
    take_slots(program, planned_slots(row.plan))
    for live in planned_lives(row):
        add(program, store, live)


def planned_lives(row: GenerationRow) -> list[LiveRow]:
    """Return the objects that a plan makes live."""
    return [
        LiveRow(path, member, row.generation, digest, base64.b64decode(addrs))
        for path, member, digest, addrs in row.plan["live"]
    ]


def finish_redirects(program: Program, rows: Sequence[RedirectRow]) -> None:
    """Write the jumps that are not there yet."""
    todo = [row for row in rows if not is_written(program, row)]
    if todo:
        apply_redirects(as_plan(program, todo), program.target)
    for row in rows:
        program.redirects.setdefault(row.slot, []).append((row.addr, row.old, row.new))


def as_plan(program: Program, rows: Sequence[RedirectRow]) -> RedirectPlan:
    """Return recorded writes as the patcher takes them: short jumps after what they lead to."""
    rows = sorted(rows, key=lambda row: row.addr)
    names = program.slot_owners()
    ways = [Way.SHORT if row.new[0] == _SHORT_JUMP else Way.HOLE for row in rows]
    return RedirectPlan(
        addr=np.array([row.addr for row in rows], np.uint64),
        size=np.array([len(row.new) for row in rows], np.uint8),
        old=padded([row.old for row in rows]),
        new=padded([row.new for row in rows]),
        way=np.array(ways if Way.SHORT in ways else [Way.ENTRY] * len(rows), np.uint8),
        function=np.arange(len(rows), dtype=np.int32),
        names=[names.get(row.slot, "?").encode() for row in rows],
    )


def padded(rows: Sequence[bytes]) -> U8:
    """Return (w, WIDEST) byte strings as equal rows."""
    joined = b"".join(row.ljust(WIDEST, b"\0") for row in rows)
    return np.frombuffer(joined, np.uint8).reshape(-1, WIDEST)


def finish_record(
    program: Program,
    journal: StateJournal,
    row: GenerationRow,
    add: AddLive,
    redirects: Sequence[RedirectRow],
) -> str:
    """Write down what a finished transaction has made live; return a sentence about it."""
    store, target = journal.store, journal.target
    lives, held = planned_lives(row), planned_memory(row.plan, row.generation)
    take_objects(program, store, row, add)
    recorded = {slot.slot for slot in store.resume.slots(target)}
    slots = [slot for slot in slot_key_rows(program, 0) if slot.slot not in recorded]
    hosted = program.host.rows() if row.plan.get("host") else {}
    for memory in held:
        program.target.arena.reserve(memory.allocation)
    program.ledger.add(held)
    program.generation = Generation(row.generation)
    summary = Summary(
        functions=flipped_names(program, row), notes=["finished by the next daemon"]
    )
    with store.transaction():
        store.journal.live(target, row.generation, summary)
        store.resume.put_live(target, lives)
        store.resume.put_slots(target, slots)
        store.resume.put_redirects(target, redirects)
        store.resume.put_host(target, hosted)
        journal.record_memory(held)
        changed = {slot for slot, *_ in row.plan["flips"]} | {slot.slot for slot in slots}
        changed |= program.host.slots()
        store.ledger.record_slots(slot_rows(program, target, changed))
        for live in lives:
            owner = store.ledger.object_id(target, live.path, live.member)
            columns = all_symbols(program, program.objects[live.path, live.member])
            store.ledger.replace_symbols(target, owner, row.generation, columns)
    names = ", ".join(flipped_names(program, row))
    return (
        f"generation {row.generation} was becoming live when the daemon ended: it is finished"
        f" now ({names})"
    )


def flipped_names(program: Program, row: GenerationRow) -> list[str]:
    """Return the functions of a transaction that led elsewhere before."""
    names = program.slot_owners()
    return [names.get(slot, "?") for slot, *_ in old_flips(row)]
