"""Writing a plan of redirects into the live process, whole or not at all, and taking it back.

All threads of all processes of the family are stopped, so no thread sees half of it, and no
process goes without: one that cannot be written leaves all as they were. What remains to be
checked is that none stands inside the bytes. One that does is stepped out of them, an
instruction at a time: in a short function that many threads call all the time there is no
moment at which all are outside.
Where that is not possible (it waits in a system call there, or a signal handler will return
there) they all go on and the write is tried again a little later.

Everything is prepared before the stop: inside are one read and one comparison for each run of
code, the look at the program counters, and one write a page.

Should we be killed inside the stop, the kernel lets all threads go on at once. So the order is
one in which every prefix is sound: what the jumps lead to comes first (the caller's `within`
stores the slots), then jumps in padding, then the entries that lead there.
"""

import os
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from reloader.errors.base import ReloaderError
from reloader.errors.live import TargetGoneError
from reloader.errors.redirect import CodeChangedError, PcInPatchError
from reloader.ids import I64, U64, Addr, Bool
from reloader.live import ptrace
from reloader.live.frames import ORIG_RAX, RIP, thread_name
from reloader.live.redirect import WIDEST, RedirectPlan, Way
from reloader.live.target import Stopped, Target
from reloader.live.threads import StoppedThreads, Tracee, status_fields

PAGE: Final = 4096
_SINGLE_STEP: Final = 9  # PTRACE_SINGLESTEP
_SIGTRAP: Final = 5
_STEPS: Final = 8  # instructions that begin inside the bytes of a jump, and some to spare
_STEP_SECONDS: Final = 0.1


@dataclass(frozen=True, slots=True)
class Patience:
    """How often to stop all threads again when one stood inside bytes to be replaced."""

    tries: int = 30
    first_wait: float = 0.0005  # seconds
    growth: float = 1.4
    longest_wait: float = 0.05

    def wait(self, attempt: int) -> float:
        """Return the seconds to let the program run after a try (counted from 1)."""
        return min(self.first_wait * self.growth ** (attempt - 1), self.longest_wait)


@dataclass(frozen=True, slots=True, eq=False)
class RedirectResult:
    """What a patch did, and who was where at that moment."""

    plan: RedirectPlan
    stop_us: float  # the pause that wrote
    lost_us: float  # pauses before it, at which a thread stood in the way
    tries: int
    waited: float  # seconds
    tids: list[int]
    registers: NDArray[np.uint64]  # (t, 27), see `frames.active_functions`


PATIENCE: Final = Patience()


def apply_redirects(  # noqa: PLR0913 - one function a moment of the stop
    plan: RedirectPlan,
    target: Target,
    within: Callable[[], None] | None = None,
    patience: Patience = PATIENCE,
    *,
    back: Callable[[], None] | None = None,
    gate: Callable[[Stopped], None] | None = None,
    after: Callable[[], None] | None = None,
) -> RedirectResult:
    """Write a plan in one stop of all threads.

    Args:
        plan: What to write.
        target: The process.
        within: Called in the same stop before the writes; if it raises, nothing is written.
        patience: How long to wait for threads to leave the bytes.
        back: Takes back what `within` did; called in the same stop if it or a write fails.
        gate: Called first in each stop; what it raises ends all tries.
        after: Called in the same stop after the writes; must not fail.

    Raises:
        CodeChangedError: The program does not hold the planned old bytes; nothing is written.
        PcInPatchError: A thread stood inside them at every try; nothing is written.
    """
    lost_us = waited = 0.0
    caught: tuple[int, int, int] | None = None
    for attempt in range(1, patience.tries + 1):
        runs = _images(plan, target)
        with target.stop() as stopped:
            if gate is not None:
                gate(stopped)
            caught = _caught(plan, stopped)
            if caught is not None:
                for part in stopped.parts:
                    _step_out(plan, part)
                caught = _caught(plan, stopped)
            done = caught is None and all(
                part.read(Addr(run.addr), len(run.before)) == run.before
                for part in stopped.parts
                for run in runs
            )
            if done:
                _write(runs, stopped, within, back)
                if after is not None:
                    after()
            tids, registers = list(stopped.tids), stopped.registers.copy()
        stop_us = target.last_stop_us
        if done:
            return RedirectResult(plan, stop_us, lost_us, attempt, waited, tids, registers)
        lost_us += stop_us
        time.sleep(patience.wait(attempt))
        waited += patience.wait(attempt)
    raise _explain(plan, target, caught, patience.tries)


