"""What gcc and clang emit for C, with many flags: reloaded live, and the answers checked."""

import os
import socket
import subprocess
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from reloader.live.inject import adopt
from reloader.live.retire import RetirePolicy
from reloader.session.session import Session
from state.store import Store
from tests.support.feature import Feature
from tests.support.features import FEATURES
from tests.support.live import prepare_spawn
from tests.support.road import MAIN, Program, attached, reload

pytestmark = [pytest.mark.live, pytest.mark.slow]

PATIENT = RetirePolicy(max_stop_ms=5000)  # a loaded machine must not decide a test
FLAGS = (
    "gcc -O0", "gcc -O1 -g", "gcc -O2", "gcc -O3 -g", "gcc -Os", "gcc -O2 -fPIC",
    "gcc -O0 -fPIC -g",
    "gcc -O2 -fno-pie -no-pie", "gcc -O0 -fno-pie -no-pie", "gcc -O3 -fno-pie -no-pie -fno-plt",
    "gcc -O2 -ffunction-sections -fdata-sections",
    "gcc -O3 -fno-pie -no-pie -ffunction-sections -fdata-sections",
    "gcc -O2 -fcommon", "gcc -O2 -fcf-protection=none -fno-plt",
    "gcc -O1 -fcf-protection=full -mcmodel=small",
    "clang -O0", "clang -O1 -g", "clang -O2", "clang -O3", "clang -Os -fPIC",
    "clang -O2 -fno-pie -no-pie",
    "clang -O2 -ffunction-sections -fdata-sections -fno-plt",
    "clang -O3 -fcommon -fcf-protection=full -g",
)  # fmt: skip


class Built:
    """All features in one program, and the objects of their other versions."""

    def __init__(self, folder: Path, flags: str) -> None:
        compiler, *words = flags.split()
        link = [word for word in words if word == "-no-pie"]
        if "-fdata-sections" in words:
            link.append("-Wl,--gc-sections")
        self.program = Program(folder, [w for w in words if w != "-no-pie"], link, compiler)
        texts = {feature.name: feature.text for feature in FEATURES}
        later = {feature.name: feature.second() for feature in FEATURES}
        self.first = self.compile("first", {"main": MAIN, "dispatch": dispatcher(), **texts})
        self.second = self.compile("second", later)

    def compile(self, kind: str, texts: dict[str, str]) -> dict[str, bytes]:
        """Compile texts as NAME.c, in a folder of their own; return the objects."""
        folder = self.program.folder / kind
        folder.mkdir()
        for name, text in texts.items():
            (folder / f"{name}.c").write_text(text)
        command = [self.program.cc, *self.program.flags, "-c"]

        def run(names: list[str]) -> None:
            subprocess.run([*command, *(f"{name}.c" for name in names)], cwd=folder, check=True)

        with ThreadPoolExecutor(2) as pool:
            list(pool.map(run, [list(texts)[::2], list(texts)[1::2]]))
        return {name: (folder / f"{name}.o").read_bytes() for name in texts}

    def put(self, objects: dict[str, bytes], *names: str) -> list[Path]:
        """Place some objects where the build wrote them."""
        paths = [self.program.folder / f"{name}.o" for name in names]
        for path, name in zip(paths, names, strict=True):
            path.write_bytes(objects[name])
        return paths

    def ask(self, feature: Feature, number: int) -> int:
        row = FEATURES.index(feature)
        return self.program.ask(row * 1000 + number)

    def start(self) -> None:
        self.put(self.first, *self.first)
        self.program.link()
        self.program.start()


def dispatcher() -> str:
    """Return C that calls features, every second one through a constant table."""
    names = [feature.name for feature in FEATURES]
    lines = [f"int {name}(int);" for name in names]
    lines += ["static int (*const table[])(int) = {", *(f"{name}," for name in names), "};"]
    lines += ["int answer(int n) { switch (n / 1000) {"]
    lines += [
        f"case {row}: return {name}(n % 1000);" for row, name in enumerate(names) if row % 2
    ]
    return "\n".join([*lines, "} return table[n / 1000](n % 1000); }"])


@pytest.fixture(params=FLAGS)
def built(tmp_path: Path, request: pytest.FixtureRequest) -> Generator[Built]:
    made = Built(tmp_path, request.param)
    yield made
    made.program.stop()


