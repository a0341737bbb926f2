"""Type safety: how many dangerous edits are refused, how many harmless, and what it costs."""

import time
from collections import Counter
from pathlib import Path

from reloader.elf import type_reader
from reloader.elf.object import ObjectFile
from reloader.elf.read import read_object
from reloader.link.types.agree import Agreement
from reloader.live.objects import LiveObject
from tests.bench import target
from tests.bench.figures import Figure, progress
from tests.support.mutations import Verdict, mutations

SEEDS = range(100, 108)
DANGEROUS, HARMLESS = 25, 22  # a seed: 200 and 176 in all
TIMES = 50


def measure(folder: Path) -> list[Figure]:
    """Return the figures."""
    progress(f"{len(SEEDS) * (DANGEROUS + HARMLESS)} seeded edits")
    verdicts: list[Verdict] = []
    for seed in SEEDS:
        inside = folder / str(seed)
        inside.mkdir()
        verdicts += mutations(inside, seed, dangerous=DANGEROUS, harmless=HARMLESS)
    dangerous = [verdict for verdict in verdicts if verdict.dangerous]
    harmless = [verdict for verdict in verdicts if not verdict.dangerous]
    caught = sum(verdict.right for verdict in dangerous)
    refused = sum(not verdict.right for verdict in harmless)
    missed = Counter(f"{v.kind}: {v.edit}" for v in verdicts if not v.right)
    note = ", ".join(f"{what} ({count})" for what, count in missed.items())
    return [
        Figure(
            f"dangerous edits refused, of {len(dangerous)}",
            100 * caught / len(dangerous), "%", 100, at_least=True, note=note,
        ),
        Figure(
            f"harmless edits refused, of {len(harmless)}", 100 * refused / len(harmless), "%", 2
        ),
        *compare(folder),
    ]  # fmt: skip


def compare(folder: Path) -> list[Figure]:
    """Return what comparing the types of a small object costs, processor time."""
    plain = target.work(12)
    old, same = (
        compiled(folder, text) for text in (plain, plain.replace("calls++", "calls--"))
    )
    moved = compiled(folder, "/* every line moved */\n" + plain)
    return [
        Figure(f"types compared, small object, {what}", cost(old, new), "ms", 0.5)
        for what, new in (("no line moved", same), ("every line moved", moved))
    ]


def cost(old: ObjectFile, new: ObjectFile) -> float:
    """Return the milliseconds for a new version that was not seen before."""
    live = LiveObject.__new__(LiveObject)
    object.__setattr__(live, "file", old)
    times: list[float] = []
    for _ in range(TIMES):
        type_reader.forget(new)
        began = time.process_time_ns()
        agreement = Agreement([new], [live], list)
        differs = agreement.differs
        times.append((time.process_time_ns() - began) / 1e6)
        assert not differs
    return min(times)  # what others make of the machine is not our cost


def compiled(folder: Path, text: str) -> ObjectFile:
    """Compile a text with debug information and read the object."""
    source, path = folder / "types.c", folder / "types.o"
    source.write_text(text)
    target.run("gcc", "-O2", "-g", "-c", source, "-o", path, cwd=folder)
    return read_object(str(path), path.read_bytes())
