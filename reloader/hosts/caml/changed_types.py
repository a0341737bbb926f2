"""Which types have another meaning in a new version, directly or through what they are made of.

A checksum covers the interface. `type t` abstract, first an int and then a record, leaves the
.cmi as it was, and the first old value that new code looks into ends the process. So the
declarations behind interfaces are compared as the compiler prints them. Types go by full
names here (`Foo.M.t`), since a type of one unit is made of types of others.
"""

import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from reloader.hosts.caml.units import Declaration, Slot, UnitInfo

Names = frozenset[str]


@dataclass(frozen=True, slots=True)
class Difference:
    """A declaration of a unit in two versions; "" where a version has none."""

    path: str
    before: str
    after: str


def full_name(unit: str, path: str) -> str:
    """Return a declaration's name as other units' declarations mention it."""
    return f"{unit.replace('__', '.')}.{path}"


def differences(before: UnitInfo, after: UnitInfo) -> list[Difference]:
    """Return the types that are declared in another way, or not at all any more.

    A type that is new has no values yet.
    """
    texts = {row.path: row.text for row in after.types}
    return [
        Difference(row.path, row.text, texts.get(row.path, ""))
        for row in before.types
        if texts.get(row.path) != row.text
    ]


def changed_types(before: UnitInfo, after: UnitInfo, others: Names = frozenset()) -> Names:
    """Return the full names of a unit's types whose old values new code would misread.

    Args:
        before: The live version.
        after: The new one.
        others: Types of other units that change in the same transaction.
    """
    changed = set(others)
    changed.update(full_name(after.name, row.path) for row in differences(before, after))
    declared = [*_named(before.name, before.types), *_named(after.name, after.types)]
    while True:
        more = {
            name
            for name, mentions in declared
            if name not in changed and not changed.isdisjoint(mentions)
        }
        if not more:
            return frozenset(changed)
        changed |= more


def _named(
    unit: str, declarations: Sequence[Declaration]
) -> Iterable[tuple[str, tuple[str, ...]]]:
    return ((full_name(unit, row.path), row.mentions) for row in declarations)


def continues(before: Slot, after: Slot, changed: Names) -> bool:
    """Return whether either version's code may use the other's value of a field."""
    return (
        before.kind == after.kind
        and before.type == after.type
        and changed.isdisjoint(before.mentions)
        and changed.isdisjoint(after.mentions)
    )


class Meanings:
    """What the types of functions mean, as one number each.

    The same text means something else once a type in it is declared in another way.
    """

    def __init__(self, units: Iterable[UnitInfo]) -> None:
        """Take all units that are live at one time."""
        self._declared = {
            full_name(unit.name, row.path): row for unit in units for row in unit.types
        }

    def of(self, slot: Slot) -> int:
        """Return the meaning of a field's type."""
        reached, todo = set[str](), list(slot.mentions)
        while todo:
            name = todo.pop()
            if name not in reached and name in self._declared:
                reached.add(name)
                todo += self._declared[name].mentions
        texts = (f"{name} {self._declared[name].text}" for name in sorted(reached))
        return zlib.crc32("\n".join([slot.type, *texts]).encode())


def constructor_continues(path: str, before: UnitInfo, after: UnitInfo, changed: Names) -> bool:
    """Return whether an exception or other extension constructor may keep its identity.

    Old values that match it will be looked into by new code, so all that it carries must agree.
    """
    old = [row for row in before.constructors if row.path == path]
    new = [row for row in after.constructors if row.path == path]
    if len(old) != 1 or len(new) != 1:
        return False
    return old[0].text == new[0].text and changed.isdisjoint(
        {*old[0].mentions, *new[0].mentions}
    )


def visible_to_others(unit: UnitInfo, changed: Names) -> Names:
    """Return the changed types that other units may hold values of."""
    own = {key.removeprefix("type ") for key, _ in unit.interface if key.startswith("type ")}
    modules = {
        key.removeprefix("module ") for key, _ in unit.interface if key.startswith("module ")
    }
    reached = {
        full_name(unit.name, row.path)
        for row in unit.types
        if row.path in own or row.path.partition(".")[0] in modules
    }
    for slot in unit.slots:
        if slot.exported:
            reached.update(slot.mentions)
    return changed & reached
