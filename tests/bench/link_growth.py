"""How the time grows when sections, symbols or edges double; the plot in docs/growth.md.

Processor time of the linking thread: whatever else the machine does stays out of it.
"""

import gc
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Final

from reloader.elf.read import read_object
from tests.bench import link_inputs
from tests.bench.figures import Figure, progress
from tests.bench.link_world import load, new_program
from tests.support.sources import ROOT

DOC: Final = ROOT / "docs" / "growth.md"
PLOT: Final = ROOT / "docs" / "growth.svg"
MOST: Final = 2.2  # times the time for twice the size
ROUNDS: Final = 5
SERIES: Final[dict[str, tuple[Callable[[int], Path], tuple[int, ...]]]] = {
    "sections and symbols": (link_inputs.many_functions, (5_000, 10_000, 20_000)),
    "relocations of one section": (link_inputs.one_section, (250_000, 500_000, 1_000_000)),
    "functions in one call cycle": (link_inputs.call_cycle, (4_000, 8_000, 16_000)),
}
_WIDTH, _HEIGHT, _EDGE = 560, 300, 40
_COLOURS: Final = ("#1668b0", "#b04a16", "#2c8a3a")


def measure() -> list[Figure]:
    """Return the growth of each series, and write the page."""
    points = {name: [(size, cost(make(size))) for size in sizes]
              for name, (make, sizes) in SERIES.items()}  # fmt: skip
    figures: list[Figure] = []
    for name, row in points.items():
        ratio = max(after / before for (_, before), (_, after) in pairwise(row))
        note = ", ".join(f"{size}: {value:.0f} ms" for size, value in row)
        figures.append(Figure(f"twice the {name}", ratio, "x", MOST, note=note))
    write(points)
    return figures


def cost(path: Path) -> float:
    """Return the least milliseconds of processor time to link a new object."""
    progress(f"growth: {path.stem}")
    data, best = path.read_bytes(), float("inf")
    for _ in range(ROUNDS):
        program = new_program()
        gc.collect()
        began = time.thread_time()
        load(program, [read_object(str(path), data)])
        best = min(best, (time.thread_time() - began) * 1e3)
    return best


def write(points: dict[str, list[tuple[int, float]]]) -> None:
    """Write the page and its plot."""
    lines = [
        "# How linking time grows",
        "",
        "Processor milliseconds to link an object that is new to the process, from its bytes",
        "to the flip; the least of five. `make bench` writes this page.",
        "",
        "![time over size](growth.svg)",
        "",
        "| what doubles | size | ms | times the time before |",
        "|---|---|---|---|",
    ]
    for name, row in points.items():
        before = 0.0
        for size, value in row:
            times = f"{value / before:.2f}" if before else ""
            lines.append(f"| {name} | {size:,} | {value:.1f} | {times} |")
            before = value
    DOC.write_text("\n".join(lines) + "\n", "utf-8")
    PLOT.write_text(plot(points), "utf-8")


def plot(points: dict[str, list[tuple[int, float]]]) -> str:
    """Return a drawing: time over size, both in parts of the largest of each series."""
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}"',
        ' font-family="sans-serif" font-size="12">',
        f'<path d="M{_EDGE} {_EDGE / 2}V{_HEIGHT - _EDGE}H{_WIDTH - _EDGE}" fill="none"',
        ' stroke="#888"/>',
        f'<text x="{_WIDTH / 2}" y="{_HEIGHT - 10}">size, of the largest</text>',
        f'<text x="6" y="{_EDGE / 2 - 6}">time, of the largest size\'s</text>',
    ]
    across, up = _WIDTH - 2 * _EDGE, _HEIGHT - 1.5 * _EDGE
    for number, (name, row) in enumerate(points.items()):
        colour, (most, longest) = _COLOURS[number], row[-1]
        spots = [(_EDGE + across * size / most, _HEIGHT - _EDGE - up * value / longest)
                 for size, value in row]  # fmt: skip
        line = " ".join(f"{x:.1f},{y:.1f}" for x, y in spots)
        parts.append(f'<polyline points="{line}" fill="none" stroke="{colour}"/>')
        parts += [
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>' for x, y in spots
        ]
        at = _EDGE + 20 * (number + 1)
        parts.append(f'<text x="{_EDGE + 12}" y="{at}" fill="{colour}">{name}</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"
