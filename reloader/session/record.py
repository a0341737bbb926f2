"""The journal over the state: a transaction's intent before the change, its result after.

The plan in a `prepared` row is what recovery needs: the new slots and whose they are, the old
and new value of each slot that flips, the bytes of the executable that are replaced, the memory
taken, and the live objects to be. A later daemon looks at the slots: if any holds its new value
the transaction is finished, else it is undone.
"""

import base64
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from reloader.elf.object import ObjectFile
from reloader.errors.base import ReloaderError
from reloader.ids import REGION_NAMES, Addr, Generation, SlotId
from reloader.live.ledger import Held
from reloader.live.objects import LiveObject
from reloader.live.opening import Opened
from reloader.live.persist import pack
from reloader.live.plan import Plan
from reloader.live.process import Process
from reloader.live.program import Key, Program
from reloader.live.target import Allocation
from reloader.session.outcome import Outcome
from reloader.session.symbol_rows import all_symbols, changed_symbols
from state.errors import StateError
from state.resume import LiveRow, RedirectRow, SlotKeyRow
from state.rows import Kind, NewAllocation, ObjectVersion, SlotRow, Summary
from state.store import Store


@dataclass(slots=True)
class StateJournal:
    """The `Journal` of reload.py for one target."""

    store: Store
    target: int  # id in the state
    program: Program
    kind: Kind = "load"
    number: int = 0  # of the attempt that was prepared last
    plan: Plan | None = None  # what was prepared last
    # what is decided in the process and could not be written down (a full disk): it is written
    # before anything else is prepared, since a later daemon goes by the last prepared row
    owed: list[Callable[[], None]] = field(default_factory=list[Callable[[], None]])
    # of the version of each object that was recorded last
    names: dict[Key, Sequence[bytes]] = field(default_factory=dict[Key, Sequence[bytes]])

    def begin(self, kind: Kind) -> None:
        """Expect an attempt."""
        self.kind, self.number = kind, 0

    def catch_up(self) -> None:
        """Write down what is owed.

        Raises:
            StateError: It still cannot be written.
        """
        while self.owed:
            self.owed[0]()
            del self.owed[0]

    def prepare(self, plan: Plan) -> Generation:
        """Keep the objects' bytes and write the intent."""
        self.catch_up()
        files = [version.file for version in plan.versions]
        versions = versions_of(files)
        with self.store.transaction():  # one commit
            for file in files:
                self.store.snapshots.save(file.digest, file.data.data)
            number = self.store.journal.prepare(
                self.target, versions, plan_json(self.program, plan), kind=self.kind
            )
        self.number, self.plan = number, plan
        return Generation(number)

    def live(self, generation: Generation, plan: Plan, outcome: Outcome) -> None:
        """Write down what is live now; it is so even where that fails, and then it is owed."""
        outcome.generation = generation
        try:
            self.record_live(generation, plan, outcome)
        except StateError as error:
            self.owed.append(partial(self.record_live, generation, plan, outcome))
            outcome.notes.append(
                f"it is live, but could not be written down yet: {error} No other reload is"
                " made before that is done."
            )
        if self.store.deleted():
            outcome.notes.append(
                f"{self.store.folder} was deleted: reloading goes on, but once this daemon has"
                " ended no other can take over; to go on then, restart the program"
            )

    def record_live(self, generation: Generation, plan: Plan, outcome: Outcome) -> None:
        """Write down what is live now, in one commit."""
        with self.store.transaction():
            self.store.journal.live(self.target, generation, summary_of(outcome))
            resume_rows(self.store, self.target, self.program, plan)
            self.record_memory(plan.held)
            changed = {
                *range(plan.first_slot, len(self.program.table)),
                *plan.flips.slot.tolist(),
                *plan.host.led,
            }
            self.store.ledger.record_slots(slot_rows(self.program, self.target, changed))
            for row, file in enumerate(plan.graph.objects):
                owner = self.store.ledger.object_id(self.target, *file.key)
                columns = changed_symbols(self.program, plan, row)
                self.store.ledger.update_symbols(self.target, owner, generation, columns)
                self.drop_symbols(owner, self.program.objects[file.key].file)

    def drop_symbols(self, owner: int, file: ObjectFile) -> None:
        """Write down that an object's new version has some symbols no more."""
        if self.names.get(file.key) != file.symbol_names:
            names = {name.decode("utf-8", "replace") for name in file.symbol_names}
            self.store.ledger.keep_symbols(self.target, owner, names)
            self.names[file.key] = file.symbol_names

    def remove(self, key: Key) -> None:
        """Write down that an object was taken out."""
        self.store.resume.remove_live(self.target, *key)
        owner = self.store.ledger.object_id(self.target, *key)
        self.store.ledger.keep_symbols(self.target, owner, frozenset())
        self.names.pop(key, None)

    def failed(self, generation: Generation, error: BaseException) -> None:
        """Write down why it was undone."""
        code = error.code if isinstance(error, (ReloaderError, StateError)) else "internal"
        summary = Summary(error_code=code, error=str(error))
        retained = self.plan if self.plan is not None and self.plan.retained else None
        write = partial(self.record_failed, generation, summary, retained)
        try:
            write()
        except StateError:
            self.owed.append(write)

    def record_failed(
        self, generation: Generation, summary: Summary, retained: Plan | None
    ) -> None:
        """Write down that an attempt was undone, and what of it has to wait for its proof."""
        known = {row.addr for row in self.store.query.allocations(self.target)}
        ledger = self.program.ledger.rows
        with self.store.transaction():
            self.store.journal.fail(self.target, generation, summary)
            self.record_memory([row for addr, row in ledger.items() if addr not in known])
            if retained is not None:
                slots = slot_key_rows(self.program, retained.first_slot)
                self.store.resume.put_slots(self.target, slots)
                if retained.host.left:
                    self.store.resume.put_host(self.target, self.program.host.rows())

    def record_memory(self, held: Sequence[Held]) -> None:
        """Write down allocations."""
        for generation in {row.generation for row in held}:
            rows = [
                NewAllocation(
                    object=self.store.ledger.object_id(self.target, *row.object)
                    if row.object[0]
                    else None,
                    region=REGION_NAMES[row.allocation.region],
                    section="",
                    addr=row.allocation.addr,
                    size=row.allocation.size,
                )
                for row in held
                if row.generation == generation
            ]
            self.store.ledger.record_allocations(self.target, generation, rows)


