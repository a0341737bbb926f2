"""What can go wrong with a live process: getting in, its memory, its threads, its arena."""

import os
from collections.abc import Sequence

from reloader.errors.base import UNTOUCHED, RefusedError, ReloaderError


def _reason(error: int) -> str:
    return f"{os.strerror(error)} (errno {error})" if error else "no reason given"


class TargetGoneError(ReloaderError):
    """The process has ended."""

    code = "target-gone"

    def __init__(self, pid: int, doing: str = "") -> None:
        """Build the text."""
        self.pid, self.doing = pid, doing
        during = f" while reloader was {doing}" if doing else ""
        super().__init__(f"process {pid} has ended{during}. Start it again to go on.")


class TargetMemoryError(ReloaderError):
    """A range of the target's memory cannot be read or written."""

    code = "target-memory"

    def __init__(self, pid: int, addr: int, size: int, *, done: int = 0, verb: str) -> None:
        """Build the text; `done` bytes succeeded before the first that failed."""
        self.pid, self.addr, self.size, self.done, self.verb = pid, addr, size, done, verb
        super().__init__(
            f"process {pid}: cannot {verb} {size} bytes at {addr:#x}: only {done} of them are"
            f" mapped and may be {'read' if verb == 'read' else 'written'}. The memory was"
            f" unmapped or its protection changed; look at /proc/{pid}/maps."
        )


class ArenaFullError(RefusedError):
    """No room for an allocation."""

    code = "arena-full"

    def __init__(self, region: str, wanted: int, largest: int, free: int, total: int) -> None:
        """Build the text."""
        self.region, self.wanted, self.largest = region, wanted, largest
        self.free, self.total = free, total
        super().__init__(
            f"the arena's {region} region has no {wanted} bytes in one piece: the largest hole"
            f" is {largest}, {free} of {total} bytes are free. {UNTOUCHED} Unload objects that"
            " are no longer needed, or restart the program."
        )


class ArenaRangeError(ReloaderError):
    """An address range is not inside one region of the arena."""

    code = "arena-range"

    def __init__(self, addr: int, size: int) -> None:
        """Build the text."""
        self.addr, self.size = addr, size
        super().__init__(
            f"{size} bytes at {addr:#x} are not inside one region of the arena. {UNTOUCHED}"
            " This is a mistake in reloader itself; please report it."
        )


class ArenaLostError(RefusedError):
    """The memfd behind a running arena cannot be opened again."""

    code = "arena-lost"

    def __init__(self, pid: int, holder: int, why: str) -> None:
        """Build the text."""
        self.pid, self.holder, self.why = pid, holder, why
        super().__init__(
            f"process {pid} holds an arena of an earlier daemon, but its memory cannot be"
            f" opened again: the process that kept it ({holder}) does not answer ({why}), and"
            f" /proc/{pid}/map_files needs root. {UNTOUCHED} Run the daemon once as root, or"
            " restart the program."
        )


class AlreadyAttachedError(RefusedError):
    """Another daemon works on this process."""

    code = "already-attached"

    def __init__(self, pid: int, daemon: int) -> None:
        """Build the text."""
        self.pid, self.daemon = pid, daemon
        super().__init__(
            f"process {pid} already has a reloader daemon, process {daemon}. {UNTOUCHED}"
            f" Use that one, or stop it first with `reloader stop`."
        )


class AgentVersionError(RefusedError):
    """The agent in the process is of another version of reloader."""

    code = "agent-version"

    def __init__(self, pid: int, found: int, wanted: int) -> None:
        """Build the text."""
        self.pid, self.found, self.wanted = pid, found, wanted
        super().__init__(
            f"process {pid} runs agent version {found}, this reloader speaks {wanted}."
            f" {UNTOUCHED} Use the reloader that entered it, or restart the program."
        )


class AgentStartError(RefusedError):
    """The agent came in but could not set itself up."""

    code = "agent-start"
    _WHY = (
        "it reported no failure",
        "no memory file could be created; look at vm.memfd_noexec and seccomp filters",
        "no free range of addresses within 2 GiB of the executable; look at ulimit -v",
        "its memory could not be mapped; executing memory files may be forbidden here",
        "no thread could be started; look at ulimit -u and the container's pids limit",
        "it is already running there",
        "the file size limit (ulimit -f) is below the size of the arena; raise it",
    )

    def __init__(self, pid: int, status: int, error: int) -> None:
        """Build the text."""
        self.pid, self.status, self.error = pid, status, error
        why = self._WHY[status] if 0 <= status < len(self._WHY) else f"status {status}"
        super().__init__(
            f"process {pid}: the agent could not start: {why}. The system said:"
            f" {_reason(error)}. {UNTOUCHED}"
        )


class AgentBusyError(ReloaderError):
    """The agent did not answer in time."""

    code = "agent-busy"

    def __init__(self, pid: int, operation: str, seconds: float) -> None:
        """Build the text."""
        self.pid, self.operation, self.seconds = pid, operation, seconds
        super().__init__(
            f"process {pid}: the agent did not answer {operation} within {seconds:g} s. It may"
            " be inside a function that blocks (a constructor, a hook), or the process is"
            " stopped; it answers later commands once that returns."
        )


