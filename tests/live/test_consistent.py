"""Switching at one instant: no thread ever sees functions of two generations together."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from reloader.session.session import Session
from tests.support.live import until, until_blocked
from tests.support.road import Program, attached, reload
from tests.test_end_to_end import ENVIRONMENT, RELOADER

MAIN = """
#define _GNU_SOURCE
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
int pair(void);
int wait_inside(int);
static atomic_long seen, mixed;
volatile int inside, go;
static void *observe(void *unused)
{
    for (;;) {
        int both = pair();
        atomic_fetch_add(&seen, 1);
        if (both / 1000 != both % 1000) atomic_fetch_add(&mixed, 1);
        for (volatile int i = 0; i < 300; i++) continue;
    }
    return unused;
}
static void *stay(void *fd) { wait_inside((int)(long)fd); return NULL; }
int main(int argc, char **argv)
{
    char line[64];
    pthread_t thread;
    (void)argc;
    for (int i = 0; i < atoi(argv[1]); i++) pthread_create(&thread, NULL, observe, NULL);
    if (!strcmp(argv[2], "stay")) {
        pthread_create(&thread, NULL, stay, NULL);
        pthread_setname_np(thread, "sleeper");
    }
    setvbuf(stdout, NULL, _IOLBF, 0);
    puts("ready");
    while (fgets(line, sizeof line, stdin)) {
        if (*line == 's') printf("%ld\\n", atomic_load(&seen));
        else if (*line == 'm') printf("%ld\\n", atomic_load(&mixed));
        else if (*line == 'i') printf("%d\\n", inside);
        else if (*line == 'g') printf("%d\\n", go = 1);
        else printf("%d\\n", pair());
    }
    return 0;
}
"""
PAIR = """
#define NUMBER %d
static volatile int last;
__attribute__((noipa)) int first(void)
{
    for (volatile int i = 0; i < 30; i++) continue;
    return NUMBER;
}
__attribute__((noipa)) int second(void)
{
    for (volatile int i = 0; i < 30; i++) continue;
    return NUMBER;
}
__attribute__((noipa)) int pair(void)
{
    last = NUMBER;
    return first() * 1000 + second();
}
"""
INSIDE = """
#include <unistd.h>
__attribute__((noipa)) int wait_inside(int n)
{
    char byte;
    int ends[2];
    if (pipe(ends)) return -1;
    return (int)read(ends[0], &byte, 1) + n + %d;
}
"""


@pytest.fixture
def program(tmp_path: Path) -> Iterator[Program]:
    made = Program(tmp_path, ["-O2", "-falign-functions=16", "-g"])
    made.compile(main=MAIN, pair=PAIR % 1, inside=INSIDE % 1)
    made.link()
    yield made
    assert made.process is not None
    made.process.kill()
    made.stop()


def ask(program: Program, what: str) -> int:
    assert program.process is not None
    assert program.process.stdin is not None
    program.process.stdin.write(what + "\n")
    program.process.stdin.flush()
    return int(program.line())


def versions(program: Program) -> list[bytes]:
    return [program.compile(pair=PAIR % number)[0].read_bytes() for number in (2, 3, 4, 5)]


def reload_often(program: Program, session: Session, times: int) -> float:
    """Reload pair.o again and again; return the longest pause in ms."""
    path, texts = str(program.folder / "pair.o"), versions(program)
    longest = 0.0
    for turn in range(times):
        outcome = session.reload_contents([(path, texts[turn % len(texts)])], 0.0)
        assert outcome.state == "live", outcome.error
        assert set(outcome.functions) == {"first", "second", "pair"}
        longest = max(longest, outcome.stop_us / 1e3)
        if turn % 10 == 9:
            session.retiring.attempt()
            seen = ask(program, "s")
            until(lambda seen=seen: ask(program, "s") > seen, "observers go on")
    return longest


def test_eight_threads_never_see_two_generations_together(program: Program) -> None:
    program.start("8", "")
    with attached(program) as session:
        session.together_s = 20.0
        reload_often(program, session, 16)
        assert ask(program, "m") == 0
        assert ask(program, "p") == 5005


def test_without_it_some_thread_sees_both(program: Program) -> None:
    held = "extern volatile int inside, go;\n" + PAIR.replace(
        "for (volatile int i = 0; i < 30; i++) continue;",
        "inside = 1; while (!go) continue;",
        1,
    )
    program.compile(pair=held % 1)
    program.link()
    program.start("8", "")
    with attached(program) as session:
        until(lambda: ask(program, "i") == 1, "some thread is in the first of both functions")
        program.compile(pair=PAIR % 2)
        assert reload(session, program.folder / "pair.o").state == "live"
        assert ask(program, "g") == 1
        until(lambda: ask(program, "m") > 0, "that thread has called the second one")


def test_a_thread_that_stays_inside_is_named_and_nothing_changed(program: Program) -> None:
    pid = program.start("0", "stay")
    with attached(program) as session:
        session.together_s = 0.2
        until_blocked(pid, 3)  # the program's two and the agent
        program.compile(pair=PAIR % 2, inside=INSIDE % 2)
        outcome = reload(session, program.folder / "pair.o", program.folder / "inside.o")
        assert (outcome.state, outcome.code) == ("refused", "never-outside")
        assert "thread sleeper (" in outcome.error
        assert "is in wait_inside\n" in outcome.error
        assert "Nothing was changed." in outcome.error
        assert ask(program, "p") == 1001
        assert reload(session, program.folder / "pair.o").state == "live"
        assert ask(program, "p") == 2002
        session.together_s = None
        outcome = reload(session, program.folder / "inside.o")
        assert outcome.state == "live"
        assert outcome.active == ["wait_inside"]


def test_symbols_of_the_executable_are_not_needed(program: Program) -> None:
    subprocess.run(["/usr/bin/strip", program.executable], check=True)
    program.start("2", "")
    with attached(program) as session:
        session.together_s = 20.0
        reload_often(program, session, 5)
        assert ask(program, "m") == 0


FORKS = """
#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <signal.h>
#include <sys/prctl.h>
#include <unistd.h>
int pair(void);
int wait_inside(int);
int main(void)
{
    char line[64];
    setvbuf(stdout, NULL, _IOLBF, 0);
    pid_t child = fork();
    if (!child) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        wait_inside(1);
        _exit(0);
    }
    puts("ready");
    printf("%d\\n", (int)child);
    while (fgets(line, sizeof line, stdin)) printf("%d\\n", pair());
    return 0;
}
"""


def test_a_forked_child_that_is_inside_counts(tmp_path: Path) -> None:
    program = Program(tmp_path, ["-O2", "-falign-functions=16", "-g"])
    program.compile(main=FORKS, pair=PAIR % 1, inside=INSIDE % 1)
    program.link()

    def verb(*words: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [*RELOADER, *words], cwd=tmp_path, env=ENVIRONMENT, capture_output=True,
            text=True, check=False,
        )  # fmt: skip

    command = [*RELOADER, "run", "--consistent", "--", "./program"]
    (tmp_path / "reloader.toml").write_text("consistent_limit_s = 0.1\n")
    program.process = subprocess.Popen(
        command, cwd=tmp_path, env=ENVIRONMENT, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    try:
        assert program.line() == "ready"
        until_blocked(int(program.line()), 1)
        program.compile(inside=INSIDE % 2)
        done = verb("wait", "--generation", "1", "--timeout", "20")
        assert "is in wait_inside" in done.stderr
        program.compile(pair=PAIR % 2)
        assert verb("wait", "--generation", "2", "--timeout", "20").returncode == 0
        assert ask(program, "p") == 2002
    finally:
        program.stop()
        verb("stop")
