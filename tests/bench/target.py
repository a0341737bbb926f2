"""The program that is measured: it sees its own reloads and stamps them with the clock.

A version of its object is made by writing a number over the marker in the compiled bytes, so a
thousand versions need one run of the compiler and no two are equal.
"""

import struct
import subprocess
from pathlib import Path
from typing import Final

from tests.support.road import Program

MARKER: Final = 0x5EED0000
_MARKER_BYTES: Final = struct.pack("<I", MARKER)

MAIN: Final = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <time.h>
int version(int);
static int (*volatile ask)(int) = version;
static long now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000L + t.tv_nsec;
}
static void *watch(void *unused)
{
    int last = version(0);
    struct timespec pause = {0, 20000};
    prctl(PR_SET_TIMERSLACK, 1000);
    for (;;) {
        int seen = ask(0);
        if (seen != last) {
            long at = now();
            printf("%d %ld\\n", seen, at);
            last = seen;
        }
        nanosleep(&pause, NULL);  /* a program that spins takes a core from the daemon */
    }
    return unused;
}
int main(void)
{
    char line[4096];
    pthread_t thread;
    setvbuf(stdout, NULL, _IOLBF, 0);
    puts("ready");
    pthread_create(&thread, NULL, watch, NULL);
    while (fgets(line, sizeof line, stdin)) {  /* the name of a shared library to go on with */
        line[__builtin_strlen(line) - 1] = 0;
        void *library = dlopen(line, RTLD_NOW | RTLD_LOCAL);
        if (!library) return 1;
        ask = (int (*)(int))dlsym(library, "version");
    }
    return 0;
}
"""


HEAD: Final = f"""
#include <stdio.h>
static int count;
int total;
static const char *const names[] = {{"a", "b"}};
int version(int n)
{{
    static int calls;
    calls++;
    count += n;
    total += n;
    return (int){MARKER:#x}u + (n & 1);
}}
int work0(int n) {{ return n + (names[n & 1][0] == 'a'); }}
"""

WORK: Final = """
int work%(row)d(int n)
{
    static int state%(row)d;
    state%(row)d += n;
    if (n > 1000) printf("work%(row)d %%d\\n", n);
    return n * (%(row)d + 3) + (n > 10 ? work%(before)d(n - 1) : state%(row)d);
}
"""


def work(functions: int) -> str:
    """Return the text of the object that changes, with some functions around the one."""
    rows = range(1, functions)
    return HEAD + "".join(WORK % {"row": row, "before": row - 1} for row in rows)


class Versions:
    """An object, and any number of versions of it."""

    def __init__(self, path: Path) -> None:
        """Take a compiled object as the pattern."""
        self.path = path
        self.pattern = path.read_bytes()
        self.longer: bytes | None = None  # the pattern of every second version, if any
        self.part = path.with_suffix(".part")

    def content(self, number: int) -> bytes:
        """Return a version: its function returns MARKER + number."""
        pattern = self.longer if self.longer and number % 2 else self.pattern
        return pattern.replace(_MARKER_BYTES, struct.pack("<I", MARKER + number))

    def lengthen(self, *flags: str) -> None:
        """Let that function be longer in every second version: all behind it moves."""
        text = self.path.with_suffix(".c").read_text("utf-8")
        folder = self.path.parent / "longer"
        folder.mkdir()
        source = folder / self.path.with_suffix(".c").name  # its name is in the object
        source.write_text(text.replace("total += n;", "total += n * (n ^ calls);", 1), "utf-8")
        run("gcc", "-O2", *flags, "-c", source.name, "-o", "longer.o", cwd=folder)
        self.longer = (folder / "longer.o").read_bytes()

    def write(self, number: int) -> Path:
        """Write a finished version beside the object, ready to be renamed."""
        self.part.write_bytes(self.content(number))
        return self.part


def start(folder: Path, functions: int, *flags: str) -> tuple[Program, Versions]:
    """Compile, link and start the program; its object has so many functions."""
    program = Program(folder, ("-O2", *flags), ["-rdynamic"])
    program.compile(main=MAIN, work=work(functions))
    program.link()
    program.start()
    return program, Versions(folder / "work.o")


def seen(program: Program) -> tuple[int, int]:
    """Return the next (version, nanoseconds) that the program saw."""
    number, at = program.line().split()
    return (int(number) & 0xFFFF_FFFF) - MARKER, int(at)


def memory_of(pid: int) -> tuple[float, int]:
    """Return a process's resident megabytes and its number of mappings."""
    status = Path(f"/proc/{pid}/status").read_text("utf-8")
    resident = next(line for line in status.splitlines() if line.startswith("VmRSS"))
    maps = Path(f"/proc/{pid}/maps").read_text("utf-8")
    return int(resident.split()[1]) / 1024, maps.count("\n")


def run(*command: str | Path, cwd: Path) -> None:
    """Run a command that must succeed."""
    subprocess.run([str(word) for word in command], cwd=cwd, check=True, capture_output=True)
