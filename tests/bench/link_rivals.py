"""The linkers that ours is measured beside, as Debian ships them; each a process of its own."""

import re
import statistics
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

_OPENER: Final = """
#include <dlfcn.h>
#include <stdio.h>
#include <time.h>
int main(int count, char **words)
{
    struct timespec a, b;
    clock_gettime(CLOCK_MONOTONIC, &a);
    void *library = dlopen(words[count - 1], RTLD_NOW | RTLD_LOCAL);
    clock_gettime(CLOCK_MONOTONIC, &b);
    if (!library) { fputs(dlerror(), stderr); return 1; }
    printf("%.6f\\n", (b.tv_sec - a.tv_sec) * 1e3 + (b.tv_nsec - a.tv_nsec) / 1e6);
    return 0;
}
"""
_PHASE: Final = re.compile(r"([0-9.]+) \([ 0-9.]+%\)  time to link object files")


@dataclass(slots=True)
class Times:
    """Milliseconds of one way to link an input, one number a round."""

    rounds: list[float] = field(default_factory=list[float])

    def median(self) -> float:
        """Return the middle one."""
        return statistics.median(self.rounds)


class Rivals:
    """Links one input in other ways."""

    def __init__(self, folder: Path, inputs: list[Path], entry: str, *, opened: bool) -> None:
        """Prepare.

        Args:
            folder: For results.
            inputs: Objects, or one archive whose members are all wanted.
            entry: A symbol: llvm-jitlink links what it is asked for.
            opened: Whether `dlopen` of the result belongs to `ld.bfd`'s time.
        """
        self.folder, self.inputs, self.entry, self.opened = folder, inputs, entry, opened
        self.objects = inputs
        self.times = {
            name: Times() for name in ("ld.bfd", "ld.lld", "jitlink", "jitlink-phase")
        }
        self.opener = folder / "opener"
        if opened and not self.opener.exists():
            command = [
                "gcc",
                "-O2",
                "-x",
                "c",
                "-",
                "-o",
                self.opener,
                "-Wl,--no-as-needed",
                "-lm",
            ]
            subprocess.run(command, input=_OPENER, text=True, check=True)

    def once(self) -> None:
        """Run each of them once."""
        whole = ["--whole-archive", *map(str, self.inputs)]
        library = self.folder / "linked.so"
        took = _timed(lambda: _run("ld.bfd", "-shared", "-o", library, *whole))
        if self.opened:
            took += float(_run(self.opener, library))
        self.times["ld.bfd"].rounds.append(took)
        took = _timed(lambda: _run("ld.lld-19", "-shared", "-o", library, *whole))
        self.times["ld.lld"].rounds.append(took)
        self.jitlink()

    def jitlink(self) -> None:
        """Link with LLVM's JITLink into a slab that small code can reach."""
        said = ""

        def link() -> None:
            nonlocal said
            said = _run(
                "llvm-jitlink-19", "-noexec", "-phony-externals", "-show-times",
                f"-entry={self.entry}", "-slab-allocate=300Mb", "-slab-address=0x10000000",
                "-slab-page-size=4096", *self.objects,
            )  # fmt: skip

        self.times["jitlink"].rounds.append(_timed(link))
        phases = [float(found) * 1e3 for found in _PHASE.findall(said)]
        self.times["jitlink-phase"].rounds.append(max(phases))


def _timed(action: Callable[[], object]) -> float:
    began = time.perf_counter()
    action()
    return (time.perf_counter() - began) * 1e3


def _run(*command: str | Path) -> str:
    words = [str(word) for word in command]
    done = subprocess.run(words, check=True, capture_output=True, text=True)
    return done.stdout + done.stderr if "jitlink" in words[0] else done.stdout
