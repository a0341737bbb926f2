"""Doing something once in every process of a family, those that are forked meanwhile included.

A child that is forked after its parent was done has what was done, in its copy of the memory.
One that is forked before has nothing, and one that is forked in the middle has half of it,
without the thread that was at it. Nobody outside can tell which, so each process says it
itself: a word of the agent's, private and thus copied by fork, is set before and after.
"""

import time
from collections.abc import Callable
from contextlib import suppress
from enum import IntEnum
from typing import Final

from reloader.errors.live import TargetGoneError
from reloader.ids import Generation
from reloader.live.ending import must_run
from reloader.live.target import Target

_FORK_SECONDS: Final = 0.0005  # from the copy of the memory until the child can be seen

Action = Callable[[Target], None]


class Stage(IntEnum):
    """What is done for one generation, in this order."""

    BEFORE = 0  # the program's own hook
    INITIALISE = 1
    AFTER = 2


def nothing(process: Target) -> None:
    """Leave a process that was forked in the middle as it is."""
    del process


def in_each(
    target: Target,
    generation: Generation | int,
    stage: Stage,
    action: Action,
    afresh: Action = nothing,
) -> None:
    """Do something once in each process, until nobody is new.

    Args:
        target: The family.
        generation: What it is done for; no other attempt has this number.
        stage: Which of the things that are done for it.
        action: What is done; the process is one of the family, alone.
        afresh: Called before it in a process that was forked while its parent was at it.

    Raises:
        TargetGoneError: The process that stands for all has ended. Another is forgotten.
    """
    begun = (generation * len(Stage) + stage) * 2 + 1
    done = begun + 1
    seen: set[int] = set()
    settled = False
    while True:
        fresh = [member for member in target.members() if member.pid not in seen]
        if not fresh and settled:
            break
        settled = not fresh
        if settled:
            time.sleep(_FORK_SECONDS)
        for member in fresh:
            seen.add(member.pid)
            with suppress(TargetGoneError):
                before = member.progress()
                if before == done:
                    continue
                if before == begun:
                    afresh(member)
                member.set_progress(begun)
                action(member)
                member.set_progress(done)
    must_run(target)
