"""A proof for a family: each process is looked at by itself, and any one can say no.

They need not stand still together: memory that nothing in a process leads to stays so there,
unless another process sends it an address, and that one is looked at as well. What is in shared
memory is seen in each. A child that is forked before its parent was looked at may have what the
parent has dropped since: so the list is made again until nobody is new.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

from reloader.errors.live import TargetGoneError

if TYPE_CHECKING:
    from collections.abc import Callable

    from reloader.live.frames import Holder
    from reloader.live.retire import RetireReport
    from reloader.live.target import Target

_ROUNDS: Final = 8  # lists of the processes


def prove_for_all(target: Target, prove: Callable[[Target], RetireReport]) -> RetireReport:
    """Return what is free in every process of a family.

    Args:
        target: The family.
        prove: Looks at one process of it.

    Raises:
        TargetGoneError: None is left.
    """
    report: RetireReport | None = None
    done: set[int] = set()
    for _ in range(_ROUNDS):
        fresh = [member for member in target.members() if member.pid not in done]
        if report is not None and not fresh:
            return report
        for member in fresh:
            done.add(member.pid)
            try:
                one = prove(member)
            except TargetGoneError:  # forgotten, unless it was the last: then members() says so
                continue
            report = one if report is None else both(report, one, member.pid)
            if not report.freed:
                return report
    if report is None:
        raise TargetGoneError(target.pid, "looking for pointers to old code")
    reason = "new processes come faster than they can be looked at"
    return replace(report, outcome="interrupted", freed=[], reason=reason)


def both(first: RetireReport, other: RetireReport, pid: int) -> RetireReport:
    """Return two processes' reports as one; `pid` is the other's process."""
    free = {id(row) for row in other.freed}
    freed = [row for row in first.freed if id(row) in free]
    return replace(
        first,
        outcome=first.outcome if freed else other.outcome,
        freed=freed,
        holders=first.holders + located(other.holders, pid),
        scanned_size=first.scanned_size + other.scanned_size,
        stop_size=first.stop_size + other.stop_size,
        stop_us=max(first.stop_us, other.stop_us),
        reason=first.reason or other.reason,
    )


def located(holders: list[Holder], pid: int) -> list[Holder]:
    """Return holders with the process that they are in."""
    return [replace(holder, where=f"process {pid}: {holder.where}") for holder in holders]
