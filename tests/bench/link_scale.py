"""The linker on large inputs, beside other linkers, in one run.

Ours is warm, as in the daemon, and its time goes from the file's bytes to the last slot that
flips; theirs is that of a process, with `dlopen` where the result has to be loaded. All read
from the page cache.
"""

import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from reloader.elf.archive import read_archive
from reloader.elf.object import ObjectFile
from reloader.elf.read import read_object
from tests.bench import link_growth, link_inputs
from tests.bench.figures import Figure, progress
from tests.bench.link_rivals import Rivals, Times
from tests.bench.link_world import keep, load, median_of, new_program

if TYPE_CHECKING:
    from reloader.live.program import Program

ROUNDS: Final = 5
EDITS: Final = 9


@dataclass(frozen=True, slots=True)
class Input:
    """One input and what its time is compared with."""

    name: str
    path: Callable[[], Path]
    entry: str
    targets: tuple[tuple[str, float | None], ...]  # (rival, most times its time)
    opened: bool = False


INPUTS: Final = (
    Input("sqlite", link_inputs.SQLITE["sqlite"], "sqlite3_open",
          (("ld.bfd", 0.5), ("jitlink", 0.1)), opened=True),
    Input("sqlite, own sections", link_inputs.SQLITE["sqlite-sections"], "sqlite3_open",
          (("ld.bfd", 0.3), ("jitlink", 0.02)), opened=True),
    Input("sqlite -g", link_inputs.SQLITE["sqlite-g"], "sqlite3_open",
          (("ld.bfd", None), ("jitlink", None)), opened=True),
    Input("20,000 functions", lambda: link_inputs.many_functions(20_000), "f0",
          (("jitlink", 0.4), ("ld.lld", 1.0))),
    Input("one section, 1,000,000 relocations",
          lambda: link_inputs.one_section(1_000_000), "g0", (("jitlink-phase", 1.0),)),
    Input("archive of 1000", lambda: link_inputs.archive(1000), "m0_0",
          (("ld.lld", None), ("jitlink", None))),
    Input("C++, COMDAT sections", link_inputs.comdats, "_Z4use1i", (("ld.bfd", 1.0),)),
)  # fmt: skip


def measure(folder: Path) -> list[Figure]:
    """Return all figures of the linker."""
    figures = [figure for item in INPUTS for figure in compare(folder, item)]
    figures += edits(link_inputs.SQLITE["sqlite-sections"](), "sqlite, own sections", 5)
    figures += edits(link_inputs.SQLITE["sqlite"](), "sqlite", None)
    figures += memory(link_inputs.SQLITE["sqlite"](), link_inputs.many_functions(20_000))
    return figures + link_growth.measure()


def compare(folder: Path, item: Input) -> list[Figure]:
    """Return the figures of one input, ours and theirs taken in turns."""
    progress(f"linking {item.name}")
    path = item.path()
    data = path.read_bytes()
    rivals = Rivals(folder, [path], item.entry, opened=item.opened)
    is_archive = path.suffix == ".a"
    if is_archive:
        rivals.objects = link_inputs.members_of(path)
    ours = Times()
    world: list[Program] = []
    for _ in range(ROUNDS):
        ours.rounds.append(
            median_of(
                3,
                lambda: load(world[-1], read(path, data)),
                lambda: world.append(new_program()),
            )
        )
        world.clear()
        rivals.once()
    value = ours.median()
    note = f"{len(data) / 1e6:.1f} MB"
    figures = [Figure(f"link {item.name}", value, "ms", note=note)]
    for rival, most in item.targets:
        theirs = rivals.times[rival].median()
        name = f"link {item.name}, of {rival}" + (" + dlopen" if rivals.opened and
                                                  rival == "ld.bfd" else "")  # fmt: skip
        figures.append(Figure(name, value / theirs, "x", most, note=f"{theirs:.1f} ms"))
    if is_archive:
        each = value * 1e3 / len(rivals.objects)
        figures.append(Figure(f"link {item.name}, an object", each, "us", 83))
    return figures


def read(path: Path, data: bytes) -> Sequence[ObjectFile]:
    """Return the objects of a file."""
    if path.suffix != ".a":
        return [read_object(str(path), data)]
    return read_archive(str(path), data).objects()


def edits(path: Path, name: str, goal: float | None) -> list[Figure]:
    """Return the time to load version after version with one function edited."""
    progress(f"edits of {name}")
    program, versions = new_program(), link_inputs.Edits(path)
    number = changed = 0

    def following() -> None:
        nonlocal number
        number += 1

    def go() -> None:
        nonlocal changed
        data = versions.content(number)
        plan = load(program, [program.cache.read(str(path), data, live=program.objects)])
        changed = len(plan.flips.slot)
        keep(program, plan)

    median_of(2, go, following)
    value = median_of(EDITS, go, following)
    return [Figure(f"{name}, one function edited", value, "ms", goal,
                   note=f"{changed} of the functions flip")]  # fmt: skip


def memory(*paths: Path) -> list[Figure]:
    """Return the most memory that linking takes, in times the object's size."""
    figures: list[Figure] = []
    for path in paths:
        progress(f"memory for {path.stem}")
        command = [sys.executable, "-m", "tests.bench.link_memory", str(path)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        times = float(done.stdout) / path.stat().st_size
        figures.append(Figure(f"daemon's peak for {path.stem}", times, "x its size", 6))
    return figures
