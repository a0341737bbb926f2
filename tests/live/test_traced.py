"""Threads that cannot be stopped: who is in the way is named, and nothing was changed."""

from pathlib import Path

import pytest

from reloader.errors.live import FirstThreadEndedError
from reloader.live.inject import attach
from reloader.live.threads import list_threads, seize, seize_all, thread_state
from tests.support.live import compile_text, hear, running, traced, until
from tests.support.road import MAIN, Program, attached, reload

FIRST_ENDS = r"""
#include <pthread.h>
#include <stdio.h>
#include <unistd.h>
static void *other(void *unused)
{
    (void)unused;
    puts("ready");
    fflush(stdout);
    pause();
    return NULL;
}
int main(void)
{
    pthread_t thread;
    pthread_create(&thread, NULL, other, NULL);
    pthread_exit(NULL);
}
"""


def test_a_first_redirect_under_a_debugger_is_refused_and_the_debugger_named(
    tmp_path: Path,
) -> None:
    program = Program(tmp_path, ["-O2", "-falign-functions=16"])
    program.compile(main=MAIN, parts="int answer(int n) { return n + 1; }")
    program.link()
    pid = program.start()
    try:
        with attached(program) as session:
            (path,) = program.compile(parts="int answer(int n) { return n + 2; }")
            with traced(pid) as tracer:
                outcome = reload(session, path)
            assert outcome.state == "refused"
            assert outcome.code == "untraceable"
            assert f"process {pid} is traced by {tracer}" in outcome.error
            assert "Nothing was changed." in outcome.error
            assert "detach" in outcome.error
            assert program.ask(1) == 2
            assert reload(session, path).state == "live"
            assert program.ask(1) == 3
    finally:
        assert program.stop() == 0


def test_a_process_whose_first_thread_has_ended_is_told_from_one_that_has_ended() -> None:
    with running([compile_text(FIRST_ENDS, "first-ends")]) as child:
        assert hear(child) == "ready"
        until(lambda: thread_state(child.pid, child.pid) == "Z", "the first thread has ended")
        with pytest.raises(FirstThreadEndedError, match="1 of its threads run on") as caught:
            attach(child.pid)
        assert "Nothing was changed." in str(caught.value)
        assert seize(child.pid, child.pid) is None
        (other,) = set(list_threads(child.pid)) - {child.pid}
        (tracee,) = seize_all(child.pid, {})
        assert tracee.tid == other
        tracee.detach()
        until(lambda: thread_state(child.pid, other) == "S", "the other goes on")
