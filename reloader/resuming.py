"""Going on with a process that an earlier daemon worked on, killed or not.

The journal says what was intended, the slots say what is. A transaction that was prepared and
has flipped any slot is finished: its code was complete before the first flip. One that has
flipped none is undone, which means only that its memory is free again.
"""

import base64
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np

from reloader.arch.x86_64 import X86_64
from reloader.elf.object import ObjectFile
from reloader.elf.read import read_object
from reloader.errors.session import StateLostError
from reloader.ids import Addr, Generation, Region
from reloader.inputs import Shelf
from reloader.live import unwind
from reloader.live.baseline import match_baseline
from reloader.live.ledger import Held
from reloader.live.patching import apply_redirects
from reloader.live.persist import unpack
from reloader.live.process import Process
from reloader.live.program import Program
from reloader.live.redirect import WIDEST, RedirectPlan, Way
from reloader.live.target import Allocation
from reloader.opening import Opened, empty_program, index_symbols, running_image
from reloader.record import StateJournal
from reloader.symbol_rows import all_symbols
from state.resume import LiveRow, RedirectRow, SlotKeyRow
from state.rows import GenerationRow, ObjectVersion, Summary
from state.store import Store
from stubs.table import RESERVED, UNWIND_SLOT, SlotKey


def known_target(process: Process, store: Store) -> int | None:
    """Return the id under which the state knows a process that holds code of ours.

    Raises:
        StateLostError: It holds code of ours and the state does not know it.
    """
    used = bool(process.arena.slots[: RESERVED + 1].any())
    for row in store.targets.unended():
        if (row.pid, row.start_time) == (process.pid, process.start_time):
            if used or store.resume.live(row.id):
                return row.id
            store.targets.end(row.id, "entered anew")
    if used:
        raise StateLostError(process.pid, str(store.folder))
    return None


def open_known(process: Process, store: Store, target: int) -> Opened:
    """Rebuild the program from state and process, and settle what was left half done."""
    image = running_image(process.pid, process.maps())
    notes: list[str] = []
    files = [load_version(store, version) for version in store.query.live_set(target, 0)]
    program = empty_program(process, image, match_baseline(files, image, X86_64().kinds))
    for row in store.resume.slots(target):
        program.table.set(row.slot, SlotKey(row.path, row.member, row.name), row.original)
    for row in store.resume.redirects(target):
        program.redirects.setdefault(row.slot, []).append((row.addr, row.old, row.new))
    for row in store.resume.live(target):
        add_live(program, store, row)
    program.generation = Generation(store.query.latest_live(target))
    rebuild_ledger(program, store, target)
    notes += [settle(program, store, target, row) for row in store.journal.unfinished(target)]
    index_symbols(program)
    keep_directory(program)
    return Opened(program, Shelf(), {}, notes)


def load_version(store: Store, version: ObjectVersion) -> ObjectFile:
    """Read an object's kept snapshot."""
    data = store.snapshots.load(version.digest or "")
    return read_object(version.path, data, version.member)


def add_live(program: Program, store: Store, row: LiveRow) -> None:
    """Take in an object that is live."""
    file = load_version(store, ObjectVersion(row.path, row.member, row.digest))
    program.objects[file.key] = unpack(row.addrs, file, row.generation)


def rebuild_ledger(program: Program, store: Store, target: int) -> None:
    """Take in the memory that is held, as the plans of the generations describe it."""
    held = {row.addr for row in store.query.allocations(target)}
    numbers = {row.generation for row in store.query.allocations(target)}
    for number in sorted(numbers):
        generation = store.query.generation(target, number)
        rows = planned_memory(generation.plan, number) if generation is not None else []
        reserve(program, [row for row in rows if row.allocation.addr in held])


def reserve(program: Program, rows: Iterable[Held]) -> None:
    """Mark memory as taken in the arena and in the ledger."""
    for row in rows:
        program.target.arena.reserve(row.allocation)
        program.ledger.add([row])


def planned_memory(plan: dict[str, Any], generation: int) -> list[Held]:
    """Return the ledger rows of a plan."""
    return [
        Held(
            Allocation(Region(region), Addr(addr), size),
            Generation(generation),
            (path, member),
            unwind_addr,
            set(references),
        )
        for region, addr, size, path, member, unwind_addr, references in plan.get("memory", [])
    ]


