"""Old code is freed when nothing in a real process holds an address in it, and not before."""

import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest

from reloader.ids import Addr, Generation, Region
from reloader.live.pagemap import PAGE, without
from reloader.live.retire import Retirement, RetirePolicy, Retirer, holders
from reloader.live.scan import Memory, Ranges, Sieve
from reloader.live.target import Allocation
from tests.support.redirect import Child, compiled

pytestmark = pytest.mark.live

NOTHING = np.empty(0, np.uint64)
PATIENT = RetirePolicy(max_stop_ms=2000)  # a loaded machine must not decide a test

# The region stands for old code. Its address is kept masked, and every use of it happens far
# down on the stack, so that only what a command asks for holds it.
PROGRAM = r"""
#define _GNU_SOURCE
#include <alloca.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#define K 0x5a5a5a5a5a5a5a5aul
static unsigned long secret;
static void *volatile global;
static __thread void *volatile local_one;
static void *volatile *cell, *volatile *hidden, *volatile *shared;
static volatile char leave;
static atomic_int ready;
static int threads;
static pthread_t thread;
#define AT(offset) ((void *)((secret ^ K) + (offset)))

static void *on_stack(void *unused)
{
    void *volatile mine = AT(64);
    ready = 1;
    while (!leave) __asm__ volatile("pause");
    mine = 0;
    return mine ? unused : 0;
}
static void *in_register(void *unused)
{
    __asm__ volatile("mov %0, %%r12\n mov %1, %%rax\n xor %%rax, %%r12\n xor %%eax, %%eax\n"
        "add $64, %%r12\n movl $1, %2\n 1: pause\n cmpb $0, %3\n je 1b\n xor %%r12d, %%r12d\n"
        :: "m"(secret), "i"(K), "m"(ready), "m"(leave) : "rax", "r12", "memory");
    return unused;
}
static void *in_vector(void *unused)
{
    __asm__ volatile("movabs %1, %%rax\n xor %0, %%rax\n movq %%rax, %%xmm7\n"
        "xor %%eax, %%eax\n movl $1, %2\n 1: pause\n cmpb $0, %3\n je 1b\n"
        "pxor %%xmm7, %%xmm7\n"
        :: "m"(secret), "i"(K), "m"(ready), "m"(leave) : "rax", "xmm7", "memory");
    return unused;
}
static void spin(void *(*function)(void *))
{
    leave = 0, ready = 0, threads = 1;
    pthread_create(&thread, 0, function, 0);
    while (!ready) ;
}
static unsigned long mangled(unsigned long word)
{
    __asm__("xor %%fs:0x30, %0\n rol $17, %0" : "+r"(word));
    return word;
}
__attribute__((noipa)) static void deep(const char *what)
{
    volatile char *pad = alloca(1 << 16);
    pad[0] = 1;
    if (!strcmp(what, "start")) {
        secret = (unsigned long)mmap(0, 8 * 4096, PROT_READ | PROT_WRITE,
            MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) ^ K;
        cell = calloc(1, 4000);
        hidden = mmap(0, 4096, 3, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        shared = mmap(0, 4096, 3, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    }
    if (!strcmp(what, "global")) global = AT(64);
    if (!strcmp(what, "heap")) cell[9] = AT(64);
    if (!strcmp(what, "tls")) local_one = AT(64);
    if (!strcmp(what, "mangled")) cell[9] = (void *)mangled((unsigned long)AT(64));
    if (!strcmp(what, "shared")) shared[3] = AT(64);
    if (!strcmp(what, "hidden")) { hidden[3] = AT(64); mprotect((void *)hidden, 4096, 0); }
    if (!strcmp(what, "inner")) *(void **)AT(4096) = AT(64);
    if (!strcmp(what, "second")) cell[9] = AT(4096);
    if (!strcmp(what, "breakpoint")) *(char *)AT(64) = (char)0xcc;
    if (!strcmp(what, "stale")) { void *volatile mine = AT(64); (void)mine; }
    if (!strcmp(what, "stack")) spin(on_stack);
    if (!strcmp(what, "register")) spin(in_register);
    if (!strcmp(what, "vector")) spin(in_vector);
    if (!strcmp(what, "clear")) {
        mprotect((void *)hidden, 4096, 3);
        global = local_one = cell[9] = shared[3] = hidden[3] = 0;
        memset(AT(0), 0, 8 * 4096);
        leave = 1;
        if (threads) pthread_join(thread, 0);
        threads = 0;
    }
}
int main(void)
{
    char line[80];
    prctl(PR_SET_PTRACER, PR_SET_PTRACER_ANY);
    deep("start");
    printf("%lu\n", secret);
    fflush(stdout);
    while (fgets(line, sizeof line, stdin)) {
        line[strcspn(line, "\n")] = 0;
        deep(line);
        puts("done");
        fflush(stdout);
    }
    return 0;
}
"""


