"""Consistent switching: all functions of a transaction change at one instant, or none does.

The instant is a stop of all threads at which none of them runs a version of these functions or
has one on its stack. Who has is found exactly, by the unwind tables, where a word on a thread's
stack points into them at all; where the tables end, such a word counts.

Busy threads are all outside at the same moment but rarely. So those that are outside stand
still for a few milliseconds while the others go on in short slices until they are outside, too.
That cannot help where one inside waits for one outside (for a lock): all go on then, and it is
tried again later, up to a limit.

Not seen: frames on the stacks of fibers and coroutines that no thread runs just now.
"""

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Final

import numpy as np

from reloader.errors.base import ReloaderError
from reloader.errors.consistent import NeverOutsideError, Standing
from reloader.errors.live import TargetGoneError
from reloader.ids import U8, U64, Addr, SlotId
from reloader.live import ptrace, sigframes
from reloader.live.bodies import Bodies
from reloader.live.cfi import Unwinder
from reloader.live.frames import ORIG_RAX, RIP, RSP, stack_words, thread_name
from reloader.live.patching import Patience, RedirectResult
from reloader.live.program import Program
from reloader.live.target import Stopped, Target
from reloader.live.threads import StoppedThreads, list_threads, reissue, thread_state
from stubs import layout

_BACK_OFF: Final = Patience(first_wait=0.0005, growth=1.5, longest_wait=0.1)
_SLICE: Final = 100e-6  # seconds that threads inside go on before they are looked at again
_LONGEST: Final = 0.004  # seconds of one stop that such slices may take
_STOP_SECONDS: Final = 2.0


class _InsideError(ReloaderError):
    """At this stop some thread was inside."""

    def __init__(self, standing: Sequence[Standing]) -> None:
        self.standing = standing
        super().__init__("; ".join(map(str, standing)))


class Looker:
    """Looks at the stopped threads of one process."""

    def __init__(self, target: Target, program: Program, bodies: Bodies) -> None:
        """Prepare everything that can be found out while the process runs."""
        self.target, self.bodies = target, bodies
        self.look_again()

        def read(addr: int, size: int) -> U8:
            return target.read(Addr(addr), size)

        self.restorers = sigframes.find_restorers(self.mappings, read)
        stubs = int(program.target.arena.stub_addr(SlotId(0)))
        ours = [
            *program.ledger.unwind_entries(),
            (stubs, stubs + len(program.table) * layout.STUB_SIZE, 0),
        ]
        self.unwinder = Unwinder(self.mappings, read, self.restorers.tolist(), ours)

    def look_again(self) -> None:
        """Read the mappings; a thread that was made since has its stack there."""
        self.mappings = self.target.maps()
        # one that job control has stopped must not go on for us
        self.may_run = thread_state(self.target.pid, self.target.pid) not in {"T", "t"}

    def clear(self, stopped: Stopped, until: float) -> None:
        """Return if no thread is inside; meanwhile those that can leave do.

        Raises:
            _InsideError: Some are.
        """
        rows = list(range(len(stopped.tids)))
        while True:
            found = {row: self.standing(stopped, row) for row in rows}
            inside = {row: where for row, where in found.items() if where is not None}
            if not inside:
                break
            rows = self._movable(stopped, list(inside))
            if len(rows) < len(inside) or time.perf_counter() > until:
                raise _InsideError(list(inside.values()))
            _go_on(stopped, rows)
        if isinstance(stopped, StoppedThreads):
            fresh = set(list_threads(stopped.pid)) - set(stopped.tids)
            if fresh:  # made by a thread that went on: they are not stopped
                names = ("its first call",)
                raise _InsideError([Standing(tid, "?", names, certain=False) for tid in fresh])

    def _movable(self, stopped: Stopped, rows: list[int]) -> list[int]:
        """Return those that can leave by themselves: not waiting in the kernel."""
        if not self.may_run or not isinstance(stopped, StoppedThreads):
            return []
        calls = stopped.registers[rows, ORIG_RAX].view(np.int64) >= 0
        return [row for row, call in zip(rows, calls.tolist(), strict=True) if not call]

    def standing(self, stopped: Stopped, row: int) -> Standing | None:
        """Return where a thread is inside, None if it is outside of everything."""
        words: U64 = stopped.registers[row]
        stack = stack_words(self.target, self.mappings, int(words[RSP]))
        here = self.bodies.find(words[RIP : RIP + 1], ends=False)
        marks = self.bodies.find(stack, ends=True)
        seen = marks[marks >= 0]
        if here[0] < 0 and not len(seen) and not np.isin(stack, self.restorers).any():
            return None
        counters, complete = self.unwinder.walk(words.tolist())
        frames = self.bodies.find(np.array(counters[1:], np.uint64), ends=True)
        rows = [int(here[0]), *frames.tolist()]
        if not complete:
            rows += seen.tolist()
        names = tuple(dict.fromkeys(self.bodies.name(at) for at in rows if at >= 0))
        if not names:
            return None
        tid = stopped.tids[row]
        return Standing(tid, thread_name(self.target.pid, tid), names, certain=complete)