class AgentCommandError(ReloaderError):
    """The agent answered that a command failed."""

    code = "agent-command"

    def __init__(self, pid: int, operation: str, error: int) -> None:
        """Build the text."""
        self.pid, self.operation, self.error = pid, operation, error
        super().__init__(f"process {pid}: the agent's {operation} failed: {_reason(error)}.")


class AttachError(RefusedError):
    """Something stands in the way of entering a process; carries every reason found."""

    code = "attach-refused"

    def __init__(self, pid: int, reasons: Sequence[str]) -> None:
        """Build the text from `what stands in the way, what to do` sentences."""
        self.pid, self.reasons = pid, list(reasons)
        lines = "\n".join(f"  {reason}" for reason in self.reasons)
        super().__init__(f"process {pid} cannot be entered:\n{lines}\n{UNTOUCHED}")


class NoSafeThreadError(RefusedError):
    """Every thread stood inside malloc or the dynamic loader, each time we looked."""

    code = "no-safe-thread"

    def __init__(self, pid: int, tries: int, where: str) -> None:
        """Build the text."""
        self.pid, self.tries, self.where = pid, tries, where
        super().__init__(
            f"process {pid}: no thread to enter by: at {tries} looks each one was inside the"
            f" allocator or the dynamic loader (last seen: {where}). {UNTOUCHED} Try again when"
            " the program is less busy, or start it with `reloader run`."
        )


class InjectionError(RefusedError):
    """A step inside the target failed while the agent was being brought in."""

    code = "injection-failed"

    def __init__(self, pid: int, step: str, why: str) -> None:
        """Build the text."""
        self.pid, self.step, self.why = pid, step, why
        super().__init__(
            f"process {pid}: {step} failed inside it: {why}. What was done there was taken"
            " back; the program goes on. `reloader doctor` may tell more."
        )


class SanitizerError(RefusedError):
    """A program with a sanitizer in it is to be started."""

    code = "sanitizer"

    def __init__(self, program: str, name: str) -> None:
        """Build the text."""
        self.program, self.name = program, name
        super().__init__(
            f"{program} is built with {name}, whose run time has to be the first library of "
            "a process. The program was not started. Build it without -fsanitize, or start it "
            "without reloader."
        )


class HelloError(RefusedError):
    """The started program never reported, or ended first."""

    code = "no-hello"

    def __init__(self, pid: int, why: str) -> None:
        """Build the text."""
        self.pid, self.why = pid, why
        super().__init__(
            f"the program (process {pid}) did not report to reloader: {why}. Static, musl and"
            " setuid programs and some sanitizer builds ignore LD_PRELOAD, and a wrapper needs"
            " `--program NAME`. The program itself runs on. `reloader doctor PROGRAM` says"
            " more."
        )


class StopTimeoutError(ReloaderError):
    """A thread did not stop in time; all others were resumed."""

    code = "stop-timeout"

    def __init__(self, pid: int, tid: int, seconds: float, state: str) -> None:
        """Build the text."""
        self.pid, self.tid, self.seconds, self.state = pid, tid, seconds, state
        super().__init__(
            f"process {pid}: thread {tid} did not stop within {seconds:g} s (state {state});"
            f" it may be in vfork or in uninterruptible input or output. {UNTOUCHED} All"
            " threads run again; reloader can try once more later."
        )


class UntraceableError(RefusedError):
    """The kernel does not let threads of the process be stopped."""

    code = "untraceable"

    def __init__(self, pid: int, tid: int, tracer: str, reasons: Sequence[str] = ()) -> None:
        """Build the text; `tracer` is who traces it already, "" if nobody does."""
        self.pid, self.tid, self.tracer, self.reasons = pid, tid, tracer, list(reasons)
        if tracer:
            why = (
                f"process {pid} is traced by {tracer}, so its threads cannot be stopped: a"
                f" thread has one tracer at most. {UNTOUCHED} Let that one detach (gdb:"
                " `detach`), then save again."
            )
        else:
            known = " ".join(reasons) or "Nothing that is known to forbid it does."
            why = (
                f"process {pid}: the kernel does not let its thread {tid} be traced. {known}"
                f" {UNTOUCHED} `reloader doctor {pid}` may tell more."
            )
        super().__init__(why)


class FirstThreadEndedError(TargetGoneError):
    """The first thread of a process has ended, and others run on."""

    code = "first-thread-ended"

    def __init__(self, pid: int, others: int) -> None:
        """Build the text."""
        self.pid, self.doing, self.others = pid, "", others
        ReloaderError.__init__(
            self,
            f"process {pid}: its first thread has ended while {others} of its threads run on;"
            f" the kernel shows nobody the memory of such a process. {UNTOUCHED} Let main()"
            " wait for the others (pthread_join) instead of ending its thread (pthread_exit).",
        )