class Old(Child):
    """The program above, and its region as old code of generation 3."""

    def __init__(self, program: Path) -> None:
        super().__init__(program)
        self.region = int(self.line()) ^ 0x5A5A5A5A5A5A5A5A

    def do(self, what: str) -> None:
        assert self.ask(what) == "done"

    def part(self, page: int = 0, region: int = Region.CODE) -> Allocation:
        return Allocation(region, Addr(self.region + page * PAGE), PAGE)

    def retirement(
        self, page: int = 0, *references: int, region: int = Region.CODE
    ) -> Retirement:
        return Retirement(
            Generation(3), ("/hud.o", ""), (self.part(page, region),), frozenset(references)
        )


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compiled(tmp_path_factory.mktemp("retire"), PROGRAM, "-O1", "-g")


@pytest.fixture
def old(program: Path) -> Iterator[Old]:
    child = Old(program)
    yield child
    assert child.end() == 0


def queue(*retirements: Retirement, policy: RetirePolicy = PATIENT) -> Retirer:
    retirer = Retirer(policy)
    for retirement in retirements:
        retirer.add(retirement)
    return retirer


def test_unreachable_code_is_freed_after_one_stop(old: Old) -> None:
    retirer = queue(old.retirement())
    order: list[str] = old.told

    def release(rows: Sequence[Retirement]) -> None:
        order.append(f"release {len(rows)}")

    report = retirer.attempt(old, NOTHING, release)
    assert (report.outcome, report.freed_size, report.holders) == ("freed", PAGE, [])
    assert order == ["discard 1", "synchronise", "release 1"]
    assert old.notes.freed == [old.part()]
    assert (retirer.waiting, retirer.stop_count, old.stops) == ([], 1, 1)
    assert report.stop_us > 0
    assert retirer.attempt(old, NOTHING).outcome == "nothing"


@pytest.mark.parametrize(
    ("what", "kind", "stops"),
    [
        ("global", "global", 0),
        ("heap", "heap", 0),
        ("tls", "memory", 0),
        ("shared", "global", 0),
        ("hidden", "memory", 0),
        ("stack", "stack", 1),
        ("register", "register", 1),
        ("vector", "register", 1),
        ("mangled", "heap", 1),
    ],
)
def test_a_word_anywhere_keeps_old_code_until_it_goes(
    old: Old, what: str, kind: str, stops: int
) -> None:
    old.do(what)
    retirer = queue(old.retirement())
    report = retirer.attempt(old, NOTHING)
    assert report.outcome == "held"
    assert kind in {holder.kind for holder in report.holders}
    assert all(old.region <= holder.value < old.region + PAGE for holder in report.holders)
    assert old.notes.freed == []
    assert old.stops == stops
    old.do("clear")
    assert retirer.attempt(old, NOTHING).outcome == "freed"


def test_what_a_returned_call_left_below_the_stack_pointer_holds_nothing(old: Old) -> None:
    old.do("stale")
    assert queue(old.retirement()).attempt(old, NOTHING).outcome == "freed"


def test_a_slot_that_still_names_it_keeps_it(old: Old) -> None:
    named = np.array([5, old.region + 8], np.uint64)
    report = queue(old.retirement()).attempt(old, named)
    assert report.outcome == "held"
    assert [(h.kind, h.value) for h in report.holders] == [("slot", old.region + 8)]
    assert old.stops == 0


