"""What the program's threads feel when 64 are busy: attach, first redirects, retirement."""

from pathlib import Path
from typing import Final

from reloader.session.session import Session
from tests.bench.figures import Figure, percentile, progress
from tests.support.road import Program, attached

BUSY: Final = 64
FUNCTIONS: Final = 40  # each is redirected for the first time in a reload of its own

MAIN: Final = """
#include <pthread.h>
#include <stdio.h>
static volatile unsigned long turns[%(busy)d];
static void *spin(void *mine)
{
    for (;;) ++*(volatile unsigned long *)mine;
    return mine;
}
int main(void)
{
    char line[64];
    pthread_t thread;
    for (int i = 0; i < %(busy)d; i++) pthread_create(&thread, NULL, spin, (void *)&turns[i]);
    puts("ready");
    fflush(stdout);
    while (fgets(line, sizeof line, stdin)) { }
    return 0;
}
"""


def text(changed: int) -> str:
    """Return the object's source with its first functions changed."""
    return "\n".join(
        f"int work{i}(int n) {{ return n * {i + (1000 if i < changed else 3)}; }}"
        for i in range(FUNCTIONS)
    )


def measure(folder: Path) -> list[Figure]:
    """Return the pauses of a program with busy threads."""
    progress(f"stops of {BUSY} busy threads")
    program = Program(folder)
    versions = [
        program.compile(work=text(step))[0].read_bytes() for step in range(FUNCTIONS + 1)
    ]
    program.compile(main=MAIN % {"busy": BUSY}, work=text(0))
    program.link()
    program.start()
    try:
        with attached(program, "work.o") as session:
            attach_ms = session.process.last_stop_us / 1e3
            path = folder / "work.o"
            realtime, redirects, retired = reload_all(session, path, versions[1:])
    finally:
        assert program.process is not None
        program.process.kill()
        program.stop()
    note = "under SCHED_FIFO" if realtime else "without SCHED_FIFO"
    goal = 1.5 if realtime else None
    return [
        Figure("attach pause, 64 busy threads", attach_ms, "ms", 15),
        Figure(
            "stop of a first redirect, p50", percentile(redirects, 50), "ms", goal, note=note
        ),
        Figure("stop of a first redirect, p99", percentile(redirects, 99), "ms"),
        Figure("stop of retirement, longest", max(retired, default=0.0), "ms", 5,
               note=f"{len(retired)} stops"),
        Figure("stop of retirement, p50", percentile(retired or [0.0], 50), "ms"),
    ]  # fmt: skip


def reload_all(
    session: Session, path: Path, versions: list[bytes]
) -> tuple[bool, list[float], list[float]]:
    """Reload version by version; return whether in real time, and both kinds of stops."""
    redirects: list[float] = []
    retired: list[float] = []
    for content in versions:
        outcome = session.reload_contents([(str(path), content)], 0.0)
        assert outcome.state == "live", outcome
        redirects.append(outcome.stop_us / 1e3)
        report = session.retiring.attempt()
        if report.stop_us:
            retired.append(report.stop_us / 1e3)
    return session.process.clock.realtime, redirects, retired
