"""Programs too large for one stop: the kernel follows their writes, and they notice nothing."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import numpy as np
import pytest

from reloader.ids import Generation, Region
from reloader.live import dirty
from reloader.live.dirty import CannotTrackError, WriteTracker, guessed_cuts, told_cuts
from reloader.live.halt import Halt, Halter, ListAreas
from reloader.live.inject import attach
from reloader.live.pagemap import Pagemap, total
from reloader.live.retire import Retirement, RetirePolicy, Retirer, RetireReport
from reloader.live.target import Allocation, Target
from tests.support.live import compile_text, hear, running, say

pytestmark = pytest.mark.live

NOTHING = np.empty(0, np.uint64)
PATIENT = RetirePolicy(max_stop_ms=500)  # a loaded machine must not decide a test

PROGRAM = r"""
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>
#define K 0x5a5a5a5a5a5a5a5aul
#define PAGE 4096ul
static unsigned long secret, size;
static char *heap, *page, *shared, *small;
static volatile int leave;
static pthread_t threads[64];
static int count;
#define CHECK(fact) do { if (!(fact)) { printf("line %d: %s (errno %d)\n", __LINE__, #fact, errno); return; } } while (0)
#define HIDE(where) (*(volatile unsigned long *)(where) = secret ^ K)

static char *map(unsigned long bytes, int flags) { return mmap(0, bytes, 3, flags | MAP_ANONYMOUS, -1, 0); }
static void *write_slowly(void *unused)
{
    for (unsigned long at = 0; !leave; at = (at + PAGE) % size) { heap[at + 100]++; usleep(200); }
    return unused;
}
static void *spin(void *unused)
{
    while (!leave) __asm__ volatile("pause");
    return unused;
}
static volatile int handled;
static void handler(int number) { volatile char room[5000]; room[0] = (char)number; handled += room[0]; }
static void *small_thread(void *room) { volatile char mine[100]; mine[3] = 7; *(char *)room = mine[3]; return room; }

