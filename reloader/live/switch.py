"""The moment itself: slots flip, and original functions that changed for the first time get their jump.

An original entry may jump to its stub only once the slot behind the stub points at new code, or the first caller would run
in a circle; and a slot must not flip if the jumps turn out to be impossible. So with jumps to write both happen in one stop of
all threads, after its checks have passed. Without, the stores alone do it and nobody is stopped.
"""

from collections.abc import Sequence

import numpy as np

from reloader.ids import NO_ADDR, I32, Addr
from reloader.live.commit import Flips, flip
from reloader.live.patching import apply_redirects
from reloader.live.plan import Plan
from reloader.live.program import Program
from reloader.live.redirect import OriginalFunctions, Places, RedirectPlan, plan_redirects


def plan_entries(
    program: Program, flips: Flips, names: Sequence[bytes]
) -> tuple[RedirectPlan, list[int]]:
    """Plan the jumps for functions of the executable that change for the first time.

    Returns:
        The writes, and the slots of the functions that they redirect.

    Raises:
        NotRedirectableError: Some of them cannot be redirected.
    """
    original = np.array([program.table.original[slot] for slot in flips.slot], np.uint64)
    inside = program.image.contains(original)
    fresh = np.array([int(slot) not in program.redirects for slot in flips.slot], np.bool_)
    rows = np.flatnonzero(inside & fresh & (original != 0))
    functions = surroundings(program, flips.slot[rows], original[rows], [names[i] for i in rows])
    sites = call_sites(program, functions)
    plan = plan_redirects(functions, program.target.read, sites)
    return plan, [int(slot) for slot in flips.slot[rows]]
