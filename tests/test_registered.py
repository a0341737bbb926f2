"""Code that somebody else is to call later stays while it is registered, and goes after that.

A function that its source has no more is what counts: one that is still there is called through
its stub, in its newest version.
"""

from pathlib import Path

import pytest

from reloader.session.session import Session
from tests.support.road import Program, attached, reload

MAIN = r"""
#define _GNU_SOURCE
#include <pthread.h>
#include <semaphore.h>
#include <setjmp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
int hits;
sem_t fired, leave;
timer_t timer;
pthread_key_t key;
jmp_buf place;
void arm(void);
static pthread_t other;
static void *threaded(void *unused)
{
    arm();
    sem_post(&fired);
    sem_wait(&leave);
    return unused;
}
static void wipe(void)
{
    volatile char much[16384];
    for (unsigned at = 0; at < sizeof much; at++) much[at] = 0;
}
/* In a thread of its own, which takes its stack along. */
static void *alone(void *function)
{
    ((void (*)(void))function)();
    wipe();
    return 0;
}
static void in_thread(void (*function)(void))
{
    pthread_t thread;
    pthread_create(&thread, 0, alone, (void *)function);
    pthread_join(thread, 0);
}
static void quietly(void) { arm(); }
static void key_thread(void)
{
    pthread_create(&other, 0, threaded, 0);
    sem_wait(&fired);
}
static void trigger(void)
{
    struct itimerspec soon = {.it_value = {.tv_nsec = 1}};
#if KIND == 1
    raise(SIGUSR1);
#elif KIND == 2
    timer_settime(timer, 0, &soon, 0);
    sem_wait(&fired);
#elif KIND == 3
    sem_post(&leave);
    pthread_join(other, 0);
#endif
    (void)soon;
}
static void release(void)
{
#if KIND == 1
    signal(SIGUSR1, SIG_DFL);
#elif KIND == 2
    timer_delete(timer);
#elif KIND == 3
    pthread_key_delete(key);
    pthread_key_create(&key, 0); /* a deleted key keeps its destructor until it is used again */
#elif KIND == 5
    for (unsigned at = 0; at < sizeof place; at++) ((volatile char *)place)[at] = 0;
#endif
}
static int ends[2];
static pid_t child;
static void fork_one(void)
{
    sigset_t none, all;
    if (pipe(ends)) abort();
    sigemptyset(&none);
    sigfillset(&all);
    sigprocmask(SIG_SETMASK, &all, 0); /* what comes before it waits is not lost */
    child = fork();
    if (!child) {
        sigsuspend(&none);
        _exit(write(ends[1], &hits, sizeof hits) != sizeof hits);
    }
    sigprocmask(SIG_SETMASK, &none, 0);
}
static int hits_of_child(void)
{
    int found = -1;
    kill(child, SIGUSR1);
    close(ends[1]);
    if (read(ends[0], &found, sizeof found) != sizeof found) found = -2;
    waitpid(child, 0, 0);
    return found;
}
int main(void)
{
    char line[64];
    setvbuf(stdout, NULL, _IOLBF, 0);
    puts("ready");
    while (fgets(line, sizeof line, stdin)) {
        if (*line == '1') in_thread(KIND == 3 ? key_thread : quietly);
        if (*line == '2') trigger();
        if (*line == '3') in_thread(release);
        if (*line == '4') fork_one();
        wipe();
        printf("%d\n", *line == '5' ? hits_of_child() : hits);
    }
    return 0;
}
"""
KINDS = {
    "signal": (1, "static void held(int n) { (void)n; hits++; }", "signal(SIGUSR1, held);"),
    "timer": (
        2,
        "static void held(union sigval n) { (void)n; hits++; sem_post(&fired); }",
        """struct sigevent how = {.sigev_notify = SIGEV_THREAD};
        how.sigev_notify_function = held;
        timer_create(CLOCK_MONOTONIC, &how, &timer);""",
    ),
    "thread-specific": (
        3,
        "static void held(void *n) { (void)n; hits++; }",
        "pthread_key_create(&key, held); pthread_setspecific(key, &key);",
    ),
    "atexit": (
        4,
        'static void held(void) { hits++; write(1, "held\\n", 5); }',
        "atexit(held);",
    ),
    "setjmp": (5, "", "if (setjmp(place)) hits++;"),
}
PART = """
#define _GNU_SOURCE
#include <pthread.h>
#include <semaphore.h>
#include <setjmp.h>
#include <signal.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>
extern int hits; extern sem_t fired; extern timer_t timer; extern pthread_key_t key;
extern jmp_buf place;
%s
void arm(void) { %s }
"""


def made(folder: Path, kind: str) -> Program:
    """Start a program with the first version, whose `arm` does nothing yet."""
    number, _, _ = KINDS[kind]
    program = Program(folder, ["-O2", "-g", f"-DKIND={number}"])
    program.compile(main=MAIN, part=PART % ("", ""))
    program.link()
    program.start()
    return program


def settle(session: Session) -> int:
    """Free all that can be freed; return how many pieces of memory wait on."""
    for _ in range(4):
        session.retiring.collect()
        session.retiring.retirer._last = 0.0  # pyright: ignore[reportPrivateUsage]
        session.retiring.attempt()
    rows = session.program.ledger.rows.values()
    return sum(1 for row in rows if row.superseded)


def armed(session: Session, program: Program, kind: str) -> None:
    """Reload a version that registers a function, then one that has neither any more."""
    _, function, statement = KINDS[kind]
    assert reload(session, *program.compile(part=PART % (function, statement))).state == "live"
    assert program.ask(1) == 0
    assert reload(session, *program.compile(part=PART % ("", "hits += 100;"))).state == "live"


@pytest.mark.parametrize("kind", ["signal", "timer", "thread-specific"])
def test_a_function_that_is_gone_is_called_and_kept_while_it_is_registered(
    tmp_path: Path, kind: str
) -> None:
    program = made(tmp_path, kind)
    with attached(program) as session:
        armed(session, program, kind)
        assert settle(session)
        assert program.ask(2) == 1
        assert settle(session)
        if kind == "signal":
            told = [holder for row in session.retiring.why(None) for holder in row.holders]
            assert "the handler of SIGUSR1" in {holder.where for holder in told}
        assert program.ask(3) == 1
        assert settle(session) == 0
        assert program.ask(1) == 101
    assert program.stop() == 0


def test_a_handler_that_only_a_forked_process_still_has_is_kept_for_it(tmp_path: Path) -> None:
    program = made(tmp_path, "signal")
    with attached(program) as session:
        armed(session, program, "signal")
        assert program.ask(4) == 0
        assert program.ask(3) == 0  # the parent has it no longer
        assert settle(session)
        assert program.ask(5) == 1  # the child had, and ends with this answer
        assert settle(session) == 0
    assert program.stop() == 0


def test_a_function_that_is_to_run_at_exit_is_kept_and_runs(tmp_path: Path) -> None:
    program = made(tmp_path, "atexit")
    with attached(program) as session:
        armed(session, program, "atexit")
        assert settle(session)
    process = program.process
    assert process is not None
    assert process.communicate(timeout=20)[0] == "held\n"
    assert process.returncode == 0


def test_where_a_jump_may_lead_back_to_is_kept_until_its_buffer_is_emptied(
    tmp_path: Path,
) -> None:
    program = made(tmp_path, "setjmp")
    with attached(program) as session:
        armed(session, program, "setjmp")
        assert settle(session)
        assert program.ask(3) == 0
        assert settle(session) == 0
    assert program.stop() == 0
