"""A stop as short as can be: what a proof needs is copied, and looked at once all run again."""

import os
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from reloader.errors.live import TargetGoneError
from reloader.ids import U8, U64, Addr
from reloader.live import ptrace
from reloader.live.frames import REGISTERS, RSP, Span, dead_stacks, mapping_at
from reloader.live.maps import parse_maps
from reloader.live.pagemap import joined
from reloader.live.scan import Copy, Memory, Ranges, pointer_guard_addr
from reloader.live.target import Mapping, Target

_VECTOR_SIZE: Final = 16 << 10  # bytes; AVX-512 needs 2.7 KiB, AMX 11
_SPARE: Final = 8  # threads that may be created meanwhile
_SHARE: Final = 0.6  # of the longest stop that reading may take: stopping comes before it

ListAreas = Callable[[list[Mapping]], list[Span]]


@dataclass(frozen=True, slots=True, eq=False)
class Halt:
    """A process as it was during one stop."""

    tids: list[int]
    registers: NDArray[np.uint64]
    vectors: list[U64]  # the vector state of each thread, as words
    mappings: list[Mapping]
    areas: list[Span]
    copy: Copy  # of the areas
    stop_us: float
    guard: int | None  # that glibc mangles pointers with

    @property
    def stacks(self) -> dict[int, int]:
        """The thread whose stack pointer is in each mapping, by the mapping's start."""
        rows = zip(self.tids, self.registers[:, RSP].tolist(), strict=True)
        found = [(mapping_at(self.mappings, rsp), tid) for tid, rsp in rows]
        return {int(self.mappings[at].start): tid for at, tid in found if at is not None}

    @property
    def dead(self) -> list[Span]:
        """The parts of stacks that hold only what returned calls left."""
        return joined(dead_stacks(self.mappings, self.registers))

    def register_hits(self, ranges: Ranges) -> list[tuple[int, str, int]]:
        """Return (thread, register, value) of registers that point into the ranges.

        Vector registers count as well: a copied pointer may for a moment be nowhere else.
        Threads that were not stopped by ptrace have theirs in the signal frame on their stack.
        """
        found: list[tuple[int, str, int]] = []
        for tid, words, vector in zip(self.tids, self.registers, self.vectors, strict=True):
            hits = np.flatnonzero(ranges.row(words) >= 0).tolist()
            found += [(tid, REGISTERS[at], int(words[at])) for at in hits]
            hits = np.flatnonzero(ranges.row(vector) >= 0).tolist()
            found += [(tid, "a vector register", int(vector[at])) for at in hits]
        return found


class Halter:
    """Everything that a stop needs and that can be got ready before it."""

    def __init__(self, target: Target, memory: Memory, size: int) -> None:
        """Prepare for a stop that copies about `size` bytes."""
        self.target, self.memory = target, memory
        # written, so that the pages are there
        self.room: U8 = np.full(size, 1, np.uint8)
        count = len(os.listdir(f"/proc/{target.pid}/task")) + _SPARE  # noqa: PTH208 - thrice as fast
        self.vectors: U8 = np.full((count, _VECTOR_SIZE), 1, np.uint8)
        self._text = self._maps_text()
        self._mappings = parse_maps(self._text.decode("utf-8", "surrogateescape"))

    def halt(self, areas: ListAreas, longest_ms: float, guard: int | None) -> Halt:
        """Stop all threads, copy, and let all go on.

        Args:
            areas: Returns what to copy, given the mappings.
            longest_ms: How long the stop may last; a copy that would take longer is incomplete.
            guard: glibc's pointer guard, if it is known.
        """
        with self.target.stop() as stopped:
            deadline = time.perf_counter() + longest_ms * _SHARE / 1e3
            mappings = self._now()
            spans = areas(mappings)
            copy = self.memory.copy(spans, self.room, deadline)
            sizes = [self._read_vector(row, tid) for row, tid in enumerate(stopped.tids)]
            if guard is None:
                guard = self._guard(stopped.registers)
        vectors = [
            self.vectors[row, : size & ~7].view(np.uint64) if size else np.empty(0, np.uint64)
            for row, size in enumerate(sizes)
        ]
        return Halt(
            list(stopped.tids), stopped.registers, vectors, mappings, spans, copy,
            self.target.last_stop_us, guard,
        )  # fmt: skip

    def _read_vector(self, row: int, tid: int) -> int:
        if row >= len(self.vectors):
            more = np.zeros((row + _SPARE, _VECTOR_SIZE), np.uint8)
            more[: len(self.vectors)] = self.vectors
            self.vectors = more
        with suppress(OSError):  # not our tracee
            return ptrace.read_vector_state(tid, self.vectors[row])
        return 0

    def _now(self) -> list[Mapping]:
        text = self._maps_text()
        if text == self._text:  # as a rule; making rows takes longer than reading
            return self._mappings
        return parse_maps(text.decode("utf-8", "surrogateescape"))

    def _maps_text(self) -> bytes:
        try:
            text = Path(f"/proc/{self.target.pid}/maps").read_bytes()
        except (FileNotFoundError, ProcessLookupError):
            text = b""
        if not text:
            raise TargetGoneError(self.target.pid, "reading its mappings")
        return text

    def _guard(self, registers: NDArray[np.uint64]) -> int | None:
        addr = pointer_guard_addr(registers)
        if addr is None:
            return None
        return int(self.target.read(Addr(addr), 8).view(np.uint64)[0])
