"""A call through a stub against a direct call, in one dependent loop of the program."""

import statistics
from pathlib import Path
from typing import Final

from tests.bench.figures import Figure, progress
from tests.support.road import Program, attached, reload

ROUNDS: Final = 15

MAIN: Final = """
#include <stdio.h>
int loop(void);
int main(void)
{
    char line[64];
    setvbuf(stdout, NULL, _IOLBF, 0);
    puts("ready");
    while (fgets(line, sizeof line, stdin)) printf("%d\\n", loop());
    return 0;
}
"""

STEP: Final = "long step(long n) { return n * 3 + ADDED; }"

# picoseconds a call; the loop's start decides its alignment, so it is given
LOOP: Final = """
#include <time.h>
long step(long);
static long now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000L + t.tv_nsec;
}
__attribute__((aligned(64))) int loop(void)
{
    volatile long sink;
    long x = ADDED, began = now();
    for (long i = 0; i < 5000000; i++) x = step(x);
    sink = x;
    (void)sink;
    return (int)((now() - began) / 5000);
}
"""


def measure(folder: Path) -> list[Figure]:
    """Return what the jump through the slot costs."""
    progress("calls through a stub")
    program = Program(folder, ("-O2", "-falign-loops=32"))
    program.compile(main=MAIN, loop=LOOP.replace("ADDED", "1"), step=STEP.replace("ADDED", "1"))
    program.link()
    program.start()
    try:
        with attached(program) as session:
            direct = [program.ask() / 1e3 for _ in range(ROUNDS)]
            edited = program.compile(
                loop=LOOP.replace("ADDED", "2"), step=STEP.replace("ADDED", "2")
            )
            assert reload(session, *edited).state == "live"
            stub = [program.ask() / 1e3 for _ in range(ROUNDS)]
    finally:
        program.stop()
    direct_ns, stub_ns = statistics.median(direct), statistics.median(stub)
    note = f"direct {direct_ns:.2f} ns, through the stub {stub_ns:.2f} ns"
    return [Figure("stub call over a direct one", stub_ns - direct_ns, "ns", 1.5, note=note)]