def test_held_code_keeps_what_it_refers_to(old: Old) -> None:
    old.do("heap")
    constants = old.retirement(4, region=Region.RODATA)
    alone = old.retirement(6)
    retirer = queue(constants, old.retirement(0, old.region + 4 * PAGE + 16), alone)
    report = retirer.attempt(old, NOTHING)
    assert (report.outcome, report.freed) == ("freed", [alone])
    assert retirer.waiting[0] == constants
    old.do("clear")
    assert retirer.attempt(old, NOTHING).freed_size == 2 * PAGE


def test_old_data_keeps_old_code_only_while_it_is_held_itself(old: Old) -> None:
    old.do("inner")
    old.do("second")
    code, data = old.retirement(), old.retirement(1, region=Region.DATA)
    retirer = queue(code, data)
    assert retirer.attempt(old, NOTHING).outcome == "held"
    old.do("heap")  # takes the place of the word that held the data
    assert retirer.attempt(old, NOTHING).freed == [data]
    old.do("clear")
    old.do("inner")
    assert queue(code, data).attempt(old, NOTHING).freed == [code, data]


def test_a_breakpoint_in_old_code_keeps_it(old: Old) -> None:
    old.do("breakpoint")
    report = queue(old.retirement()).attempt(old, NOTHING)
    assert [(h.kind, h.addr) for h in report.holders] == [("breakpoint", old.region)]
    old.do("clear")  # the copy of the page remains, its bytes are the old ones again
    assert queue(old.retirement()).attempt(old, NOTHING).outcome == "freed"


def test_an_attached_debugger_keeps_everything(old: Old) -> None:
    text = (
        "import sys; from reloader.live import ptrace as p;"
        f"p.ptrace(p.PTRACE_SEIZE, {old.pid}); print('seized', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", text], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as tracer:
        assert tracer.stdout is not None
        assert tracer.stdout.readline() == "seized\n"
        report = queue(old.retirement()).attempt(old, NOTHING)
        assert tracer.stdin is not None
        tracer.stdin.close()
        assert tracer.wait(30) == 0
    assert report.outcome == "traced"
    assert f"({tracer.pid}) traces the program" in report.reason
    assert old.stops == 0
    assert queue(old.retirement()).attempt(old, NOTHING).outcome == "freed"


def test_more_memory_than_the_bound_allows_is_not_looked_at_under_a_stop(old: Old) -> None:
    retirer = queue(old.retirement(), policy=RetirePolicy(max_stop_ms=0.000001))
    report = retirer.attempt(old, NOTHING)
    assert (report.outcome, report.freed, old.stops) == ("too-large", [], 0)
    assert report.reason.startswith("a proof has to look at ")
    assert report.reason.endswith("ms, the bound is 1e-06 ms")
    assert len(retirer.waiting) == 1


def test_a_proof_that_reaches_its_bound_frees_nothing(old: Old) -> None:
    retirer = queue(old.retirement(), policy=RetirePolicy(max_stop_ms=0.0001))
    retirer.rate = 1e18  # expects to be done in no time
    report = retirer.attempt(old, NOTHING)
    assert (report.outcome, report.freed, old.stops) == ("interrupted", [], 1)
    assert report.reason == "the proof did not end within 0.0001 ms"
    assert old.notes.freed == []


def test_attempts_back_off_while_vetoed_and_start_afresh_with_new_work(old: Old) -> None:
    policy = RetirePolicy(min_interval=1, longest_interval=10, quiet=-np.inf)
    assert [policy.next_due(100.0, vetoes) for vetoes in range(6)] == [
        101, 102, 104, 108, 110, 110,
    ]  # fmt: skip
    retirer = queue(policy=policy)
    assert retirer.due() == np.inf
    retirer.add(old.retirement())
    assert retirer.due() == -np.inf
    named = np.array([old.region], np.uint64)
    retirer.attempt(old, named)
    after_one = retirer.due()
    retirer.add(old.retirement(2))
    assert after_one - retirer.due() == pytest.approx(1)


