"""Giving superseded memory back once it is proven that nothing in the process can reach it.

A proof is one pass over everything under one stop of all threads: registers, stacks, memory. It
is only tried when a pass over the running process found nothing (which proves nothing, since a
pointer can move behind the reader; but one that stays is found without a pause), and only if it
is expected to end within the bound; it gives up at the bound. To look only at what has changed
since the first pass would need a kernel that tells it (soft-dirty pages, or a userfaultfd in
the process); without, a process with more memory than fits the bound keeps its old generations,
and the report says so.

A word anywhere keeps what it points into, that keeps what its code refers to, and old data that
is kept keeps what its words point to. What remains is unreachable and stays so: nobody is left
who could make a pointer to it.
"""

import os
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

import numpy as np

from reloader.ids import U64, Addr, Generation, Region
from reloader.live import ptrace
from reloader.live.frames import (
    REGISTERS,
    Holder,
    Span,
    Symboliser,
    dead_stacks,
    describe,
    possible_stacks,
    stacks_of,
    thread_name,
)
from reloader.live.scan import Hits, Memory, Ranges, pointer_guard_addr, without
from reloader.live.target import Allocation, Stopped, Target

_SCAN_SHARE: Final = 0.8  # of the longest stop
_USUAL_RATE: Final = 2e9  # bytes a second that any machine of today can look at


@dataclass(frozen=True, slots=True)
class Retirement:
    """Memory that nothing of ours refers to any more; it is freed as a whole."""

    generation: Generation
    object: tuple[str, str]  # (path, member)
    allocations: tuple[Allocation, ...]
    references: frozenset[int] = frozenset()  # addresses that its code and data refer to


@dataclass(frozen=True, slots=True)
class RetirePolicy:
    """How often and how long the program may be stopped for a proof."""

    min_interval: float = 1.0  # seconds between attempts
    longest_interval: float = 60.0  # while they fail
    growth: float = 2.0
    max_stop_ms: float = 5.0

    def next_due(self, last: float, vetoes: int) -> float:
        """Return when to try again.

        Args:
            last: Time of the last attempt.
            vetoes: How many attempts in a row freed nothing.
        """
        wait = self.min_interval * self.growth ** min(vetoes, 32)
        return last + min(wait, self.longest_interval)


@dataclass(slots=True)
class RetireReport:
    """What one attempt did."""

    # freed, held, traced (a debugger is attached), too-large, interrupted, nothing
    outcome: str
    freed: list[Retirement] = field(default_factory=list[Retirement])
    holders: list[Holder] = field(default_factory=list[Holder])
    scanned_size: int = 0  # bytes of the last pass
    stop_us: float = 0.0  # 0: nobody was stopped
    reason: str = ""  # for people, where no holder says it

    @property
    def freed_size(self) -> int:
        """Bytes given back to the arena."""
        return sum(part.size for row in self.freed for part in row.allocations)


