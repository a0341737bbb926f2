"""Going on with a process that an earlier daemon worked on, killed or not.

The state says what is live and whose the memory is, the process says what its slots hold. What
was under way when the daemon ended is decided in `settling`.
"""

from collections.abc import Iterable, Mapping
from contextlib import ExitStack

from reloader.arch.x86_64 import X86_64
from reloader.elf.image import Image
from reloader.elf.object import ObjectFile
from reloader.elf.read import read_object
from reloader.errors.session import StateLostError
from reloader.hosts.caml.settings import OcamlConfig
from reloader.hosts.choose import choose_host
from reloader.ids import REGION_NAMES, Addr, Generation, Region
from reloader.live import unwind
from reloader.live.baseline import match_baseline
from reloader.live.inputs import Shelf
from reloader.live.ledger import Held
from reloader.live.opening import (
    Contents,
    Opened,
    empty_program,
    index_symbols,
    readable,
    running_image,
    sort_placements,
)
from reloader.live.persist import unpack
from reloader.live.process import Process, start_time
from reloader.live.program import Program
from reloader.live.target import Allocation
from reloader.session.record import StateJournal, planned_memory, record_objects
from reloader.session.settling import settle
from state.resume import LiveRow
from state.rows import AllocationRow, ObjectVersion, TargetRow
from state.store import Store
from stubs.table import RESERVED, UNWIND_SLOT, SlotKey

_REGIONS = {name: region for region, name in enumerate(REGION_NAMES)}


def known_target(process: Process, store: Store) -> int | None:
    """Return the id under which the state knows a process that earlier daemons worked on.

    Rows of processes that have ended meanwhile are closed on the way.

    Raises:
        StateLostError: It holds code of ours and the state does not know it.
    """
    used = bool(process.arena.slots[: RESERVED + 1].any())
    found: int | None = None
    for row in store.targets.unended():
        same = (row.pid, row.start_time) == (process.pid, process.start_time)
        if not same and used and is_left_by(store, row, process):
            store.targets.follow(row.id, pid=process.pid, start_time=process.start_time)
            found = row.id
        elif not same:
            if start_time(row.pid) != row.start_time:
                store.targets.end(row.id, "ended while no daemon was there")
        elif used or is_same_image(store, row, process):
            found = row.id
        else:
            store.targets.end(row.id, "the process runs another program now")
    if used and found is None:
        raise StateLostError(process.pid, str(store.folder))
    return found


def follow(process: Process, store: Store, target: int) -> bool:
    """Go on with what a program has forked if it has ended; return whether any is left."""
    if not process.follow():
        return False
    row = store.targets.get(target)
    if row is not None and row.pid != process.pid:  # an undo may have followed it already
        store.targets.follow(target, pid=process.pid, start_time=process.start_time)
    return True


def is_left_by(store: Store, row: TargetRow, process: Process) -> bool:
    """Return whether a process was forked from a target that has ended while we were away."""
    if start_time(row.pid) == row.start_time:
        return False
    members = {known.pid for known in store.targets.processes(row.id)}
    return process.first_pid in members


def is_same_image(store: Store, row: TargetRow, process: Process) -> bool:
    """Return whether a process without code of ours still is what the state describes.

    After `execve` it has the same number and start time, and nothing of what the state says.
    """
    if store.resume.slots(row.id) or store.query.latest_live(row.id):
        return False
    image = running_image(process.pid, process.maps())
    return any(
        (known.build_id, known.base_addr) == (image.build_id, image.load_bias)
        for known in store.targets.images(row.id)
    )


def open_known(
    process: Process, store: Store, target: int, watched: Contents, ocaml: OcamlConfig
) -> Opened:
    """Rebuild the program from state and process, and settle what was left half done.

    Args:
        process: The agent is in it, and code of an earlier daemon may be.
        store: Where the earlier daemon wrote.
        target: The program's id there.
        watched: (path, content) of every watched file: some may be new to the state.
        ocaml: What the project says of OCaml.
    """
    image = running_image(process.pid, process.maps())
    opened = match_known(process, store, target, watched, image)
    program = opened.program
    for row in store.resume.slots(target):
        program.table.set(row.slot, SlotKey(row.path, row.member, row.name), row.original)
    for row in store.resume.redirects(target):
        program.redirects.setdefault(row.slot, []).append((row.addr, row.old, row.new))
    for row in store.resume.live(target):
        add_live(program, store, row)
    program.generation = Generation(store.query.latest_live(target))
    rebuild_ledger(program, store, target)
    index_symbols(program)
    take_host(opened, ocaml, store.resume.host(target))
    with ExitStack() as undo:
        undo.callback(program.host.close)
        for row in store.journal.unfinished(target):
            journal = StateJournal(store, target, program)
            opened.notes.append(settle(program, journal, row, add_live))
        undo.pop_all()
    process.arena.slots[len(program.table) :] = 0  # of attempts that ended while linking
    index_symbols(program)
    keep_directory(program, StateJournal(store, target, program))
    program.ledger.supersede(program.roots())
    sweep(process)
    return opened


