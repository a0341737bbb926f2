"""Addresses that only the kernel holds, and would call: the handlers of signals.

Every pointer to a function is its stub's address or the executable's, so that code is reached
this way only by functions that their sources have no more: whoever asks waits for such a one.
The agent tells the handlers. A forked child that has no agent has those of a process that
catches the same signals; if there is none, any address may be a handler of it.
"""

import signal
from collections.abc import Sequence
from contextlib import suppress

import numpy as np

from reloader.errors.live import TargetGoneError
from reloader.ids import U64
from reloader.live.frames import Holder, Span
from reloader.live.reach import Retirement
from reloader.live.target import Target
from reloader.live.tracing import status

NOTHING = np.empty(0, np.uint64)


def registered(target: Target, waiting: Sequence[Retirement]) -> U64:
    """Return the addresses that signals may lead to in any process of a family."""
    stubs = [start for row in waiting for start, _ in row.watched]
    if not stubs:
        return NOTHING
    found = [NOTHING]
    caught: set[str] = set()
    unknown: set[str] = set()
    for member in target.members():
        with suppress(TargetGoneError):
            handlers, signals = member.signal_handlers(), status(member.pid)["SigCgt"]
            if handlers is None:
                unknown.add(signals)
            else:
                caught.add(signals)
                found.append(handlers)
    if unknown - caught:
        return np.array(stubs, np.uint64)
    return np.concatenate(found)


def handlers_in(target: Target, spans: Sequence[Span]) -> list[Holder]:
    """Return the signals whose handlers are in some ranges, for `why`."""
    handlers = target.signal_handlers()
    rows: list[int] = [] if handlers is None else handlers.tolist()
    return [
        Holder("signal", f"the handler of {name_of_signal(number)}", 0, addr)
        for number, addr in enumerate(rows, 1)
        if any(start <= addr < end for start, end in spans)
    ]


def name_of_signal(number: int) -> str:
    """Return a signal's name; those without one are numbered from SIGRTMIN."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"SIGRTMIN+{number - signal.SIGRTMIN}"
