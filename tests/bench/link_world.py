"""A program that is not there, for timing the linker: its arena is this process's memory.

Everything that a reload does between the file and the flip is the product's own code; only the
writes go to plain memory instead of a mapped file, which costs the same.
"""

import gc
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, Final, cast

import numpy as np

from reloader.arch.x86_64 import X86_64
from reloader.elf.object import ObjectFile
from reloader.ids import U64, Generation
from reloader.link.passes.resolve import no_lines
from reloader.live import commit
from reloader.live.adopt import adopt
from reloader.live.arena import MappedArena
from reloader.live.fake import FakeTarget, fake_windows
from reloader.live.linking import link_transaction
from reloader.live.plan import Plan
from reloader.live.program import Program
from reloader.live.switch import flip_and_redirect
from reloader.live.symbols import SymbolIndex
from stubs import layout
from stubs.table import SlotTable

ARCH: Final = X86_64()
REGION_SIZE: Final = 256 << 20
_LIBRARY: Final = 0x5555_2000_0000  # where names of the program seem to be


@dataclass(frozen=True, slots=True)
class _NoCode:
    """The executable around: it has no code of its own that could want a jump."""

    executable: U64 = field(default_factory=lambda: np.zeros((0, 2), np.uint64))


class _Target(FakeTarget):
    """A fake that knows every name, as a program with all libraries would."""

    def __init__(self) -> None:
        super().__init__()
        windows = fake_windows(size=REGION_SIZE)
        size = max(window.file_offset + window.size for window in windows)
        self.arena = MappedArena(np.zeros(size, np.uint8), windows)
        self.known: dict[bytes, int] = {}

    def resolve(self, names: Sequence[bytes]) -> U64:
        """Return an address for every name."""
        addrs = [self.known.setdefault(n, _LIBRARY + 16 * len(self.known)) for n in names]
        return np.array(addrs, np.uint64)


def new_program() -> Program:
    """Return a program in which nothing of ours is live."""
    gc.set_threshold(50_000, 20, 50)  # as the daemon has it
    target = _Target()
    image, baseline = cast("Any", _NoCode()), cast("Any", None)
    table = SlotTable(layout.SLOT_COUNT)
    return Program(
        target,
        ARCH,
        image,
        baseline,
        table,
        SymbolIndex(target.resolve, target.thread_offsets, target.call),
    )


def load(program: Program, objects: Sequence[ObjectFile]) -> Plan:
    """Link, write and flip objects, as one reload."""
    with ExitStack() as undo:
        plan = link_transaction(program, objects, frozenset(), no_lines, undo)
        commit.write_blocks(program, plan)
        commit.open_new_slots(program, plan, undo)
        flip_and_redirect(program, plan)
        undo.pop_all()
    return plan


def keep(program: Program, plan: Plan) -> None:
    """Make a plan that was flipped what is live."""
    adopt(program, plan, Generation(program.generation + 1))


def median_of(
    rounds: int, action: Callable[[], object], prepare: Callable[[], object]
) -> float:
    """Return the median milliseconds of an action; `prepare` is not counted."""
    times: list[float] = []
    for _ in range(rounds):
        prepare()
        gc.collect()
        began = time.perf_counter()
        action()
        times.append((time.perf_counter() - began) * 1e3)
    return sorted(times)[len(times) // 2]