/* What the kernel writes, and what a program does to its mappings; every page is protected before. */
static void reads(void)
{
    int p[2], s[2];
    char *at = page;
    struct iovec parts[3] = {{at + PAGE - 2, 4}, {at + 4 * PAGE, 3}, {at + 6 * PAGE - 1, 2}};
    CHECK(!pipe(p) && !socketpair(AF_UNIX, SOCK_STREAM, 0, s));
    CHECK(write(p[1], "123456789", 9) == 9 && readv(p[0], parts, 3) == 9);
    CHECK(!memcmp(at + PAGE - 2, "1234", 4) && at[4 * PAGE] == '5' && at[6 * PAGE] == '9');
    CHECK(write(s[1], "abcdef", 6) == 6 && recv(s[0], at + 8 * PAGE, 6, 0) == 6 && at[8 * PAGE + 5] == 'f');
    CHECK(getcwd(at + 9 * PAGE, 4000) && at[9 * PAGE] == '/');
    CHECK(!pipe((int *)(at + 10 * PAGE)));
    int zero = open("/dev/zero", O_RDONLY);
    CHECK(zero >= 0 && read(zero, at + 11 * PAGE, 20 * PAGE) == (long)(20 * PAGE) && !at[15 * PAGE]);
    unsigned length = sizeof(int);
    CHECK(!getsockopt(s[0], SOL_SOCKET, SO_TYPE, at + 32 * PAGE, &length) && *(int *)(at + 32 * PAGE) == SOCK_STREAM);
    struct iovec from = {"remote", 6}, to = {at + 33 * PAGE, 6};
    CHECK(process_vm_writev(getpid(), &from, 1, &to, 1, 0) == 6 && at[33 * PAGE + 5] == 'e');
    puts("fine");
}
static void maps(void)
{
    char *at = page;
    CHECK(!mprotect(at, 4 * PAGE, PROT_READ) && !mprotect(at, 4 * PAGE, 3) && (at[1] = 5) == 5);
    CHECK(!munmap(at + 4 * PAGE, PAGE));
    CHECK(mmap(at + 4 * PAGE, PAGE, 3, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == at + 4 * PAGE);
    CHECK(!at[4 * PAGE] && (at[4 * PAGE] = 3) == 3);
    char *moved = mremap(at + 8 * PAGE, 4 * PAGE, 8 * PAGE, MREMAP_MAYMOVE);
    CHECK(moved != MAP_FAILED && moved[1] == 9 && (moved[7 * PAGE] = 1) == 1 && (moved[1] = 2) == 2);
    CHECK(mremap(moved, 8 * PAGE, 2 * PAGE, 0) == moved && moved[1] == 2);
    CHECK(!madvise(at + 12 * PAGE, PAGE, MADV_DONTNEED) && !at[12 * PAGE + 1] && (at[12 * PAGE] = 1) == 1);
    CHECK(!madvise(at + 13 * PAGE, PAGE, MADV_FREE) && (at[13 * PAGE + 1] = 8) == 8);
    CHECK(!madvise(at, 4 * PAGE, MADV_HUGEPAGE) && !madvise(at, 4 * PAGE, MADV_NOHUGEPAGE));
    CHECK(!mlock(at + 14 * PAGE, PAGE) && !munlock(at + 14 * PAGE, PAGE));
    char *end = sbrk(64 * PAGE);
    CHECK(end != (void *)-1 && (end[5 * PAGE] = 4) == 4);
    char *grown = realloc(malloc(1 << 20), 8 << 20);
    CHECK(grown);
    for (unsigned long size = 8; size < 64; size += 8) CHECK((grown = realloc(grown, size << 20)) && (grown[size - 8] = 1));
    free(grown);
    int status = 1, child = fork();
    if (!child) {
        for (int i = 16; i < 30; i++) if (at[i * PAGE + 1] != 9) _exit(2); else at[i * PAGE + 1] = 1;
        _exit(0);
    }
    CHECK(child > 0 && waitpid(child, &status, 0) == child && !status && at[20 * PAGE + 1] == 9);
    at[20 * PAGE + 1] = 8;
    stack_t stack = {.ss_sp = at + 32 * PAGE, .ss_size = 16 * PAGE}, off = {.ss_flags = SS_DISABLE};
    struct sigaction action = {.sa_handler = handler, .sa_flags = SA_ONSTACK};
    CHECK(!sigaltstack(&stack, 0) && !sigaction(SIGUSR1, &action, 0));
    raise(SIGUSR1);
    CHECK(handled == SIGUSR1 && !sigaltstack(&off, 0));
    pthread_attr_t how;
    pthread_t thread;
    CHECK(!pthread_attr_init(&how) && !pthread_attr_setstack(&how, at + 48 * PAGE, 16 * PAGE));
    CHECK(!pthread_create(&thread, &how, small_thread, at + 31 * PAGE) && !pthread_join(thread, 0));
    CHECK(at[31 * PAGE] == 7 && mmap(at + 8 * PAGE, 4 * PAGE, 3, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) != MAP_FAILED);
    puts("fine");
}
static void answer(const char *what)
{
    if (!strcmp(what, "reads")) return reads();
    if (!strcmp(what, "maps")) return maps();
    if (!strcmp(what, "fresh"))
        for (unsigned long at = 0; at < 64 * PAGE; at += PAGE) page[at + 1] = 9;
    if (!strcmp(what, "slow")) pthread_create(threads + count++, 0, write_slowly, 0);
    if (!strcmp(what, "spin")) while (count < 64) pthread_create(threads + count++, 0, spin, 0);
    if (!strcmp(what, "heap")) HIDE(heap + size / 2);
    if (!strcmp(what, "kernel")) {
        int p[2];
        unsigned long word = secret ^ K;
        if (!pipe(p) && write(p[1], &word, 8) == 8 && read(p[0], heap + size / 4, 8) == 8) word = 0;
        __asm__ volatile("" :: "r"(&word) : "memory");
    }
    if (!strcmp(what, "new")) HIDE(map(8 * PAGE, MAP_PRIVATE) + PAGE);
    if (!strcmp(what, "moved")) HIDE(mremap(page, 4 * PAGE, 128 * PAGE, MREMAP_MAYMOVE) + PAGE);
    if (!strcmp(what, "hidden")) { HIDE(page + 64); mprotect(page, PAGE, 0); }
    if (!strcmp(what, "brk")) HIDE((char *)sbrk(2 * PAGE) + 64);
    if (!strcmp(what, "shared")) HIDE(shared + 6 * PAGE);
    if (!strcmp(what, "small")) HIDE(small + 64);
    if (!strcmp(what, "again")) { munmap(page, 4 * PAGE); page = mmap(page, 4 * PAGE, 3, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0); HIDE(page + PAGE); }
    puts("done");
}
int main(int argc, char **argv)
{
    char line[80];
    setvbuf(stdout, 0, _IOLBF, 0);
    size = argc > 1 ? strtoul(argv[1], 0, 0) << 20 : 16ul << 20;
    heap = map(size, MAP_PRIVATE);
    for (unsigned long at = 0; at < size; at += 64) heap[at] = (char)at;
    page = map(64 * PAGE, MAP_PRIVATE);
    answer("fresh");
    if (argc > 2) { shared = map(8 << 20, MAP_SHARED); memset(shared, 1, 8 << 20); }
    small = map(PAGE, MAP_SHARED);
    while (fgets(line, sizeof line, stdin)) {
        line[strcspn(line, "\n")] = 0;
        if (*line == '=') { secret = strtoul(line + 1, 0, 0); puts("done"); }
        else answer(line);
    }
    leave = 1;
    while (count) pthread_join(threads[--count], 0);
    return 0;
}
"""


class Large:
    """The program above with the agent in it, and a page of the arena as old code."""

    def __init__(self, child: subprocess.Popen[str]) -> None:
        self.child = child
        assert hear(child) == "done"
        self.process = attach(child.pid)
        self.target = cast("Target", self.process)
        self.part = self.process.arena.allocate(Region.CODE, 4096)
        assert self.ask(f"={self.part.addr + 64 ^ 0x5A5A5A5A5A5A5A5A}") == "done"

    def ask(self, text: str) -> str:
        say(self.child, text)
        return hear(self.child)

    def retirement(self, part: Allocation | None = None) -> Retirement:
        return Retirement(Generation(1), ("/hud.o", ""), (part or self.part,))

    def retirer(self, policy: RetirePolicy = PATIENT) -> Retirer:
        retirer = Retirer(policy)
        retirer.add(self.retirement())
        return retirer

    def flags(self) -> set[str]:
        """Return the flags of all mappings together."""
        text = Path(f"/proc/{self.child.pid}/smaps").read_text()
        lines = [line for line in text.splitlines() if line.startswith("VmFlags")]
        return {word for line in lines for word in line.split()[1:]}

    def descriptors(self) -> list[str]:
        return sorted(os.listdir(f"/proc/{self.child.pid}/fd"))


def start(*arguments: str) -> Iterator[Large]:
    with running([compile_text(PROGRAM, "writes"), *arguments]) as child:
        large = Large(child)
        yield large
        large.process.close()
        assert child.stdin is not None
        child.stdin.close()
        assert child.wait(30) == 0


@pytest.fixture
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is small enough to be looked at in one stop."""
    monkeypatch.setattr("reloader.live.retire._SMALL_SHARE", 0)


@pytest.fixture
def large() -> Iterator[Large]:
    yield from start()


@pytest.fixture
def sharing() -> Iterator[Large]:
    yield from start("4", "shared")


@pytest.fixture
def heavy() -> Iterator[Large]:
    yield from start("300")


@pytest.fixture
def pagemap(large: Large) -> Iterator[Pagemap]:
    pagemap = Pagemap(large.process.pid)
    yield pagemap
    pagemap.close()


def told(report: RetireReport) -> str:
    return (
        f"{report.outcome}: {report.scanned_size / 2**20:.1f} MiB in all,"
        f" {report.stop_size / 2**20:.2f} MiB under a stop of {report.stop_us / 1e3:.2f} ms"
    )


def test_a_large_program_is_stopped_for_what_it_wrote_last(heavy: Large) -> None:
    assert heavy.ask("slow") == "done"
    retirer = heavy.retirer()
    retirer.policy = RetirePolicy()  # the real bound decides what is too large for one stop
    report = retirer.attempt(heavy.target, NOTHING)
    print(told(report))
    assert (report.outcome, report.freed_size) == ("freed", 4096), report.reason
    assert report.scanned_size > 300 << 20
    assert report.stop_size < 4 << 20
    assert retirer.stop_count == 1
    assert "uw" not in heavy.flags()
    assert heavy.ask("reads") == "fine"


@pytest.mark.usefixtures("eager")
@pytest.mark.parametrize(
    "what", ["heap", "kernel", "new", "moved", "hidden", "brk", "small", "again"]
)
def test_a_pointer_that_appears_just_before_the_stop_is_seen(
    large: Large, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    _hides_before_the_stop(large, monkeypatch, what)


@pytest.mark.usefixtures("eager")
def test_a_pointer_that_appears_in_much_shared_memory_is_seen(
    sharing: Large, monkeypatch: pytest.MonkeyPatch
) -> None:
    _hides_before_the_stop(sharing, monkeypatch, "shared")


def _hides_before_the_stop(large: Large, monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    halt = Halter.halt

    def hide_and_halt(
        self: Halter, areas: ListAreas, longest: float, guard: int | None
    ) -> Halt:
        assert large.ask(what) == "done"
        return halt(self, areas, longest, guard)

    monkeypatch.setattr(Halter, "halt", hide_and_halt)
    retirer = large.retirer()
    report = retirer.attempt(large.target, NOTHING)
    assert report.outcome == "held", told(report) + report.reason
    assert {holder.value for holder in report.holders} == {large.part.addr + 64}
    assert 0 < report.stop_size < 4 << 20
    assert "uw" not in large.flags()


def test_the_program_is_registered_only_while_an_attempt_lasts(
    large: Large, pagemap: Pagemap
) -> None:
    before = large.descriptors()
    tracker = WriteTracker(large.target, pagemap)
    assert large.descriptors() == before
    assert "uw" in large.flags()
    everything = tracker.changed(large.process.maps(), protect=True)
    assert total(everything) > 16 << 20
    assert total(tracker.changed(large.process.maps(), protect=True)) < 1 << 20
    tracker.close()
    assert "uw" not in large.flags()
    assert large.descriptors() == before
    # and it may be done again at once
    tracker = WriteTracker(large.target, pagemap)
    assert total(tracker.changed(large.process.maps(), protect=True)) > 16 << 20
    tracker.close()


@pytest.mark.parametrize("what", ["reads", "maps"])
def test_no_call_of_the_program_fails_while_its_writes_are_followed(
    large: Large, pagemap: Pagemap, what: str
) -> None:
    tracker = WriteTracker(large.target, pagemap)
    tracker.changed(large.process.maps(), protect=True)
    assert large.ask(what) == "fine"
    tracker.changed(large.process.maps(), protect=True)
    tracker.close()
    assert large.ask("fresh") == "done"


def test_registration_cuts_no_mapping(large: Large, pagemap: Pagemap) -> None:
    before = len(large.process.maps())
    tracker = WriteTracker(large.target, pagemap)
    assert len(large.process.maps()) == before
    tracker.close()
    assert len(large.process.maps()) == before


def test_what_lines_tell_and_what_the_kernel_tells_are_the_same_cuts(large: Large) -> None:
    guessed = set(guessed_cuts(large.process.maps()))
    true = set(told_cuts(large.process.pid))
    names = {(int(m.start), int(m.end)): m.name for m in large.process.maps()}
    assert {names[cut] for cut in true - guessed} <= {""}  # random numbers' state
    assert {names[cut].strip("[]") for cut in guessed - true} <= {"vdso", names_of_ours(names)}


def names_of_ours(names: dict[tuple[int, int], str]) -> str:
    return next(name for name in names.values() if name.startswith("/memfd:reloader"))


def test_what_cannot_be_registered_is_asked_of_the_kernel(
    large: Large, pagemap: Pagemap, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dirty, "guessed_cuts", lambda _mappings: [])  # pyright: ignore
    tracker = WriteTracker(large.target, pagemap)
    assert total(tracker.changed(large.process.maps(), protect=True)) > 16 << 20
    tracker.close()


DAEMON = """
import sys
from typing import cast
from reloader.live.dirty import WriteTracker
from reloader.live.pagemap import Pagemap
from reloader.live.process import Process, reattach
process = reattach(int(sys.argv[1]))
tracker = WriteTracker(process, Pagemap(process.pid))
tracker.changed(process.maps(), protect=True)
print("tracks", flush=True)
sys.stdin.read()
"""


@pytest.mark.usefixtures("eager")
def test_a_daemon_that_is_killed_leaves_nothing_behind(large: Large) -> None:
    large.process.channel.set_field("daemon_pid", 0)
    command = [sys.executable, "-c", DAEMON, str(large.process.pid)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as daemon:
        assert daemon.stdout is not None
        assert daemon.stdout.readline() == "tracks\n"
        assert "uw" in large.flags()
        daemon.send_signal(signal.SIGKILL)
        daemon.wait(30)
    assert "uw" not in large.flags()
    large.process.claim()
    assert large.ask("reads") == "fine"
    assert large.ask("fresh") == "done"
    assert large.ask("maps") == "fine"
    assert large.retirer().attempt(large.target, NOTHING).outcome in {"freed", "too-large"}


@pytest.mark.usefixtures("eager")
def test_a_program_that_uses_userfaultfd_itself_is_left_alone(
    large: Large, pagemap: Pagemap
) -> None:
    fd, _ = large.process.channel.track_writes()
    assert dirty.obstacle(large.process.pid, []) == "the program uses userfaultfd itself"
    retirer = large.retirer(RetirePolicy(max_stop_ms=0.1))
    report = retirer.attempt(large.target, NOTHING)
    assert report.outcome == "too-large"
    assert "MiB under a stop: the program uses userfaultfd itself; " in report.reason
    assert retirer.stop_count == 0
    assert large.process.call(*large.process.resolve([b"close"]).tolist(), fd) == 0
    WriteTracker(large.target, pagemap).close()


def test_a_program_behind_a_filter_is_not_asked(pagemap: Pagemap) -> None:
    text = r"""
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stdio.h>
#include <sys/prctl.h>
int main(void)
{
    struct sock_filter all[] = {BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW)};
    struct sock_fprog program = {1, all};
    prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
    if (prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program)) return 1;
    puts("filtered");
    fflush(stdout);
    return getchar() != -1;
}
"""
    del pagemap
    with running([compile_text(text, "filtered")]) as child:
        assert hear(child) == "filtered"
        expected = "a seccomp filter watches the program's system calls"
        assert dirty.obstacle(child.pid, []) == expected


def test_a_target_without_an_agent_cannot_be_followed(large: Large, pagemap: Pagemap) -> None:
    class Bare:
        pid = large.process.pid

        def maps(self) -> list[object]:
            return []

    with pytest.raises(CannotTrackError, match=r"^the kernel does not tell what was written"):
        WriteTracker(cast("Target", Bare()), pagemap)


@pytest.mark.usefixtures("eager")
def test_a_stop_of_busy_threads_is_short(large: Large) -> None:
    assert large.ask("slow") == "done"
    assert large.ask("spin") == "done"
    process = large.process
    parts = [large.part, *(process.arena.allocate(Region.CODE, 4096) for _ in range(4))]
    retirer = Retirer(PATIENT)
    for part in parts:
        retirer.add(large.retirement(part))
        report = retirer.attempt(large.target, NOTHING)
        print(told(report))
        assert report.outcome == "freed", report.reason
        assert report.stop_us == process.last_stop_us
    print(f"longest {retirer.stop_us_longest / 1e3:.2f} ms of {retirer.stop_count}")


def test_a_watched_range_holds_but_is_not_freed(large: Large) -> None:
    stub, named = large.process.arena.allocate(Region.RODATA, 4096), large.part.addr + 64
    old = large.process.arena.allocate(Region.CODE, 4096)
    one = Retirement(Generation(1), ("/a.o", ""), (old,), watched=((named, named + 16),))
    two = Retirement(Generation(2), ("/b.o", ""), (stub,), watched=((named, named + 16),))
    retirer = Retirer(PATIENT)
    retirer.add(one)
    retirer.add(two)
    assert large.ask("heap") == "done"
    assert retirer.attempt(large.target, NOTHING).outcome == "held"
    assert large.ask(f"={0x5A5A5A5A5A5A5A5A}") == "done"
    assert large.ask("heap") == "done"  # a zero in its place
    report = retirer.attempt(large.target, np.array([named], np.uint64))
    assert [holder.kind for holder in report.holders] == ["slot"]
    report = retirer.attempt(large.target, NOTHING)
    assert (report.outcome, report.freed) == ("freed", [one, two])
    assert large.process.arena.used(Region.CODE) > 0  # what was watched stays
