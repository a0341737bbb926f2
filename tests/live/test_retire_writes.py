"""Programs too large for one stop: the kernel follows their writes, and they notice nothing."""

import signal
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import cast

import numpy as np
import pytest

from reloader.ids import Generation, Region
from reloader.live import dirty
from reloader.live.dirty import CannotTrackError, WriteTracker, guessed_cuts, told_cuts
from reloader.live.frames import Span
from reloader.live.halt import Halt, Halter, ListAreas
from reloader.live.inject import attach
from reloader.live.pagemap import Pagemap, total
from reloader.live.retire import Retirement, RetirePolicy, Retirer, RetireReport
from reloader.live.scan import Hits, Memory, Ranges
from reloader.live.target import Allocation, Mapping, Target
from tests.support.live import compile_program, compile_text, hear, running, say

pytestmark = pytest.mark.live

NOTHING = np.empty(0, np.uint64)
PATIENT = RetirePolicy(max_stop_ms=500)  # a loaded machine must not decide a test


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
        return sorted(path.name for path in Path(f"/proc/{self.child.pid}/fd").iterdir())


def start(*arguments: str) -> Iterator[Large]:
    with running([compile_program("writes"), *arguments]) as child:
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


def tell(report: RetireReport) -> None:
    """Print the figures; `pytest -rP` shows them."""
    text = (
        f"{report.outcome}: {report.scanned_size / 2**20:.1f} MiB in all,"
        f" {report.stop_size / 2**20:.2f} MiB under a stop of {report.stop_us / 1e3:.2f} ms\n"
    )
    sys.stdout.write(text)


@pytest.mark.usefixtures("eager")
def test_a_large_program_is_stopped_for_what_it_wrote_last(heavy: Large) -> None:
    assert heavy.ask("slow") == "done"
    retirer = heavy.retirer()
    report = retirer.attempt(heavy.target, NOTHING)
    tell(report)
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
def test_a_program_that_writes_faster_than_we_look_keeps_its_old_code(
    large: Large, monkeypatch: pytest.MonkeyPatch
) -> None:
    scan = Memory.scan

    def write_and_scan(self: Memory, areas: Iterable[Span], ranges: Ranges) -> Hits:
        assert large.ask("dirty") == "done"
        return scan(self, areas, ranges)

    monkeypatch.setattr(Memory, "scan", write_and_scan)
    retirer = large.retirer(RetirePolicy(max_stop_ms=0.05))
    report = retirer.attempt(large.target, NOTHING)
    assert (report.outcome, retirer.stop_count) == ("too-large", 0)
    assert report.scanned_size >= 16 << 20
    assert "MiB under a stop: the program writes that much at once; " in report.reason
    assert report.reason.endswith(" ms, the bound is 0.05 ms")
    assert "uw" not in large.flags()


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
    assert report.outcome == "held", report.reason
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


def no_cuts(mappings: list[Mapping]) -> list[tuple[int, int]]:
    del mappings
    return []


def test_what_cannot_be_registered_is_asked_of_the_kernel(
    large: Large, pagemap: Pagemap, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dirty, "guessed_cuts", no_cuts)
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
    parts = [large.part, *(process.arena.allocate(Region.CODE, 4096) for _ in range(2))]
    retirer = Retirer(RetirePolicy(max_stop_ms=5000))  # there is more to wait for than cores
    for part in parts:
        retirer.add(large.retirement(part))
        report = retirer.attempt(large.target, NOTHING)
        tell(report)
        assert report.outcome == "freed", report.reason
        assert report.stop_us == process.last_stop_us
    sys.stdout.write(f"the longest took {retirer.stop_us_longest / 1e3:.2f} ms\n")


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
