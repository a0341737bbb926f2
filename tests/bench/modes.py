"""Going back by flipping slots, and switching at one instant under eight threads."""

import time
from pathlib import Path
from typing import Final

from reloader.session.session import Session
from tests.bench.figures import Figure, percentile, progress
from tests.live.test_consistent import INSIDE, MAIN, PAIR, ask
from tests.support.road import Program, attached, reload

RETURNS: Final = 200
RELOADS: Final = 10_000
UNGUARDED: Final = 500  # reloads in the default mode, beside them
THREADS: Final = 8


def measure(folder: Path) -> list[Figure]:
    """Return how long a rollback takes, and what observers see of two generations."""
    return [*returns(folder / "returns"), *switches(folder / "switches")]


def built(folder: Path, threads: int) -> Program:
    """Start a program whose threads call two functions that must agree."""
    folder.mkdir()
    program = Program(folder, ["-O2", "-g", "-falign-functions=16"])
    program.compile(main=MAIN, pair=PAIR % 1, inside=INSIDE % 1)
    program.link()
    program.start(str(threads), "")
    return program


def end(program: Program) -> None:
    """End a program that never ends by itself."""
    assert program.process is not None
    program.process.kill()
    program.stop()


def returns(folder: Path) -> list[Figure]:
    """Go back and forth between a reload and the one before, and between it and none."""
    progress(f"{RETURNS} rollbacks")
    program = built(folder, 0)
    between: list[float] = []
    linked: list[float] = []
    recorded: list[float] = []
    try:
        with attached(program) as session:
            session.program.past.keep = 3
            for number in (2, 3):
                assert reload(session, *program.compile(pair=PAIR % number)).state == "live"
            for turn in range(RETURNS):
                wanted = (1, 2, 0, 2)[turn % 4]
                began = time.perf_counter()
                outcome = session.rollback(wanted)
                recorded.append((time.perf_counter() - began) * 1e3)
                assert not outcome.steps_ms, outcome  # nothing was linked
                assert ask(program, "p") % 1000 == wanted + 1
                (linked if outcome.stop_us else between).append(outcome.total_ms)
    finally:
        end(program)
    return [
        Figure("rollback between reloads, to live, p50", percentile(between, 50), "ms", 5),
        Figure("rollback between reloads, to live, p99", percentile(between, 99), "ms", 5),
        Figure("rollback to or from the linked program, p50", percentile(linked, 50), "ms", 5,
               note="one stop"),
        Figure("rollback to or from the linked program, p99", percentile(linked, 99), "ms", 5),
        Figure("rollback with its records, p50", percentile(recorded, 50), "ms"),
    ]  # fmt: skip


def switches(folder: Path) -> list[Figure]:
    """Reload two functions that must agree again and again, while threads compare them."""
    progress(f"{RELOADS} reloads at one instant, {THREADS} threads")
    program = built(folder, THREADS)
    try:
        with attached(program) as session:
            session.together_s = 20.0
            paused = switch(program, session, RELOADS)
            mixed = ask(program, "m")
            session.together_s = None
            switch(program, session, UNGUARDED)
            unguarded = ask(program, "m") - mixed
            seen = ask(program, "s")
    finally:
        end(program)
    half, most = percentile(paused, 50), percentile(paused, 99)
    return [
        Figure(f"mixed observations in {RELOADS} consistent reloads", mixed, "", 0,
               note=f"{seen} observations by {THREADS} busy threads"),
        Figure("pause of a consistent reload, all its stops, p50", half, "ms"),
        Figure("pause of a consistent reload, all its stops, p99", most, "ms"),
        Figure(f"mixed observations in {UNGUARDED} default reloads", unguarded, ""),
    ]  # fmt: skip


def switch(program: Program, session: Session, times: int) -> list[float]:
    """Reload; return how long each one stopped the threads, in milliseconds."""
    path = program.folder / "pair.o"
    texts = [program.compile(pair=PAIR % n)[0].read_bytes() for n in (2, 3, 4, 5)]
    paused: list[float] = []
    for turn in range(times):
        outcome = session.reload_contents([(str(path), texts[turn % 4])], time.monotonic())
        assert outcome.state == "live", outcome.error
        paused.append(outcome.stop_us / 1e3)
        session.retiring.attempt()
    return paused