def test_every_feature_is_replaced_and_comes_back(built: Built) -> None:
    built.start()
    wrong: list[str] = []

    def check(feature: Feature, when: str, answers: tuple[tuple[int, int], ...]) -> None:
        wrong.extend(
            f"{feature.name} {when}: {number} gives {got}, not {expected}"
            for number, expected in answers
            if (got := built.ask(feature, number)) != expected
        )

    with attached(built.program) as session:
        session.retiring.retirer.policy = PATIENT
        for feature in FEATURES:
            check(feature, "before", feature.before)
            outcome = reload(session, *built.put(built.second, feature.name))
            if outcome.state != "live":
                wrong.append(f"{feature.name} {outcome.state}: {outcome.error}")
                continue
            check(feature, "after", feature.after)
        session.retiring.attempt()
        names = [feature.name for feature in FEATURES]
        outcome = reload(session, *built.put(built.first, *names))
        assert (outcome.state, outcome.error) == ("live", "")
        for feature in FEATURES:
            check(feature, "back", feature.back or feature.before)
    assert not wrong, "\n".join(wrong)
    assert built.program.stop() == 0


THREADS = """
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
int compute(int n);
static atomic_int newest, leave;
static atomic_long wrong;
static _Atomic long calls[8];
static void *work(void *argument)
{
    long row = (long)argument;
    while (!leave) {
        int earliest = newest;
        int answer = compute((int)row);
        int version = (answer - (int)row) / 1000;
        if (answer != version * 1000 + (int)row || version < earliest) wrong++;
        if (++calls[row] % 64 == 0) sched_yield();
    }
    return NULL;
}
/* version n is live now;
    returns how many answers were wrong, after each thread was heard twice more */
int main(void)
{
    pthread_t threads[8];
    char line[64];
    setvbuf(stdout, NULL, _IOLBF, 0);
    for (long i = 0; i < 8; i++) pthread_create(&threads[i], NULL, work, (void *)i);
    puts("ready");
    while (fgets(line, sizeof line, stdin)) {
        long before[8];
        newest = atoi(line);
        for (int i = 0; i < 8; i++) before[i] = calls[i];
        for (int i = 0; i < 8; i++) while (calls[i] < before[i] + 2) sched_yield();
        printf("%ld\\n", (long)wrong);
    }
    leave = 1;
    for (int i = 0; i < 8; i++) pthread_join(threads[i], NULL);
    return (int)wrong;
}
"""
COMPUTE = """
static int count;
static int version = VERSION0;
__attribute__((noinline)) static int inner(int n) { return VERSION * 1000 + n; }
int compute(int n) { __atomic_fetch_add(&count, 1, __ATOMIC_RELAXED);
    return inner(n) + 0 * version; }
"""


@pytest.mark.parametrize("flags", ["gcc -O2", "gcc -O0 -fno-pie -no-pie", "clang -O2"])
def test_eight_threads_get_old_or_new_answers_while_it_is_reloaded_again_and_again(
    tmp_path: Path, flags: str
) -> None:
    compiler, *words = flags.split()
    link = [word for word in words if word == "-no-pie"]
    program = Program(tmp_path, [w for w in words if w != "-no-pie"], link, compiler)
    text = COMPUTE.replace("VERSION0", "1")
    program.compile(main=THREADS, compute=text.replace("VERSION", "1"))
    program.link()
    program.start()
    try:
        with attached(program) as session:
            session.retiring.retirer.policy = PATIENT
            for version in range(2, 18):
                edited = program.compile(compute=text.replace("VERSION", str(version)))
                outcome = reload(session, *edited)
                assert (outcome.state, outcome.error) == ("live", "")
                assert program.ask(version) == 0
                session.retiring.attempt()
            waiting = len(session.retiring.retirer.waiting)
            assert waiting < 10, waiting
    finally:
        assert program.stop() == 0


