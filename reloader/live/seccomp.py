"""What a process's seccomp filters would do to it when it is entered, found out beforehand.

A filter may end the process at a call that the program never makes but the agent needs. Root
can read filters: they are run here, over the calls that `CALLS` lists. Who is not root knows
one thing: filters are inherited and never dropped, so that a process with as many as we have
ourselves, in the same container, has ours.
"""

import errno
import os
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from reloader.errors.live import UntraceableError
from reloader.live import ptrace
from reloader.live.bpf import run
from reloader.live.threads import StopClock, StoppedThreads, stopped
from reloader.live.tracing import Finding, error, status

STRICT, FILTERED = "1", "2"  # of `Seccomp` in /proc/PID/status
X86_64: Final = 0xC000003E  # AUDIT_ARCH_X86_64
ADDRESS: Final = 0x7F00_0000_0000  # where a pointer is not known
NO_FD: Final = (1 << 64) - 1
PROT_R, PROT_RW, PROT_RX = 1, 3, 5
PRIVATE_FIXED: Final = 0x12
SHARED_FIXED: Final = 0x11
ANONYMOUS: Final = 0x22
# actions, the one that counts first; all others let the call happen, or ask a third program
KILL_PROCESS, KILL_THREAD, TRAP, ERRNO, TRACE = 0x8000_0000, 0, 0x3_0000, 0x5_0000, 0x7FF0_0000
NOTIFY: Final = 0x7FC0_0000
ACTION, DATA = 0xFFFF_0000, 0xFFFF


@dataclass(frozen=True, slots=True)
class Call:
    """A system call that is made in a process for us."""

    name: str
    number: int
    arguments: tuple[int, ...] = ()
    needed: bool = True  # if not, an error in its place is lived with
    instead: "Call | None" = None  # what is called when the kernel does not know it


CLONE: Final = Call("clone", 56, (0x3D0F00, ADDRESS, ADDRESS, ADDRESS, ADDRESS))
CALLS: Final = (
    Call("memfd_create", 319, (ADDRESS, 1)),
    Call("openat", 257, (0xFFFF_FF9C, ADDRESS, 0x80000)),
    Call("read", 0, (3, ADDRESS, 832)),
    Call("newfstatat", 262, (3, ADDRESS, ADDRESS, 0x1000)),
    Call("close", 3, (3,)),
    Call("mmap", 9, (0, 4096, PROT_RW, ANONYMOUS, NO_FD, 0)),
    Call("mmap with PROT_EXEC", 9, (0, 4096, PROT_RX, ANONYMOUS, NO_FD, 0)),
    Call("mmap with PROT_EXEC", 9, (ADDRESS, 4096, PROT_RX, PRIVATE_FIXED, 3, 4096)),
    Call("mmap with MAP_SHARED", 9, (ADDRESS, 4096, PROT_RW, SHARED_FIXED, 3, 0)),
    Call("mprotect", 10, (ADDRESS, 4096, PROT_R)),
    Call("mprotect", 10, (ADDRESS, 4096, PROT_RW)),
    Call("munmap", 11, (ADDRESS, 4096)),
    Call("ftruncate", 77, (3, 1 << 20)),
    Call("fcntl", 72, (3, 1033, 6), needed=False),
    Call("brk", 12, (0,), needed=False),
    Call("prlimit64", 302, (0, 1, 0, ADDRESS), needed=False),
    Call("getrandom", 318, (ADDRESS, 8, 1), needed=False),
    Call("getpid", 39),
    Call("gettid", 186),
    Call("rt_sigprocmask", 14, (2, ADDRESS, 0, 8)),
    Call("rt_sigaction", 13, (11, ADDRESS, 0, 8), needed=False),
    Call("rt_sigreturn", 15),
    Call("clone3", 435, (ADDRESS, 88), instead=CLONE),
    Call("set_robust_list", 273, (ADDRESS, 24), needed=False),
    Call("rseq", 334, (ADDRESS, 32, 0, 0x53053053), needed=False),
    Call("prctl", 157, (15, ADDRESS), needed=False),
    Call("futex", 202, (ADDRESS, 0, 0, 0)),
    Call("madvise", 28, (ADDRESS, 4096, 4)),
    Call("membarrier", 324, (0x40, 0)),
    Call("userfaultfd", 323, (0x80801,), needed=False),
    Call("ioctl", 16, (3, 0xC018AA3F, ADDRESS), needed=False),
)  # fmt: skip


