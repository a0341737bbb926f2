"""A return to an earlier generation in the books: its intent, its result, and its recovery."""

import base64
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from reloader.ids import Generation
from reloader.live.past import Moment
from reloader.live.persist import pack
from reloader.live.program import Key, Program
from reloader.live.returning import Return, switch_back
from reloader.session.outcome import Outcome
from reloader.session.record import (
    StateJournal,
    live_row,
    slot_rows,
    summary_of,
    text,
    versions_of,
)
from reloader.session.symbol_rows import all_symbols
from state.resume import LiveRow, RedirectRow
from state.rows import GenerationRow
from state.store import Store
from stubs.table import RESERVED

if TYPE_CHECKING:
    from reloader.live.objects import LiveObject

AddLive = Callable[[Program, Store, LiveRow], None]

MARK: Final = "returns"  # the key of a plan by which recovery knows it


def prepare_return(journal: StateJournal, back: Return, undone: list[int]) -> int:
    """Write the intent."""
    journal.catch_up()
    plan: dict[str, Any] = {
        "flips": np.array([back.slot, back.old, back.new], np.uint64).T.tolist(),
        "generation": back.generation,
        MARK: [
            [slot, addr, old.hex(), new.hex()]
            for slot, writes in back.writes.items()
            for addr, old, new in writes
        ],
        "undone": undone,
        "live": [
            [*live.file.key, live.file.digest, text(pack(live))]
            for live in back.objects.values()
        ],
    }
    versions = versions_of([live.file for live in back.objects.values()])
    number = journal.store.journal.prepare(journal.target, versions, plan, kind="rollback")
    journal.number, journal.plan = number, None
    return number


def adopt_return(program: Program, back: Return, generation: Generation) -> None:
    """Take a return that is live into the program."""
    slots = program.target.arena.slots[: len(program.table)].copy()
    slots[back.slot] = back.old
    slots[:RESERVED] = 0
    left = Moment(dict(program.objects), slots, dict(program.redirects))
    past = program.past
    past.remember(int(program.generation), past.moments.get(int(program.generation), left))
    for slot, writes in back.writes.items():
        if slot in program.redirects:
            program.redirects.pop(slot)
        else:
            program.redirects[slot] = list(writes)
    if back.generation in past.moments:
        past.remember(int(generation), past.moments[back.generation])
    for key, live in back.objects.items():
        if key in program.objects:
            program.index.leave(program.objects[key].file, live.file)
        program.objects[key] = replace(live, generation=generation)
        program.index.add_live(program.objects[key])
        program.dead_slots.difference_update(live.symbol_slot.tolist())
    program.generation = generation
    program.ledger.revive(program.roots())
    program.ledger.supersede(program.roots())


def record_return(
    journal: StateJournal, number: int, back: Return, undone: list[int], outcome: Outcome
) -> None:
    """Write down what is live now, in one commit."""
    store, target, program = journal.store, journal.target, journal.program
    lives = [program.objects[key] for key in back.objects]
    needed = [at for at, row in program.ledger.rows.items() if not row.superseded]
    with store.transaction():
        store.journal.live(target, number, summary_of(outcome))
        store.journal.mark_rolled_back(target, undone)
        store.resume.put_live(target, map(live_row, lives))
        store.resume.remove_redirects(target, back.writes)
        store.resume.put_redirects(
            target,
            [
                RedirectRow(slot, *write)
                for slot in back.writes
                for write in program.redirects.get(slot, [])
            ],
        )
        store.ledger.mark_needed(target, needed)
        store.ledger.record_slots(slot_rows(program, target, back.slot.tolist()))
        for live in lives:
            owner = store.ledger.object_id(target, *live.file.key)
            store.ledger.replace_symbols(target, owner, number, all_symbols(program, live))
            journal.names.pop(live.file.key, None)


def settle_return(
    program: Program, journal: StateJournal, row: GenerationRow, add: AddLive
) -> str:
    """Finish a return that was under way when its daemon ended: the code it leads to is there.

    Raises:
        ReloaderError: It cannot be finished now; the row stays as it is.
    """
    before = dict(program.objects)
    objects: dict[Key, LiveObject] = {}
    for path, member, digest, addrs in row.plan["live"]:
        live = LiveRow(path, member, row.generation, digest, base64.b64decode(addrs))
        add(program, journal.store, live)
        objects[path, member] = program.objects[path, member]
    program.objects.update(before)  # `adopt_return` is told what was live until then
    slot, old, new = np.array(row.plan["flips"], np.uint64).reshape(-1, 3).T
    number = int(row.plan["generation"])
    back = Return(number, slot.astype(np.int32), old, new, objects)
    for owner, addr, was, will in row.plan[MARK]:
        write = addr, bytes.fromhex(was), bytes.fromhex(will)
        back.writes.setdefault(owner, []).append(write)
    switch_back(program, back, None)
    adopt_return(program, back, Generation(row.generation))
    outcome = Outcome("live", notes=["finished by the next daemon"])
    names = program.slot_owners()
    outcome.functions = [names.get(number, "?") for number in back.slot.tolist()]
    record_return(journal, row.generation, back, row.plan["undone"], outcome)
    return (
        f"generation {row.generation}, a rollback, was becoming live when the daemon ended: it"
        f" is finished now ({', '.join(outcome.functions)})"
    )
