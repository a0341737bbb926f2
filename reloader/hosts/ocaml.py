"""OCaml: a unit's new version is initialised beside the old one, and takes its place.

A unit is replaced as a whole. Its new version is linked with everything its own, registered
with the runtime and initialised at a safe point; then the exported fields of its module block
are stored into the block that other units know (`caml_modify`), and state that is kept is
carried over. Closed functions that somebody captured long ago are reached as well: see
`forwarding`.
"""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Final, cast

from reloader.elf.object import ObjectFile
from reloader.errors.base import ReloaderError
from reloader.errors.linking import UndefinedSymbolsError
from reloader.errors.ocaml import ForkedError, RunningUnitError
from reloader.errors.ocaml_units import IncompatibleUnitsError, MissingUnitsError, listed
from reloader.hosts.caml import forwarding, saved
from reloader.hosts.caml.family import refuse_children, unforked
from reloader.hosts.caml.holders import OldCode
from reloader.hosts.caml.order import initialisation_order
from reloader.hosts.caml.registry import Registry
from reloader.hosts.caml.runtime import Runtime
from reloader.hosts.caml.shapes import LiveShapes
from reloader.hosts.caml.state import Sizes, StatePlan
from reloader.hosts.caml.swapping import after, needs_block, pairs
from reloader.hosts.caml.switching import Switching
from reloader.hosts.caml.symbols import symbols_meant
from reloader.hosts.caml.transaction import Change, Details, Face, Unit
from reloader.hosts.caml.unit_object import UnitObject, place_of, read_unit
from reloader.hosts.caml.units import UnitInfo
from reloader.hosts.caml.waiting import Waiting
from reloader.hosts.caml.world import World
from reloader.ids import Addr
from reloader.link.graph import LinkGraph
from reloader.live.host import Companions, Hold, HostPlan, Library
from reloader.live.objects import LiveObject
from reloader.live.program import Key, Program
from reloader.live.target import Allocation

STB_LOCAL: Final = 0
WORD: Final = 8


