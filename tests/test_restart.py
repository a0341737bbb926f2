"""Crashes and restarts, as a user sees them: real daemon, real program, real signals."""

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.road import Program
from tests.test_end_to_end import ENVIRONMENT, RELOADER

MAIN = """
#include <stdio.h>
#include <stdlib.h>
int answer(int);
__attribute__((constructor)) static void early(void) { }
int main(void)
{
    char line[64];
    setvbuf(stdout, NULL, _IOLBF, 0);
    puts("ready");
    while (fgets(line, sizeof line, stdin))
        printf("%d\\n", answer(atoi(line)));
    return 0;
}
"""
TEXT = """
#include <stdlib.h>
#include <string.h>
static char *volatile nowhere;
static int total = 40;
__attribute__((noipa)) static int inner(int n)
{
    if (n == 13) HOW;
    return n * FACTOR;
}
int answer(int n) { total += n; return inner(n) + total; }
"""


def text(factor: int, how: str = "(void)nowhere") -> str:
    return TEXT.replace("FACTOR", str(factor)).replace("HOW", how)


class Runs:
    """A folder with a program that is run again and again under one daemon."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.program = Program(folder, ["-O2", "-g", "-falign-functions=16"])
        self.program.compile(main=MAIN, part=text(1))
        self.program.link()
        self.told = ""

    def start(self, *options: str) -> None:
        self.program.process = subprocess.Popen(
            [*RELOADER, "run", *options, "--", "./program"],
            cwd=self.folder,
            env=ENVIRONMENT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self.program.line() == "ready"

    def end(self, last: str = "") -> int:
        """Say a last word, end the input; return the status and keep what was told."""
        process, self.program.process = self.program.process, None
        assert process is not None
        _, self.told = process.communicate(last, timeout=30)
        return process.returncode

    def verb(self, *words: str) -> str:
        done = subprocess.run(
            [*RELOADER, *words],
            cwd=self.folder,
            env=ENVIRONMENT,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def save(self, new: str) -> dict[str, Any]:
        """Save an object; return what became of it."""
        before = len(json.loads(self.verb("history", "--json")))
        self.program.compile(part=new)
        wait = self.verb("wait", "--generation", str(before + 1), "--timeout", "20", "--json")
        return json.loads(wait)


@pytest.fixture
def runs(tmp_path: Path) -> Iterator[Runs]:
    made = Runs(tmp_path)
    yield made
    if made.program.process is not None:
        made.end()
    made.verb("stop")


def test_a_restarted_program_gets_what_was_live_before_its_main(runs: Runs) -> None:
    runs.start()
    assert runs.save(text(100))["outcome"] == "live"
    assert runs.program.ask(2) == 242
    assert runs.end() == 0
    runs.start()
    assert runs.program.ask(2) == 242  # the first call there ever is
    row = json.loads(runs.verb("history", "--json"))[0]
    assert (row["kind"], row["outcome"]) == ("replay", "live")
    assert runs.save(text(1000))["outcome"] == "live"
    assert runs.program.ask(2) == 2044
    assert runs.end() == 0
    assert "part.o replayed from the last run: inner" in runs.told
    assert "part.o live" in runs.told


def test_an_edit_that_was_taken_back_while_nothing_ran_is_not_replayed(runs: Runs) -> None:
    runs.start()
    assert runs.save(text(10))["outcome"] == "live"
    assert runs.program.ask(2) == 20 + 42
    runs.end()
    runs.program.compile(part=text(1))
    runs.start()
    assert runs.program.ask(2) == 2 + 42
    runs.end()
    assert "the edit was taken back on disk: part.o" in runs.told


def test_without_replay_the_program_is_as_it_was_linked(runs: Runs) -> None:
    runs.start()
    assert runs.save(text(100))["outcome"] == "live"
    runs.end()
    runs.start("--no-replay")
    assert runs.program.ask(2) == 44
    runs.end()
    assert "what was live in the last run is not replayed, as you wish: part.o" in runs.told


def test_a_rebuilt_program_is_told_what_is_in_it_and_what_is_not(runs: Runs) -> None:
    runs.start()
    assert runs.save(text(100))["outcome"] == "live"
    runs.end()
    runs.program.link()
    runs.start()
    assert runs.program.ask(2) == 242
    runs.end()
    assert "rebuilt since its last run: it has part.o in it" in runs.told
    runs.start()
    assert runs.save(text(7))["outcome"] == "live"
    runs.end()
    runs.program.compile(part=text(8))
    runs.program.link()
    runs.start()
    assert runs.program.ask(2) == 58
    runs.end()
    assert "what was live of part.o no longer applies" in runs.told


CRASHES = [
    ("*nowhere = 1", signal.SIGSEGV, "in inner (part.c:8)"),
    ("abort()", signal.SIGABRT, "in code called by inner (part.c:8)"),
    ("memset(nowhere, n, (size_t)n)", signal.SIGSEGV, "inner (part.c:8)"),
    ("__builtin_trap()", signal.SIGILL, "in inner (part.c:8)"),
]


@pytest.mark.parametrize(("how", "number", "where"), CRASHES, ids=[row[0] for row in CRASHES])
def test_a_crash_in_a_new_generation_is_told_and_not_replayed(
    runs: Runs, how: str, number: signal.Signals, where: str
) -> None:
    runs.start()
    assert runs.save(text(100))["outcome"] == "live"
    assert runs.save(text(1000, how))["outcome"] == "live"
    assert runs.end("13\n") == 128 + number
    assert f"the program crashed ({number.name}) " in runs.told
    assert where in runs.told
    assert "generation 2" in runs.told
    rows = json.loads(runs.verb("history", "--json"))  # of the last program: none runs
    assert f"the program crashed ({number.name}) " in " ".join(rows[0]["notes"])
    runs.start()
    assert runs.program.ask(13) == 1353
    runs.end()
    assert "part.o: the version that the program crashed in is not replayed" in runs.told
    runs.start("--replay-crashed")
    assert runs.program.ask(2) == 242  # what its last run ended with
    runs.end()


def test_a_crash_is_replayed_if_asked_for(runs: Runs) -> None:
    runs.start()
    assert runs.save(text(100, "*nowhere = 1"))["outcome"] == "live"
    assert runs.end("13\n") == 128 + signal.SIGSEGV
    runs.start("--replay-crashed")
    assert runs.program.ask(2) == 242
    runs.end()


def test_the_program_dies_as_it_would_without_us(runs: Runs) -> None:
    source = runs.folder / "asks.c"
    source.write_text(
        """
        #include <signal.h>
        #include <stdio.h>
        #include <string.h>
        int main(void)
        {
            struct sigaction old;
            memset(&old, 1, sizeof old);
            sigaction(SIGSEGV, NULL, &old);
            printf("%d %d\\n", old.sa_handler == SIG_DFL, signal(SIGABRT, SIG_DFL) == SIG_DFL);
            fflush(stdout);
            return raise(SIGSEGV);
        }
        """
    )
    subprocess.run(["/usr/bin/gcc", source, "-o", runs.folder / "asks"], check=True)
    done = subprocess.run(
        [*RELOADER, "run", "--", "./asks"],
        cwd=runs.folder,
        env={**os.environ, **ENVIRONMENT},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (128 + signal.SIGSEGV, "1 1\n")
    assert "the program crashed (SIGSEGV), not inside code that was reloaded" in done.stderr
