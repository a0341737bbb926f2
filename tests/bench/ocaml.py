"""OCaml on both compilers: rename to first call of new code, its rival, stops, memory, load."""

import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from reloader.client import Client
from reloader.wire.project import Project
from tests.bench import ocaml_world as world
from tests.bench.figures import Figure, percentile, progress
from tests.bench.road import at_rest, cli, stops_of
from tests.bench.target import memory_of
from tests.support.ocaml import VERSIONS, Build, Compiler, compiler_of

RELOADS: Final = 300
LARGE_RELOADS: Final = 60
WARM: Final = 20
MANY: Final = 10_000
SLICE: Final = 500  # of the many: the first and the last are compared
DYNLINKS: Final = 20


def measure(folder: Path) -> list[Figure]:
    """Return the figures of all compilers."""
    figures: list[Figure] = []
    for family in VERSIONS:
        (folder / family).mkdir()
        figures += measure_compiler(compiler_of(family), folder / family)
    return figures


def measure_compiler(compiler: Compiler, folder: Path) -> list[Figure]:
    """Return the figures of one compiler."""
    small = world.program_of(compiler, folder / "small", world.SMALL)
    large = world.program_of(compiler, folder / "large", world.LARGE)
    name = f"OCaml {compiler.family}"
    figures: list[Figure] = []
    half: list[float] = []
    for way in ("computing", "sleeping"):
        progress(f"{name}: {RELOADS} reloads, {way}")
        times, _ = renames(*small, way, RELOADS)
        half.append(percentile(times, 50))
        figures += [
            Figure(f"{name}, {way}: rename -> new code, p50", half[-1], "ms", 10),
            Figure(f"{name}, {way}: rename -> new code, p99", percentile(times, 99), "ms", 50),
        ]
    progress(f"{name}: {DYNLINKS} plugins")
    rival = percentile(world.dynlink_times(compiler, folder / "rival", DYNLINKS), 50)
    times, _ = renames(*large, "sleeping", LARGE_RELOADS)
    return [
        *figures,
        Figure(f"{name}: ocamlopt -shared + Dynlink.loadfile, p50", rival, "ms"),
        Figure(f"{name}: times faster than Dynlink", rival / max(half), "x", 2, at_least=True),
        Figure(
            f"{name}, 3,000 lines: rename -> new code, p50", percentile(times, 50), "ms", 60
        ),
        *stops(name, *small, "domains" if compiler.multicore else "computing"),
        *many(name, *small),
    ]


def renames(
    program: Build, versions: world.Versions, way: str, reloads: int
) -> tuple[list[float], int]:
    """Return the milliseconds from rename to new code, and how often the daemon stopped it."""
    folder = program.folder
    begin_anew(versions)
    pid = program.start(way)
    try:
        cli(folder, "attach", str(pid), "--watch", "part.o")
        times: list[float] = []
        with Client.open(Project(folder), start=False) as client:
            for number in range(1, WARM + reloads + 1):
                at_rest(client)
                times.append(rename(program, versions, number))
            at_rest(client)
        stopped = stops_of(folder)
        cli(folder, "stop")
    finally:
        world.end(program)
    return times[WARM:], stopped


def begin_anew(versions: world.Versions) -> None:
    """Let the next program start without what the one before it was reloaded to."""
    versions.path.write_bytes(versions.pattern)
    shutil.rmtree(versions.path.parent / ".reloader", ignore_errors=True)


def rename(program: Build, versions: world.Versions, number: int) -> float:
    """Rename a version into place; return the milliseconds until the program ran it."""
    part = versions.write(number)
    began = time.time()
    part.rename(versions.path)
    found, at = world.seen(program)
    assert found == number, (found, number)
    return (at - began) * 1e3


def stops(name: str, program: Build, versions: world.Versions, way: str) -> list[Figure]:
    """Return how long a reload stops a program: all domains, if it has several."""
    progress(f"{name}: stops, {way}")
    several = way == "domains"
    begin_anew(versions)
    stopped: list[float] = []
    with world.attached(program, way) as session:
        for number in range(1, WARM + RELOADS + 1):
            content = [(str(versions.path), versions.content(number))]
            outcome = session.reload_contents(content, time.monotonic())
            assert outcome.state == "live", outcome.error
            stopped.append(outcome.stop_us / 1e3)
            session.retiring.attempt()
    what = "stop with 2 busy domains" if several else "stop"
    goal, after = (10 if several else 2), stopped[WARM:]
    return [
        Figure(
            f"{name}: {what}, p50", percentile(after, 50), "ms", note=f"first {stopped[0]:.2f}"
        ),
        Figure(f"{name}: {what}, p99", percentile(after, 99), "ms", goal),
    ]


def many(name: str, program: Build, versions: world.Versions) -> list[Figure]:
    """Return what many reloads leave behind in a program that collects all the time."""
    progress(f"{name}: {MANY} reloads, collecting")
    begin_anew(versions)
    with world.attached(program, "collecting") as session:
        world.reload_session(session, versions, range(1, SLICE + 1))
        before = memory_of(session.process.pid)
        times = world.reload_session(session, versions, range(SLICE + 1, MANY + 1))
        after = memory_of(session.process.pid)
        crashed = not session.process.alive()
    growth = mean(times[-SLICE:]) / mean(times[:SLICE])
    note = f"{mean(times[:SLICE]):.1f} ms, then {mean(times[-SLICE:]):.1f} ms"
    return [
        Figure(f"{name}, {MANY} reloads: memory growth", after[0] - before[0], "MB", 2),
        Figure(
            f"{name}, {MANY} reloads: last {SLICE} / first {SLICE}", growth, "x", 1.1, note=note
        ),
        Figure(f"{name}, {MANY} reloads: crashes", float(crashed), "", 0),
    ]


def mean(values: Sequence[float]) -> float:
    """Return the mean."""
    return sum(values) / len(values)
