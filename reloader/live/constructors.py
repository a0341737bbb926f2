"""Constructors: what an object new to the process runs before its code is reached.

They run on the agent's thread, in the order a linker would give them: by the priority in the
section's name, lowest first, then in the order of the objects. An object that has a live
version runs none: its variables are initialised already.
"""

from contextlib import ExitStack
from dataclasses import replace

import numpy as np

from reloader.ids import NO_ROW, Addr, Generation
from reloader.link.graph import LinkGraph
from reloader.live.plan import Plan
from reloader.live.program import Program

_PREFIX = b".init_array"
_LAST = 65536  # a section without a priority comes after all that have one


def run(program: Program, plan: Plan, generation: Generation, undo: ExitStack) -> None:
    """Call the constructors of every object of a written plan that the process does not know.

    Args:
        program: The process.
        plan: Its bytes are in the arena and its new stubs lead to them.
        generation: The one that is being made.
        undo: From the first call on, memory and slots are not simply given back.
    """
    functions = sorted(pending(program, plan.graph), key=lambda item: item[0])
    if functions:
        undo.callback(retain, program, plan, generation)
    for _, function in functions:
        program.target.call(Addr(function))


def retain(program: Program, plan: Plan, generation: Generation) -> None:
    """Keep what a failed attempt took: its constructors may have told somebody of it."""
    plan.retained = True
    program.ledger.add([replace(row, generation=generation) for row in plan.held])
    program.retained.update(range(plan.first_slot, len(program.table)))


def pending(program: Program, graph: LinkGraph) -> list[tuple[int, int]]:
    """Return (priority, address) of each constructor to run, in the order of the blocks."""
    blocks = graph.blocks
    found: list[tuple[int, int]] = []
    for block in np.flatnonzero(blocks.live & (blocks.section != NO_ROW)).tolist():
        file = graph.objects[int(blocks.object[block])]
        name = file.section_names[int(blocks.section[block])]
        if not name.startswith(_PREFIX) or file.key in program.objects:
            continue
        priority = int(name[len(_PREFIX) + 1 :] or _LAST)
        pointers = graph.block_bytes(block).view("<u8").tolist()
        found += [(priority, pointer) for pointer in pointers if pointer not in {0, 2**64 - 1}]
    return found