LEAVING = """
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>
int wait_for(int n);
int depth(int n);
int cleaned;
static void *work(void *argument) { return (void *)(long)wait_for((int)(long)argument); }
int main(void)
{
    char line[64];
    setvbuf(stdout, NULL, _IOLBF, 0);
    puts("ready");
    while (fgets(line, sizeof line, stdin)) {
        int n = atoi(line);
        if (n >= 100) { printf("%d\\n", depth(n - 100)); continue; }
        pthread_t thread;
        void *result;
        pthread_create(&thread, NULL, work, (void *)(long)n);
        pthread_cancel(thread);
        pthread_join(thread, &result);
        printf("%d\\n", result == PTHREAD_CANCELED ? cleaned : -1);
    }
    return 0;
}
"""
CLEANED = """
#include <pthread.h>
#include <unistd.h>
extern int cleaned;
static void clean(int *value) { cleaned += *value * FACTOR; }
int wait_for(int n)
{
    int mine __attribute__((cleanup(clean))) = n;
    for (;;) pause();
    return mine;
}
"""
TRACED = """
#include <execinfo.h>
#include <string.h>
int main(void);
int depth(int n);
__attribute__((noinline)) static int innermost(int n)
{
    void *frames[100];
    int count = backtrace(frames, 100);
    return FACTOR * 1000 + count - n;
}
__attribute__((noinline)) int depth(int n)
{
    volatile int result = n > 0 ? depth(n - 1) + 1 : innermost(0);
    return result;
}
"""


@contextmanager
def entered(program: Program, way: str) -> Generator[Session]:
    """Start a program and open a session: `attach` beside it, `agent` started with it."""
    if way == "attach":
        program.start()
        with attached(program) as session:
            yield session
        return
    argv, env, theirs, ours = prepare_spawn([str(program.executable)], os.environ)
    program.process = subprocess.Popen(
        argv,
        env=env,
        pass_fds=[theirs],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    os.close(theirs)
    adopted = adopt(program.process.pid, socket.socket(fileno=ours))
    watched = [(str(path), path.read_bytes()) for path in sorted(program.folder.glob("*.o"))]
    store = Store.open(program.folder / ".reloader")
    session = Session.open(adopted.process, store, watched, how="run")
    session.owns_store = True
    adopted.release()
    assert program.line() == "ready"
    try:
        yield session
    finally:
        session.close()


@pytest.mark.parametrize("way", ["attach", "agent"])
@pytest.mark.parametrize("flags", ["gcc -O2", "gcc -O0 -fno-pie -no-pie", "clang -O2"])
def test_unwinders_pass_through_reloaded_frames(tmp_path: Path, flags: str, way: str) -> None:
    compiler, *words = flags.split()
    link = [word for word in words if word == "-no-pie"]
    words = [w for w in words if w != "-no-pie"] + ["-fexceptions"]
    program = Program(tmp_path, words, link, compiler)
    factor = "FACTOR"
    program.compile(
        main=LEAVING, cleaned=CLEANED.replace(factor, "1"), traced=TRACED.replace(factor, "1")
    )
    program.link()
    with entered(program, way) as session:
        session.retiring.retirer.policy = PATIENT
        frames = program.ask(100) - 1000
        assert frames >= 3
        assert program.ask(103) == 1000 + frames + 6
        assert program.ask(5) == 5
        total = 5
        for number in (2, 3, 4):
            edited = program.compile(
                cleaned=CLEANED.replace(factor, str(number)),
                traced=TRACED.replace(factor, str(number)),
            )
            outcome = reload(session, *edited)
            assert (outcome.state, outcome.error) == ("live", "")
            total += 7 * number
            assert program.ask(7) == total
            assert program.ask(100) == number * 1000 + frames
            assert program.ask(103) == number * 1000 + frames + 6
            session.retiring.attempt()
    assert program.ask(1) == total + 4
    assert program.stop() == 0


@pytest.mark.parametrize("way", ["attach", "agent"])
def test_a_debugger_can_look_at_a_program_that_was_reloaded(tmp_path: Path, way: str) -> None:
    program = Program(tmp_path, ("-O2", "-g", "-fexceptions"))
    factor = "FACTOR"
    program.compile(
        main=LEAVING, cleaned=CLEANED.replace(factor, "1"), traced=TRACED.replace(factor, "1")
    )
    program.link()
    with entered(program, way) as session:
        edited = program.compile(cleaned=CLEANED.replace(factor, "2"))
        assert reload(session, *edited).state == "live"
        assert program.ask(7) == 14
        assert program.process is not None
        command = ["gdb", "-nx", "-q", "-batch", "-p", str(program.process.pid)]
        done = subprocess.run(
            [*command, "-ex", "print cleaned", "-ex", "info threads", "-ex", "detach"],
            stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=100, check=True,
        )  # fmt: skip
        assert "$1 = 14" in done.stdout
        assert '"reloader"' in done.stdout
        assert program.ask(1) == 16
    assert program.stop() == 0
