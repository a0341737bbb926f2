"""The moment itself: slots flip, and functions of the executable get their first jump.

An original entry may jump to its stub only once the slot behind the stub points at new code, or
the first caller would run in a circle; and a slot must not flip if the jumps turn out to be
impossible. So with jumps to write both happen in one stop of all threads, after its checks have
passed, the slots first: if we are killed inside the stop, the threads go on at once. Without
jumps the stores alone do it and nobody is stopped.
"""

from collections.abc import Callable
from functools import partial

import numpy as np

from reloader.elf.image import Image
from reloader.ids import I32, U64, Bool, Generation, SlotId
from reloader.live.bodies import bodies_of
from reloader.live.commit import flip
from reloader.live.consistent import when_outside
from reloader.live.patching import RedirectResult, apply_redirects
from reloader.live.plan import Flips, Plan
from reloader.live.program import Program
from reloader.live.redirect import Places, RedirectPlan, pack, plan_redirects, survey
from reloader.live.surroundings import surroundings, with_callers
from reloader.live.target import Stopped

Retain = Callable[[Program, Plan, Generation], None]


def plan_entries(program: Program, flips: Flips) -> tuple[RedirectPlan | None, list[int]]:
    """Plan the jumps for functions of the executable that change for the first time.

    Returns:
        The writes, or None if there are none, and the slot of each row of the plan's names that
        is redirected (NO_ROW for context).

    Raises:
        NotRedirectableError: Some of them cannot be redirected.
    """
    original = program.table.originals(flips.slot)
    rows = in_code(program.image, original).nonzero()[0]
    done = np.fromiter(program.redirects, np.int32, len(program.redirects))
    # an alias has a slot of its own, and its entry leads through the other's
    rows = rows[~np.isin(original[rows], program.table.originals(done))]
    if not len(rows):
        return None, []
    slots: I32 = flips.slot[rows]
    stubs = np.array([program.target.arena.stub_addr(SlotId(int(s))) for s in slots], np.uint64)
    functions = surroundings(program, original[rows], stubs)
    plan, refusals = survey(functions, program.target.read)
    if refusals:
        names = [refusal.name for refusal in refusals]
        functions, calls = with_callers(program, functions, names)
        calls = outside(calls, plan)
        plan = plan_redirects(functions, program.target.read, calls)
    slot_of_stub = dict(zip(stubs.tolist(), slots.tolist(), strict=True))
    return plan, [slot_of_stub.get(stub, -1) for stub in functions.stub_addr.tolist()]


def outside(calls: Places, plan: RedirectPlan) -> Places:
    """Return the calls that no entry jump overwrites: those are not made any more."""
    first, last = plan.addr, plan.addr + plan.size
    field = calls.addr[:, None]
    hit = ((field < last) & (field + np.uint64(4) > first)).any(axis=1)
    return Places(calls.addr[~hit], calls.function[~hit])


def in_code(image: Image, addrs: U64) -> Bool:
    """Return which addresses are in the executable's own code."""
    start, end = image.executable[:, 0], image.executable[:, 1]
    inside = (addrs[:, None] >= start) & (addrs[:, None] < end)
    return np.asarray(inside.any(axis=1), np.bool_)


def flip_and_redirect(
    program: Program, plan: Plan, limit_s: float | None = None
) -> RedirectResult | None:
    """Make new code what callers reach.

    Args:
        program: The process.
        plan: Its code is in the arena.
        limit_s: None: each function changes at its next call. Else all change at one instant at
            which no thread is inside of any; how long to wait for that.

    Returns:
        What the stop was like and who ran what at that moment; None if there was none.

    Raises:
        ReloaderError: The jumps could not be written, or some thread was always inside; slots
            are as they were.
    """
    changing = plan.flips.slot[plan.flips.old != 0]
    if limit_s is not None and len(changing):
        bodies = bodies_of(program, changing, {live.file.key for live in plan.versions})
        return when_outside(program, bodies, limit_s, partial(_in_one_stop, program, plan))
    if plan.redirects is None:
        flip(program.target.arena, plan.flips.slot, plan.flips.new)
        return None
    return _in_one_stop(program, plan, None)


def _in_one_stop(
    program: Program, plan: Plan, gate: Callable[[Stopped], None] | None
) -> RedirectResult:
    """Stop all threads, ask the gate, flip and write."""
    arena, flips = program.target.arena, plan.flips
    return apply_redirects(
        plan.redirects or pack([], []),
        program.target,
        lambda: flip(arena, flips.slot, flips.new),
        back=lambda: flip(arena, flips.slot, flips.old),
        gate=gate,
    )


def take_back(program: Program, plan: Plan, generation: Generation, retain: Retain) -> None:
    """Undo a flip: what had to follow it failed, maybe because the first process ended.

    Args:
        program: The process.
        plan: It was live for a moment.
        generation: As that.
        retain: Lets its memory wait for its proof: somebody may run the code.
    """
    if not program.target.follow():
        return
    retain(program, plan, generation)
    try:
        _flip_back(program, plan)
    finally:
        program.ledger.supersede(program.roots())


def _flip_back(program: Program, plan: Plan) -> None:
    arena, flips = program.target.arena, plan.flips
    if plan.redirects is None:
        flip(arena, flips.slot, flips.old)
        return
    apply_redirects(
        plan.redirects.reversed(),
        program.target,
        lambda: flip(arena, flips.slot, flips.old),
    )
