"""The unwind directory: which `.eh_frame_hdr` describes which part of the arena.

Registering frames with the unwinder does not scale and is not safe (libgcc keeps a list, and
two registrations that interleave make a later throw end the program), so nothing is registered.
The agent answers the unwinder's question `_dl_find_object(pc)` for our code from this one
table, which is replaced as a whole: a new copy is written to fresh memory, then one pointer,
slot 0, is stored. The old copy is retired like code, since an unwinder may be reading it.

Layout, as `agent/agent.h` reads it: uint64 count, then count times {start, end, eh_frame_hdr}
sorted by start.
"""

from collections.abc import Sequence
from contextlib import ExitStack

import numpy as np

from reloader.ids import Region
from reloader.live.ledger import Held, Ledger
from reloader.live.program import Program
from reloader.live.target import Allocation
from stubs.table import UNWIND_SLOT


def publish(program: Program, held: Sequence[Held], undo: ExitStack) -> Allocation:
    """Let unwinders find the tables of all code of ours, the given new code included.

    Args:
        program: The process; its slot 0 is stored.
        held: Memory that the ledger does not have yet.
        undo: Gets what takes this back.
    """
    arena = program.target.arena
    fresh = Ledger({row.allocation.addr: row for row in held})
    # superseded code too: a frame may still run it
    entries = sorted([*program.ledger.unwind_entries(), *fresh.unwind_entries()])
    words = np.array([len(entries), *(word for entry in entries for word in entry)], np.uint64)
    allocation = arena.allocate(Region.RODATA, words.nbytes)
    arena.view(allocation.addr, words.nbytes)[:] = words.view(np.uint8)
    before = int(arena.slots[UNWIND_SLOT])
    undo.callback(_take_back, program, allocation, before)
    arena.slots[UNWIND_SLOT] = np.uint64(allocation.addr)
    return allocation


def _take_back(program: Program, allocation: Allocation, before: int) -> None:
    """Publish the one before again; the other waits for its proof, it may be being read."""
    program.target.arena.slots[UNWIND_SLOT] = np.uint64(before)
    program.ledger.add([Held(allocation, program.generation, ("", ""), superseded=True)])
