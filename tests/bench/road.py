"""File event to first call of new code, through the real daemon, beside `dlopen`."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from reloader.client import Client
from reloader.wire.project import Project
from tests.bench import target
from tests.bench.figures import Figure, percentile, progress

CLI = (sys.executable, "-m", "reloader")
RELOADS = 1000
WARM = 100  # before memory counts: caches fill, the first free memory is found
STORM = 200  # reloads back to back
MOVING = 200  # reloads in each of which the code behind an edited function moves
DLOPENS = 25
QUIET_SECONDS = 8.0  # in which what is superseded is freed


def cli(folder: Path, *arguments: str) -> str:
    """Run a command of ours in a project folder; return what it prints."""
    environment = os.environ | {"PYTHONPATH": os.getcwd()}  # noqa: PTH109 - a path as text
    done = subprocess.run(
        [*CLI, *arguments], cwd=folder, env=environment, check=True, capture_output=True
    )
    return done.stdout.decode()


def daemon_pid(folder: Path) -> int:
    """Return the daemon of a project."""
    return int(json.loads(cli(folder, "status", "--json"))["daemon"]["pid"])


def measure(folder: Path, functions: int, name: str, *, targets: bool) -> list[Figure]:
    """Return the figures of a thousand reloads of one object."""
    progress(f"{RELOADS} reloads of {name}")
    program, versions = target.start(folder, functions)
    try:
        assert program.process is not None
        pid = program.process.pid
        cli(folder, "attach", str(pid), "--watch", "work.o")
        daemon = daemon_pid(folder)
        times = [reload(program, versions, number) for number in range(1, WARM + 1)]
        first = times[0]
        settle(folder)
        before = target.memory_of(pid), target.memory_of(daemon)
        with Client.open(Project(folder), start=False) as client:
            times: list[float] = []
            for number in range(WARM + 1, WARM + RELOADS + 1):
                at_rest(client)
                times.append(reload(program, versions, number))
        settle(folder)
        after = target.memory_of(pid), target.memory_of(daemon)
        stops = stops_of(folder)  # an answer of a thousand rows costs the daemon memory too
        numbers = range(WARM + RELOADS + 1, WARM + RELOADS + STORM + 1)
        storm = [reload(program, versions, number) for number in numbers]
        moving = reload_moving(folder, program, versions, numbers.stop)
        opened = dlopens(program, versions, folder)
        cli(folder, "detach")
    finally:
        assert program.process is not None
        program.process.kill()
        program.stop()
    size = len(versions.pattern) / 1024
    note = f"object of {size:.1f} KiB; first {first:.1f} ms"
    ratio = percentile(opened, 50) / percentile(times, 50)
    return [
        Figure(
            f"rename -> new code, {name}, p50",
            percentile(times, 50),
            "ms",
            5 if targets else None,
            note=note,
        ),
        Figure(
            f"rename -> new code, {name}, p99",
            percentile(times, 99),
            "ms",
            20 if targets else None,
        ),
        Figure(
            f"the same where code moves, {name}, p50",
            percentile(moving, 50),
            "ms",
            note="a longer function; before, a number in it",
        ),
        Figure(
            f"the same without a rest in between, {name}, p50",
            percentile(storm, 50),
            "ms",
            note="the reload before is still being recorded",
        ),
        Figure(f"gcc -shared + dlopen, {name}, p50", percentile(opened, 50), "ms"),
        Figure(
            f"times faster than dlopen, {name}",
            ratio,
            "x",
            3 if targets else None,
            at_least=True,
        ),
        Figure(f"stops on the road, {name}", stops, "", 0, note="after the first reload"),
        Figure(f"target RSS growth, {name}", after[0][0] - before[0][0], "MB", 1),
        Figure(f"target VMA growth, {name}", after[0][1] - before[0][1], "", 0),
        Figure(f"daemon RSS growth, {name}", after[1][0] - before[1][0], "MB", 10),
    ]


def reload(program: target.Program, versions: target.Versions, number: int) -> float:
    """Rename a version into place; return the milliseconds until the program ran it."""
    part = versions.write(number)
    began = time.monotonic_ns()
    part.rename(versions.path)
    found, at = target.seen(program)
    assert found == number, (found, number)
    return (at - began) / 1e6


def reload_moving(
    folder: Path, program: target.Program, versions: target.Versions, first: int
) -> list[float]:
    """Return the milliseconds of reloads from rest that change a function's length."""
    versions.lengthen()
    times: list[float] = []
    with Client.open(Project(folder), start=False) as client:
        for number in range(first, first + MOVING):
            at_rest(client)
            times.append(reload(program, versions, number))
    return times[len(times) // 10 :]


def at_rest(client: Client) -> None:
    """Wait until the daemon has recorded the reload before: people do not save that often."""
    while (daemon := client.status()["daemon"]) and daemon["busy"]:
        time.sleep(0.001)


def stops_of(folder: Path) -> int:
    """Return how many of the last attempts stopped the program."""
    rows: list[dict[str, Any]] = json.loads(
        cli(folder, "history", "--json", "--limit", str(RELOADS))
    )
    return sum(bool(row["stop_us"]) for row in rows if row["outcome"] == "live")


def settle(folder: Path) -> None:
    """Wait until the memory of the past is freed, or does not get less."""
    deadline = time.monotonic() + QUIET_SECONDS
    while time.monotonic() < deadline:
        time.sleep(0.5)
        cli(folder, "status", "--json")


def dlopens(program: target.Program, versions: target.Versions, folder: Path) -> list[float]:
    """Return the milliseconds that the same object takes as a shared library."""
    assert program.process is not None
    assert program.process.stdin is not None
    times: list[float] = []
    compile_pic(folder, versions)
    for number in range(5000, 5000 + DLOPENS):
        (folder / "pic.o").write_bytes(target.Versions(folder / "pic.pattern").content(number))
        library = folder / f"work{number}.so"
        began = time.monotonic_ns()
        target.run("gcc", "-shared", "pic.o", "-o", library, cwd=folder)
        program.process.stdin.write(f"{library}\n")
        program.process.stdin.flush()
        found, at = target.seen(program)
        assert found == number, (found, number)
        times.append((at - began) / 1e6)
    return times


def compile_pic(folder: Path, versions: target.Versions) -> None:
    """Compile the object's source once more, as a shared library needs it."""
    source = versions.path.with_suffix(".c").name
    target.run("gcc", "-O2", "-fPIC", "-c", source, "-o", "pic.pattern", cwd=folder)
