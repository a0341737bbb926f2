"""Real servers under load while functions on their request path are reloaded 1,000 times."""

import time
from pathlib import Path
from typing import Final

from tests.bench.figures import Figure, progress
from tests.support.servers import (
    Load,
    Loader,
    Probe,
    Server,
    memcached,
    nginx,
    probes_of_all_workers,
)

RELOADS: Final = 1000
WORKERS: Final = 4
THREADS, PAUSE_US = 4, 500  # of the load
QUIET_SECONDS: Final = 15.0  # of load without reloads, before and after


def measure(folder: Path) -> list[Figure]:
    """Return the figures of both servers."""
    for name in ("memcached", "nginx"):
        (folder / name).mkdir()
    return [*measure_memcached(folder / "memcached"), *measure_nginx(folder / "nginx")]


def measure_memcached(folder: Path) -> list[Figure]:
    """Threads: no error, no lost key, and the slowest answers hardly slower."""
    progress(f"memcached: {RELOADS} reloads under load")
    with memcached(folder) as server, server.client() as client:
        server.reload(client, 1)
        before = quiet(server)
        load, probe, wrong = Loader(server, THREADS, PAUSE_US), Probe(server), 0
        for number in range(2, RELOADS + 2):
            answer = server.reload(client, number)
            wrong += answer["outcome"] != "live" or probe.version_of_memcached() != number
        counted = load.end()
        probe.close()
        after = quiet(server)
    usual = (before.p999 + after.p999) / 2
    note = f"{counted.requests} requests; p99.9 {counted.p999} us, without {usual:.0f} us"
    name = f"memcached, {RELOADS} reloads"
    return [
        Figure(f"{name}: failed requests", counted.errors, "", 0, note=note),
        Figure(f"{name}: lost keys", counted.lost, "", 0),
        Figure(f"{name}: not live at once", wrong, "", 0),
        Figure(f"{name}: p99.9 over that without", counted.p999 / usual, "times", 1.1),
    ]


def measure_nginx(folder: Path) -> list[Figure]:
    """Processes: no failed request, and after each reload no worker with older code."""
    progress(f"nginx: {RELOADS} reloads under load")
    with nginx(folder) as server, server.client() as client:
        first = server.reload(client, 1)
        behind = 0
        with probes_of_all_workers(server, WORKERS) as probes:
            load = Loader(server, THREADS, PAUSE_US)
            for number in range(2, RELOADS + 2):
                answer = server.reload(client, number)
                seen = [probe.version_of_nginx() for probe in probes]
                behind += answer["outcome"] != "live" or any(v != number for v, _ in seen)
            counted = load.end()
    name = f"nginx, {WORKERS} workers, {RELOADS} reloads"
    stop_us = first["stop_us"] or 0.0
    note = f"{counted.requests} requests; first redirect stopped all for {stop_us / 1e3:.1f} ms"
    return [
        Figure(f"{name}: failed requests", counted.errors, "", 0, note=note),
        Figure(f"{name}: reloads with a worker behind", behind, "", 0),
    ]


def quiet(server: Server) -> Load:
    """Return what the same load counts without reloads."""
    load = Loader(server, THREADS, PAUSE_US)
    time.sleep(QUIET_SECONDS)
    return load.end()
