"""Redirected into the real arena, superseded, and freed once the last thread has left."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import pytest

from reloader.arch.x86_64 import X86_64
from reloader.ids import Addr, Generation, Region, SlotId
from reloader.live.inject import attach
from reloader.live.patching import Patience, apply_redirects, undo_redirects
from reloader.live.process import Process
from reloader.live.redirect import plan_redirects
from reloader.live.retire import Retirement, RetirePolicy, Retirer
from reloader.live.target import Allocation, Target
from stubs.table import RESERVED
from tests.support.redirect import Child, compiled

pytestmark = pytest.mark.live

PATIENT = RetirePolicy(max_stop_ms=2000)  # a loaded machine must not decide a test
SLOT = SlotId(RESERVED)

SOURCE = """
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
volatile char leave;
volatile int entered;
__attribute__((noipa)) int answer(volatile char *until, volatile int *in) { return 1; }
static pthread_t thread;
static void *wait_inside(void *unused)
{
    return (void *)(long)answer(&leave, &entered);
}
int main(void)
{
    char line[80], gone = 1;
    int ignored;
    void *result;
    puts("ready");
    fflush(stdout);
    while (fgets(line, sizeof line, stdin)) {
        if (line[0] == 'a') printf("%d\\n", answer(&gone, &ignored));
        if (line[0] == 'e') {
            pthread_create(&thread, 0, wait_inside, 0);
            while (!entered) ;
            puts("inside");
        }
        if (line[0] == 'l') {
            leave = 1;
            pthread_join(thread, &result);
            printf("%ld\\n", (long)result);
        }
        fflush(stdout);
    }
    return 0;
}
"""


@dataclass(slots=True)
class Pair:
    """A program, and the real process as the road sees it."""

    child: Child
    process: Process
    target: Target


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Pair]:
    child = Child(compiled(tmp_path, SOURCE, "-O2"))
    assert child.line() == "ready"
    process = attach(child.pid)
    yield Pair(child, process, as_target(process))
    process.close()
    assert child.end() == 0


def as_target(process: object) -> Target:
    """The same process by its protocol, whose arena is the protocol's too."""
    return cast("Target", process)


def load(process: Process, result: int) -> Allocation:
    """Put a version of `answer` into the arena: it says that it is in, waits, and returns."""
    code = bytes.fromhex(
        "c70601000000"  # movl $1, (%rsi)
        "f390"  # 1: pause
        "803f00"  # cmpb $0, (%rdi)
        "74f9"  # je 1b
        "b8"  # mov $result, %eax
    )
    code += result.to_bytes(4, "little") + b"\xc3"
    part = process.arena.allocate(Region.CODE, len(code))
    process.arena.view(part.addr, len(code))[:] = np.frombuffer(code, np.uint8)
    return part


def retirement(part: Allocation) -> Retirement:
    return Retirement(Generation(1), ("/answer.o", ""), (part,))


def test_code_is_freed_once_the_last_thread_has_left_it(pair: Pair) -> None:
    child, process, target = pair.child, pair.process, pair.target
    arena = process.arena
    first = load(process, 2)
    arena.slots[SLOT] = np.uint64(first.addr)
    stub = arena.stub_addr(SLOT)
    X86_64().write_stubs(
        arena.view(stub, 16).reshape(1, 16),
        np.array([stub], np.uint64),
        np.array([arena.slot_addr(SLOT)], np.uint64),
    )
    table = child.functions({"answer": "answer"})
    table.stub_addr[table.name.index(b"answer")] = stub
    apply_redirects(plan_redirects(table, process.read), target)
    assert child.ask("a") == "2"
    assert child.ask("e") == "inside"

    second = load(process, 3)
    arena.slots[SLOT] = np.uint64(second.addr)
    assert child.ask("a") == "3"
    retirer = Retirer(PATIENT)
    retirer.add(retirement(first))
    report = retirer.attempt(target, arena.slots)
    assert report.outcome == "held"
    assert "thread" in {holder.kind for holder in report.holders}
    assert all(first.addr <= h.value < first.addr + first.size for h in report.holders)

    assert child.ask("l") == "2"
    used = arena.used(Region.CODE)
    report = retirer.attempt(target, arena.slots)
    assert (report.outcome, report.freed_size) == ("freed", first.size)
    assert arena.used(Region.CODE) == used - first.size
    again = load(process, 4)
    assert again.addr == first.addr
    arena.slots[SLOT] = np.uint64(again.addr)
    assert child.ask("a") == "4"


def test_a_slot_that_still_leads_there_keeps_code(pair: Pair) -> None:
    child, process, target = pair.child, pair.process, pair.target
    part = load(process, 2)
    process.arena.slots[SLOT] = np.uint64(part.addr)
    retirer = Retirer(PATIENT)
    retirer.add(retirement(part))
    report = retirer.attempt(target, process.arena.slots)
    assert [holder.kind for holder in report.holders] == ["slot"]
    assert report.outcome == "held"
    assert child.ask("a") == "1"


def test_a_hundred_generations_take_the_room_of_two(pair: Pair) -> None:
    child, process, target = pair.child, pair.process, pair.target
    arena = process.arena
    retirer = Retirer(PATIENT)
    addrs: set[Addr] = set()
    old = load(process, 0)
    for number in range(100):
        new = load(process, number)
        arena.slots[SLOT] = np.uint64(new.addr)
        retirer.add(retirement(old))
        assert retirer.attempt(target, arena.slots).outcome == "freed"
        addrs.add(old.addr)
        old = new
    assert len(addrs) == 2
    assert retirer.stop_count == 100
    assert child.ask("a") == "1"


TIGHT = """
#include <pthread.h>
#include <stdio.h>
volatile int leave;
volatile long wrong;
__attribute__((noipa)) int old_one(int n) { return n + 1; }
__attribute__((noipa)) int new_one(int n) { return n + 2; }
static void *loop(void *unused)
{
    while (!leave) {
        int got = old_one(3);
        if (got != 4 && got != 5) wrong++;
    }
    return unused;
}
int main(void)
{
    pthread_t threads[32];
    for (int i = 0; i < 32; i++) pthread_create(threads + i, 0, loop, 0);
    puts("ready");
    fflush(stdout);
    while (getchar() != -1) {
        printf("%d\\n", old_one(3));
        fflush(stdout);
        getchar();
    }
    leave = 1;
    for (int i = 0; i < 32; i++) pthread_join(threads[i], 0);
    return wrong != 0;
}
"""


def test_threads_inside_the_patch_are_stepped_out_of_it(tmp_path: Path) -> None:
    child = Child(compiled(tmp_path, TIGHT, "-O2"))
    assert child.line() == "ready"
    process = attach(child.pid)
    target = as_target(process)
    plan = plan_redirects(child.functions({"old_one": "new_one"}), child.read)
    for _ in range(4):
        undo = apply_redirects(plan, target, patience=Patience(tries=1))
        assert child.ask("x") == "5"
        undo_redirects(undo, target)
        assert child.ask("x") == "4"
    process.close()
    assert child.end() == 0
