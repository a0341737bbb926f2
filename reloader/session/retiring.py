"""Superseded memory of one program: queued, proven unreachable, given back, and explained."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

import numpy as np

from reloader.errors.base import ReloaderError
from reloader.ids import U64, Region, SlotId
from reloader.live.frames import Holder
from reloader.live.gone import gone_slots
from reloader.live.host import Hold
from reloader.live.ledger import Held
from reloader.live.program import Key, Program
from reloader.live.registered import handlers_in, registered
from reloader.live.retire import Retirement, Retirer, RetireReport, holders
from reloader.live.variables import name_of_address
from reloader.session.plugins import Event, Plugins
from state.store import Store

_RELEASE_INTERVAL: Final = 1.0  # seconds between two times a runtime is asked to forget
_RELEASE_SHARE: Final = 100.0  # and so many times as long as it took


@dataclass(frozen=True, slots=True)
class Pinned:
    """One piece of superseded memory and what holds it."""

    held: Held
    holders: list[Holder]


class Retiring:
    """The queue of one program."""

    def __init__(
        self, program: Program, store: Store, target: int, plugins: Plugins | None = None
    ) -> None:
        """Begin with what the ledger has marked superseded already."""
        self.program = program
        self.store = store
        self.target = target
        self.plugins = plugins
        self.problems: list[str] = []  # what plugins failed at, to be told to the user
        self.retirer = Retirer()
        self.known = False  # whether a runtime has to forget some of it first
        self.next_release = 0.0  # `time.monotonic()` from which it is asked to
        self.holds = list[Hold]()  # what it said the last time
        self.retained_size = 0  # bytes of superseded memory that a rollback would flip back to
        self._marked: set[int] = set()  # what the state knows to be superseded
        self._gone_since: dict[int, int] = {}  # slot of a function that is gone -> generation
        self.collect()

    def collect(self) -> int:
        """Queue what was superseded since the last call; return how much waits."""
        self.drop_gone_functions()
        superseded = self.superseded()
        fresh = [row for row in superseded if row.allocation.addr not in self._marked]
        self._marked = {int(row.allocation.addr) for row in superseded}
        if fresh:
            addrs = [row.allocation.addr for row in fresh]
            self.store.ledger.mark_superseded(self.target, addrs)
        kept = self.kept()
        sizes = [r.allocation.size for r in superseded if r.allocation.addr in kept]
        self.retained_size = sum(sizes)
        queued = {part.addr for row in self.retirer.waiting for part in row.allocations} | kept
        waiting = [row for row in superseded if row.allocation.addr not in queued]
        held = self.held(waiting)
        self.known = bool(held)
        for row in waiting:
            if row.allocation.addr not in held:
                self.retirer.add(self.retirement(row))
        return len(self.retirer.waiting)

    def held(self, rows: Sequence[Held]) -> set[int]:
        """Return the start addresses of memory that a runtime has to forget first.

        The code in it may run until then, so all that it refers to stays with it.
        """
        places = [row.allocation for row in rows]
        addrs = [place.addr for place in places if self.program.host.holds(place)]
        return self.program.ledger.reached(np.array(addrs, np.uint64)) if addrs else set()

    def kept(self) -> set[int]:
        """Return the start addresses of memory that a rollback would flip back to."""
        roots = self.program.past.roots(self.program.objects)
        return self.program.ledger.reached(roots) if len(roots) else set()

    def drop_gone_functions(self) -> None:
        """Let the code of functions that no live object has any more be superseded.

        Old code may still call them through their stubs, which no scan for words can see: so
        only once no code is superseded but what is kept for a rollback, and that was made when
        they were gone already.
        """
        code = [row for row in self.superseded() if row.allocation.region == Region.CODE]
        kept = self.kept() if code else set[int]()
        if any(row.allocation.addr not in kept for row in code):
            return
        gone = gone_slots(self.program) - self.program.dead_slots
        gone -= self.program.past.slots(self.program.objects) if gone else set()
        since = self._gone_since
        now = int(self.program.generation)
        self._gone_since = {slot: since.get(slot, now) for slot in gone}
        oldest = min((int(row.generation) for row in code), default=now)
        gone = {slot for slot in gone if self._gone_since[slot] <= oldest}
        if gone:
            self.program.dead_slots |= gone
            self.program.index.forget(lambda known: known.slot in gone)
            self.program.ledger.supersede(self.program.roots())

    def retirement(self, row: Held) -> Retirement:
        """Return a ledger row as the retirer takes it.

        A function that is gone has its stub for its address: that counts as a reference too.
        """
        arena, place = self.program.target.arena, row.allocation
        stubs = [
            int(arena.stub_addr(SlotId(slot)))
            for slot in sorted(self.program.dead_slots)
            if place.addr <= int(arena.slots[slot]) < place.addr + place.size
        ]
        size = self.program.arch.stub_size
        return Retirement(
            row.generation,
            row.object,
            (place,),
            frozenset(row.references),
            tuple((stub, stub + size) for stub in stubs),
            self.program.host.forgotten(place),
        )

    def superseded(self) -> list[Held]:
        """Return the memory that waits for its proof."""
        return [row for row in self.program.ledger.rows.values() if row.superseded]

    def due(self) -> float:
        """Return the `time.monotonic()` of the next attempt, infinite if nothing waits."""
        return min(self.retirer.due(), self.next_release if self.known else np.inf)

    def attempt(self) -> RetireReport:
        """Try to give memory back."""
        if self.known and self.next_release <= time.monotonic():
            self.let_go()
        return self.retirer.attempt(
            self.program.target,
            self.named(),
            self.release,
            self.variable_at,
            partial(registered, self.program.target),
        )

    def let_go(self) -> None:
        """Let the language's runtime forget what it can, and queue that.

        Its pauses take at most a hundredth of the time.
        """
        began = time.monotonic()
        memory = [row.allocation for row in self.superseded()]
        try:
            self.holds = self.program.host.let_go(memory)
        except ReloaderError as error:
            self.problems.append(f"old code stays for now: {error}")
        took = time.monotonic() - began
        self.next_release = time.monotonic() + max(_RELEASE_INTERVAL, _RELEASE_SHARE * took)
        self.collect()

    def named(self) -> U64:
        """Return every address that tables of ours name: roots, and what they lead to."""
        references = [
            start
            for row in self.program.ledger.rows.values()
            if not row.superseded
            for start in row.references
        ]
        return np.concatenate([self.program.roots(), np.array(references, np.uint64)])

    def release(self, freed: Sequence[Retirement]) -> None:
        """Forget memory that is about to be given back."""
        parts = [part for row in freed for part in row.allocations]
        self.store.ledger.mark_freed(self.target, [part.addr for part in parts])
        self.program.ledger.remove(parts)
        spans = [(part.addr, part.addr + part.size) for part in parts]
        self.program.index.forget(
            lambda known: any(start <= known.addr < end for start, end in spans)
        )
        if self.plugins:
            self.announce(freed)

    def announce(self, freed: Sequence[Retirement]) -> None:
        """Tell plugins which objects' memory is given back, generation by generation."""
        for row in freed:
            path, member = row.object
            name = f"{path}({member})" if member else path
            event = Event((name,) if name else (), row.generation, memory=row.allocations)
            self.problems += self.plugins.removed(event) if self.plugins else []

    def variable_at(self, addr: int) -> str:
        """Return the variable of a watched object or of the executable at an address, or ""."""
        return name_of_address(self.program, addr)

    def why(self, key: Key | None) -> list[Pinned]:
        """Return what holds the superseded memory of an object, or of everything."""
        if self.known and not self.holds:
            self.let_go()
        rows = [
            row for row in self.superseded() if key is None or row.object in {key, ("", "")}
        ]
        return [Pinned(row, self.holders_of(row)) for row in rows]

    def holders_of(self, row: Held) -> list[Holder]:
        """Return everything that points into one piece of memory right now."""
        start, end = row.allocation.addr, row.allocation.addr + row.allocation.size
        target = self.program.target
        spans = [(start, end), *self.retirement(row).watched]
        found = holders(target, spans, self.variable_at) + handlers_in(target, spans)
        others = [
            Holder("memory", f"superseded memory at {at:#x}", at, start)
            for at, other in self.program.ledger.rows.items()
            if start in other.references
        ]
        named = self.named()
        tables = named[(named >= np.uint64(start)) & (named < np.uint64(end))]
        slots = [
            Holder("slot", f"a table names {addr:#x}", 0, addr) for addr in tables.tolist()
        ]
        by_runtime = [
            Holder("runtime", hold.text, hold.holder, hold.addr)
            for hold in self.holds
            if start <= hold.addr < end
        ]
        return [*by_runtime, *slots, *found, *others]
