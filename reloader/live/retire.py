"""Giving superseded memory back once it is proven that nothing in the process can reach it.

A proof holds for one moment at which all threads stand still: registers, stacks, memory. It is
only tried when a pass over the running process found nothing (which proves nothing, since a
pointer can move behind the reader; but one that stays is found without a pause).

What is small is then copied under one stop and searched afterwards. For what is larger the
kernel follows the program's writes (`dirty.py`): everything is looked at while the program
runs, then again what was written meanwhile, until that is little; the stop copies only what was
written since. A page that was not written since it was looked at holds what it held then. Where
the kernel cannot follow writes, a program with more memory than fits a stop keeps its old
generations, and the report says so.
"""

import os
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from reloader.errors.live import TargetGoneError
from reloader.ids import U64, Addr, Region
from reloader.live.dirty import CannotTrackError, WriteTracker
from reloader.live.frames import (
    Holder,
    Span,
    Symboliser,
    describe,
    possible_stacks,
)
from reloader.live.halt import Halt, Halter, ListAreas
from reloader.live.pagemap import total, without
from reloader.live.reach import Reach, Retirement, unreached
from reloader.live.scan import Hits, Memory, Ranges, search
from reloader.live.target import Target
from reloader.live.tracing import name_of, tracer_of
from reloader.live.veto import located, prove_for_all

__all__ = ["RetirePolicy", "RetireReport", "Retirement", "Retirer", "holders"]

_USUAL_RATE: Final = 2e9  # bytes a second that any machine of today can look at
_SMALL_SHARE: Final = (
    0.4  # of the longest stop: what is read faster needs no following of writes
)
_ENOUGH_SHARE: Final = 0.4  # of the longest stop: what was written last is read in that time
_MOST_SHARE: Final = 0.7  # of the longest stop that reading may be expected to take
Release = Callable[[Sequence[Retirement]], None]
Registered = Callable[[Sequence[Retirement]], U64]
NOTHING: Final = np.empty(0, np.uint64)
_ROUNDS: Final = 12  # looks at what was written during the last one
_MARGIN: Final = 4 << 20  # bytes of room beyond what is expected


@dataclass(frozen=True, slots=True)
class RetirePolicy:
    """How often and how long the program may be stopped for a proof."""

    min_interval: float = 1.0  # seconds between attempts
    longest_interval: float = 60.0  # while they fail
    growth: float = 2.0
    max_stop_ms: float = 5.0
    # seconds without new superseded memory: a proof takes some 25 ms, and a reload that comes
    # meanwhile would wait for it
    quiet: float = 0.1
    patience: float = 3.0  # reloads that go on and on delay a proof no longer

    def next_due(self, last: float, vetoes: int) -> float:
        """Return when to try again.

        Args:
            last: Time of the last attempt.
            vetoes: How many attempts in a row freed nothing.
        """
        wait = self.min_interval * self.growth ** min(vetoes, 32)
        return last + min(wait, self.longest_interval)

    def after_quiet(self, oldest: float, youngest: float) -> float:
        """Return when no reload is likely to come in the way.

        Args:
            oldest: When memory began to wait.
            youngest: When the last piece of it joined.
        """
        return min(youngest + self.quiet, oldest + self.patience)


@dataclass(slots=True)
class RetireReport:
    """What one attempt did."""

    # freed, held, traced (a debugger is attached), too-large, interrupted, nothing
    outcome: str
    freed: list[Retirement] = field(default_factory=list[Retirement])
    holders: list[Holder] = field(default_factory=list[Holder])
    scanned_size: int = 0  # bytes of the last pass over everything
    stop_size: int = 0  # bytes that were read under the stop
    stop_us: float = 0.0  # 0: nobody was stopped
    reason: str = ""  # for people, where no holder says it

    @property
    def freed_size(self) -> int:
        """Bytes given back to the arena."""
        return sum(part.size for row in self.freed for part in row.allocations)


