"""The rows of the database as frozen dataclasses, and columns for bulk writes.

Field names are the column names of `schema.py`, where their meaning stands.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Literal, TypeVar

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Mapping, Sequence

Json = dict[str, Any]
Outcome = Literal["prepared", "live", "unchanged", "refused", "failed", "rolled-back"]
Kind = Literal["load", "unload", "rollback", "replay", "remap"]

JSON_COLUMNS: Final = frozenset(
    {"argv", "objects", "functions", "timings", "notes", "plan", "data"}
)


@dataclass(frozen=True, slots=True)
class ObjectVersion:
    """One version of one object, as the journal names it."""

    path: str
    member: str
    digest: str | None  # None: the object is unloaded


@dataclass(frozen=True, slots=True)
class Summary:
    """What there is to say about an attempt once it is decided."""

    functions: Sequence[str] = ()
    ms_total: float = 0.0
    timings: Mapping[str, float] = field(default_factory=dict[str, float])
    stop_us: float = 0.0
    error_code: str | None = None
    error: str | None = None
    notes: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class TargetRow:
    """A program that was, or is, under the daemon."""

    id: int
    pid: int
    start_time: int
    build_id: str
    exe: str
    argv: list[str]
    cwd: str
    how: str
    began: float
    ended: float | None
    end_reason: str | None


@dataclass(frozen=True, slots=True)
class ProcessRow:
    """A member process of a target's family."""

    id: int
    target: int
    pid: int
    start_time: int
    parent_pid: int | None
    began: float
    ended: float | None


@dataclass(frozen=True, slots=True)
class ImageRow:
    """The executable or a shared library, where it is mapped."""

    id: int
    target: int
    kind: str
    path: str
    build_id: str
    base_addr: int
    start_addr: int
    end_addr: int


@dataclass(frozen=True, slots=True)
class ObjectRow:
    """A watched object and its live version."""

    id: int
    target: int
    image: int | None
    path: str
    member: str
    digest: str | None
    source: str | None
    generation: int
    baseline: str | None
    note: str | None

    @property
    def name(self) -> str:
        """The object as shown to people: `path` or `path(member)`."""
        return f"{self.path}({self.member})" if self.member else self.path


@dataclass(frozen=True, slots=True)
class GenerationRow:
    """One row of the journal."""

    target: int
    generation: int
    kind: str
    state: str
    began: float
    ended: float | None
    objects: list[Json]
    functions: list[str]
    ms_total: float | None
    timings: dict[str, float]
    stop_us: float | None
    error_code: str | None
    error: str | None
    notes: list[str]
    plan: Json

    def versions(self) -> list[ObjectVersion]:
        """Return the objects of this generation."""
        return [ObjectVersion(o["path"], o["member"], o["digest"]) for o in self.objects]


@dataclass(frozen=True, slots=True)
class AllocationRow:
    """Address space held, or once held, in a target."""

    id: int
    target: int
    generation: int
    object: int | None
    region: str
    section: str
    addr: int
    size: int
    allocated: float
    superseded: float | None
    freed: float | None


@dataclass(frozen=True, slots=True)
class SlotRow:
    """One slot and its stub."""

    target: int
    slot: int
    object: int | None
    name: str
    slot_addr: int
    stub_addr: int
    canonical_addr: int | None
    code_addr: int
    generation: int


@dataclass(frozen=True, slots=True)
class EventRow:
    """Something that happened."""

    id: int
    target: int | None
    time: float
    kind: str
    data: Json


@dataclass(frozen=True, slots=True)
class Owner:
    """Who a name or an address belongs to."""

    name: str
    kind: str  # function | variable | other | stub | memory | image
    object: str | None  # as shown to people; None: only the image is known
    path: str | None
    member: str | None
    source: str | None
    section: str
    offset: int | None  # of the symbol, in the section
    addr: int | None
    size: int
    generation: int
    slot: int | None
    stub_addr: int | None
    live: bool
    distance: int  # bytes from `addr` to the address that was asked for


@dataclass(frozen=True, slots=True)
class MemoryRow:
    """Bytes held for one object and one generation in one region."""

    object: str | None
    generation: int
    region: str
    live_size: int
    superseded_size: int
    freed_size: int


@dataclass(frozen=True, slots=True)
class SymbolColumns:
    """(n,) columns of an object's symbols; plain lists (`array.tolist()`) are the quick form.

    A value of 2**63 or more (the sentinel for "no address") is stored as NULL, and so is a
    negative slot.
    """

    name: Sequence[str]
    kind: Sequence[str]
    section: Sequence[str]
    offset: Sequence[int]
    addr: Sequence[int]
    size: Sequence[int]
    slot: Sequence[int]
    stub_addr: Sequence[int]


@dataclass(frozen=True, slots=True)
class NewAllocation:
    """An allocation to record."""

    object: int | None
    region: str
    section: str
    addr: int
    size: int


T = TypeVar("T")


def decode(row_type: type[T], row: sqlite3.Row) -> T:
    """Build a row's dataclass, JSON columns parsed."""
    keys: list[str] = row.keys()
    return row_type(
        **{k: json.loads(row[k]) if k in JSON_COLUMNS and row[k] else row[k] for k in keys}
    )


def encode(value: object) -> str:
    """Return the compact JSON text of a column."""
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)
