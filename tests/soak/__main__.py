"""`python -m tests.soak [--time SECONDS] [--seed N] [--kills N]`: chaos, then kills by number.

A run that finds something ends with status 1, its seed and its folder, which stays.
"""

import argparse
import random
import shutil
import sys
import tempfile
import time
from pathlib import Path

from tests.soak import chaos, kills


def main() -> int:
    """Run the soak."""
    parser = argparse.ArgumentParser(prog="python -m tests.soak")
    parser.add_argument("--time", type=float, default=600, help="seconds of chaos")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().getrandbits(32))
    parser.add_argument(
        "--kills", type=int, default=0, help="kills of a daemon at random instants"
    )
    given = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="reloader-soak-"))
    sys.stdout.write(f"seed {given.seed}, in {folder}\n")
    sys.stdout.flush()
    problems: list[str] = []
    if given.time > 0:
        (folder / "chaos").mkdir()
        end = time.monotonic() + given.time
        done = chaos.Chaos(folder / "chaos", given.seed).run(lambda: time.monotonic() < end)
        problems += done.problems
        counts = ", ".join(f"{count} {what}" for what, count in sorted(done.done.items()))
        sys.stdout.write(f"{counts.replace('_', ' ')}\n")
    if given.kills:
        killed = kills.Killer(folder, given.seed).run(given.kills)
        problems += killed.problems
        sys.stdout.write(
            f"{killed.kills} kills of the daemon, {killed.in_the_middle} in the middle of a"
            f" transaction, {killed.programs} programs\n"
        )
    for text in problems:
        sys.stdout.write(f"{text}\n")
    sys.stdout.write(f"{len(problems)} problems\n")
    if not problems:
        shutil.rmtree(folder)
    return bool(problems)


if __name__ == "__main__":
    sys.exit(main())