@dataclass(slots=True)
class _Sight:
    """What one pass saw: which retirements are held, and by what."""

    pinned: set[int]
    hits: Hits
    registers: list[tuple[int, str, int]] = field(default_factory=list[tuple[int, str, int]])
    stacks: dict[int, int] = field(default_factory=dict[int, int])
    stop_us: float = 0.0


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
        # bytes a second, the best seen: slower passes waited for a processor
        self.rate = _USUAL_RATE
        self._guard: int | None = None

    def add(self, retirement: Retirement) -> None:
        """Wait for the proof that nothing reaches this memory."""
        self.waiting.append(retirement)
        self._vetoes = 0

    def due(self) -> float:
        """Return the `time.monotonic()` from which an attempt is allowed, infinite if idle."""
        return self.policy.next_due(self._last, self._vetoes) if self.waiting else np.inf

    def attempt(
        self,
        target: Target,
        named: U64,
        release: Callable[[Sequence[Retirement]], None] | None = None,
        symbolise: Symboliser | None = None,
    ) -> RetireReport:
        """Free what is proven unreachable.

        Args:
            target: The process.
            named: Every address that slots, tables and live generations of ours hold.
            release: Called with what is about to be freed, before it is.
            symbolise: Returns the variable at an address, or "".
        """
        if not self.waiting:
            return RetireReport("nothing")
        self._last = time.monotonic()
        report = self._prove(target, named, symbolise)
        if report.freed:
            if release is not None:
                release(report.freed)
            self._free(target, report.freed)
        self._vetoes = 0 if report.freed else self._vetoes + 1
        return report

    def _prove(self, target: Target, named: U64, symbolise: Symboliser | None) -> RetireReport:
        tracer = tracer_of(target.pid)
        if tracer:
            text = f"process {thread_name(tracer, tracer)} ({tracer}) traces the program"
            return RetireReport("traced", holders=[Holder("debugger", text, 0, 0)], reason=text)
        with Memory(target.pid) as memory:
            ranges = self._ranges()
            ours = self._named(ranges, named) + self._copied(target, memory)
            known = {row for row, _ in ours}
            sight = self._look(target, memory, ranges, known)
            report = self._report(target, sight, symbolise)
            report.holders = [holder for _, holder in ours] + report.holders
            if len(sight.pinned) == len(self.waiting):
                return report
            self.rate = max(self.rate, sight.hits.scanned_size / sight.hits.seconds)
            expected_ms = sight.hits.scanned_size / self.rate * 1e3
            if expected_ms > self.policy.max_stop_ms:
                return self._too_large(report, expected_ms)
            sight = self._look_stopped(target, memory, ranges, known)
        proof = self._report(target, sight, symbolise)
        proof.holders = [holder for _, holder in ours] + proof.holders
        if not sight.hits.complete:
            proof.outcome, proof.freed = "interrupted", []
            proof.reason = f"the proof did not end within {self.policy.max_stop_ms:g} ms"
        return proof

    def _too_large(self, report: RetireReport, expected_ms: float) -> RetireReport:
        report.outcome, report.freed = "too-large", []
        report.reason = (
            f"a proof has to look at {report.scanned_size / 2**20:.0f} MiB, which stops the"
            f" program for about {expected_ms:.0f} ms; the bound is"
            f" {self.policy.max_stop_ms:g} ms"
        )
        return report

    def _ranges(self) -> Ranges:
        spans = [
            (int(part.addr), int(part.addr) + part.size, row)
            for row, waiting in enumerate(self.waiting)
            for part in waiting.allocations
        ]
        return Ranges.of(spans, self._guard)

    def _named(self, ranges: Ranges, named: U64) -> list[tuple[int, Holder]]:
        """Return what tables of ours still name."""
        rows = ranges.row(named)
        return [
            (
                int(ranges.owner[rows[at]]),
                Holder("slot", f"a table names {int(named[at]):#x}", 0, int(named[at])),
            )
            for at in np.flatnonzero(rows >= 0).tolist()
        ]

    def _copied(self, target: Target, memory: Memory) -> list[tuple[int, Holder]]:
        """Return old code with a private copy of a page that differs: a breakpoint is in it."""
        found: list[tuple[int, Holder]] = []
        for row, waiting in enumerate(self.waiting):
            for part in waiting.allocations:
                if part.region != Region.CODE:
                    continue
                for start, end in memory.pages(part.addr, part.addr + part.size, own=True):
                    mine = target.arena.view(Addr(start), end - start)
                    if not np.array_equal(target.read(Addr(start), end - start), mine):
                        text = f"somebody wrote into the code at {start:#x}: a breakpoint"
                        found.append((row, Holder("breakpoint", text, start, 0)))
        return found

    def _look(self, target: Target, memory: Memory, ranges: Ranges, known: set[int]) -> _Sight:
        """Look at the running process; what may be a stack is left to the stop."""
        mappings = target.maps()
        areas = without(memory.areas(mappings), possible_stacks(mappings))
        hits = memory.scan(areas, ranges)
        return _Sight(self._reached(ranges, hits, known), hits)

    def _look_stopped(
        self, target: Target, memory: Memory, ranges: Ranges, known: set[int]
    ) -> _Sight:
        """Look at everything while all threads stand still, for no longer than the bound."""
        with target.stop() as stopped:
            # the rest of the bound was for stopping, and is for letting all go on
            deadline = time.perf_counter() + self.policy.max_stop_ms * _SCAN_SHARE / 1e3
            mappings = target.maps()
            if self._guard is None:
                self._guard = read_guard(target, stopped)
                ranges = replace(ranges, guard=self._guard)
            areas = without(memory.areas(mappings), dead_stacks(mappings, stopped.registers))
            hits = memory.scan(areas, ranges, deadline)
            registers = register_hits(stopped, ranges)
            stacks = stacks_of(mappings, stopped)
        self.stop_count += 1
        self.stop_us_total += target.last_stop_us
        self.stop_us_longest = max(self.stop_us_longest, target.last_stop_us)
        in_registers = {int(ranges.owner[row]) for row in self._rows_of(ranges, registers)}
        pinned = self._reached(ranges, hits, known | in_registers)
        return _Sight(pinned, hits, registers, stacks, target.last_stop_us)

    @staticmethod
    def _rows_of(ranges: Ranges, registers: list[tuple[int, str, int]]) -> list[int]:
        values = np.array([value for _, _, value in registers], np.uint64)
        return ranges.row(values).tolist()

    def _reached(self, ranges: Ranges, hits: Hits, known: set[int]) -> set[int]:
        """Return which retirements are held, directly or by another that is.

        Args:
            ranges: Of all that wait.
            hits: The words that point into them.
            known: Those that are held for another reason.
        """
        source, to = ranges.row(hits.addr), ranges.owner[hits.row]
        pinned = known | set(to[source < 0].tolist())
        inner = source >= 0
        edges = set(zip(ranges.owner[source[inner]].tolist(), to[inner].tolist(), strict=True))
        for row, waiting in enumerate(self.waiting):
            rows = ranges.row(np.array(sorted(waiting.references), np.uint64))
            edges |= {(row, int(ranges.owner[at])) for at in rows.tolist() if at >= 0}
        while more := {to for source, to in edges if source in pinned} - pinned:
            pinned |= more
        return pinned

    def _report(
        self, target: Target, sight: _Sight, symbolise: Symboliser | None
    ) -> RetireReport:
        free = [row for at, row in enumerate(self.waiting) if at not in sight.pinned]
        holders = describe(
            target, sight.hits.addr, sight.hits.value, sight.registers, sight.stacks, symbolise
        )
        outcome = "freed" if free else "held"
        return RetireReport(outcome, free, holders, sight.hits.scanned_size, sight.stop_us)

    def _free(self, target: Target, freed: list[Retirement]) -> None:
        parts = [part for row in freed for part in row.allocations]
        target.discard(parts)
        target.synchronise()  # no processor may still run what it fetched there
        for part in parts:
            target.arena.free(part)
        self.waiting = [row for row in self.waiting if row not in freed]


