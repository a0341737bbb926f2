"""After a flip: the daemon's picture of the process becomes what the process now is."""

from dataclasses import replace

from reloader.ids import NO_ROW, Generation
from reloader.live.ledger import Held
from reloader.live.plan import Plan
from reloader.live.program import Program


def adopt(program: Program, plan: Plan, generation: Generation) -> list[Held]:
    """Take a transaction that is live into the program; return what it superseded.

    What was planned did not know its number yet: the journal gave it.
    """
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
