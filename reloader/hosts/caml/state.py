"""Which state of a unit its new version goes on with.

Mutable toplevel values of unchanged type are kept, and so are exceptions and other extension
constructors, which are known by their identity; all else is what the new initialiser makes.
reloader.toml decides first, then [@@reload.keep] and [@@reload.reset] in the new source. Fields
move between versions, so they are paired by path, kind and type.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from reloader.errors.ocaml_units import IncompatibleUnitsError, KeptTypeProblem
from reloader.hosts.caml.changed_types import constructor_continues, continues
from reloader.hosts.caml.units import CONSTRUCTOR, FUNCTION, KEEP, RESET

if TYPE_CHECKING:
    from collections.abc import Sequence

    from reloader.hosts.caml.changed_types import Names
    from reloader.hosts.caml.units import Slot, UnitInfo

KEPT_KINDS: Final = frozenset({
    "ref", "array", "bytes", "hashtbl", "queue", "stack", "buffer", "atomic", "dynarray",
    "weak", "random", "bigarray", "lock", "channel", "lwt", "object", "mutable record",
})  # fmt: skip
# made anew unless told otherwise, and worth a word because they may hold state
OTHER_STATE: Final = frozenset({"lazy", "first-class module", "functor result"})
NEVER_KEPT: Final = frozenset({FUNCTION, "class", "module"})
MOVED: Final = "the fields of the compiled unit are not those of its .cmt file"
UNSEEN: Final = (
    "there is no .cmt file that tells what the interface hides: compile with -bin-annot; "
    "with dune, build @check too"
)


@dataclass(frozen=True, slots=True)
class Policy:
    """What reloader.toml says: names as people write them, `Foo.table` or `Foo.M.table`."""

    keep: frozenset[str] = frozenset()
    reset: frozenset[str] = frozenset()

    def of(self, unit: UnitInfo, slot: Slot) -> str | None:
        """Return KEEP, RESET or None for no word on it."""
        names = {f"{unit.shown}.{slot.path}", f"{unit.name}.{slot.path}"}
        if not names.isdisjoint(self.keep):
            return KEEP
        if not names.isdisjoint(self.reset):
            return RESET
        return slot.policy


@dataclass(slots=True)
class StatePlan:
    """What becomes of a unit's state."""

    pairs: list[tuple[Slot, Slot]] = field(default_factory=list["tuple[Slot, Slot]"])
    kept: list[str] = field(default_factory=list[str])  # paths, constructors left out
    reset: list[tuple[str, str]] = field(default_factory=list["tuple[str, str]"])  # path, why
    new: list[str] = field(default_factory=list[str])
    dropped: list[str] = field(default_factory=list[str])  # the new version has no such value

    @classmethod
    def empty(cls) -> StatePlan:
        """Return the plan of a unit that is new to the program."""
        return cls()

    def notes(self) -> list[str]:
        """Return the plan for people, a line a fate."""
        lines = [f"kept: {', '.join(self.kept)}"] if self.kept else []
        lines += [f"reset: {path}: {why}" for path, why in self.reset]
        lines += [f"new: {', '.join(self.new)}"] if self.new else []
        lines += [f"dropped: {', '.join(self.dropped)}"] if self.dropped else []
        return lines


@dataclass(frozen=True, slots=True)
class Sizes:
    """Fields of a unit's module block as its object file has it, before and after."""

    before: int
    after: int


def plan_state(
    before: UnitInfo,
    after: UnitInfo,
    policy: Policy,
    changed: Names = frozenset(),
    sizes: Sizes | None = None,
) -> StatePlan:
    """Return which fields keep their value.

    Args:
        before: The live version.
        after: The new one.
        policy: What reloader.toml says.
        changed: Full names of types whose old values new code would misread.
        sizes: Of the blocks in the object files; None: not checked. Where they are not those
            of the descriptions, fields behind the exported ones are not trusted.

    Raises:
        IncompatibleUnitsError: A value that must be kept changed its type.
    """
    plan = StatePlan()
    doubt = distrust(before, after, sizes)
    old_slots, new_slots = _unique(before.slots), _unique(after.slots)
    problems: list[KeptTypeProblem] = []
    for path, slot in new_slots.items():
        old, wish = old_slots.get(path), policy.of(after, slot)
        if slot.kind == CONSTRUCTOR:
            seen = slot.exported or not doubt
            if old and seen and constructor_continues(path, before, after, changed):
                plan.pairs.append((old, slot))
        elif not holds_state(slot, wish):
            continue
        elif old is None:
            plan.new.append(path)
        elif why := reason_to_reset(old, slot, wish, doubt, changed):
            if wish == KEEP and not continues(old, slot, changed):
                problems.append(KeptTypeProblem(after.shown, path, old.type, slot.type))
            plan.reset.append((path, why))
        else:
            plan.pairs.append((old, slot))
            plan.kept.append(path)
    if problems:
        raise IncompatibleUnitsError(problems)
    _note_the_rest(plan, before, after, set(new_slots))
    if sizes is not None and not after.complete and sizes.after > after.field_count:
        plan.reset.append(("values behind the interface", UNSEEN))
    return plan


def holds_state(slot: Slot, wish: str | None) -> bool:
    """Return whether the fate of a field's value is worth a word."""
    if slot.kind in NEVER_KEPT:
        return False
    if slot.kind == "functor result":
        return False  # what it holds has places of its own
    return wish is not None or slot.kind in KEPT_KINDS or slot.kind in OTHER_STATE


def reason_to_reset(old: Slot, new: Slot, wish: str | None, doubt: str, changed: Names) -> str:
    """Return why a value is not kept, "" if it is."""
    if wish == RESET:
        return "as asked"
    if doubt and not new.exported:
        return doubt
    if not continues(old, new, changed):
        if (old.kind, old.type) != (new.kind, new.type):
            return f"its type was {old.type or old.kind}, now {new.type or new.kind}"
        parts = sorted(changed.intersection((*old.mentions, *new.mentions)))
        return f"type {', '.join(parts)} changed"
    if wish == KEEP or new.kind in KEPT_KINDS:
        return ""
    return f"a {new.kind} value is made anew unless [@@reload.keep] says otherwise"


def distrust(before: UnitInfo, after: UnitInfo, sizes: Sizes | None) -> str:
    """Return why fields behind the exported ones cannot be told, "" if they can."""
    if not (before.complete and after.complete):
        return UNSEEN
    if sizes is not None and sizes != Sizes(before.field_count, after.field_count):
        return MOVED
    return ""


def _unique(slots: Sequence[Slot]) -> dict[str, Slot]:
    """Return fields by path; those of one name cannot be told apart over versions."""
    count = Counter(slot.path for slot in slots)
    return {slot.path: slot for slot in slots if count[slot.path] == 1}


def _note_the_rest(
    plan: StatePlan, before: UnitInfo, after: UnitInfo, paired: set[str]
) -> None:
    """Note state that has no counterpart, and that of ambiguous names."""
    now = {slot.path for slot in after.slots}
    for slot in before.slots:
        if slot.kind in KEPT_KINDS and slot.path not in now:
            plan.dropped.append(slot.path)
    twice = {s.path: None for s in after.slots if s.kind in KEPT_KINDS and s.path not in paired}
    plan.reset += [(path, "several values have this name") for path in twice]
