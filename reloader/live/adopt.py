"""After a flip: the daemon's picture of the process becomes what the process now is."""

from dataclasses import replace

import numpy as np

from reloader.ids import NO_ROW, Generation
from reloader.live.host import Plain
from reloader.live.ledger import Held
from reloader.live.past import Step
from reloader.live.plan import Plan
from reloader.live.program import Program


def adopt(program: Program, plan: Plan, generation: Generation) -> list[Held]:
    """Take a transaction that is live into the program; return what it superseded.

    What was planned did not know its number yet: the journal gave it.
    """
    generations = {int(row.generation) for row in program.ledger.rows.values()}
    program.past.add(step_of(program, plan, generation), generations)
    for version in plan.versions:
        live = replace(version, generation=generation)
        before = program.objects.get(live.file.key)
        if before is not None:
            program.cache.keep(before.file)  # who undoes this edit brings it back
        program.objects[live.file.key] = live
        program.index.add_live(live)
    plan.held = [replace(row, generation=generation) for row in plan.held]
    if plan.directory is not None:
        plan.held.append(Held(plan.directory, generation, ("", "")))
        program.directory = plan.directory
    program.ledger.add(plan.held)
    program.host.adopt(plan.host)
    for slot in [*plan.redirected, *plan.host.redirected]:
        if slot != NO_ROW:
            program.redirects.setdefault(slot, [])
    for slot, write in plan.writes():
        program.redirects[slot].append(write)
    program.dead_slots.difference_update(plan.flips.slot.tolist())
    program.retained.difference_update(plan.flips.slot.tolist())
    program.generation = generation
    return program.ledger.supersede(program.roots())


def step_of(program: Program, plan: Plan, generation: Generation) -> Step:
    """Return what a transaction changes, before the program is told of it."""
    flips = plan.flips
    more = plan.threads.values or plan.choices or not isinstance(program.host, Plain)
    return Step(
        generation,
        flips.slot,
        flips.old,
        flips.new,
        plan.graph.symbols.size[flips.symbol].astype(np.uint64),
        {live.file.key: program.objects.get(live.file.key) for live in plan.versions},
        flips_back=not more,
    )