def tracer_of(pid: int) -> int:
    """Return the process that traces the target, 0 for none or ourselves."""
    with suppress(OSError):  # a process that has ended is told by the next step
        for line in Path(f"/proc/{pid}/status").read_text(errors="replace").splitlines():
            if line.startswith("TracerPid:"):
                tracer = int(line.split()[1])
                return 0 if tracer == os.getpid() else tracer
    return 0


def read_guard(target: Target, stopped: Stopped) -> int | None:
    """Return the value that glibc mangles pointers with."""
    addr = pointer_guard_addr(stopped.registers)
    return None if addr is None else int(target.read(Addr(addr), 8).view(np.uint64)[0])


def register_hits(stopped: Stopped, ranges: Ranges) -> list[tuple[int, str, int]]:
    """Return (thread, register, value) of registers that point into the ranges.

    Vector registers count as well: a copied pointer may for a moment be nowhere else. Threads
    that were not stopped by ptrace have theirs in the signal frame on their stack.
    """
    found: list[tuple[int, str, int]] = []
    for tid, words in zip(stopped.tids, stopped.registers, strict=True):
        hits = np.flatnonzero(ranges.row(words) >= 0).tolist()
        found += [(tid, REGISTERS[at], int(words[at])) for at in hits]
        with suppress(OSError):  # not our tracee
            state = ptrace.get_vector_state(tid)
            vector = np.frombuffer(state[: len(state) & ~7], np.uint64)
            hits = np.flatnonzero(ranges.row(vector) >= 0).tolist()
            found += [(tid, "a vector register", int(vector[at])) for at in hits]
    return found


def holders(
    target: Target, spans: Sequence[Span], symbolise: Symboliser | None = None
) -> list[Holder]:
    """Return what holds words into some ranges, for `why`.

    The threads are stopped for their registers only; memory is looked at while they run.
    """
    ranges = Ranges.of([(start, end, 0) for start, end in spans])
    with Memory(target.pid) as memory:
        with target.stop() as stopped:
            ranges = replace(ranges, guard=read_guard(target, stopped))
            registers = register_hits(stopped, ranges)
            mappings = target.maps()
            stacks = stacks_of(mappings, stopped)
            dead = dead_stacks(mappings, stopped.registers)
        hits = memory.scan(without(memory.areas(mappings), sorted([*dead, *spans])), ranges)
    return describe(target, hits.addr, hits.value, registers, stacks, symbolise)