def sweep(process: Process) -> None:
    """Empty the memory that nobody holds, in every process: who gets it next expects zeros."""
    strays = process.arena.strays()
    if strays:
        process.discard(strays)
    for stray in strays:
        process.arena.reserve(stray)
        process.arena.free(stray)


def take_host(
    opened: Opened,
    ocaml: OcamlConfig,
    rows: Mapping[str, str],
    earlier: Mapping[str, str] | None = None,
) -> None:
    """Let a program's language decide, and let its libraries be pulled from.

    Args:
        opened: The program.
        ocaml: What the project says of OCaml.
        rows: What an earlier daemon's host wrote down of this process.
        earlier: And of an earlier run of the program.
    """
    opened.program.host, notes = choose_host(opened.program, ocaml, rows, earlier)
    opened.notes += notes
    opened.shelf.libraries += opened.program.host.libraries()


def match_known(
    process: Process, store: Store, target: int, watched: Contents, image: Image
) -> Opened:
    """Match the objects that the program was linked from, and watched ones new to the state."""
    shelf, notes = Shelf(), list[str]()
    known = [load_version(store, version) for version in store.query.live_set(target, 0)]
    live = {(row.path, row.member) for row in store.resume.live(target)}
    had = {file.key for file in known} | live
    fresh = [file for file in readable(watched, shelf, notes) if file.key not in had]
    baseline = match_baseline([*known, *fresh], image, X86_64().kinds)
    opened = Opened(empty_program(process, image, baseline), shelf, {}, notes)
    sort_placements(opened, skip=had)
    if opened.program.objects:
        pictures = [row.id for row in store.targets.images(target) if row.kind == "executable"]
        record_objects(store, target, opened.program, pictures[0])
    return opened


def load_version(store: Store, version: ObjectVersion) -> ObjectFile:
    """Read an object's kept snapshot."""
    data = store.snapshots.load(version.digest or "")
    return read_object(version.path, data, version.member)


def add_live(program: Program, store: Store, row: LiveRow) -> None:
    """Take in an object that is live."""
    file = load_version(store, ObjectVersion(row.path, row.member, row.digest))
    program.objects[file.key] = unpack(row.addrs, file, row.generation)


def rebuild_ledger(program: Program, store: Store, target: int) -> None:
    """Take in the memory that is held; what refers to what stands in the generations' plans."""
    rows = store.query.allocations(target)
    planned: dict[int, dict[int, Held]] = {}
    for number in {row.generation for row in rows}:
        generation = store.query.generation(target, number)
        plan = generation.plan if generation is not None else {}
        planned[number] = {held.allocation.addr: held for held in planned_memory(plan, number)}
    for row in rows:
        reserve(program, [planned[row.generation].get(row.addr) or as_directory(row)])


def as_directory(row: AllocationRow) -> Held:
    """Return the ledger row of memory that no plan names: an unwind directory."""
    place = Allocation(_REGIONS[row.region], Addr(row.addr), row.size)
    return Held(place, Generation(row.generation), ("", ""))


def reserve(program: Program, rows: Iterable[Held]) -> None:
    """Mark memory as taken in the arena and in the ledger."""
    for row in rows:
        program.target.arena.reserve(row.allocation)
        program.ledger.add([row])


def keep_directory(program: Program, journal: StateJournal) -> None:
    """Publish an unwind directory that we know; the one before waits for its proof.

    The one that is published may be of an attempt that is undone now, and in no book.
    """
    arena = program.target.arena
    addr = int(arena.slots[UNWIND_SLOT])
    if not addr:
        return
    size = 8 + 24 * int.from_bytes(program.target.read(Addr(addr), 8).tobytes(), "little")
    page = arena.page_size
    before = Held(
        Allocation(Region.RODATA, Addr(addr), -(-size // page) * page),
        program.generation,
        ("", ""),
    )
    unknown = addr not in program.ledger.rows
    reserve(program, [before] if unknown else [])
    with ExitStack() as undo:
        program.directory = unwind.publish(program, [], undo)
        undo.pop_all()
    published = Held(program.directory, program.generation, ("", ""))
    program.ledger.add([published])
    journal.record_memory([before, published] if unknown else [published])