def test_an_attempt_waits_for_a_quiet_moment_but_not_for_ever(old: Old) -> None:
    policy = RetirePolicy(quiet=10, patience=25)
    assert policy.after_quiet(oldest=100.0, youngest=100.0) == 110
    assert policy.after_quiet(oldest=100.0, youngest=112.0) == 122
    assert policy.after_quiet(oldest=100.0, youngest=119.0) == 125
    retirer = queue(policy=policy)
    retirer.add(old.retirement())
    first = retirer.due()
    retirer.add(old.retirement(2))
    assert retirer.due() > first > -np.inf
    retirer.attempt(old, np.zeros(0, np.uint64))  # a caller that does not wait is served
    assert retirer.due() == np.inf


def test_why_names_each_holder(old: Old) -> None:
    old.do("global")
    old.do("stack")
    where = old.address("global")
    span = (old.region, old.region + PAGE)

    def symbolise(addr: int) -> str:
        return "global" if addr == where else ""

    found = holders(old, [span], symbolise)
    assert {(h.kind, h.addr, h.symbol) for h in found} >= {("global", where, "global")}
    stack = next(h for h in found if h.kind == "stack")
    assert stack.where == f"stack of thread {stack.tid} at {stack.addr:#x}"
    assert stack.tid != old.pid
    old.do("clear")
    assert holders(old, [span]) == []


def test_both_ways_to_list_pages_agree(old: Old) -> None:
    with Memory(old.pid) as memory:
        mappings = old.maps()
        quick = memory.pagemap.own_pages(mappings)
        memory.pagemap.can_scan = False
        plain = memory.pagemap.own_pages(mappings)
        assert without(quick, plain) == []
        for start, end in without(plain, quick):  # zero pages that were only read
            assert not old.read(Addr(start), end - start).any()


def test_areas_are_cut_at_holes() -> None:
    assert without([(0, 10), (20, 30)], []) == [(0, 10), (20, 30)]
    assert without([(0, 10), (20, 30)], [(0, 10), (25, 26)]) == [(20, 25), (26, 30)]
    assert without([(0, 100)], [(0, 10), (5, 20), (90, 200)]) == [(20, 90)]


@pytest.mark.parametrize("guard", [None, 0, 0xDEADBEEF12345678])
def test_the_sieve_misses_no_pointer(guard: int | None) -> None:
    ranges = Ranges.of([(0x7000_1000, 0x7000_2000, 5), (0x7004_0000, 0x7004_3000, 9)], guard)
    sieve = Sieve(ranges)
    seed = np.random.default_rng(1)
    words = seed.integers(0x6FFF_0000, 0x7006_0000, 60000, dtype=np.uint64)
    if guard is not None:
        mixed = words[::2] ^ np.uint64(guard)
        words[::2] = (mixed << np.uint64(17)) | (mixed >> np.uint64(47))
    plain = ranges.plain(words)
    true = np.flatnonzero(ranges.row(plain) >= 0)
    assert len(true) > 1000
    passing = sieve.passing(words)
    assert np.isin(true, passing).all()
    if guard is not None:
        assert (true % 2 == 0).sum() > 500


def test_a_scan_gives_the_address_and_value_of_each_word(old: Old) -> None:
    old.do("heap")
    old.do("global")
    ranges = Ranges.of([(old.region, old.region + PAGE, 7)])
    where = old.address("global")
    with Memory(old.pid) as memory:
        hits = memory.scan(memory.pagemap.areas(old.maps()), ranges)
        page = where & -PAGE
        around = memory.scan([(0x1000, 0x4000), (page, page + PAGE), (0x8000, 0x9000)], ranges)
    assert around.addr.tolist() == [where]
    assert around.scanned_size == PAGE
    assert where in hits.addr.tolist()
    for addr, value in zip(hits.addr.tolist(), hits.value.tolist(), strict=True):
        assert int(old.read(Addr(addr), 8).view(np.uint64)[0]) == value == old.region + 64
