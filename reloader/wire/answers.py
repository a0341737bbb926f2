"""What each verb answers: the shapes of `--json` and of the client's results.

Sizes are bytes, addresses the target's, times seconds since the epoch. None: not known, or
there is none.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Literal, NotRequired, TypedDict


class EventKind(StrEnum):
    """The kinds of `protocol.Event`; all carry `session` where one program is meant."""

    ATTACHED = "attached"  # data: TargetAnswer
    RELOAD = "reload"  # data: ReloadAnswer, of every outcome
    BUILD = "build"  # data: BuildAnswer
    WARNING = "warning"  # data: {text}
    PROGRESS = "progress"  # data: {text}; only to the client whose request is worked on
    RETIRED = "retired"  # data: {objects, freed_size}
    CRASHED = "crashed"  # data: CrashAnswer
    ENDED = "ended"  # data: {pid, reason}


class DaemonAnswer(TypedDict):
    """The daemon itself."""

    pid: int
    folder: str
    began: float
    busy: str | None  # the verb that is worked on now
    queued: int  # requests that wait behind it


class TargetAnswer(TypedDict):
    """One program under the daemon."""

    session: int  # names the target in events; what `--target` takes, like its pid and name
    pid: int  # of the process that stands for all
    processes: list[int]  # it and what it forked
    name: str
    exe: str
    build_id: str
    generation: int  # the newest that is live
    objects: int  # watched
    held_size: int  # of our memory in it
    began: float
    notes: list[str]


class StatusAnswer(TypedDict):
    """`reloader status`."""

    daemon: DaemonAnswer | None  # None: none is running
    targets: list[TargetAnswer]


class ReloadAnswer(TypedDict):
    """One attempt: the outcome of `load`, `unload`, `rollback`, a row of `history`."""

    session: int
    generation: int
    kind: str  # load | unload | rollback | replay | remap
    outcome: str  # live | unchanged | refused | failed | rolled-back
    began: float
    objects: list[str]
    functions: list[str]  # changed
    ms_total: float | None  # from the file event to live
    stop_us: float | None  # the program's pause
    timings: dict[str, float]  # step -> milliseconds
    error_code: str | None
    error: str | None
    notes: list[str]


class CrashAnswer(TypedDict):
    """The program ended by a signal that its own code brought about."""

    pid: int
    signal: str  # SIGSEGV
    generation: int  # whose code was on the stack; 0: none that was reloaded
    function: str  # "" where unknown, as in the next two
    object: str
    line: str  # hud.c:41
    text: str  # the sentence for people


class ObjectAnswer(TypedDict):
    """One row of `reloader objects`."""

    name: str  # path or path(member)
    path: str
    member: str
    digest: str | None
    source: str | None
    generation: int
    baseline: str | None  # matched | not-this-program | new
    note: str | None


class MemoryRowAnswer(TypedDict):
    """Bytes held for an object and a generation in a region."""

    object: str | None
    generation: int
    region: str
    live_size: int
    superseded_size: int  # waits until nothing can reach it
    freed_size: int


class MemoryAnswer(TypedDict):
    """`reloader memory`."""

    rows: list[MemoryRowAnswer]
    live_size: int
    superseded_size: int
    retained_size: int  # of these, kept so that a rollback only flips slots
    freed_size: int


class OwnerAnswer(TypedDict):
    """One owner of a symbol or address."""

    name: str
    kind: str  # function | variable | other | stub | memory | image
    object: str | None
    path: str | None
    member: str | None
    source: str | None
    line: str | None  # `hud.c:41`
    section: str
    offset: int | None
    addr: int | None
    size: int
    generation: int
    slot: int | None
    stub_addr: int | None
    live: bool
    distance: int  # from `addr` to the address asked for


class HolderAnswer(TypedDict):
    """One thing that keeps superseded memory."""

    object: str
    generation: int
    size: int
    kind: str  # thread | stack | register | global | heap | runtime | slot | debugger | waiting
    where: str


class CheckAnswer(TypedDict):
    """`reloader check` of one object."""

    object: str
    ok: bool
    reasons: list[str]  # every one why not
    functions: list[str]  # that would change
    notes: list[str]


class FindingAnswer(TypedDict):
    """One finding of `reloader doctor`."""

    level: Literal["ok", "warning", "error"]
    subject: str
    text: str
    remedy: str


class BuildAnswer(TypedDict):
    """A build began or ended."""

    state: Literal["began", "restarted", "done", "failed"]
    command: str
    seconds: NotRequired[float]
    status: NotRequired[int]
    output: NotRequired[str]  # of a failed one


class SpawnAnswer(TypedDict):
    """The daemon is ready for the program to be started."""

    session: int
