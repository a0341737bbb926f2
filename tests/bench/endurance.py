"""Thousands of reloads of one program: what the program, the daemon and the state grow by.

5,000 reloads by default; RELOADS=100000 in the environment makes it the whole figure. What is
compared is the end with the moment after the first tenth, when caches and buffers are full.
"""

import gc
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from reloader.session.session import Session
from tests.bench.figures import Figure, progress
from tests.bench.target import MAIN, MARKER, work
from tests.support.checker import check
from tests.support.road import Program

_KEEP: Final = 50


@dataclass(frozen=True, slots=True)
class Size:
    """What must stay as it is."""

    rss_kib: int
    mappings: int
    descriptors: int
    daemon_kib: int
    state_kib: int


def rss_kib(pid: int) -> int:
    """Return how much memory of a process is resident."""
    status = Path(f"/proc/{pid}/status").read_text("utf-8")
    return int(
        next(line for line in status.splitlines() if line.startswith("VmRSS")).split()[1]
    )


def size_of(pid: int, state: Path) -> Size:
    """Measure the program, this process, and the state folder."""
    gc.collect()
    files = [path.stat().st_size for path in state.rglob("*") if path.is_file()]
    return Size(
        rss_kib(pid),
        Path(f"/proc/{pid}/maps").read_text("utf-8").count("\n"),
        len(list(Path(f"/proc/{pid}/fd").iterdir())),
        rss_kib(os.getpid()),
        sum(files) >> 10,
    )


def versions(program: Program) -> tuple[Path, bytes]:
    """Compile the object that changes; a number in it makes the versions."""
    (path,) = program.compile(work=work(12))
    return path, path.read_bytes()


def measure(folder: Path) -> list[Figure]:
    """Reload the same object again and again, retiring as the daemon does."""
    count = int(os.environ.get("RELOADS", "5000"))
    progress(f"endurance: {count} reloads")
    program = Program(folder)
    program.compile(main=MAIN)
    path, data = versions(program)
    program.link()
    pid = program.start()
    session = Session.attach(pid, folder, [str(path)])
    marker = MARKER.to_bytes(4, "little")
    began, sizes, failed = time.monotonic(), list[Size](), 0
    for number in range(1, count + 1):
        content = data.replace(marker, (MARKER + 2 * number).to_bytes(4, "little"))
        outcome = session.reload_contents([(str(path), content)], time.monotonic())
        failed += outcome.state != "live"
        program.line()  # the program has seen it
        if session.retiring.due() <= time.monotonic():
            session.retiring.attempt()
            session.store.tidy(_KEEP)
        if number == count // 10 or number == count:
            sizes.append(size_of(pid, folder / ".reloader"))
    seconds = time.monotonic() - began
    wrong = check(pid, folder)
    for text in wrong:
        progress(text)
    session.close()
    program.stop()
    return figures(count, sizes[0], sizes[-1], failed + len(wrong), seconds)


def figures(count: int, before: Size, after: Size, wrong: int, seconds: float) -> list[Figure]:
    """Return what grew."""
    note = f"{count} reloads in {seconds:.0f} s, after the first tenth"
    grown = 100 * (after.rss_kib - before.rss_kib) / before.rss_kib
    return [
        Figure("endurance: target RSS", grown, "%", 1, note=note),
        Figure("endurance: target mappings", after.mappings - before.mappings, "", 0),
        Figure("endurance: target descriptors", after.descriptors - before.descriptors, "", 0),
        Figure(
            "endurance: daemon RSS", (after.daemon_kib - before.daemon_kib) / 1024, "MiB", 10
        ),
        Figure("endurance: state", after.state_kib / 1024, "MiB", 50),
        Figure("endurance: refused, or in disagreement", wrong, "", 0),
    ]