class Ocaml:
    """The OCaml part of one program; implements `live.host.Host`."""

    name = "OCaml"

    def __init__(
        self, program: Program, runtime: Runtime, world: World, rows: Mapping[str, str]
    ) -> None:
        """Take over a program whose runtime was found.

        Args:
            program: Its objects are live already.
            runtime: The runtime inside it.
            world: What the compiler wrote down about units.
            rows: What an earlier daemon wrote down.
        """
        self.program = program
        self.runtime = runtime
        self.world = world
        self.units: dict[Key, Unit] = {}
        self.unfit: dict[Key, ReloaderError] = {}  # live, but nothing tells what they are
        self.shapes = LiveShapes()
        self.registry = Registry(saved.load_places(rows.get(saved.REGISTERED, "")))
        self.old = OldCode()
        self.unused = False  # nobody has seen the state of units to come: it begins anew
        self.notes: list[str] = []
        self._objects: dict[str, UnitObject | None] = {}  # by digest
        self.waiting = Waiting(world, self.units, self.is_running)
        self.switching = Switching(program, runtime, world, self.registry, self.units)
        known = dict(saved.saved_units(rows))
        for key, live in program.objects.items():
            if key in known:
                self.restore(key, known[key])
            else:
                self.know(key, live)

    def know(self, key: Key, live: LiveObject) -> None:
        """Find out about an object that the executable was linked with."""
        unit = self.object_of(live.file)
        if unit is None:
            return
        try:
            info = self.world.original(live.file)
        except ReloaderError as error:
            self.unfit[key] = error
            self.notes.append(str(error))
        else:
            block = int(live.symbol_addr[unit.rows.block])
            self.units[key] = Unit(key, unit, info, block, [Face(block, info.exported())])

    def object_of(self, file: ObjectFile) -> UnitObject | None:
        """Return an object as a unit, None for others."""
        if file.digest not in self._objects:
            self._objects[file.digest] = read_unit(file)
        return self._objects[file.digest]

    def whole(self, file: ObjectFile) -> bool:
        """Units are replaced as a whole: their data is made anew by their initialiser."""
        return self.object_of(file) is not None

    def expect(self, files: Sequence[ObjectFile]) -> None:
        """Let the inspector read the first of new versions while their graph is built."""
        first = next((file for file in files if self.whole(file)), None)
        if first is not None:
            self.world.expect(first)

    def explained(
        self, error: UndefinedSymbolsError, objects: Sequence[ObjectFile]
    ) -> ReloaderError:
        """Name the units that new versions use and the program was linked without."""
        infos = [self.world.info(file) for file in objects if self.whole(file)]
        missing = self.world.missing(infos)
        return MissingUnitsError(missing, str(error)) if missing else error

    def companions(
        self, error: Exception | None, objects: Sequence[ObjectFile]
    ) -> Companions | None:
        """Return what makes refused units fit: others that were, and users compiled again."""
        if not (error is None or isinstance(error, IncompatibleUnitsError | RunningUnitError)):
            return None
        files = [file for file in objects if self.whole(file)]
        with suppress(ReloaderError):
            if isinstance(error, RunningUnitError):
                return self.waiting.without_running(files, self.program.objects)
            if files:
                return self.waiting.companions(files, self.program.objects)
            return self.waiting.ready(self.program.objects)
        return None

    def isolate(self, graph: LinkGraph) -> None:
        """Let units refer to themselves directly, and to each other by the blocks they know.

        Raises:
            ReloaderError: A unit does not fit the program.
        """
        rows = [row for row, file in enumerate(graph.objects) if self.whole(file)]
        if not rows:
            return
        symbols = graph.symbols
        files = [graph.objects[row] for row in rows]
        for file in files:
            if file.key in self.unfit:
                raise self.unfit[file.key]
        self.refuse_running(files)
        infos = self.world.examine(files)
        for row, file, info in zip(rows, files, infos, strict=True):
            own = slice(int(graph.first_symbol[row]), int(graph.first_symbol[row + 1]))
            symbols.reloadable[own] = False
            unit, before = cast("UnitObject", self.object_of(file)), self.units.get(file.key)
            if before is not None and not needs_block(before.info, info, self.world.changed):
                symbols.binding[own.start + unit.rows.block] = STB_LOCAL

    def refuse_running(self, files: Sequence[ObjectFile]) -> None:
        """Refuse units that the program is still inside the initialiser of.

        Raises:
            RunningUnitError: There is one.
        """
        for file in files:
            info = self.world.info(file)
            if file.key in self.units and self.is_running(info):
                raise RunningUnitError(file.name, info.shown)

    def is_running(self, info: UnitInfo) -> bool:
        """Return whether the program is inside of the initialiser of one of its units."""
        counter = self.program.index.find([b"caml_globals_inited"]).addr[0]
        done = int(self.program.target.read(Addr(int(counter)), WORD).view("<u8")[0])
        return self.world.position(info) == done + 1

    def libraries(self) -> list[Library]:
        """Return the archives of what the program was linked without and new code may need."""
        return self.world.libraries()

    def prepare(self, graph: LinkGraph) -> HostPlan:
        """Say what becomes of each unit's fields, and take slots for captured functions.

        Raises:
            ReloaderError: It cannot be done now.
            SlotTableFullError: There are too few slots.
        """
        rows = [row for row, file in enumerate(graph.objects) if self.whole(file)]
        if not rows:
            return HostPlan()
        refuse_children(self.runtime.process)
        files = [graph.objects[row] for row in rows]
        units = [cast("UnitObject", self.object_of(file)) for file in files]
        order = initialisation_order(files, [unit.symbol for unit in units])
        changes = [self.change(graph, rows[at], files[at], units[at]) for at in order]
        plan = HostPlan(details=Details(changes))
        forwarding.take_original_slots(self.program, changes, self.world.meanings())
        forwarding.require_room(self.program, changes, self.world.meanings(coming=True))
        before = [change.file.key for change in changes if change.before]
        slots = forwarding.without_jump(self.program, before)
        forwarding.plan_jumps(self.program, slots, plan)
        return plan

    def change(self, graph: LinkGraph, row: int, file: ObjectFile, unit: UnitObject) -> Change:
        """Return what a transaction does to one unit."""
        info, before = self.world.info(file), self.units.get(file.key)
        state = StatePlan.empty()
        if before and not self.unused:
            sizes = Sizes(before.object.block_size, unit.block_size)
            state = self.world.state(before.info, info, sizes)
        place = place_of(graph, row, unit)
        changed = self.world.changed
        functions = pairs(before.info if before else None, info, changed)
        old = self.program.objects.get(file.key) if before else None
        return Change(file, unit, info, before, old, place, state, functions, changed)

    def version(self, live: LiveObject) -> LiveObject:
        """Let others know a unit by the block that every swap stores into."""
        unit, known = self.object_of(live.file), self.units.get(live.file.key)
        if unit is None or known is None:
            return live
        if needs_block(known.info, self.world.info(live.file), self.world.changed):
            return live
        addr = live.symbol_addr.copy()
        addr[unit.rows.block] = known.faces[-1].block
        return replace(live, symbol_addr=addr)

    def switch(self, plan: HostPlan, generation: int) -> None:
        """Initialise new units and swap them in, at one safe point.

        Raises:
            ReloaderError: Nothing was changed.
        """
        if plan.details is not None:
            changes = cast("Details", plan.details).changes
            self.switching.make_live(plan, changes, generation)
            plan.led = set[int]().union(*(change.slots for change in changes))

    def adopt(self, plan: HostPlan) -> None:
        """Take note of the units that are live now."""
        if plan.details is None:
            return
        changes = cast("Details", plan.details).changes
        for change in changes:
            self.units[change.file.key] = after(change)
            self.world.adopt(change.file)
        self.registry.add(change.place for change in changes)
        self.old.add(changes)
        self.old.forget(self.registry.places)
        try:
            self.describe(plan, changes)
        except (ReloaderError, OSError) as error:  # the program may end just now: it was live
            plan.notes.append(str(error))

    def describe(self, plan: HostPlan, changes: Sequence[Change]) -> None:
        """Say what is new, and who still leads to old code."""
        for change in changes:
            functions, notes = self.shapes.difference(change)
            plan.functions += functions
            plan.notes += notes
        plan.notes += self.old.notes(self.program, list(self.units.values()))

    def rows(self, plan: HostPlan | None = None) -> dict[str, str]:
        """Return what a later daemon has to know, by name; of a plan: once it is live."""
        changes: Sequence[Change] = ()
        if plan is not None:
            if plan.details is None:
                return {}
            changes = cast("Details", plan.details).changes
        units = [(after(change), change.file) for change in changes]
        if plan is None:
            objects = self.program.objects
            units = [(unit, objects[key].file) for key, unit in self.units.items()]
        known = self.registry.places | {row.place.code_begin: row.place for row in changes}
        rows = saved.save_units(units, original=plan is None and not known)
        return {**rows, saved.REGISTERED: saved.save_places(known.values())}

    def swapped(self, generation: int) -> bool:
        """Return whether a transaction that was under way has become live."""
        return self.runtime.token == generation

    def finish(self, rows: Mapping[str, str]) -> None:
        """Do what is left of a transaction that became live under another daemon."""
        self.suspect(rows)
        units = {key: self.restore(key, text) for key, text in saved.saved_units(rows)}
        self.switching.finish(units)

    def suspect(self, rows: Mapping[str, str]) -> None:
        """Take note that the runtime may know the units of a transaction that was undone."""
        self.registry.places |= saved.load_places(rows.get(saved.REGISTERED, ""))

    def restore(self, key: Key, text: str) -> Unit:
        """Take in a unit as an earlier daemon wrote it down."""
        file = self.program.objects[key].file
        unit = saved.load_unit(key, text, cast("UnitObject", self.object_of(file)))
        self.units[key] = unit
        self.world.restore(file, unit.info)
        return unit

    def roots(self) -> Sequence[int]:
        """Return the blocks that others know units by."""
        return [face.block for unit in self.units.values() for face in unit.faces]

    def slots(self) -> set[int]:
        """Return the slots of functions of live units."""
        return set[int]().union(*(unit.slots for unit in self.units.values()))

    def holds(self, memory: Allocation) -> bool:
        """Return whether the runtime still knows a unit in superseded memory."""
        return self.registry.holds(memory)

    def forgotten(self, memory: Allocation) -> bool:
        """Return whether the runtime has proven that nothing of its own reaches memory."""
        return self.registry.forgotten(memory)

    def meant(self, name: str) -> list[str]:
        """Return the symbols that people mean by `Foo.f`."""
        files = [self.program.objects[key].file for key in self.units]
        return symbols_meant(name, [unit.info.name for unit in self.units.values()], files)

    def objects_named(self, name: str) -> list[Key]:
        """Return the objects of the unit that people mean by `Greet`, `greet.ml`, `greet.o`."""
        stem = Path(name).stem.lower()
        return [
            key
            for key, unit in self.units.items()
            if stem in {unit.info.shown.lower(), unit.info.shown.lower().rpartition(".")[2]}
        ]

    def hold(self, keys: Sequence[Key]) -> bool:
        """Let a program that waits before main come to where units are initialised.

        Raises:
            AgentCommandError: It is further already.
        """
        infos = [self.units[key].info for key in keys if key in self.units]
        self.unused = self.world.are_neighbours(infos)
        found = self.program.index.find(self.world.entry_after(infos)) if infos else None
        entry = int(found.addr[found.found][:1].sum()) if found else 0
        if entry:
            self.runtime.hold(entry)
        return bool(infos)

    def go_on(self) -> None:
        """Let the program run on."""
        self.unused = False
        self.runtime.go_on()

    def close(self) -> None:
        """End the reader of compiled files."""
        self.world.inspector.close()

    def let_go(self, superseded: Sequence[Allocation]) -> list[Hold]:
        """Let the runtime forget units that nothing reaches."""
        try:
            with unforked(self.runtime.process, 0.0):
                holds = self.registry.let_go(self.runtime, self.program.ledger, superseded)
        except ForkedError as error:
            others = listed([str(child) for child in error.children])
            text = f"the OCaml runtime of process {others}, which was forked"
            return self.registry.held_back(superseded, text)
        self.old.forget(self.registry.places)
        return self.old.named(holds, self.program, list(self.units.values()))
