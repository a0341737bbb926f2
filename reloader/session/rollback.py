"""Rollback: back to an earlier generation, by flipping slots where its memory is still held.

The last few generations' memory is kept for that (`retain` in the configuration). What is older
is linked again from its snapshots; that takes as long as a reload. Either way variables keep
their values, and the rollback is a generation of its own.
"""

import time
from functools import partial
from typing import TYPE_CHECKING

from reloader.errors.base import ReloaderError
from reloader.errors.session import NoSuchGenerationError
from reloader.ids import Generation
from reloader.live.agreement import agreement_of
from reloader.live.ending import must_run, noticing_the_end
from reloader.live.returning import Return, plan_return, switch_back
from reloader.session.outcome import Outcome
from reloader.session.return_record import adopt_return, prepare_return, record_return
from state.errors import StateError

if TYPE_CHECKING:
    from reloader.session.session import Session


def rollback(session: "Session", generation: int | None) -> Outcome:
    """Make the versions live that were live after a generation; None: before the last.

    Returns:
        What came of it, refusals and failures included.
    """
    began = time.monotonic()
    query, target = session.store.query, session.target
    kept = query.live_numbers(target)
    wanted = generation if generation is not None else (kept[1:] or [0])[0]
    names = [f"generation {wanted}"]
    session.journal.begin("rollback")
    if not kept or wanted not in {0, *kept} or wanted > kept[0]:
        error = NoSuchGenerationError(generation, [*kept, 0] if kept else [])
        return session.decided(error, [], names, began, "rollback")
    versions = query.live_set(target, wanted)
    if not any(session.is_other(version) for version in versions):
        return Outcome("unchanged", objects=names)
    undone = [number for number in kept if number > wanted]
    back = plan_return(session.program, wanted)
    if back is not None and not types_differ(session, back):
        return flip_back(session, back, undone, began)
    try:
        objects = [
            session.version(version) for version in versions if session.is_other(version)
        ]
    except StateError as error:
        return session.decided(error, [], names, began, "rollback")
    outcome = session.reload_objects(objects, began, "rollback")
    if outcome.state == "live":
        with session.noting_state_errors(outcome):
            session.store.journal.mark_rolled_back(target, undone)
    return outcome


def types_differ(session: "Session", back: Return) -> bool:
    """Return whether earlier code has other types: then it is linked again, and compared."""
    files = [live.file for live in back.objects.values()]
    return agreement_of(session.program, files).differs


def flip_back(session: "Session", back: Return, undone: list[int], began: float) -> Outcome:
    """Return to a generation whose memory is held."""
    program, journal = session.program, session.journal
    outcome = Outcome("live", objects=[live.file.name for live in back.objects.values()])
    owners = program.slot_owners()
    outcome.functions = [owners.get(slot, "?") for slot in back.slot.tolist()]
    try:
        number = prepare_return(journal, back, undone)
        try:
            session.before_step("flip")
            with noticing_the_end(program.target, lambda: "making earlier code live"):
                stop = switch_back(program, back, session.together_s)
                if not program.target.follow():  # it is done in those that are left
                    must_run(program.target)
        except ReloaderError as error:
            journal.failed(Generation(number), error)
            raise
    except (ReloaderError, StateError) as error:
        return session.decided(error, [], outcome.objects, began, "rollback")
    outcome.generation = number
    outcome.stop_us = stop.stop_us + stop.lost_us if stop else 0.0
    outcome.total_ms = (time.monotonic() - began) * 1e3
    session.before_step("record")
    adopt_return(program, back, Generation(number))
    write = partial(record_return, journal, number, back, undone, outcome)
    try:
        write()
    except StateError as error:
        journal.owed.append(write)
        outcome.notes.append(f"it is live, but could not be written down yet: {error}")
    with session.noting_state_errors(outcome):
        session.follow()
        session.retiring.collect()
    return outcome
