"""A return to earlier code while the process that stands for all ends: whole, or not at all."""

import os
import signal
import socket
from pathlib import Path

import pytest

from reloader.live.host import Plain
from tests.support.family import PART, family, until_gone
from tests.support.live import until
from tests.support.road import reload


@pytest.mark.parametrize("wanted", [0, 1])
def test_a_return_during_which_the_first_process_ends_is_what_it_says(
    tmp_path: Path, wanted: int
) -> None:
    with family(tmp_path, 1) as (program, session):
        session.program.past.keep = 3
        for factor in (100, 1000):
            edited = program.compile(part=PART.replace("* 10", f"* {factor}"))
            assert reload(session, *edited).state == "live"

        def end_the_first(step: str) -> None:
            if step == "flip":
                os.kill(session.process.pid, signal.SIGKILL)
                until_gone(session.process.pid)

        session.before_step = end_the_first
        outcome = session.rollback(wanted)
        session.before_step = lambda _: None
        then = {0: 400, 1: 4000}[wanted]
        assert program.at(1) == (then if outcome.state == "live" else 40000), outcome.error
        edited = program.compile(part=PART.replace("* 10", "* 7"))
        after = reload(session, *edited)
        assert after.state == "live", after.error
        assert program.at(1) == 280
        last = 1 if outcome.state == "live" else 2
        assert session.rollback(last).state == "live"
        assert program.at(1) == {1: 4000, 2: 40000}[last]


WAITS = """
#include <unistd.h>
int answer(int n)
{
    char byte;
    if (n > 1000) n -= read(n - 1000, &byte, 1);
    return %d + n %% 1000;
}
"""
CONNECTION = 4  # the descriptor of the line that a process answers


@pytest.mark.parametrize("first_redirect", [True, False])
def test_new_code_that_somebody_runs_stays_when_its_reload_is_taken_back(
    tmp_path: Path, *, first_redirect: bool
) -> None:
    with family(tmp_path, 1, WAITS % 1) as (program, session):
        assert program.at(1, 5) == 6
        if not first_redirect:
            assert reload(session, *program.compile(part=WAITS % 2)).state == "live"
        inside: list[socket.socket] = []

        def enter_and_end_the_first(*_: object) -> None:
            """Between the flip and the look whether the program still runs."""
            caller = program.connect(1, f"a {1000 + CONNECTION}")
            inside.append(caller)
            pid = session.process.pids()[1]
            until(lambda: Path(f"/proc/{pid}/syscall").read_text()[:2] == "0 ", "it reads")
            os.kill(session.process.pid, signal.SIGKILL)
            until_gone(session.process.pid)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Plain, "switch", enter_and_end_the_first)
            outcome = reload(session, *program.compile(part=WAITS % 3))
        assert outcome.state == "failed"
        with inside[0] as caller, caller.makefile() as answer:
            caller.shutdown(socket.SHUT_WR)
            assert int(answer.readline()) == 3 + CONNECTION
        assert program.at(1, 5) == (6 if first_redirect else 7)
        after = reload(session, *program.compile(part=WAITS % 4))
        assert after.state == "live", after.error
        assert program.at(1, 5) == 9