def versions_of(files: Sequence[ObjectFile]) -> list[ObjectVersion]:
    """Return objects as the journal names them."""
    return [ObjectVersion(*file.key, file.digest) for file in files]


def summary_of(outcome: Outcome) -> Summary:
    """Return an outcome as the journal keeps it."""
    return Summary(
        functions=outcome.functions,
        ms_total=outcome.total_ms,
        timings=outcome.steps_ms,
        stop_us=outcome.stop_us,
        error_code=outcome.code or None,
        error=outcome.error or None,
        notes=outcome.notes,
    )


def slot_key_rows(program: Program, first: int) -> list[SlotKeyRow]:
    """Return whose slots are, from `first` on."""
    return [
        SlotKeyRow(slot, key.path, key.member, key.name, original)
        for slot, key, original in program.table.functions(first)
    ]


def slot_rows(program: Program, target: int, slots: Iterable[int]) -> list[SlotRow]:
    """Return slots as people ask for them."""
    arena, table = program.target.arena, program.table
    return [
        SlotRow(
            target=target,
            slot=slot,
            object=None,
            name=names[slot],
            slot_addr=arena.slot_addr(SlotId(slot)),
            stub_addr=arena.stub_addr(SlotId(slot)),
            canonical_addr=table.original[slot] or arena.stub_addr(SlotId(slot)),
            code_addr=int(arena.slots[slot]),
            generation=int(program.generation),
        )
        for names in [program.slot_owners()]
        for slot in sorted(slots)
    ]