def data_of(call: Call) -> bytes:
    """Return struct seccomp_data of a call."""
    arguments = (*call.arguments, *(0,) * (6 - len(call.arguments)))
    return struct.pack("<IIQ6Q", call.number, X86_64, ADDRESS, *arguments)


def verdict(filters: Sequence[bytes], call: Call) -> tuple[int, int]:
    """Return the action of all filters together, and its number: the strictest one's."""
    results = [run(one, data_of(call)) for one in filters]
    strictest = min(results, key=lambda value: (value & ACTION) ^ KILL_PROCESS)
    return strictest & ACTION, strictest & DATA


def obstacles(filters: Sequence[bytes]) -> tuple[list[str], list[str]]:
    """Return (calls that end a process, calls that it is denied), as people read them."""
    deadly: list[str] = []
    denied: list[str] = []
    calls = list(CALLS)
    for call in calls:
        action, number = verdict(filters, call)
        if action in {KILL_PROCESS, KILL_THREAD, TRAP}:
            deadly.append(call.name)
        elif action == ERRNO and number == errno.ENOSYS and call.instead:
            calls.append(call.instead)
        elif action == ERRNO and call.needed:
            denied.append(f"{call.name} ({errno.errorcode.get(number, number)})")
        elif action in {TRACE, NOTIFY} and call.needed:
            denied.append(f"{call.name} (unless another program allows it)")
    return list(dict.fromkeys(deadly)), list(dict.fromkeys(denied))


def _counts(pid: int) -> dict[int, int]:
    """Return how many filters threads have; one thread for each number."""
    found: dict[int, int] = {}
    for path in Path(f"/proc/{pid}/task").iterdir():
        row = status(int(path.name))
        if row.get("Seccomp") == FILTERED:
            found[int(row.get("Seccomp_filters", "1"))] = int(path.name)
    return {tid: count for count, tid in found.items()}


def _read_filters(pid: int, counts: dict[int, int]) -> list[list[bytes]]:
    """Return each thread's filters, under a stop.

    Raises:
        PermissionError: Only root may see them, and only if it has none itself.
    """
    with stopped(pid, StopClock(), StoppedThreads) as stop:
        there = [tid for tid in counts if tid in stop.tids]
        return [
            [ptrace.get_seccomp_filter(tid, row) for row in range(counts[tid])] for tid in there
        ]


def _unseen(pid: int, counts: dict[int, int]) -> list[Finding]:
    """Judge filters by their number alone."""
    own = int(status(os.getpid()).get("Seccomp_filters", "0"))
    if max(counts.values()) <= own:
        return []
    text = (
        f"process {pid} has a seccomp filter of its own, which could end it at a call that"
        " entering it needs, and whose rules only root may read"
    )
    return error("seccomp", text, "Run reloader as root, or start the program without it")


def find_seccomp(pid: int) -> list[Finding]:
    """A filter may deny a call that entering needs, or end the process at it."""
    remedy = "Start the program without it while you develop"
    if status(pid).get("Seccomp") == STRICT:
        text = f"process {pid} is in strict seccomp mode: it may only read, write and exit"
        return error("seccomp", text, remedy)
    counts = _counts(pid)
    if not counts:
        return []
    try:
        filters = _read_filters(pid, counts)
    except (PermissionError, UntraceableError):
        return _unseen(pid, counts)
    found: list[Finding] = []
    for one in filters:
        deadly, denied = obstacles(one)
        if deadly:
            text = f"process {pid} has a seccomp filter that ends it at {', '.join(deadly)}"
            found += error("seccomp", text, remedy)
        if denied:
            text = f"process {pid} has a seccomp filter that denies {', '.join(denied)}"
            found += error("seccomp", text, remedy)
    return found
