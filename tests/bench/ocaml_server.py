"""The OCaml server under load while its handlers are reloaded 1,000 times, on both compilers.

The rival is the same load on the same server without reloads, before and after.
"""

import os
import re
import time
from pathlib import Path
from typing import Final

from tests.bench.figures import Figure, progress
from tests.support.http_load import Load, LoadResult
from tests.support.ocaml import VERSIONS, Compiler, build, compiler_of
from tests.support.ocaml_project import Project

RELOADS: Final = 1000
VISITORS: Final = 2
QUIET_SECONDS: Final = 15.0
PAUSE: Final = 0.05  # seconds between two reloads: somebody saves twenty times a second
_FIRST: Final = "v00000"


def measure(folder: Path) -> list[Figure]:
    """Return the figures of both compilers; RELOADS in the environment changes how many."""
    figures: list[Figure] = []
    for family in VERSIONS:
        (folder / family).mkdir()
        figures += measure_compiler(compiler_of(family), folder / family)
    return figures


def measure_compiler(compiler: Compiler, folder: Path) -> list[Figure]:
    """Return the figures of one compiler."""
    reloads = int(os.environ.get("RELOADS", str(RELOADS)))
    progress(f"OCaml {compiler.family}: {reloads} reloads of a server under load")
    program = build(compiler, folder, "server")
    program.edit("handlers.ml", '"one"', f'"{_FIRST}"')
    program.build()
    server = Project(program)
    command = " ".join(compiler.command)
    (folder / "reloader.toml").write_text(f'watch = ["*.o"]\n[ocaml]\ncompiler = "{command}"\n')
    server.attach()
    try:
        port = int(re.findall(r"\d+", program.greeting)[0])
        before = quiet(port)
        with Load(port, visitors=VISITORS) as load:
            seen = replace_handlers(folder / "handlers.o", load, reloads)
            under = load.stop()
        after = quiet(port)
        outcomes = {row["outcome"] for row in server.json("history")}
    finally:
        if program.process is not None:
            program.process.terminate()
        program.stop()
        server.close()
    usual = (before.percentile(99) + after.percentile(99)) / 2
    name = f"OCaml {compiler.family} server, {reloads} reloads"
    failed = len(before.failures) + len(under.failures) + len(after.failures)
    note = f"{under.requests} requests; p99 {under.percentile(99) * 1e3:.1f} ms"
    return [
        Figure(f"{name}: failed requests", failed, "", 0, note=note),
        Figure(f"{name}: versions not seen", reloads - seen, "", 0),
        Figure(f"{name}: outcomes other than live", len(outcomes - {"live"}), "", 0),
        Figure(f"{name}: p99 latency", under.percentile(99) / usual, "x", 1.5),
    ]


def replace_handlers(obj: Path, load: Load, reloads: int) -> int:
    """Rename so many versions into place, each once the one before is seen; count those."""
    pattern = obj.read_bytes()
    assert pattern.count(_FIRST.encode()) == 1
    seen = 0
    for number in range(1, reloads + 1):
        part = obj.with_suffix(".part")
        part.write_bytes(pattern.replace(_FIRST.encode(), f"v{number:05d}".encode()))
        part.rename(obj)
        load.until(f"home, version v{number:05d}")
        seen += 1
        time.sleep(PAUSE)
    return seen


def quiet(port: int) -> LoadResult:
    """Return what the load is like without reloads."""
    with Load(port, visitors=VISITORS) as load:
        time.sleep(QUIET_SECONDS)
        return load.stop()
