"""For recovery tests: a daemon that is killed at a chosen moment, and a check of all books.

The daemon here is a process of its own that runs one session, makes reloads and, at the moment
it is told, ends itself by SIGKILL: nothing of it gets to run, as in a real crash.
"""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from reloader.hosts.caml.runtime import RunResult, Runtime
from reloader.ids import I32, U64, Addr, Generation, Region
from reloader.live import constructors, patching, switch
from reloader.live.plan import Plan
from reloader.live.program import Program as Live
from reloader.live.target import Arena, Stopped
from reloader.session.session import Session
from stubs.table import RESERVED, UNWIND_SLOT

ROOT = Path(__file__).resolve().parent.parent.parent
_PATH = f"import sys; sys.path.insert(0, {str(ROOT)!r}); "
DAEMON = [sys.executable, "-P", "-c", _PATH + "import tests.support.faults as f; f.main()"]


@dataclass(slots=True)
class Orders:
    """What the daemon of a test does."""

    pid: int
    folder: str
    watch: str
    reloads: list[list[str]]  # the objects of each reload
    kill: str = ""  # the moment in the last reload at which it ends itself; "" for none
    close: bool = True
    copies: list[str] = field(
        default_factory=list[str]
    )  # put in the place of each reload's file


def run_daemon(orders: Orders, wrapper: Sequence[str] = ()) -> tuple[int, list[dict[str, Any]]]:
    """Run a daemon to its end; return its exit status and the outcomes it printed."""
    run = subprocess.run(
        [*wrapper, *DAEMON, json.dumps(asdict(orders))],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    if run.returncode not in {0, -signal.SIGKILL}:
        raise AssertionError(run.stderr)
    return run.returncode, [json.loads(line) for line in run.stdout.splitlines()]


def main() -> None:
    """Be the daemon."""
    orders = Orders(**json.loads(sys.argv[1]))
    session = Session.attach(orders.pid, Path(orders.folder), [orders.watch])
    for number, paths in enumerate(orders.reloads, 1):
        for path, copy in zip(paths, orders.copies[number - 1 :], strict=False):
            Path(copy).replace(path)
        if number == len(orders.reloads) and orders.kill:
            arm(session, orders.kill)
        outcome = session.reload_files(paths, named=True)
        line = json.dumps({"state": outcome.state, "error": outcome.error})
        sys.stdout.write(line + "\n")
        sys.stdout.flush()
    if orders.close:
        session.close()


def die() -> None:
    """End this process as a crash does."""
    os.kill(os.getpid(), signal.SIGKILL)


def arm(session: Session, moment: str) -> None:
    """Have this process end at a moment: before a step, or one of `INSIDE`."""
    inside = INSIDE | IN_UNITS
    if moment in inside:
        inside[moment](session)
        return

    def before(step: str) -> None:
        if step == moment:
            die()

    session.before_step = before


def after_first_slot(_: Session) -> None:
    """End after one slot has flipped."""

    def flip(arena: Arena, slots: I32, values: U64) -> None:
        arena.slots[int(slots[0])] = values[0]
        die()

    switch.flip = flip


def after_all_slots(_: Session) -> None:
    """End when every slot has flipped and no jump is written."""
    _after_writes(0)


def after_first_jump(_: Session) -> None:
    """End inside the stop, after the first write into the executable."""
    _after_writes(1)


def after_constructors(_: Session) -> None:
    """End when constructors have run."""
    run = constructors.run

    def run_and_die(program: Live, plan: Plan, number: Generation, undo: ExitStack) -> None:
        run(program, plan, number, undo)
        die()

    constructors.run = run_and_die


def _after_writes(count: int) -> None:
    """End inside the stop, after some writes of one jump each."""

    def write(
        runs: list[Any],
        stopped: Stopped,
        within: Callable[[], None],
        back: Callable[[], None] | None,
    ) -> None:
        del back
        within()
        pieces = [piece for run in runs for piece in (*run.holes, *run.pieces)]
        for addr, before, after in pieces[:count]:
            changed = [at for at in range(len(after)) if before[at] != after[at]]
            first = changed[0]
            stopped.write(Addr(addr + first), after[first : first + 5])
        die()

    patching._write = write  # pyright: ignore[reportPrivateUsage]


INSIDE: dict[str, Callable[[Session], None]] = {
    "after_first_slot": after_first_slot,
    "after_all_slots": after_all_slots,
    "after_first_jump": after_first_jump,
    "after_constructors": after_constructors,
}


def after_units_swapped(_: Session) -> None:
    """End when OCaml units are swapped in, and no slot of their functions leads to them."""
    _once_swapped(die)


def after_first_led(session: Session) -> None:
    """End when the slot of one function of an OCaml unit leads to its new version."""

    def write(*_: object) -> None:
        die()

    _once_swapped(lambda: setattr(type(session.process), "write_data", write))


def _once_swapped(act: Callable[[], None]) -> None:
    """Do something as soon as the agent has swapped units in."""
    run = Runtime.run

    def run_and_act(*given: Any, **named: Any) -> RunResult:  # noqa: ANN401 - as they come
        done = run(*given, **named)
        act()
        return done

    Runtime.run = run_and_act


IN_UNITS: dict[str, Callable[[Session], None]] = {
    "after_units_swapped": after_units_swapped,
    "after_first_led": after_first_led,
}


def check_consistency(session: Session) -> None:
    """Compare journal, ledger, arena pages, slots and redirected bytes."""
    check_journal(session)
    check_pages(session)
    check_slots(session)
    check_redirects(session)


def check_journal(session: Session) -> None:
    """No attempt is half done, and the newest that is live is the program's."""
    store, target = session.store, session.target
    assert store.journal.unfinished(target) == []
    assert store.query.latest_live(target) == session.program.generation
    recorded = {(row.path, row.member): row for row in store.resume.live(target)}
    assert recorded.keys() == session.program.objects.keys()
    for key, live in session.program.objects.items():
        assert (recorded[key].digest, recorded[key].generation) == (
            live.file.digest,
            live.generation,
        )


def check_pages(session: Session) -> None:
    """Arena pages, the ledger's rows and the state's allocations are the same memory."""
    program, arena = session.program, session.process.arena
    rows = program.ledger.rows
    recorded = session.store.query.allocations(session.target)
    assert sorted((row.addr, row.size) for row in recorded) == sorted(
        (int(row.allocation.addr), row.allocation.size) for row in rows.values()
    )
    spans = sorted((int(row.allocation.addr), row.allocation.size) for row in rows.values())
    for (addr, size), (following, _) in pairwise(spans):
        assert addr + size <= following
    for region in (Region.CODE, Region.RODATA, Region.DATA):
        held = sum(r.allocation.size for r in rows.values() if r.allocation.region == region)
        assert arena.used(region) == held, region


def check_slots(session: Session) -> None:
    """Every slot leads to memory that is held or to the executable; unused ones are empty."""
    program, slots = session.program, session.process.arena.slots
    table = program.table
    assert not slots[len(table) :].any()
    recorded = {row.slot: row for row in session.store.resume.slots(session.target)}
    for slot, key, original in table.functions():
        row = recorded[slot]
        assert (row.path, row.member, row.name, row.original) == (*key, original)
    used = slots[RESERVED : len(table)]
    assert used.all()
    gone = sorted(program.dead_slots)  # functions that nobody can reach any more
    used = np.delete(used, np.array(gone, np.int64) - RESERVED)
    start, end = session.process.arena.span()
    ours = used[(used >= np.uint64(start)) & (used < np.uint64(end))]
    assert (program.ledger.find(ours)[1] >= 0).all()
    directory = int(slots[UNWIND_SLOT])
    assert directory == (program.directory.addr if program.directory else 0)
    if directory:
        assert not program.ledger.rows[directory].superseded


def check_redirects(session: Session) -> None:
    """The executable holds what the books say: jumps that lead to stubs, or its own bytes."""
    program, arena = session.program, session.process.arena
    recorded = {
        (row.slot, row.addr): (row.old, row.new)
        for row in session.store.resume.redirects(session.target)
    }
    known = {
        (slot, addr): (old, new)
        for slot, writes in program.redirects.items()
        for addr, old, new in writes
    }
    assert recorded == known
    for (slot, addr), (_, new) in known.items():
        assert program.target.read(Addr(addr), len(new)).tobytes() == new
        if new[-5] == 0xE9:
            to = addr + len(new) + int.from_bytes(new[-4:], "little", signed=True)
            assert to == arena.stub_addr(slot)  # type: ignore[arg-type]
            assert int(arena.slots[slot]) != program.table.original[slot]  # no circle


def books(session: Session) -> dict[str, object]:
    """Return everything that a refused reload must leave as it was."""
    program, arena = session.program, session.process.arena
    return {
        "used": [arena.used(region) for region in (Region.CODE, Region.RODATA, Region.DATA)],
        "pages": [
            arena.taken(region).tobytes()
            for region in (Region.CODE, Region.RODATA, Region.DATA)
        ],
        "slots": arena.slots.tobytes(),
        "table": len(program.table),
        "ledger": sorted(program.ledger.rows),
        "redirects": sorted(program.redirects),
        "objects": {key: live.file.digest for key, live in program.objects.items()},
        "generation": program.generation,
    }