@dataclass(slots=True)
class _Case:
    """One attempt: what is looked for, where, and what was seen so far."""

    target: Target
    memory: Memory
    reach: Reach
    known: set[int]  # what tables of ours hold
    holders: list[Holder]  # the same for people
    scanned_size: int = 0


class Retirer:
    """The queue of superseded memory, and the attempts to free it."""

    def __init__(self, policy: RetirePolicy | None = None) -> None:
        """Start with an empty queue."""
        self.policy = policy or RetirePolicy()
        self.waiting: list[Retirement] = []
        self.stop_count = 0
        self.stop_us_total = self.stop_us_longest = 0.0
        self._vetoes = 0
        self._last = -np.inf
        self._oldest = self._youngest = -np.inf  # when what waits was added
        # bytes a second, the best seen: slower passes waited for a processor
        self.rate = _USUAL_RATE
        self._guard: int | None = None

    def add(self, retirement: Retirement) -> None:
        """Wait for the proof that nothing reaches this memory."""
        self._youngest = time.monotonic()
        if not self.waiting:
            self._oldest = self._youngest
        self.waiting.append(retirement)
        self._vetoes = 0

    def due(self) -> float:
        """Return the `time.monotonic()` from which an attempt is allowed, infinite if idle."""
        if not self.waiting:
            return np.inf
        allowed = self.policy.next_due(self._last, self._vetoes)
        return max(allowed, self.policy.after_quiet(self._oldest, self._youngest))

    def attempt(
        self,
        target: Target,
        named: U64,
        release: Release | None = None,
        symbolise: Symboliser | None = None,
        registered: Registered = lambda _: NOTHING,
    ) -> RetireReport:
        """Free what is proven unreachable.

        Args:
            target: The process.
            named: Every address that slots, tables and live generations of ours hold.
            release: Called with what was freed, to write it down.
            symbolise: Returns the variable at an address, or "".
            registered: Returns addresses that only the kernel holds, given what waits. It is
                asked again after a proof: then none is left that could have become one.
        """
        if not self.waiting:
            return RetireReport("nothing")
        self._last = time.monotonic()
        self._vetoes += 1  # an attempt that fails altogether is one, too
        named = np.concatenate([named, registered(self.waiting)])
        report = prove_for_all(target, lambda one: self._prove(one, named, symbolise))
        report.freed = unreached(report.freed, registered(report.freed))
        if report.freed:
            self._free(target, report.freed, release)
        self._oldest = time.monotonic()  # patience is counted from the last attempt
        if report.freed:
            self._vetoes = 0
        return report

    def _prove(self, target: Target, named: U64, symbolise: Symboliser | None) -> RetireReport:
        tracer = tracer_of(target.pid)
        if tracer not in {0, os.getpid()}:
            text = f"process {name_of(tracer)} ({tracer}) traces the program"
            return RetireReport("traced", holders=[Holder("debugger", text, 0, 0)], reason=text)
        with Memory(target.pid) as memory:
            reach = Reach(self.waiting, self._guard)
            if reach.proven:
                reach.stacks = possible_stacks(target.maps())
            ours = _named(reach, named) + _copied(target, memory, self.waiting)
            known = {node for node, _ in ours}
            case = _Case(target, memory, reach, known, [holder for _, holder in ours])
            hits = self._look(case)
            held = reach.held(hits, known)
            if len(held) == len(self.waiting):
                return self._report(case, hits, held, symbolise)
            expected_ms = hits.scanned_size / self.rate * 1e3
            if expected_ms < self.policy.max_stop_ms * _SMALL_SHARE:
                halt = self._halt(case, memory.pagemap.areas, hits.scanned_size)
                return self._conclude(case, Hits(), halt, symbolise)
            return self._prove_by_writes(case, expected_ms, symbolise)

    def _look(self, case: _Case) -> Hits:
        """Look at the running process; what may be a stack is left to the stop."""
        mappings = case.target.maps()
        areas = without(case.memory.pagemap.areas(mappings), possible_stacks(mappings))
        hits = case.memory.scan(areas, case.reach.ranges)
        self.rate = max(self.rate, hits.scanned_size / hits.seconds)
        case.scanned_size = hits.scanned_size
        return hits

    def _prove_by_writes(
        self, case: _Case, expected_ms: float, symbolise: Symboliser | None
    ) -> RetireReport:
        """Look at everything while the kernel follows writes, and stop for the last of them."""
        try:
            tracker = WriteTracker(case.target, case.memory.pagemap)
        except CannotTrackError as error:
            if expected_ms > self.policy.max_stop_ms * _MOST_SHARE:
                return self._too_large(case.scanned_size, expected_ms, str(error))
            halt = self._halt(case, case.memory.pagemap.areas, case.scanned_size)
            return self._conclude(case, Hits(), halt, symbolise)
        try:
            self._guard = tracker.guard
            case.reach.know_guard(self._guard)
            hits, size, listing_ms = self._settle(case, tracker)
            held = case.reach.held(
                hits.outside(possible_stacks(case.target.maps())), case.known
            )
            if len(held) == len(self.waiting):
                return self._report(case, hits, held, symbolise)
            expected_ms = size / self.rate * 1e3 + listing_ms
            if expected_ms > self.policy.max_stop_ms * _MOST_SHARE:
                return self._too_large(
                    size, expected_ms, "the program writes that much at once"
                )
            halt = self._halt(case, lambda m: tracker.changed(m, protect=False), size)
        finally:
            tracker.close()
        return self._conclude(case, hits, halt, symbolise)

    def _settle(self, case: _Case, tracker: WriteTracker) -> tuple[Hits, int, float]:
        """Look at what was written until it is little.

        Returns:
            The words found; the bytes that were written during the last look; the milliseconds
            it took to list them.
        """
        hits, size, least, listing_ms = Hits(), 0, np.inf, 0.0
        enough = self.policy.max_stop_ms * _ENOUGH_SHARE / 1e3 * self.rate
        for number in range(_ROUNDS):
            mappings = case.target.maps()
            begun = time.perf_counter()
            spans = tracker.changed(mappings, protect=True)
            took_ms = (time.perf_counter() - begun) * 1e3
            hits = hits.replaced(spans, case.memory.scan(spans, case.reach.ranges))
            size = total(spans)
            if not number:
                case.scanned_size = size
                continue
            listing_ms = took_ms if number == 1 else min(took_ms, listing_ms)
            held = case.reach.held(hits.outside(possible_stacks(mappings)), case.known)
            shrinks = size < least / 2
            least = min(size, least)
            if len(held) == len(self.waiting) or (size <= enough and not shrinks):
                break
        return hits, size, listing_ms

    def _halt(self, case: _Case, areas: ListAreas, size: int) -> Halt:
        halter = Halter(case.target, case.memory, size + size // 2 + _MARGIN)
        halt = halter.halt(areas, self.policy.max_stop_ms, self._guard)
        self._guard = halt.guard
        case.reach.know_guard(self._guard)
        self.stop_count += 1
        self.stop_us_total += halt.stop_us
        self.stop_us_longest = max(self.stop_us_longest, halt.stop_us)
        return halt

    def _conclude(
        self, case: _Case, before: Hits, halt: Halt, symbolise: Symboliser | None
    ) -> RetireReport:
        """Return what follows from words that were there before, and from a stop."""
        now = search(halt.copy.parts, case.reach.ranges)
        hits = before.replaced(halt.areas, now).outside(halt.dead)
        registers = halt.register_hits(case.reach.ranges)
        in_registers = case.reach.nodes(value for _, _, value in registers)
        held = case.reach.held(hits, case.known | set(in_registers))
        report = self._report(case, hits, held, symbolise, registers, halt)
        if not halt.copy.complete:
            report.outcome, report.freed = "interrupted", []
            report.reason = f"the proof did not end within {self.policy.max_stop_ms:g} ms"
        return report

    def _report(  # noqa: PLR0913, PLR0917  what was seen, and where
        self,
        case: _Case,
        hits: Hits,
        held: set[int],
        symbolise: Symboliser | None,
        registers: Sequence[tuple[int, str, int]] = (),
        halt: Halt | None = None,
    ) -> RetireReport:
        free = [row for at, row in enumerate(self.waiting) if at not in held]
        stacks = halt.stacks if halt else {}
        found = describe(case.target, hits.addr, hits.value, list(registers), stacks, symbolise)
        report = RetireReport("freed" if free else "held", free, case.holders + found)
        report.scanned_size = case.scanned_size
        if halt:
            report.stop_us, report.stop_size = halt.stop_us, halt.copy.size
        return report

    def _too_large(self, size: int, expected_ms: float, why: str) -> RetireReport:
        text = (
            f"a proof has to look at {size / 2**20:.0f} MiB under a stop: {why}; this would"
            f" take about {expected_ms:.0f} ms, the bound is {self.policy.max_stop_ms:g} ms"
        )
        return RetireReport("too-large", scanned_size=size, reason=text)

    def _free(self, target: Target, freed: list[Retirement], release: Release | None) -> None:
        """Give memory back, then have it written down.

        The other way round a daemon that dies in between leaves full pages in no book.
        """
        parts = [part for row in freed for part in row.allocations]
        target.discard(parts)
        target.synchronise()  # no processor may still run what it fetched there
        for part in parts:
            target.arena.free(part)
        if release is not None:
            try:
                release(freed)
            except BaseException:
                for part in parts:  # it stays ours until that is written down
                    target.arena.reserve(part)
                raise
        self.waiting = [row for row in self.waiting if row not in freed]


def _named(reach: Reach, named: U64) -> list[tuple[int, Holder]]:
    """Return what tables of ours still name."""
    rows = reach.ranges.row(named)
    return [
        (
            int(reach.ranges.owner[rows[at]]),
            Holder("slot", f"a table names {int(named[at]):#x}", 0, int(named[at])),
        )
        for at in np.flatnonzero(rows >= 0).tolist()
    ]


def _copied(
    target: Target, memory: Memory, waiting: Sequence[Retirement]
) -> list[tuple[int, Holder]]:
    """Return old code with a private copy of a page that differs: a breakpoint is in it."""
    found: list[tuple[int, Holder]] = []
    for row, one in enumerate(waiting):
        for part in one.allocations:
            if part.region != Region.CODE:
                continue
            for start, end in memory.pagemap.pages(part.addr, part.addr + part.size, own=True):
                mine = target.arena.view(Addr(start), end - start)
                if not np.array_equal(target.read(Addr(start), end - start), mine):
                    text = f"somebody wrote into the code at {start:#x}: a breakpoint"
                    found.append((row, Holder("breakpoint", text, start, 0)))
    return found


def holders(
    target: Target, spans: Sequence[Span], symbolise: Symboliser | None = None
) -> list[Holder]:
    """Return what holds words into some ranges in any process, for `why`.

    The threads are stopped for their registers only; memory is looked at while they run.
    """
    first, *others = target.members()
    found = _holders(first, spans, symbolise)
    for member in others:
        with suppress(TargetGoneError):
            found += located(_holders(member, spans, symbolise), member.pid)
    return found


def _holders(
    target: Target, spans: Sequence[Span], symbolise: Symboliser | None
) -> list[Holder]:
    with Memory(target.pid) as memory:
        halt = Halter(target, memory, 0).halt(lambda _: [], np.inf, None)
        ranges = Ranges.of([(start, end, 0) for start, end in spans], halt.guard)
        areas = without(memory.pagemap.areas(halt.mappings), [*halt.dead, *spans])
        hits = memory.scan(areas, ranges)
    registers = halt.register_hits(ranges)
    return describe(target, hits.addr, hits.value, registers, halt.stacks, symbolise)