def live_row(live: LiveObject) -> LiveRow:
    """Return a live object as the state keeps it."""
    return LiveRow(*live.file.key, live.generation, live.file.digest, pack(live))


def redirect_rows(plan: Plan) -> list[RedirectRow]:
    """Return the bytes that a plan replaces in the executable."""
    return [RedirectRow(slot, *write) for slot, write in plan.writes()]


def resume_rows(store: Store, target: int, program: Program, plan: Plan) -> None:
    """Write what a later daemon needs of a transaction that is live."""
    lives = [program.objects[file.key] for file in plan.graph.objects]
    store.resume.put_live(target, map(live_row, lives))
    store.resume.put_slots(target, slot_key_rows(program, plan.first_slot))
    store.resume.put_redirects(target, redirect_rows(plan))
    store.resume.put_host(target, program.host.rows(plan.host))


def plan_json(program: Program, plan: Plan) -> dict[str, Any]:
    """Return what recovery needs, as JSON holds it."""
    return {
        "flips": [
            [int(slot), int(old), int(new)]
            for slot, old, new in zip(
                plan.flips.slot, plan.flips.old, plan.flips.new, strict=True
            )
        ],
        "slots": [
            [row.slot, row.path, row.member, text(row.name), row.original]
            for row in slot_key_rows(program, plan.first_slot)
        ],
        "redirects": [
            [row.slot, row.addr, row.old.hex(), row.new.hex()] for row in redirect_rows(plan)
        ],
        "memory": [held_json(row) for row in plan.held],
        "host": program.host.rows(plan.host),
        "live": [
            [*live.file.key, live.file.digest, text(pack(live))] for live in plan.versions
        ],
    }


def held_json(row: Held) -> list[Any]:
    """Return a ledger row as JSON holds it."""
    place = row.allocation
    return [
        int(place.region), place.addr, place.size, *row.object, row.unwind_addr,
        sorted(row.references),
    ]  # fmt: skip


def planned_memory(plan: dict[str, Any], generation: int) -> list[Held]:
    """Return the ledger rows that `held_json` was given."""
    return [
        Held(
            Allocation(region, Addr(addr), size),
            Generation(generation),
            (path, member),
            unwind_addr,
            set(references),
        )
        for region, addr, size, path, member, unwind_addr, references in plan.get("memory", [])
    ]


def text(data: bytes) -> str:
    """Return bytes as JSON can hold them."""
    return base64.b64encode(data).decode("ascii")


def record_opened(store: Store, process: Process, opened: Opened, how: str) -> int:
    """Write down a program that is new to us: its image, objects, snapshots and symbols."""
    program = opened.program
    image = program.image
    with store.transaction():
        target = store.targets.begin(
            pid=process.pid,
            start_time=process.start_time,
            build_id=image.build_id,
            exe=image.path,
            argv=command_line(process.pid),
            cwd=str(Path(f"/proc/{process.pid}/cwd").readlink()),
            how=how,
        )
        picture = store.targets.add_image(
            target,
            kind="executable",
            path=image.path,
            build_id=image.build_id,
            base_addr=image.load_bias,
            start_addr=image.low,
            end_addr=image.high,
        )
        record_objects(store, target, program, picture)
    return target


def record_objects(store: Store, target: int, program: Program, picture: int) -> None:
    """Write down the objects of a program as what an image was linked from."""
    lives = list(program.objects.values())
    with store.transaction():
        for live in lives:
            store.snapshots.save(live.file.digest, live.file.data.data)
            owner = store.ledger.object_id(target, *live.file.key, image=picture)
            store.ledger.describe_object(owner, baseline="matched")
            store.ledger.replace_symbols(target, owner, 0, all_symbols(program, live))
        store.ledger.record_versions(target, 0, versions_of([live.file for live in lives]))
        store.resume.put_live(target, map(live_row, lives))


def command_line(pid: int) -> list[str]:
    """Return a process's arguments."""
    raw = Path(f"/proc/{pid}/cmdline").read_bytes()
    return [part.decode("utf-8", "replace") for part in raw.split(b"\0")[:-1]]
