"""Runtime: the OCaml runtime of a live program, entered by the agent at safe points."""

import errno
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from reloader.errors.live import AgentCommandError
from reloader.errors.ocaml import (
    BusyRuntimeError,
    HookError,
    InitialiserError,
    PlaceMissingError,
    RuntimeSymbolError,
)
from reloader.hosts.caml.blocked import has_let_go
from reloader.hosts.caml.script import Place, Script
from reloader.ids import U8, U64, Region
from reloader.live.channel import FAILED
from reloader.live.process import Process
from reloader.live.target import Allocation
from stubs import layout

__all__ = ["Pair", "Place", "Retired", "RunResult", "Runtime", "Script"]

LIMIT_MS: Final = 10_000  # to reach a safe point
RETIRE_MS: Final = 300  # the same for what can wait, and must not hold up a reload
PATIENCE_MS: Final = 5_000  # for one initialiser
_SLACK: Final = 10.0  # seconds more that the agent may take for the work itself
_HEADER: Final = 8  # words of the reply to a script
_DONE, _GAVE_UP, _RAISED, _HOOK_RAISED, _NO_PLACE = range(5)
_THREAD_LOCAL: Final = b"caml_state"
INSIDE: Final = 1  # of a blocking section
RETIRED: Final = 0
HOLDERS: Final = (
    "nothing", "a block of the heap", "a module", "a stack", "a backtrace", "a root of C code",
    "unknown to the runtime", "a heap too large for the time given", "code of an old unit",
)  # fmt: skip
UNKNOWN: Final = 6  # the runtime has never known it, or has forgotten it


@dataclass(frozen=True, slots=True)
class Pair:
    """Code of one function before and after."""

    old_code: int
    new_code: int
    arity: int
    pointer: int  # address of the word that holds `new_code`


@dataclass(frozen=True, slots=True)
class RunResult:
    """What a script did."""

    # one a row of its `pair` operations; None: not two closed functions of equal arity
    pairs: list[Pair | None]
    forwarded: int  # pointers that were led to kept values
    wait_us: int
    inside_us: int  # how long the program's OCaml part stood still
    by_thread: bool  # the program was blocked, and its runtime borrowed


@dataclass(frozen=True, slots=True)
class Retired:
    """What became of one unit that was to be retired."""

    kind: int  # RETIRED, or row of HOLDERS
    holder: int  # address of the block or root that holds it
    word: int  # what it holds: an address in the unit

    @property
    def gone(self) -> bool:
        """Whether the runtime has forgotten it."""
        return self.kind == RETIRED


Find = Callable[[Sequence[bytes]], U64]


