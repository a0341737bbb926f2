"""`python -m tests.bench [RESULTS.json] [--only NAME]`: measure, print a table, write JSON.

One benchmark at a time; figures that are compared are taken in the same run.
"""

import argparse
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Final

from tests.bench import (
    calls,
    endurance,
    knowing,
    link_scale,
    modes,
    ocaml,
    ocaml_server,
    road,
    servers,
    stops,
    types,
    undo,
)
from tests.bench.figures import Figure, machine, table, write

SMALL, LARGE = 12, 230  # functions: objects of about 7 and 100 KiB

BENCHES: Final[dict[str, Callable[[Path], list[Figure]]]] = {
    "road": lambda folder: road.measure(folder, SMALL, "small", targets=True),
    "large": lambda folder: road.measure(folder, LARGE, "100 KiB", targets=False),
    "undo": undo.measure,
    "modes": modes.measure,
    "stops": stops.measure,
    "calls": calls.measure,
    "baseline": lambda _: knowing.measure_baseline(),
    "owner": knowing.measure_owner,
    "link": link_scale.measure,
    "types": types.measure,
    "servers": servers.measure,
    "ocaml": ocaml.measure,
    "ocaml-server": ocaml_server.measure,
    "endurance": endurance.measure,
}


def main() -> int:
    """Run the benchmarks."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench")
    latest = Path(__file__).parent / "results" / "latest.json"
    parser.add_argument("results", type=Path, nargs="?", default=latest)
    parser.add_argument("--only", action="append", choices=BENCHES, help="may be given often")
    arguments = parser.parse_args()
    figures: list[Figure] = []
    for name in arguments.only or BENCHES:
        with tempfile.TemporaryDirectory(prefix="reloader-bench-") as folder:
            figures += BENCHES[name](Path(folder))
    write(figures, arguments.results)
    facts = ", ".join(f"{key} {value}" for key, value in machine().items())
    sys.stdout.write(f"{facts}\n{table(figures)}\nwritten to {arguments.results}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
