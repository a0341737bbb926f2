"""The moment itself: new units are initialised and swapped in, then captured functions led on.

What the agent has done at a safe point nothing takes back: the runtime knows the new units, and
the program runs them. So whatever fails after that is told in the report, and who captured a
function that could not be led on goes on with its old code until the next reload tries again.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from reloader.errors.base import UNTOUCHED, ReloaderError
from reloader.errors.live import AgentBusyError, TargetGoneError
from reloader.errors.ocaml import (
    BlockedInitialiserError,
    HookError,
    InitialiserError,
    NoSuchFunctionError,
    PlaceMissingError,
)
from reloader.errors.ocaml_units import listed
from reloader.hosts.caml import forwarding
from reloader.hosts.caml.closures import Closure, closure_at, value_at
from reloader.hosts.caml.family import while_alone
from reloader.hosts.caml.registry import Registry
from reloader.hosts.caml.runtime import Pair, Runtime
from reloader.hosts.caml.script import Place, Script
from reloader.hosts.caml.swapping import swap_units
from reloader.hosts.caml.transaction import Change, Unit
from reloader.hosts.caml.units import FUNCTION, UnitInfo
from reloader.hosts.caml.world import World
from reloader.live.host import HostPlan
from reloader.live.program import Key, Program
from stubs.table import SlotTableFullError

Pairs = Sequence[Pair | None]


@dataclass(frozen=True, slots=True)
class Switching:
    """What has to be known to make units of one program live."""

    program: Program
    runtime: Runtime
    world: World
    registry: Registry
    units: dict[Key, Unit]  # as they are live; the adapter's own

    def make_live(self, plan: HostPlan, changes: Sequence[Change], generation: int) -> None:
        """Initialise new units and swap them in, at one safe point.

        Raises:
            ReloaderError: Nothing was changed.
        """
        pairs = self.run(plan, changes, self.script(changes), generation)
        # the runtime knows them now: even what nobody foresees must not give their memory back
        plan.done = plan.left = True
        self.registry.add(change.place for change in changes)
        for change in changes:
            plan.notes += change.state.notes()
        self.lead_on(plan, changes, pairs)

    def run(
        self, plan: HostPlan, changes: Sequence[Change], script: Script, generation: int
    ) -> Pairs:
        """Let the agent do its part; return what it says of functions, a row each."""
        needed = max(self.world.position(change.info) for change in changes)
        process = self.runtime.process
        try:
            done = while_alone(
                process,
                lambda: self.runtime.run(script, token=generation, globals_needed=needed),
            )
        except (InitialiserError, HookError, PlaceMissingError, AgentBusyError) as error:
            plan.left = True
            self.registry.add(change.place for change in changes)
            if isinstance(error, AgentBusyError):
                names = [change.info.shown for change in changes]
                raise BlockedInitialiserError(names, self.runtime.patience_ms / 1e3) from error
            raise
        except TargetGoneError:
            # it may have ended after the swap, and have left a child that has all of it
            if not process.follow() or self.runtime.token != generation:
                raise
            return [None for change in changes for old, _ in change.functions if old]
        plan.stop_us += done.inside_us
        return done.pairs

    def lead_on(self, plan: HostPlan, changes: Sequence[Change], pairs: Pairs) -> None:
        """Lead captured functions to versions that are live; what fails becomes a note."""
        try:
            try:
                self.forward(plan, changes, pairs)
            except TargetGoneError:
                if not self.program.target.follow():
                    raise
                self.forward(plan, changes, pairs)
        except (ReloaderError, OSError, SlotTableFullError) as error:
            forwarding.drop_jumps(plan)
            for change in changes:  # what led to code before still does
                change.slots |= change.before.slots if change.before else set()
            names = listed([change.info.shown for change in changes])
            why = str(error).replace(f" {UNTOUCHED}", "")
            plan.notes.append(
                f"whoever captured functions of {names} goes on with the old code, until a"
                f" reload of them succeeds in this as well: {why}"
            )

    def forward(self, plan: HostPlan, changes: Sequence[Change], pairs: Pairs) -> None:
        """Let the slot of each closed function lead to its new version, and originals there."""
        found = iter(pairs)
        for change in changes:
            rows = [next(found) if old else None for old, _ in change.functions]
            values = self.values(change, rows)
            slots = forwarding.take_slots(self.program, change.file.key, values)
            change.slots = set(slots)
            forwarding.lead(self.program, slots, values)
        forwarding.jump(self.program, plan)

    def values(self, change: Change, rows: Pairs) -> list[forwarding.Value]:
        """Return the closed functions of a new version."""
        read, block = self.program.target.read, change.place.block
        meanings = self.world.meanings(coming=True)
        values: list[forwarding.Value] = []
        for (_, new), pair in zip(change.functions, rows, strict=True):
            if pair is not None:
                closure = Closure(pair.new_code, pair.arity, pair.pointer)
            else:
                closure = closure_at(read, value_at(read, block, new.chain))
            if closure is not None:
                values.append(forwarding.Value(new, closure, meanings.of(new)))
        return values

    def finish(self, units: dict[Key, Unit]) -> None:
        """Lead captured functions to units that became live under another daemon."""
        read, meanings = self.program.target.read, self.world.meanings()
        for key, unit in units.items():
            values = [
                forwarding.Value(slot, closure, meanings.of(slot))
                for slot in unit.info.slots
                if slot.kind == FUNCTION
                and (closure := closure_at(read, value_at(read, unit.block, slot.chain)))
            ]
            slots = forwarding.take_slots(self.program, key, values)
            unit.slots = set(slots)
            forwarding.lead(self.program, slots, values)

    def script(self, changes: Sequence[Change]) -> Script:
        """Return what the agent does for a transaction: hooks, and the swap between them.

        Raises:
            NoSuchFunctionError: A hook is not there.
        """
        script = Script()
        now = {unit.info.shown: (unit.info, unit.block) for unit in self.units.values()}
        call_hooks(script, self.world.config.before, now)
        swap_units(script, changes)
        now |= {change.info.shown: (change.info, change.place.block) for change in changes}
        call_hooks(script, self.world.config.after, now)
        return script


def call_hooks(
    script: Script, names: Sequence[str], units: dict[str, tuple[UnitInfo, int]]
) -> None:
    """Call functions that the configuration names.

    Raises:
        NoSuchFunctionError: A unit has no such function.
    """
    for name in names:
        unit, _, path = name.partition(".")
        info, block = units.get(unit, (None, 0))
        found = [slot for slot in info.slots if slot.path == path] if info else []
        if not found or found[0].kind != FUNCTION:
            raise NoSuchFunctionError(name, sorted(units))
        script.call(name, Place(block, found[0].chain))
