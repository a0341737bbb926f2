"""Going back to the version before, as an editor's undo does, beside its first load."""

import time
from pathlib import Path
from typing import Final

from tests.bench import target
from tests.bench.figures import Figure, percentile, progress
from tests.support.road import Program, attached, reload

ROUNDS: Final = 40
WARM: Final = 5
AWAY: Final = 1000  # the number of the version in between

CASES: Final = (
    ("small", 12, ()),
    ("100 KiB", 230, ()),
    ("100 KiB, -g -ffunction-sections", 230, ("-g", "-ffunction-sections")),
)


def measure(folder: Path) -> list[Figure]:
    """Return how long a version takes at first, and when it comes back after another."""
    figures: list[Figure] = []
    for name, functions, flags in CASES:
        progress(f"{ROUNDS} undos, {name}")
        place = folder / name.replace(" ", "-")
        place.mkdir()
        first, again = times(place, functions, flags)
        figures += [
            Figure(f"first load of a version, {name}, p50", percentile(first, 50), "ms"),
            Figure(f"undo to it, {name}, p50", percentile(again, 50), "ms"),
            Figure(
                f"undo against first load, {name}",
                percentile(again, 50) / percentile(first, 50),
                "x",
                1.0,
            ),
        ]
    return figures


def times(
    folder: Path, functions: int, flags: tuple[str, ...]
) -> tuple[list[float], list[float]]:
    """Return the milliseconds of first loads and of undos, taken in turns."""
    program, versions = target.start(folder, functions, *flags)
    first: list[float] = []
    again: list[float] = []
    try:
        with attached(program, "work.o") as session:

            def load(number: int) -> float:
                versions.write(number).rename(versions.path)
                began = time.perf_counter()
                outcome = reload(session, versions.path)
                took = (time.perf_counter() - began) * 1e3
                assert outcome.state == "live", outcome.error
                found, _ = target.seen(program)
                assert found == number, (found, number)
                return took

            for number in range(1, WARM + 1):
                load(number)
            for number in range(WARM + 1, WARM + ROUNDS + 1):
                first.append(load(number))
                load(number + AWAY)
                again.append(load(number))
    finally:
        end(program)
    return first, again


def end(program: Program) -> None:
    """End a program that never ends by itself."""
    assert program.process is not None
    program.process.kill()
    program.stop()