def undo_redirects(
    result: RedirectResult,
    target: Target,
    within: Callable[[], None] | None = None,
    patience: Patience = PATIENCE,
) -> RedirectResult:
    """Restore the bytes that a patch replaced, under the same checks."""
    return apply_redirects(result.plan.reversed(), target, within, patience)


def overwritten(plan: RedirectPlan, target: Target) -> Bool:
    """Return (w,) whether a place no longer holds what the plan wrote there."""
    sizes = plan.size.tolist()
    return np.array(
        [
            not np.array_equal(target.read(Addr(addr), size), plan.new[row, :size])
            for row, (addr, size) in enumerate(zip(plan.addr.tolist(), sizes, strict=True))
        ],
        np.bool_,
    )


@dataclass(slots=True)
class _Run:
    """Places less than a page apart: compared in one read, written a page at a time."""

    addr: int
    before: bytes
    pieces: list[tuple[int, bytes, bytes]]  # address, old bytes, new bytes
    holes: list[tuple[int, bytes, bytes]]  # those in padding, to be written before all pieces


def _images(plan: RedirectPlan, target: Target) -> list[_Run]:
    """Prepare all bytes before the stop; raise CodeChangedError where the old ones differ.

    Pages are written whole from the first to the last byte that changes, so what lies between
    has to be the same in all processes, too: a breakpoint in one of them is not.
    """
    runs = _runs(plan, target)
    for member in target.members()[1:]:
        with suppress(TargetGoneError):
            for run in runs:
                found = member.read(Addr(run.addr), len(run.before)).tobytes()
                if found != run.before:
                    raise _difference(plan, run, found)
    return runs


def _difference(plan: RedirectPlan, run: _Run, found: bytes) -> CodeChangedError:
    """Return the error for a process that holds other bytes than the first one."""
    pairs = enumerate(zip(found, run.before, strict=True))
    at = next(at for at, (here, there) in pairs if here != there)
    row = max(int(np.searchsorted(plan.addr, run.addr + at, side="right")) - 1, 0)
    stretch = slice(at, at + WIDEST)
    return CodeChangedError(
        plan.name_of(row), run.addr + at, run.before[stretch], found[stretch]
    )


def _runs(plan: RedirectPlan, target: Target) -> list[_Run]:
    starts = plan.addr.astype(np.int64)
    ends = starts + plan.size
    cuts = np.flatnonzero(starts[1:] - ends[:-1] >= PAGE) + 1
    return [
        _image(plan, target, rows.tolist())
        for rows in np.split(np.arange(len(plan)), cuts)
        if len(rows)
    ]


def _image(plan: RedirectPlan, target: Target, rows: list[int]) -> _Run:
    base = int(plan.addr[rows[0]])
    last = int(plan.addr[rows[-1]]) + int(plan.size[rows[-1]])
    before = target.read(Addr(base), last - base)
    after = before.copy()
    pages: dict[int, tuple[int, int]] = {}  # page -> first and last offset that change
    for row in rows:
        first, size = int(plan.addr[row]) - base, int(plan.size[row])
        found, expected = before[first : first + size], plan.old[row, :size]
        if not np.array_equal(found, expected):
            raise CodeChangedError(
                plan.name_of(row), base + first, expected.tobytes(), found.tobytes()
            )
        after[first : first + size] = plan.new[row, :size]
        page = (base + first) // PAGE
        pages[page] = (pages.get(page, (first, 0))[0], first + size)
    pieces = [
        (base + first, before[first:end].tobytes(), after[first:end].tobytes())
        for first, end in pages.values()
    ]
    return _Run(base, before.tobytes(), pieces, _holes(plan, rows) if len(pages) > 1 else [])


def _holes(plan: RedirectPlan, rows: list[int]) -> list[tuple[int, bytes, bytes]]:
    """Return the jumps in padding: the entry that leads to one may be in a page before it."""
    return [
        (int(plan.addr[row]), plan.old[row, :size].tobytes(), plan.new[row, :size].tobytes())
        for row in rows
        for size in [int(plan.size[row])]
        if plan.way[row] == Way.HOLE
    ]


def _write(
    runs: list[_Run],
    stopped: Stopped,
    within: Callable[[], None] | None,
    back: Callable[[], None] | None,
) -> None:
    """Write everything, or leave everything as it was.

    A page's piece holds the jumps in its padding once more: all but one write of these is free.
    """
    with ExitStack() as undo:
        if back is not None:
            undo.callback(back)
        if within is not None:
            within()
        for pieces in (
            [row for run in runs for row in run.holes],
            *(run.pieces for run in runs),
        ):
            for addr, before, after in pieces:
                undo.callback(stopped.write, Addr(addr), before)
                stopped.write(Addr(addr), after)
        undo.pop_all()


