"""After a flip: the daemon's picture of the process becomes what the process now is."""

from dataclasses import replace

import numpy as np

from reloader.ids import NO_ROW, Generation
from reloader.live.host import Plain
from reloader.live.ledger import Held
from reloader.live.past import Made, Moment
from reloader.live.plan import Plan
from reloader.live.program import Program
from stubs.table import RESERVED


def adopt(program: Program, plan: Plan, generation: Generation) -> list[Held]:
    """Take a transaction that is live into the program; return what it superseded.

    What was planned did not know its number yet: the journal gave it.
    """
    remember(program, plan, generation)
    for version in plan.versions:
        live = replace(version, generation=generation)
        before = program.objects.get(live.file.key)
        if before is not None:
            program.cache.keep(before.file)  # who undoes this edit brings it back
            program.index.leave(before.file, live.file)
        program.objects[live.file.key] = live
        program.index.add_live(live)
    plan.held = [replace(row, generation=generation) for row in plan.held]
    if plan.directory is not None:
        plan.held.append(Held(plan.directory, generation, ("", "")))
        program.directory = plan.directory
    program.ledger.add(plan.held)
    for slot in [*plan.redirected, *plan.host.redirected]:
        if slot != NO_ROW:
            program.redirects.setdefault(slot, [])
    for slot, write in plan.writes():
        program.redirects[slot].append(write)
    program.host.adopt(plan.host)
    program.dead_slots.difference_update(plan.flips.slot.tolist())
    program.retained.difference_update(plan.flips.slot.tolist())
    program.generation = generation
    return program.ledger.supersede(program.roots())


def remember(program: Program, plan: Plan, generation: Generation) -> None:
    """Take note of what a program was before a transaction, which has flipped its slots."""
    flips, held = plan.flips, {int(row.generation) for row in program.ledger.rows.values()}
    size = plan.graph.symbols.size[flips.symbol].astype(np.uint64)
    if program.past.keep and isinstance(program.host, Plain):
        slots = program.target.arena.slots[: plan.first_slot].copy()
        old = (flips.old != 0) & (flips.slot < plan.first_slot)
        slots[flips.slot[old]] = flips.old[old]
        slots[:RESERVED] = 0
        moment = Moment(dict(program.objects), slots, dict(program.redirects))
        program.past.remember(int(program.generation), moment)
    program.past.add(Made(generation, flips.slot, flips.new, size), held)
