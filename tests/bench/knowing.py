"""What it takes to know a program: its baseline, and whom a symbol belongs to."""

import random
import statistics
import time
from pathlib import Path
from typing import Final

from reloader.arch.x86_64 import KINDS
from reloader.live.baseline import match_baseline
from tests.bench.figures import Figure, percentile, progress
from tests.bench.road import cli
from tests.bench.target import run
from tests.support.baseline import load, open_image
from tests.support.programs import build_nginx
from tests.support.road import Program, attached

SYMBOLS: Final = 100_000
QUESTIONS: Final = 2000
ROUNDS: Final = 7

MAIN: Final = """
#include <stdio.h>
int main(void) { puts("ready"); fflush(stdout); return getchar() == 0; }
"""


def measure_baseline() -> list[Figure]:
    """Return the milliseconds to match nginx with its objects."""
    progress("baseline of nginx")
    program = build_nginx()
    figures: list[Figure] = []
    for name, path, goal in (
        ("with symbols", program.executable, 300),
        ("stripped", program.stripped(), 600),
    ):
        times: list[float] = []
        for _ in range(ROUNDS):
            objects = [load(obj) for obj in program.objects]
            began = time.perf_counter()
            match_baseline(objects, open_image(path), KINDS)
            times.append((time.perf_counter() - began) * 1e3)
        note = f"{len(program.objects)} objects"
        value = statistics.median(times)
        figures.append(Figure(f"baseline of nginx, {name}", value, "ms", goal, note=note))
    return figures


def measure_owner(folder: Path) -> list[Figure]:
    """Return how long an answer takes inside the daemon, and the whole command."""
    progress(f"owner among {SYMBOLS} symbols")
    program = Program(folder)
    rows = "\n".join(
        f".globl f{i}\n.type f{i},@function\nf{i}: mov ${i}, %eax\nret\n.size f{i}, .-f{i}"
        for i in range(SYMBOLS)
    )
    (folder / "many.s").write_text(f".text\n{rows}\n.section .note.GNU-stack\n")
    run("gcc", "-c", "many.s", "-o", "many.o", cwd=folder)
    program.compile(main=MAIN)
    program.link()
    pid = program.start()
    try:
        return [inside(program), *command(folder, pid)]
    finally:
        program.stop()


def inside(program: Program) -> Figure:
    """Ask the state by name and by address."""
    pick = random.Random(1)  # noqa: S311  not for secrets
    times: list[float] = []
    with attached(program, "many.o") as session:
        query = session.store.query
        first = query.owner(session.target, "f0")[0].addr or 0
        last = query.owner(session.target, f"f{SYMBOLS - 1}")[0].addr or 0
        for turn in range(QUESTIONS):
            name, addr = f"f{pick.randrange(SYMBOLS)}", pick.randrange(first, last)
            began = time.perf_counter()
            found = query.owner(session.target, name if turn % 2 else addr)
            times.append((time.perf_counter() - began) * 1e3)
            assert found
    note = f"p50 {percentile(times, 50):.3f} ms"
    return Figure("owner inside the daemon, p99", percentile(times, 99), "ms", 2, note=note)


def command(folder: Path, pid: int) -> list[Figure]:
    """Time the whole command, the start of Python included."""
    cli(folder, "attach", str(pid), "--watch", "many.o")
    times: list[float] = []
    for turn in range(ROUNDS):
        began = time.perf_counter()
        cli(folder, "owner", f"f{turn * 1000}")
        times.append((time.perf_counter() - began) * 1e3)
    cli(folder, "detach")
    return [Figure("owner, the whole command, p50", statistics.median(times), "ms", 100)]