def _inside(plan: RedirectPlan, pcs: U64) -> I64:
    """Return (p,) the write that a program counter stands inside, -1 for none.

    At the first byte of an entry is before or after the jump, which is fine both ways. Padding
    is entered only through a jump of ours: to restore it under that one is not.
    """
    if not len(plan):
        return np.full(len(pcs), -1, np.int64)
    first = plan.addr + (plan.way != Way.HOLE).astype(np.uint64)
    row = np.searchsorted(first, pcs, side="right") - 1
    inside = (row >= 0) & (pcs < (plan.addr + plan.size)[np.maximum(row, 0)])
    return np.where(inside, row, -1)


def _caught(plan: RedirectPlan, stopped: Stopped) -> tuple[int, int, int] | None:
    """Return (row, program counter, thread or 0) of somebody who stands inside the bytes."""
    pcs = stopped.program_counters()
    row = _inside(plan, pcs)
    hits = np.flatnonzero(row >= 0)
    if not len(hits):
        return None
    at = int(hits[0])
    thread = np.flatnonzero(stopped.registers[:, RIP] == pcs[at])
    return int(row[at]), int(pcs[at]), stopped.tids[int(thread[0])] if len(thread) else 0


def _step_out(plan: RedirectPlan, stopped: Stopped) -> None:
    """Let each thread that stands inside the bytes go on until it is out of them.

    All signals but the step's own wait meanwhile. A thread in a system call is left alone: it
    would make the call again and may not come back.
    """
    if not isinstance(stopped, StoppedThreads):
        return
    outside_calls = stopped.registers[:, ORIG_RAX].view(np.int64) < 0
    here = _inside(plan, stopped.registers[:, RIP]) >= 0
    moved = np.flatnonzero(outside_calls & here).tolist()
    if not moved or _ignores_traps(stopped):
        return
    with ExitStack() as after:
        for row in moved:
            tid = stopped.tids[row]
            after.callback(ptrace.set_signal_mask, tid, ptrace.get_signal_mask(tid))
            ptrace.set_signal_mask(tid, ~(1 << (_SIGTRAP - 1)) & 0xFFFF_FFFF_FFFF_FFFF)
        for _ in range(_STEPS):
            here = _inside(plan, stopped.registers[:, RIP]) >= 0
            moved = [row for row in moved if here[row] and not _at_system_call(stopped, row)]
            for row in moved:
                ptrace.ptrace(_SINGLE_STEP, stopped.tids[row])
            for row in moved:
                _await_step(stopped.tracees[row])
                ptrace.get_registers(stopped.tids[row], stopped.registers[row])


def _at_system_call(stopped: StoppedThreads, row: int) -> bool:
    """Return whether a thread's next instruction enters the kernel, where it may stay."""
    code = np.zeros(2, np.uint8)
    ptrace.read_memory(stopped.pid, int(stopped.registers[row, RIP]), code)
    return code.tobytes() in {b"\x0f\x05", b"\x0f\x34", b"\xcd\x80"}  # syscall, sysenter, int


def _ignores_traps(stopped: StoppedThreads) -> bool:
    """Return whether SIGTRAP is ignored: for a step the kernel would make it deadly instead."""
    fields = status_fields(stopped.pid, stopped.tids[0])
    return bool(int(fields["SigIgn"], 16) & 1 << (_SIGTRAP - 1))


def _await_step(tracee: Tracee) -> None:
    """Wait until a thread has made its step; a signal that it was about to get stays due."""
    due = tracee.signal
    if tracee.tid == tracee.pid:  # its end belongs to whoever started the process
        tracee.wait(time.monotonic() + _STEP_SECONDS)
    else:
        os.waitpid(tracee.tid, ptrace.WALL)
    tracee.signal = due


def _explain(
    plan: RedirectPlan, target: Target, caught: tuple[int, int, int] | None, tries: int
) -> ReloaderError:
    """Return the error for a plan that could not be written at any try."""
    if caught is None:  # other bytes near by changed between each look and its stop
        addr, size = int(plan.addr[0]), int(plan.size[0])
        found = target.read(Addr(addr), size).tobytes()
        return CodeChangedError(plan.name_of(0), addr, plan.old[0, :size].tobytes(), found)
    row, pc, tid = caught
    thread = thread_name(target.pid, tid) if tid else ""
    addr = int(plan.addr[row])
    return PcInPatchError(plan.name_of(row), addr, pc, tid=tid, thread=thread, tries=tries)
