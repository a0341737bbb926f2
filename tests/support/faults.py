"""For recovery tests: a daemon that is killed at a chosen moment, and a check of all books.

The daemon here is a process of its own that runs one session, makes reloads and, at the moment
it is told, ends itself by SIGKILL: nothing of it gets to run, as in a real crash.
"""

import gc
import json
import os
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from reloader.hosts.caml import forwarding
from reloader.hosts.caml.runtime import RunResult, Runtime
from reloader.ids import I32, U64, Addr, Generation, Region
from reloader.live import constructors, patching, switch
from reloader.live.plan import Plan
from reloader.live.program import Program as Live
from reloader.live.target import Arena, Stopped, Target
from reloader.session.session import Session
from stubs.table import RESERVED, UNWIND_SLOT

INSIDE_OF_IT = 2  # of a safe point: `caml_phase` of the control page
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
    """Run a daemon to its end; return its exit status and the outcomes it told of.

    It is forked from here, which costs no start of Python, unless a command has to wrap it.
    """
    status, told = _executed(orders, wrapper) if wrapper else _forked(orders)
    if status not in {0, -signal.SIGKILL}:
        raise AssertionError(told)
    return status, [json.loads(line) for line in told.splitlines()]


def _executed(orders: Orders, wrapper: Sequence[str]) -> tuple[int, str]:
    run = subprocess.run(
        [*wrapper, *DAEMON, json.dumps(asdict(orders))],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    return run.returncode, run.stdout + run.stderr


def _forked(orders: Orders) -> tuple[int, str]:
    hear, tell = os.pipe()
    pid = os.fork()
    if pid == 0:
        gc.freeze()  # what is not its own is not its to clean up
        os.close(hear)
        status = 1
        with suppress(BaseException), os.fdopen(tell, "w") as out:
            try:
                be_daemon(orders, out)
                status = 0
            except BaseException:  # noqa: BLE001 - nothing of it may go on as the test
                out.write(traceback.format_exc())
        os._exit(status)
    os.close(tell)
    with os.fdopen(hear) as said:
        told = said.read()
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), told


def main() -> None:
    """Be the daemon, as the arguments say."""
    be_daemon(Orders(**json.loads(sys.argv[1])), sys.stdout)


def be_daemon(orders: Orders, out: TextIO) -> None:
    """Make the reloads that are ordered, tell of each, and die when it is time."""
    session = Session.attach(orders.pid, Path(orders.folder), [orders.watch])
    for number, paths in enumerate(orders.reloads, 1):
        for path, copy in zip(paths, orders.copies[number - 1 :], strict=False):
            Path(copy).replace(path)
        if number == len(orders.reloads) and orders.kill:
            arm(session, orders.kill)
        outcome = session.reload_files(paths, named=True)
        out.write(json.dumps({"state": outcome.state, "error": outcome.error}) + "\n")
        out.flush()
    if orders.close:
        session.close()


def die() -> None:
    """End this process as a crash does."""
    os.kill(os.getpid(), signal.SIGKILL)


def arm(session: Session, moment: str) -> None:
    """Have this process end at a moment: before a step, or inside one."""
    inside = INSIDE | AROUND_UNITS
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
    run = Runtime.run

    def run_and_die(*given: Any, **named: Any) -> RunResult:  # noqa: ANN401 - as they come
        done = run(*given, **named)
        die()
        return done

    Runtime.run = run_and_die


def before_units_swap(_: Session) -> None:
    """End when slots have flipped and no unit is initialised."""
    Runtime.run = _die_instead


def while_initialising(session: Session) -> None:
    """End while the program is inside of an initialiser."""
    phase = partial(session.process.channel.field, "caml_phase")

    def watch() -> None:
        while phase() != INSIDE_OF_IT:
            time.sleep(0.001)
        time.sleep(0.05)
        die()

    threading.Thread(target=watch, daemon=True).start()


def after_first_word(_: Session) -> None:
    """End when one function value of a new version leads to its slot."""

    def write(target: Target, words: Sequence[tuple[int, int]]) -> None:
        for addr, word in words[:1]:
            target.write_data(Addr(addr), word.to_bytes(8, "little"))
            die()

    forwarding.write_words = write


def before_unit_jumps(_: Session) -> None:
    """End when all new functions are led on, and no original leads there."""
    forwarding.jump = _die_instead


def _die_instead(*_: object, **__: object) -> Any:  # noqa: ANN401 - it does not return
    die()


AROUND_UNITS: dict[str, Callable[[Session], None]] = {
    "before_units_swap": before_units_swap,
    "after_units_swapped": after_units_swapped,
    "while_initialising": while_initialising,
    "after_first_word": after_first_word,
    "before_unit_jumps": before_unit_jumps,
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
