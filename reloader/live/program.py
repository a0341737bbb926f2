"""Program: all that the daemon knows of one live process, in one place.

It is what a reload reads and, once it is live, what it changes. Everything here can be rebuilt:
from the executable and the objects it was linked from (`baseline.py`), or, for a process that
an earlier daemon has worked on, from the state.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from reloader.arch.base import Architecture
from reloader.elf.image import Image
from reloader.elf.object import ObjectFile
from reloader.ids import NO_ADDR, U64, Generation
from reloader.link.cache import Cache
from reloader.link.hooks import Hooks
from reloader.live.baseline import Baseline
from reloader.live.host import Host, Plain
from reloader.live.ledger import Ledger
from reloader.live.objects import LiveObject
from reloader.live.past import Past
from reloader.live.symbols import SymbolIndex
from reloader.live.target import Allocation, Target
from stubs.table import RESERVED, SlotTable

BASELINE = Generation(0)
Key = tuple[str, str]  # (path, member): what an object keeps over its versions
Write = tuple[int, bytes, bytes]  # address in the executable's code, bytes before, bytes now


@dataclass(slots=True)
class Wishes:
    """What the user said of types in the configuration, and what was said back."""

    accepted: frozenset[str] = frozenset()  # types, functions: changes that he answers for
    # the C function that converts a variable's old storage into new one
    migrate: Mapping[str, str] = field(default_factory=dict[str, str])
    told: set[str] = field(default_factory=set[str])  # objects without debug information


@dataclass(slots=True)
class Program:
    """One process and everything of ours in it."""

    target: Target
    arch: Architecture
    image: Image  # the executable that runs, with its load bias
    baseline: Baseline
    table: SlotTable
    index: SymbolIndex
    objects: dict[Key, LiveObject] = field(default_factory=dict[Key, LiveObject])
    ledger: Ledger = field(default_factory=Ledger)
    # by slot: the jumps that lead the original function's callers to its stub
    redirects: dict[int, list[Write]] = field(default_factory=dict[int, list[Write]])
    # slots of functions that no live object defines any more: callable, but no reason to keep
    # code
    dead_slots: set[int] = field(default_factory=set[int])
    # slots of failed transactions whose constructors have run: somebody may call through them
    retained: set[int] = field(default_factory=set[int])
    directory: Allocation | None = None  # the unwind directory that is published
    generation: Generation = BASELINE  # the newest that is live
    cache: Cache = field(default_factory=Cache)  # versions that may come back
    hooks: Hooks | None = None  # plugins that look at every link graph
    host: Host = field(default_factory=Plain)  # what its language decides
    past: Past = field(default_factory=Past)  # what the last generations changed
    wishes: Wishes = field(default_factory=Wishes)  # what the user said of types

    def live_versions(self, files: Sequence[ObjectFile]) -> list[LiveObject | None]:
        """Return what is live of each object.

        None for one that is new to the process, or that its language replaces as a whole.
        """
        whole = self.host.whole
        return [None if whole(file) else self.objects.get(file.key) for file in files]

    def roots(self) -> U64:
        """Return every address by which memory of ours is in use: objects, slots, directory."""
        slots = self.target.arena.slots[: len(self.table)].copy()
        slots[[*range(RESERVED), *self.dead_slots]] = 0
        parts = [slots]
        if self.directory is not None:
            parts.append(np.array([self.directory.addr], np.uint64))
        parts.append(np.array(self.host.roots(), np.uint64))
        for live in self.objects.values():
            parts += [live.section_addr, live.data.addr]
        roots = np.concatenate(parts)
        return roots[(roots != np.uint64(NO_ADDR)) & (roots != 0)]

    def slot_owners(self) -> dict[int, str]:
        """Return the function name of each slot, for reports."""
        return {
            slot: key.name.decode("utf-8", "replace") for slot, key, _ in self.table.functions()
        }
