"""What one transaction does to the units of a program, from linking to its end."""

from dataclasses import dataclass, field

from reloader.elf.object import ObjectFile
from reloader.hosts.caml.changed_types import Names
from reloader.hosts.caml.state import StatePlan
from reloader.hosts.caml.unit_object import UnitObject, UnitPlace
from reloader.hosts.caml.units import Slot, UnitInfo
from reloader.live.objects import LiveObject
from reloader.live.program import Key


@dataclass(slots=True)
class Face:
    """A module block that code of others reads: every swap stores into it.

    The executable's own, and one more for each time a unit's interface grew.
    """

    block: int  # address
    slots: tuple[Slot, ...]  # its exported fields
    outdated: Names = frozenset()  # types that mean something else by now


@dataclass(slots=True)
class Unit:
    """One unit of the program, as it is live."""

    key: Key
    object: UnitObject
    info: UnitInfo
    block: int  # of the live version
    faces: list[Face]
    code_begin: int = 0  # of the live version; 0: the executable's
    slots: set[int] = field(default_factory=set[int])  # of its functions


@dataclass(slots=True)
class Change:
    """One unit of a transaction."""

    file: ObjectFile
    object: UnitObject
    info: UnitInfo
    before: Unit | None  # None: new to the program
    old: LiveObject | None  # the version of before
    place: UnitPlace
    state: StatePlan
    functions: list[tuple[Slot | None, Slot]]  # its function fields, before and after
    changed: Names = frozenset()  # types whose old values the new version would misread
    slots: set[int] = field(default_factory=set[int])  # of its functions, once it is live


@dataclass(slots=True)
class Details:
    """What the adapter keeps in a HostPlan."""

    changes: list[Change]  # in the order of initialisation