class Gate:
    """Looks at all stopped threads: may everything switch now?"""

    def __init__(self, program: Program, bodies: Bodies) -> None:
        """Prepare for every process of the family."""
        self.program, self.bodies = program, bodies
        self.lookers: dict[int, Looker] = {}
        self.look_again()

    def look_again(self) -> None:
        """Take note of what is new since the last stop."""
        members = self.program.target.members()
        for pid in self.lookers.keys() - {member.pid for member in members}:
            del self.lookers[pid]
        for member in members:
            with suppress(TargetGoneError):  # it ends just now
                self.looker(member).look_again()

    def looker(self, member: Target) -> Looker:
        """Return who looks at a process."""
        if member.pid not in self.lookers:
            self.lookers[member.pid] = Looker(member, self.program, self.bodies)
        return self.lookers[member.pid]

    def __call__(self, stopped: Stopped) -> None:
        """Return if no thread is inside.

        Raises:
            _InsideError: Some are; nothing may switch.
        """
        until = time.perf_counter() + _LONGEST
        target = self.program.target
        members = {member.pid: member for member in target.members()}
        for part in stopped.parts:
            pid = part.pid if isinstance(part, StoppedThreads) else target.pid
            self.looker(members.pop(pid, target)).clear(part, until)
        fresh = {member.pid for member in target.members()} & members.keys()
        if fresh:  # forked by a thread that went on
            names = ("a process forked just now",)
            raise _InsideError([Standing(pid, "?", names, certain=False) for pid in fresh])


def _go_on(stopped: Stopped, rows: list[int]) -> None:
    """Let some threads run for a slice, and stop them again."""
    assert isinstance(stopped, StoppedThreads)  # noqa: S101 - `_movable` returns none of others
    tracees = [stopped.tracees[row] for row in rows]
    for row, tracee in zip(rows, tracees, strict=True):
        with suppress(ProcessLookupError):
            reissue(stopped.pid, tracee, stopped.registers[row].copy())
            ptrace.ptrace(ptrace.PTRACE_CONT, tracee.tid, 0, tracee.signal)
            tracee.signal, tracee.stopped = 0, False
    time.sleep(_SLICE)
    deadline = time.monotonic() + _STOP_SECONDS
    for tracee in tracees:
        tracee.interrupt()
    for row, tracee in zip(rows, tracees, strict=True):
        if tracee.wait(deadline):
            ptrace.get_registers(tracee.tid, stopped.registers[row])
        else:
            stopped.registers[row] = 0  # it has ended: it is nowhere


Switch = Callable[[Callable[[Stopped], None]], RedirectResult]


def when_outside(
    program: Program, bodies: Bodies, limit_s: float, switch: Switch
) -> RedirectResult:
    """Switch at an instant at which no thread is inside of some functions.

    Args:
        program: The process.
        bodies: Every version of the functions.
        limit_s: How long to try.
        switch: Stops all threads, calls the gate it is given, and switches; what the gate
            raises leaves everything as it was.

    Returns:
        The stop that did it; the pauses before are counted in it as lost.

    Raises:
        NeverOutsideError: Some thread was inside at every try.
    """
    began = time.monotonic()
    gate = Gate(program, bodies)
    lost_us, tries = 0.0, 0
    while True:
        tries += 1
        try:
            done = switch(gate)
        except _InsideError as error:
            lost_us += program.target.last_stop_us
            waited = time.monotonic() - began
            if waited >= limit_s:
                raise NeverOutsideError(error.standing, tries, waited) from error
            time.sleep(min(_BACK_OFF.wait(tries), max(limit_s - waited, 0.0)))
            gate.look_again()
        else:
            return RedirectResult(
                done.plan, done.stop_us, done.lost_us + lost_us, tries, done.waited, [],
                ptrace.empty_registers(0),
            )  # fmt: skip
