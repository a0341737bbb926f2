"""What gdb finds of reloaded code: names of addresses, frames, and places for breakpoints."""

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.ocaml_project import RELOADER
from tests.support.road import MAIN, Program, attached, reload

WAITING = """
#include <unistd.h>
int pipe_ends[2];
__attribute__((noinline)) static int wait_inside(int n)
{
    char byte[32];
    return (int)read(pipe_ends[0], byte, sizeof byte) + n;
}
int answer(int n)
{
    return n < 0 ? wait_inside(n) * 3 : n + 1;
}
"""


@pytest.fixture
def program(tmp_path: Path) -> Iterator[Program]:
    made = Program(tmp_path)
    yield made
    made.stop()


def gdb(pid: int, *commands: str) -> str:
    words = [word for command in commands for word in ("-ex", command)]
    options = ["-nx", "-batch", "-iex", "set debuginfod enabled off", "-p", str(pid)]
    done = subprocess.run(["gdb", *options, *words], check=True, capture_output=True, text=True)
    return done.stdout + done.stderr