def settle(program: Program, store: Store, target: int, row: GenerationRow) -> str:
    """Finish or undo a transaction that was under way when the daemon ended; say which."""
    slots = program.target.arena.slots
    flips: list[list[int]] = row.plan.get("flips", [])
    reached = any(int(slots[slot]) == new != old for slot, old, new in flips)
    if not reached:
        text = "the daemon ended before it became live; nothing was changed"
        store.journal.fail(
            target, row.generation, Summary(error_code="daemon-ended", error=text)
        )
        return f"generation {row.generation}: {text}"
    reserve(program, planned_memory(row.plan, row.generation))
    for slot, path, member, name, original in row.plan["slots"]:
        program.table.set(slot, SlotKey(path, member, base64.b64decode(name)), original)
    for slot, _, new in flips:
        slots[slot] = np.uint64(new)
    finish_redirects(program, planned_redirects(row.plan))
    finish_record(program, store, target, row)
    return f"generation {row.generation}: finished, the daemon ended while it became live"


def planned_redirects(plan: dict[str, Any]) -> list[RedirectRow]:
    """Return the bytes that a plan replaces."""
    return [
        RedirectRow(slot, addr, bytes.fromhex(old), bytes.fromhex(new))
        for slot, addr, old, new in plan.get("redirects", [])
    ]


def finish_redirects(program: Program, rows: Sequence[RedirectRow]) -> None:
    """Write the jumps that are not there yet."""
    todo = [
        row
        for row in rows
        if program.target.read(Addr(row.addr), len(row.new)).tobytes() != row.new
    ]
    if todo:
        apply_redirects(as_plan(program, todo), program.target)
    for row in rows:
        program.redirects.setdefault(row.slot, []).append((row.addr, row.old, row.new))


def as_plan(program: Program, rows: Sequence[RedirectRow]) -> RedirectPlan:
    """Return recorded writes as the patcher takes them."""
    rows = sorted(rows, key=lambda row: row.addr)
    names = program.slot_owners()
    return RedirectPlan(
        addr=np.array([row.addr for row in rows], np.uint64),
        size=np.array([len(row.new) for row in rows], np.uint8),
        old=padded([row.old for row in rows]),
        new=padded([row.new for row in rows]),
        way=np.full(len(rows), Way.ENTRY, np.uint8),
        function=np.arange(len(rows), dtype=np.int32),
        names=[names.get(row.slot, "?").encode() for row in rows],
    )


def padded(rows: Sequence[bytes]) -> Any:  # noqa: ANN401  (w, WIDEST) uint8
    """Return byte strings as equal rows."""
    joined = b"".join(row.ljust(WIDEST, b"\0") for row in rows)
    return np.frombuffer(joined, np.uint8).reshape(-1, WIDEST)


def finish_record(program: Program, store: Store, target: int, row: GenerationRow) -> None:
    """Write down what a finished transaction has made live."""
    lives = [
        LiveRow(path, member, row.generation, digest, base64.b64decode(addrs))
        for path, member, digest, addrs in row.plan["live"]
    ]
    for live in lives:
        add_live(program, store, live)
    with store.transaction():
        store.journal.live(
            target, row.generation, Summary(notes=["finished by the next daemon"])
        )
        store.resume.put_live(target, lives)
        store.resume.put_slots(
            target,
            [
                SlotKeyRow(slot, path, member, base64.b64decode(name), original)
                for slot, path, member, name, original in row.plan["slots"]
            ],
        )
        store.resume.put_redirects(target, planned_redirects(row.plan))
        journal = StateJournal(store, target, program)
        journal.record_memory(planned_memory(row.plan, row.generation))
        for live in lives:
            owner = store.ledger.object_id(target, live.path, live.member)
            columns = all_symbols(program, program.objects[live.path, live.member])
            store.ledger.replace_symbols(target, owner, row.generation, columns)
    program.generation = Generation(row.generation)


def keep_directory(program: Program) -> None:
    """Publish a directory of our own; the one before stays readable until its proof."""
    arena = program.target.arena
    addr = int(arena.slots[UNWIND_SLOT])
    if not addr:
        return
    size = 8 + 24 * int(program.target.read(Addr(addr), 8).view(np.uint64)[0])
    page = arena.page_size
    old = Allocation(Region.RODATA, Addr(addr), -(-size // page) * page)
    program.target.arena.reserve(old)
    with ExitStack() as undo:
        program.directory = unwind.publish(program, [], undo)
        undo.pop_all()
    program.ledger.add([Held(program.directory, program.generation, ("", ""))])
    program.ledger.add([Held(old, program.generation, ("", ""), superseded=True)])
