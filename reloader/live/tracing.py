"""Who may trace whom: what the kernel lets one process do to another, and the words for it."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from reloader.errors.live import TargetGoneError, UntraceableError

Level = Literal["ok", "warning", "error"]
YAMA: Final = Path("/proc/sys/kernel/yama/ptrace_scope")
DESCENDANTS, FORBIDDEN = 1, 3  # values of ptrace_scope
CAP_SYS_PTRACE: Final = 19


@dataclass(frozen=True, slots=True)
class Finding:
    """One fact about a process or program, and what to do if it is in the way."""

    level: Level
    subject: str  # a stable word: `ptrace-scope`, `traced`, `static`...
    text: str
    remedy: str

    def __str__(self) -> str:
        """Return the sentence for people."""
        return f"{self.text}. {self.remedy}" if self.remedy else f"{self.text}."


def error(subject: str, text: str, remedy: str) -> list[Finding]:
    """Return one finding that stands in the way."""
    return [Finding("error", subject, text, remedy)]


def warning(subject: str, text: str, remedy: str) -> list[Finding]:
    """Return one finding that may matter."""
    return [Finding("warning", subject, text, remedy)]


def status(pid: int) -> dict[str, str]:
    """Return what the kernel tells of a process or thread.

    Raises:
        TargetGoneError: There is none.
    """
    try:
        text = Path(f"/proc/{pid}/status").read_text("utf-8", "replace")
    except (FileNotFoundError, ProcessLookupError) as gone:
        raise TargetGoneError(pid, "looking at it") from gone
    return {k: v.strip() for k, _, v in (line.partition(":") for line in text.splitlines())}


def name_of(pid: int) -> str:
    """Return a process's short name."""
    try:
        return Path(f"/proc/{pid}/comm").read_text("utf-8", "replace").strip()
    except OSError:
        return "?"


def may_trace_all() -> bool:
    """Return whether we may trace any process: root may lack that right in a container."""
    capabilities = int(status(os.getpid())["CapEff"], 16)
    return bool(capabilities >> CAP_SYS_PTRACE & 1)


def _more_rights(remedy: str) -> str:
    """Return what helps: a user may become root, root in a container is given the right."""
    if os.geteuid():
        return remedy
    return "Give reloader the capability SYS_PTRACE (docker run --cap-add SYS_PTRACE)"


def find_owner(pid: int) -> list[Finding]:
    """Another user's process, or one that changed its rights."""
    uids = [int(uid) for uid in status(pid)["Uid"].split()]
    if may_trace_all():
        return []
    if set(uids) != {os.geteuid()}:
        text = (
            f"process {pid} runs as user {uids[1]} (real {uids[0]}), reloader as {os.geteuid()}"
        )
        return error("user", text, _more_rights("Run reloader as that user or as root"))
    try:
        os.stat(f"/proc/{pid}/exe")  # noqa: PTH116 - asks for the right, not for the file
    except PermissionError:
        text = (
            f"process {pid} may not be looked into: it is setuid, has rights that reloader has"
            " not, or made itself undumpable"
        )
        remedy = "Run reloader as root, or the program without its setuid bit"
        return error("setuid", text, _more_rights(remedy))
    except FileNotFoundError:
        return []
    return []


def find_tracer(pid: int) -> list[Finding]:
    """Somebody already traces it: only one can."""
    tids = [int(path.name) for path in Path(f"/proc/{pid}/task").iterdir()]
    tracer = next((name for tid in tids if (name := tracer_named(tid))), "")
    if not tracer:
        return []
    text = f"process {pid} is already traced by {tracer}"
    return error("traced", text, "Let that program detach first")


def tracer_of(tid: int) -> int:
    """Return the process that traces a thread, 0 if none does."""
    return int(status(tid).get("TracerPid", "0"))


def tracer_named(tid: int) -> str:
    """Return who traces a thread, as `gdb (process 12)`; "" if nobody does."""
    tracer = tracer_of(tid)
    return f"{name_of(tracer)} (process {tracer})" if tracer else ""


def find_ptrace_scope(pid: int) -> list[Finding]:
    """The yama security module forbids tracing what is not one's child."""
    scope = int(YAMA.read_text("ascii")) if YAMA.exists() else 0
    if scope == 0 or (scope < FORBIDDEN and may_trace_all()):
        return []
    if scope == FORBIDDEN:
        text = "the kernel forbids tracing altogether (kernel.yama.ptrace_scope is 3)"
        return error("ptrace-scope", text, "Start the machine with another setting")
    text = f"the kernel forbids tracing process {pid} (kernel.yama.ptrace_scope is {scope})"
    start = "Start the program with `reloader run`, run" if scope == DESCENDANTS else "Run"
    remedy = f"{start} reloader as root, or `sudo sysctl kernel.yama.ptrace_scope=0`"
    return error("ptrace-scope", text, remedy)


def untraceable(pid: int, tid: int) -> UntraceableError:
    """Return the error for a thread that the kernel does not let us trace.

    Raises:
        TargetGoneError: It has ended.
    """
    reasons = [str(f) for finder in (find_owner, find_ptrace_scope) for f in finder(pid)]
    return UntraceableError(pid, tid, tracer_named(tid), reasons)