@dataclass(slots=True)
class Runtime:
    """The runtime of one process."""

    process: Process
    mode: int  # 4 or 6, one more where systhreads is in use
    limit_ms: int = LIMIT_MS
    patience_ms: int = PATIENCE_MS
    _lent: list[Allocation] = field(default_factory=list[Allocation])  # to scripts

    @classmethod
    def attach(cls, process: Process, find: Find | None = None) -> "Runtime":
        """Prepare the agent; may be repeated.

        Args:
            process: The live program.
            find: Gives the address of each of `layout.CAML_SYMBOLS` and of other functions of
                the executable, 0 if there is none; the thread-local one's offset from the
                thread pointer.

        Raises:
            RuntimeSymbolError: A part of the runtime is not there.
        """
        find = find or DynamicSymbols(process)
        mode, unknown = enter(process, find)
        if unknown and has_let_go(process, find):
            mode, _ = enter(process, find, INSIDE)
        return cls(process, mode)

    @property
    def token(self) -> int:
        """Number of the last script that was executed to its end, by any daemon."""
        return self.process.channel.field("caml_token")

    def run(self, script: Script, *, token: int = 0, globals_needed: int = 0) -> RunResult:
        """Execute a script at one safe point.

        Args:
            script: What to do.
            token: Its number, for a later daemon to know that it was executed.
            globals_needed: How many of the executable's units must have been initialised.

        Raises:
            BusyRuntimeError: The safe point was not reached.
            InitialiserError: One raised; everything was undone.
            HookError: A function of the configuration raised; everything was undone.
            PlaceMissingError: A module has not the shape that its unit says.
        """
        words, place = script.array(), 0
        count = len(words)
        if words.nbytes > layout.TEXT_SIZE:
            words, place = words[:0], self._lend(words)
        arguments = (self.limit_ms, count, token, place, self.patience_ms, globals_needed)

        def answer(result: int, error: int, reply: U8) -> RunResult:
            self._take_back()
            if result == FAILED:
                raise AgentCommandError(self.process.pid, "OCaml script", error)
            return self._result(script, result, reply)

        calls_s = script.calls() * self.patience_ms / 1e3
        timeout = self.limit_ms / 1e3 + calls_s + _SLACK
        return self.process.channel.exchange(
            layout.OP_OCAML_RUN, arguments, words, answer, timeout
        )

    def _lend(self, words: U64) -> int:
        """Put a script into memory of its own; return its address."""
        arena = self.process.arena
        place = arena.allocate(Region.RODATA, words.nbytes)
        self._lent.append(place)
        arena.view(place.addr, words.nbytes).view(np.uint64)[:] = words
        return place.addr

    def _take_back(self) -> None:
        """Free the memory of scripts: the agent has answered, so it reads none any more."""
        while self._lent:
            self.process.arena.free(self._lent.pop())

    def hold(self, entry: int) -> None:
        """Let a program that waits before its main come as far as a unit's entry.

        There it waits until a script wants a safe point, or `go_on`; `limit_ms` at most.

        Raises:
            AgentCommandError: It is further already, or its code cannot be written.
        """
        self.process.channel.checked(layout.OP_OCAML_HOLD, entry, self.limit_ms)

    def go_on(self) -> None:
        """Let a program run that was to be held."""
        self.process.channel.checked(layout.OP_OCAML_HOLD, 0, 0)

    def retire(
        self,
        code_begins: Sequence[int],
        uses: Sequence[tuple[int, int]] = (),
        *,
        budget_us: int = 0,
    ) -> list[Retired]:
        """Let the runtime forget units that nothing reaches, as far as it can know.

        Args:
            code_begins: Where the code of each begins.
            uses: Rows of two of them: code of the first goes to the second.
            budget_us: How long the program may stand still while its heap is marked; 0: as
                long as it takes, some 50 ns for each block of the heap.

        Raises:
            BusyRuntimeError: The safe point was not reached; nothing was retired.
        """

        def answer(result: int, error: int, reply: U8) -> list[Retired]:
            if result == FAILED and error == errno.EAGAIN:
                raise BusyRuntimeError(self.process.pid, limit_ms, "retiring old units")
            if result == FAILED:
                raise AgentCommandError(self.process.pid, "retirement of OCaml units", error)
            rows = reply[: 24 * len(code_begins)].view(np.uint64).reshape(-1, 3).tolist()
            return [Retired(*row) for row in rows]

        limit_ms = min(self.limit_ms, RETIRE_MS)
        many = 8 * (len(code_begins) + 2 * len(uses)) > layout.TEXT_SIZE
        rows = [] if many else [row for pair in uses for row in pair]
        words = np.array([*code_begins, *rows], np.uint64)
        arguments = (limit_ms, len(code_begins), budget_us, len(rows) // 2, int(many))
        timeout = limit_ms / 1e3 + _SLACK
        return self.process.channel.exchange(
            layout.OP_OCAML_RETIRE, arguments, words, answer, timeout
        )

    def _result(self, script: Script, result: int, reply: U8) -> RunResult:
        header = reply[: _HEADER * 8].view(np.uint64).tolist()
        owner = script.owner.get(header[0], "")
        if result == _GAVE_UP:
            raise BusyRuntimeError(self.process.pid, self.limit_ms, "the reload")
        if result == _NO_PLACE:
            raise PlaceMissingError(owner, header[4])
        if result != _DONE:
            start = layout.CAML_TEXT_OFFSET - layout.REPLY_OFFSET
            text = reply[start : start + header[2]].tobytes().decode("utf-8", "replace")
            exception, *backtrace = text.splitlines() or [""]
            error = InitialiserError if result == _RAISED else HookError
            raise error(owner, exception, backtrace, header[4])
        rows = reply[_HEADER * 8 :][: header[1] * 8].view(np.uint64).reshape(-1, 4)
        channel = self.process.channel
        return RunResult(
            [_pair(row) for row in rows.tolist()],
            header[3],
            channel.field("caml_wait_us"),
            channel.field("caml_inside_us"),
            channel.field("caml_reached_by") == 2,
        )


def _pair(row: Sequence[int]) -> Pair | None:
    old, new, arity, pointer = row
    return Pair(old, new, arity - (arity >> 63 << 64), pointer) if old else None


def enter(process: Process, find: Find, hint: int = 0) -> tuple[int, bool]:
    """Let the agent take its hooks into the runtime.

    Args:
        process: The live program.
        find: As for `Runtime.attach`.
        hint: INSIDE if the program was seen in a blocking section since an earlier call.

    Returns:
        The mode, and whether a hint would help.

    Raises:
        RuntimeSymbolError: A part of the runtime is not there.
    """
    names = layout.CAML_SYMBOLS

    def answer(result: int, error: int, reply: U8) -> tuple[int, bool]:
        word = int(reply[:8].view(np.uint64)[0])
        if result != FAILED:
            return result, bool(word)
        if error == errno.ENOSYS:
            raise RuntimeSymbolError(process.pid, names[word].decode())
        raise AgentCommandError(process.pid, "entering of the OCaml runtime", error)

    arguments = (len(names), hint)
    return process.channel.exchange(
        layout.OP_OCAML_ATTACH, arguments, find(names), answer, _SLACK
    )


@dataclass(frozen=True, slots=True)
class DynamicSymbols:
    """What the dynamic linker knows of the runtime's symbols."""

    process: Process

    def __call__(self, names: Sequence[bytes]) -> U64:
        """Return addresses, and the offset of the thread-local one."""
        found = self.process.resolve(names)
        if _THREAD_LOCAL in names and found[names.index(_THREAD_LOCAL)]:
            offset = self.process.thread_offsets([_THREAD_LOCAL])[0]
            found[names.index(_THREAD_LOCAL)] = offset
        return found
