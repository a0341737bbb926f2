"""Initial values of new thread-local variables, in every thread there is or will be.

First the init image, which threads made from now on copy; then the threads that live, found
without stopping them where the C library tells. A thread may be made between the two, out of an
image that was copied before: so all is done again just before the flip, and those not seen the
first time get the values, too. Nobody can have used the variables by then.
"""

from contextlib import suppress
from dataclasses import dataclass, field

import numpy as np

from reloader.elf.object import UNDEFINED
from reloader.errors.live import TargetGoneError
from reloader.ids import Addr
from reloader.link.passes.thread_variables import STT_TLS, thread_variables
from reloader.live.ending import must_run
from reloader.live.program import Program
from reloader.live.target import Target
from reloader.live.thread_pointers import thread_pointers
from reloader.live.thread_room import ThreadRoom


@dataclass(frozen=True, slots=True)
class ThreadValue:
    """The initial bytes of one new variable, or of a section of them."""

    offset: int  # from the thread pointer
    data: bytes


@dataclass(slots=True)
class ThreadValues:
    """All of one transaction, and who has them."""

    values: list[ThreadValue] = field(default_factory=list[ThreadValue])
    seen: set[int] = field(default_factory=set[int])  # tids


def initialise(target: Target, fresh: ThreadValues) -> None:
    """Write initial values into the init image, then into every living thread.

    In every process of the family: one that is forked later has its parent's image.
    """
    done: set[int] = set()
    while fresh.values and (
        members := [member for member in target.members() if member.pid not in done]
    ):
        for member in members:
            done.add(member.pid)
            with suppress(TargetGoneError):
                for value in fresh.values:
                    offset = value.offset - target.thread_room.offset
                    member.write_thread_image(offset, value.data)
                reach_threads(member, fresh)
    if done:
        must_run(target)


def reach_threads(target: Target, fresh: ThreadValues) -> None:
    """Write initial values into the threads of one process that do not have them yet."""
    for tid, base in thread_pointers(target).items():
        if tid in fresh.seen:
            continue
        for value in fresh.values:
            target.write_data(Addr(base + value.offset), value.data)
        fresh.seen.add(tid)


def in_use(program: Program, room: ThreadRoom) -> list[tuple[int, int]]:
    """Return (offset, size) in the reserve of each variable that live objects have or use."""
    ranges: list[tuple[int, int]] = []
    earlier = [live for _, live in program.past.others(program.objects)]
    for live in [*program.objects.values(), *earlier]:
        file = live.file
        own = thread_variables(file)
        offsets: list[int] = live.symbol_addr[own.symbol].view(np.int64).tolist()
        ranges += zip(offsets, own.size.tolist(), strict=True)
        undefined = (file.types() == STT_TLS) & (file.symbol_sections == UNDEFINED)
        names = [file.symbol_names[row] for row in np.flatnonzero(undefined).tolist()]
        known = [program.index.rows[name] for name in names if name in program.index.rows]
        ranges += [(row.addr if row.addr < 1 << 63 else row.addr - (1 << 64), row.size)
                   for row in known]  # fmt: skip
    return [pair for pair in ranges if room.holds(pair[0])]


def collect(program: Program) -> None:
    """Give room back that no live object has a variable in, once no old code is left."""
    room = program.target.thread_room
    if not room.used() or any(row.superseded for row in program.ledger.rows.values()):
        return
    room.keep(in_use(program, room))
    program.index.forget(lambda known: known.type == STT_TLS and room.is_free(known.addr))
