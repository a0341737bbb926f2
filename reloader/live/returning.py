"""Returning to a generation whose memory is still held: slots flip, nothing is linked.

Slots get the values that they had then, and objects are what they were; the generation may also
be a later one, which was rolled back from. A function whose code then was the executable's gets
its first bytes back: the jump there would lead through its slot to itself. So, all in one stop:
slots that lead to code of ours, bytes of the executable, and only then slots that lead into the
executable. After every prefix of that each function runs one of its versions.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Final

import numpy as np

from reloader.ids import I32, NO_ADDR, NO_ROW, U8, U64, Addr, Bool
from reloader.live.bodies import bodies_of
from reloader.live.commit import flip
from reloader.live.consistent import when_outside
from reloader.live.objects import LiveObject
from reloader.live.past import Moment, Write
from reloader.live.patching import RedirectResult, apply_redirects
from reloader.live.program import Key, Program
from reloader.live.redirect import WIDEST, RedirectPlan, Way
from reloader.live.switch import in_code
from reloader.live.target import Stopped

_SHORT_JUMP: Final = 0xEB  # it leads to a long one in padding, which others may use, too


@dataclass(slots=True, eq=False)
class Return:
    """What flips to an earlier generation; nothing of it has been done."""

    generation: int  # that is returned to
    slot: I32
    old: U64
    new: U64
    objects: dict[Key, LiveObject]  # what they were then
    # by slot: bytes of the executable to write, and what they replace
    writes: dict[int, list[Write]] = field(default_factory=dict[int, list[Write]])


def plan_return(program: Program, generation: int) -> Return | None:
    """Return what makes an earlier generation live, None if not everything of it is held."""
    moment = program.past.moments.get(generation)
    if moment is None:
        return None
    # a function that had no slot then ran where it was linked
    linked = program.table.original[len(moment.slots) : len(program.table)]
    then = np.concatenate([moment.slots, np.array(linked, np.uint64)])
    now = program.target.arena.slots[: len(then)]
    slot = np.flatnonzero((now != then) & (then != 0)).astype(np.int32)
    objects = {
        key: live for key, live in moment.objects.items() if not _is_live(program, key, live)
    }
    back = Return(generation, slot, now[slot].copy(), then[slot], objects)
    if not _is_held(program, back) or not _find_writes(program, back, moment):
        return None
    return back


def _is_live(program: Program, key: Key, live: LiveObject) -> bool:
    """Return whether an object is what it was: versions share their columns with copies."""
    now = program.objects.get(key)
    return now is not None and now.section_addr is live.section_addr


def _is_held(program: Program, back: Return) -> bool:
    """Return whether no address that is returned to was given back meanwhile."""
    slots = program.target.arena.slots
    parts = [back.new]
    for live in back.objects.values():
        own = live.symbol_slot[live.symbol_slot != NO_ROW]
        own = own[~np.isin(own, back.slot)]
        parts += [live.section_addr, live.data.addr, slots[own]]
    addrs = np.concatenate(parts)
    first, end = program.target.arena.span()
    ours = (addrs >= np.uint64(first)) & (addrs < np.uint64(end)) & (addrs != NO_ADDR)
    _, rows = program.ledger.find(addrs[ours])
    return bool((rows != NO_ROW).all())


def _find_writes(program: Program, back: Return, moment: Moment) -> bool:
    """Find the bytes of the executable that change; return whether all can be written."""
    into = _into_executable(program, back)
    for slot, leaves in zip(back.slot.tolist(), into.tolist(), strict=True):
        jumps = program.redirects.get(slot)
        if leaves and jumps:
            back.writes[slot] = [(addr, new, old) for addr, old, new in jumps]
        elif not leaves and jumps is None and slot in moment.jumps:
            back.writes[slot] = moment.jumps[slot]
    every = [write for writes in back.writes.values() for write in writes]
    return all(_SHORT_JUMP not in {old[0], new[0]} for _, old, new in every)


def _into_executable(program: Program, back: Return) -> Bool:
    """Return which slots will lead to the functions' first code."""
    original = program.table.originals(back.slot)
    return (back.new == original) & in_code(program.image, back.new)


def switch_back(program: Program, back: Return, limit_s: float | None) -> RedirectResult | None:
    """Make the code of then what callers reach; what is done already stays done.

    Args:
        program: The process.
        back: What to do.
        limit_s: As for `switch.flip_and_redirect`.

    Returns:
        What the stop was like, None if there was none.

    Raises:
        ReloaderError: It could not be done; slots and bytes are as they were.
    """
    if limit_s is not None and len(back.slot):
        bodies = bodies_of(program, back.slot, back.objects)
        return when_outside(program, bodies, limit_s, partial(_in_one_stop, program, back))
    if not back.writes:
        flip(program.target.arena, back.slot, back.new)
        return None
    return _in_one_stop(program, back, None)


def _in_one_stop(
    program: Program, back: Return, gate: Callable[[Stopped], None] | None
) -> RedirectResult:
    arena = program.target.arena
    last = _into_executable(program, back)
    first = ~last
    return apply_redirects(
        _as_plan(program, back),
        program.target,
        partial(flip, arena, back.slot[first], back.new[first]),
        back=partial(flip, arena, back.slot[first], back.old[first]),
        gate=gate,
        after=partial(flip, arena, back.slot[last], back.new[last]),
    )


def _as_plan(program: Program, back: Return) -> RedirectPlan:
    """Return the writes that are not there yet as the patcher takes them."""
    rows = sorted(
        (addr, slot, old, new)
        for slot, writes in back.writes.items()
        for addr, old, new in writes
        if program.target.read(Addr(addr), len(new)).tobytes() != new
    )
    names = program.slot_owners()
    return RedirectPlan(
        addr=np.array([row[0] for row in rows], np.uint64),
        size=np.array([len(row[3]) for row in rows], np.uint8),
        old=_padded([row[2] for row in rows]),
        new=_padded([row[3] for row in rows]),
        way=np.full(len(rows), Way.ENTRY, np.uint8),
        function=np.arange(len(rows), dtype=np.int32),
        names=[names.get(row[1], "?").encode() for row in rows],
    )


def _padded(rows: Sequence[bytes]) -> U8:
    joined = b"".join(row.ljust(WIDEST, b"\0") for row in rows)
    return np.frombuffer(joined, np.uint8).reshape(-1, WIDEST)
