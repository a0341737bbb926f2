"""UnitInfo: what an OCaml unit is, as its compiler wrote it down, in data that the state keeps.

The live unit's is needed after a rebuild has replaced its .cmi, .cmt and .cmx, so it goes
through JSON and back unchanged.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, Final

Crcs = dict[str, str | None]  # unit -> hex checksum, None: not relied on

FUNCTION: Final = "function"
CONSTRUCTOR: Final = "constructor"  # an exception's, or one of another extensible type
KEEP, RESET = "keep", "reset"  # policies


@dataclass(frozen=True, slots=True)
class Slot:
    """One place in a unit's module block."""

    path: str  # from the unit: `tbl`, `M.tbl`
    chain: tuple[int, ...]  # field of the block, then of the module's block in it, and so on
    exported: bool
    # function, ref, array, bytes, hashtbl, queue, stack, buffer, atomic, lwt, lazy, object,
    # class, module, `functor result`, `first-class module`, `mutable record`, constructor, ...
    kind: str
    type: str  # printed; "" for a module, class or constructor
    arity: int  # of a function that is written as one, else 0
    policy: str | None  # KEEP or RESET: what its [@@reload.…] says
    line: int  # 0: unknown
    mentions: tuple[str, ...]  # paths of the unit's own types in its type


@dataclass(frozen=True, slots=True)
class Declaration:
    """A type or an extension constructor that a unit declares, behind its interface."""

    path: str  # `t`, `M.t`, `F().t` in a functor's body
    text: str  # as the compiler prints it
    mentions: tuple[str, ...]  # paths of the unit's own types in it
    abstract: bool  # nothing tells what its values are


@dataclass(frozen=True, slots=True)
class Implementation:
    """What a .cmx tells."""

    crc: str
    symbol: str  # symbols of the unit start with `caml` and this
    interfaces: Crcs  # what the code was compiled against
    imports: Crcs  # units whose code may have been inlined; None: it was not


@dataclass(frozen=True, slots=True)
class UnitInfo:
    """One version of a unit."""

    name: str  # `Foo`, `Dune__exe__Handlers`
    interface_crc: str
    imports: Crcs  # interfaces
    opaque: bool  # compiled so that others inline nothing of it
    complete: bool  # a .cmt told of what the interface hides
    source: str | None
    interface: tuple[tuple[str, str], ...]  # (`val f`, `val f : int -> int`)
    implementation: Implementation | None  # None: there is no .cmx
    field_count: int  # of the module block, as the declarations have it
    slots: tuple[Slot, ...]
    types: tuple[Declaration, ...]
    constructors: tuple[Declaration, ...]

    @property
    def symbol(self) -> str:
        """The name of its module block, which starts all its symbols."""
        return f"caml{self.implementation.symbol if self.implementation else self.name}"

    @property
    def shown(self) -> str:
        """The unit as its author calls it."""
        return shown_unit(self.name)

    def exported(self) -> tuple[Slot, ...]:
        """Return the fields that other units may read, in the order of the block."""
        return tuple(slot for slot in self.slots if slot.exported)

    def to_json(self) -> dict[str, Any]:
        """Return the whole as JSON data."""
        found = plain(self)
        if self.implementation is not None:
            found["implementation"] = plain(self.implementation)
        for rows in ("slots", "types", "constructors"):
            found[rows] = [plain(row) for row in found[rows]]
        return found


def shown_unit(name: str) -> str:
    """Return a unit's name without what dune adds: `Handlers`, `Lib.Greet`."""
    for prefix in ("Dune__exe__", "dune__exe__"):
        name = name.removeprefix(prefix)
    return name.replace("__", ".")


def plain(row: UnitInfo | Implementation | Slot | Declaration) -> dict[str, Any]:
    """Return the fields of a record; `asdict` copies what is in them, and is slow."""
    return {name: getattr(row, name) for name in _NAMES[type(row)]}


_NAMES = {
    kind: tuple(field.name for field in fields(kind))
    for kind in (UnitInfo, Implementation, Slot, Declaration)
}


def unit_from_json(data: dict[str, Any]) -> UnitInfo:
    """Return the unit that `to_json`, or the inspector, described."""
    found: dict[str, Any] = dict(data)
    if found["implementation"] is not None:
        found["implementation"] = Implementation(**found["implementation"])
    found["interface"] = tuple((key, text) for key, text in found["interface"])
    found["slots"] = tuple(slot_from_json(row) for row in found["slots"])
    found["types"] = tuple(_declaration(row) for row in found["types"])
    found["constructors"] = tuple(_declaration(row) for row in found["constructors"])
    return UnitInfo(**found)


def slot_from_json(row: dict[str, Any]) -> Slot:
    """Return the slot that a description holds as JSON data."""
    found: dict[str, Any] = dict(row)
    found["chain"], found["mentions"] = tuple(row["chain"]), tuple(row["mentions"])
    return Slot(**found)


def _declaration(row: dict[str, Any]) -> Declaration:
    found: dict[str, Any] = dict(row)
    found["mentions"] = tuple(row["mentions"])
    return Declaration(**found)
