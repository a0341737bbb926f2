"""Whether new code agrees on types with the data that stays and the code that is not reloaded.

Asked of every transaction, after its variables are paired: which kept variables hold data of a
layout that the new code does not know any more, which functions would be called with other
parameters than they expect, and which objects that stay use a type that changed. What is not
shared may change as it likes.
"""

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cache, lru_cache
from typing import Final

import numpy as np

from reloader.elf.gather import one_of
from reloader.elf.object import COMMON, UNDEFINED, ObjectFile
from reloader.elf.type_reader import type_table
from reloader.elf.types import Kind, Record, TypeTable
from reloader.errors.types import TypeChangedError, TypeRow, TypeShape
from reloader.link.passes.data_report import Kept
from reloader.link.passes.pair_variables import base_name
from reloader.link.types.callers import callers, is_private, mentions
from reloader.link.types.compare import Compared, Comparison, Pair, bare, compare_functions
from reloader.link.types.debug import same_types, tells
from reloader.link.types.describe import function_name, shape_of, shown_name
from reloader.link.types.taken import handed_out
from reloader.live.objects import LiveObject

_DATA_TYPES: Final = (0, 1, 5, 6)  # STT_NOTYPE, STT_OBJECT, STT_COMMON, STT_TLS


@dataclass(slots=True)
class Finding:
    """One difference, and whom it touches."""

    comparison: Comparison
    file: ObjectFile
    title: str
    reason: str
    live: TypeShape
    new: TypeShape
    variables: list[str] = field(default_factory=list[str])
    calls: list[str] = field(default_factory=list[str])
    objects: list[str] = field(default_factory=list[str])
    pointers: list[str] = field(default_factory=list[str])

    def row(self) -> TypeRow:
        """Return it for people."""
        return TypeRow(
            self.file.name, self.title, self.reason, self.live, self.new,
            tuple(dict.fromkeys(self.variables)), tuple(dict.fromkeys(self.calls)),
            tuple(dict.fromkeys(self.objects)), tuple(dict.fromkeys(self.pointers)),
        )  # fmt: skip


class Agreement:
    """What the versions of one transaction say about types, beside what stays."""

    def __init__(
        self,
        objects: Sequence[ObjectFile],
        live: Sequence[LiveObject | None],
        stays: Callable[[], Sequence[LiveObject]],
        accepted: Collection[str] = (),
    ) -> None:
        """Compare whole objects with their live versions.

        Args:
            objects: What is to be made live.
            live: Of each its live version, None for a first load.
            stays: Gives the live objects that keep their version.
            accepted: Names of types, functions and variables that the user answers for.
        """
        self.objects, self.live, self.accepted = objects, live, frozenset(accepted)
        self.stays = cache(stays)
        self.silent: list[str] = []  # without debug information
        self.findings: dict[tuple[int, object], Finding] = {}
        self.comparisons: dict[int, Comparison] = {}
        self.calls: dict[int, bool] = {}  # by row: some function has other parameters
        for row, before in enumerate(live):
            file = objects[row]
            if before is None or before.file.digest == file.digest:
                continue
            if not (tells(before.file) and tells(file)):
                self.silent.append(file.name)
            elif same_types(before.file, file):
                continue
            elif all(type_table(version).complete for version in (before.file, file)):
                self.compare(row, frozenset())
            else:
                self.silent.append(file.name)
        changed = self.changed_names()
        for row, before in enumerate(live if changed else ()):
            # an object that only declares such a type may hold data of it
            if before is not None and tells(before.file) and tells(objects[row]):
                self.compare(row, changed)

    @property
    def differs(self) -> bool:
        """Whether anything changed that could be shared."""
        shared = any(item.causes for item in self.comparisons.values())
        return shared or any(self.calls.values())

    @property
    def unsettled(self) -> bool:
        """Whether old and new code must not run side by side: more than one function may know.

        A type that is declared inside of a function is that function's alone.
        """
        if any(self.calls.values()):
            return True
        for item in self.comparisons.values():
            local = {record.name for record in item.old.functions.values()}
            for (_, name), pair in item.named_pairs().items():
                if item.differ(pair) and name.partition("::")[0] not in local:
                    return True
        return False

    def refuse(self, kept: Sequence[Kept], taken: Collection[str] = ()) -> None:
        """Refuse what would let two layouts meet.

        Args:
            kept: The variables that go on; rows are those of `objects`, more are left alone.
            taken: The functions that are called through pointers.

        Raises:
            TypeChangedError: Carries every type on which the sides do not agree.
        """
        self.findings.clear()
        for row, comparison in self.comparisons.items():
            self.kept(row, comparison, kept)
            self.functions(row, comparison, taken)
            self.outer(row, comparison)
            self.others(row, comparison)
        found = [item for item in self.findings.values() if self.matters(item)]
        if found:
            raise TypeChangedError([item.row() for item in found])

    def compare(self, row: int, changed: frozenset[str]) -> None:
        """Compare all that one object shares."""
        before, file = self.live[row], self.objects[row]
        old, new = type_table(before.file if before else file), type_table(file)
        comparison = self.comparisons[row] = Comparison(old, new, changed)
        roots = [*comparison.named_pairs().values()]
        if before is not None:
            roots += variable_pairs(before.file, file)
        self.calls[row] = False
        for one, other in both_functions(comparison):
            verdict = compare_functions(one, other)
            self.calls[row] |= bool(verdict.reason)
            roots += verdict.children
        outer = old.outer_variables.keys() & new.outer_variables.keys()
        roots += [(old.outer_variables[key], new.outer_variables[key]) for key in outer]
        comparison.compare(roots)

    def changed_names(self) -> frozenset[str]:
        """Return the names of records and enums that changed by themselves."""
        return frozenset(
            name
            for comparison in self.comparisons.values()
            for (_, name), pair in comparison.named_pairs().items()
            if comparison.differ(pair)
        )

    @staticmethod
    def kept_pairs(comparison: Comparison, groups: Iterable[Kept]) -> list[tuple[str, Pair]]:
        """Return the kept variables of an object with the types of both versions."""
        found: list[tuple[str, Pair]] = []
        for kept in groups:
            old, new = kept.old.variables, kept.new.variables
            places = zip(old.section.tolist(), old.offset.tolist(), strict=True)
            before = [comparison.old.variables.get(place) for place in places]
            pasts: list[int] = kept.old_row.tolist()
            places = zip(new.section.tolist(), new.offset.tolist(), strict=True)
            for at, place in enumerate(places):
                past = before[pasts[at]] if pasts[at] >= 0 else None
                now = comparison.new.variables.get(place)
                if past is not None and now is not None:
                    found.append((kept.new.shown(at), (past, now)))
        return found

    def kept(self, row: int, comparison: Comparison, groups: Sequence[Kept]) -> None:
        """Find kept variables that hold, or lead to, another layout."""
        pairs = self.kept_pairs(comparison, [kept for kept in groups if kept.row == row])
        comparison.compare([pair for _, pair in pairs])
        for name, pair in pairs:
            if comparison.differ(pair):
                self.finding(row, pair).variables.append(name + through(comparison, pair))

    def functions(self, row: int, comparison: Comparison, taken: Collection[str]) -> None:
        """Find functions of other parameters or results that old callers or data reach."""
        old, new = comparison.old.functions, comparison.new.functions
        for key in sorted(old.keys() & new.keys()):
            verdict = compare_functions(old[key], new[key])
            wrong = [pair for pair in verdict.children if comparison.differ(pair)]
            if not wrong and not verdict.reason:
                continue
            users = [user for live in self.stays() for user in callers(live.file, key)]
            pointers = handed_out(key, old[key], taken) if wrong else []
            if not users and not pointers:
                continue
            found = self.call(row, key, verdict, wrong, old[key], new[key])
            found.pointers += pointers
            if users:
                found.calls.append(f"{old[key].name} is called by {', '.join(users)}")

    def outer(self, row: int, comparison: Comparison) -> None:
        """Find variables and functions of what stays that are now used in another way."""
        own = {
            name
            for at, file in enumerate(self.objects)
            if self.live[at] is None or at in self.comparisons
            for name in defined(file)
        }
        # what only exists inside of its callers stays nowhere
        used = set(self.objects[row].symbol_names)
        old, new = comparison.old, comparison.new
        for key in sorted(old.outer_variables.keys() & new.outer_variables.keys()):
            pair = old.outer_variables[key], new.outer_variables[key]
            if comparison.differ(pair) and key.encode() not in own:
                label = key + through(comparison, pair)
                self.finding(row, pair).calls.append(f"it is that of {label}, which stays")
        for key in sorted(old.outer_functions.keys() & new.outer_functions.keys()):
            before, after = old.outer_functions[key], new.outer_functions[key]
            verdict = compare_functions(before, after)
            wrong = [pair for pair in verdict.children if comparison.differ(pair)]
            if (wrong or verdict.reason) and key.encode() in used - own:
                found = self.call(row, key, verdict, wrong, before, after)
                found.calls.append(f"it is passed to or got from {before.name}, which stays")

    def others(self, row: int, comparison: Comparison) -> None:
        """Find objects that stay and use a type of a header with its old layout."""
        before = self.live[row]
        changed = {
            key: pair
            for key, pair in comparison.named_pairs().items()
            if comparison.differ(pair) and comparison.cause(pair) == [pair]
        }
        for key, pair in changed.items():
            if before is None or is_private(before.file, comparison.old, pair[0]):
                continue
            for live in self.stays():
                if mentions(live.file, key[1]) and self.has_old(live, key, comparison, pair):
                    self.finding(row, pair).objects.append(live.file.name)

    @staticmethod
    def has_old(
        live: LiveObject, key: tuple[Kind, str], comparison: Comparison, pair: Pair
    ) -> bool:
        """Return whether an object knows a type as the old version does."""
        table = type_table(live.file)
        at = table.named.get(key)
        if at is None or is_private(live.file, table, at):
            return False
        was, to_be = Comparison(table, comparison.old), Comparison(table, comparison.new)
        was.compare([(at, pair[0])])
        to_be.compare([(at, pair[1])])
        return to_be.differ((at, pair[1])) and not was.differ((at, pair[0]))

    def call(  # noqa: PLR0913, PLR0917  both sides of a call
        self, row: int, key: str, verdict: Compared, wrong: list[Pair], old: Record, new: Record
    ) -> Finding:
        """Return the finding that a function's parameters belong to."""
        comparison = self.comparisons[row]
        if wrong and not verdict.reason:
            cause = comparison.cause(wrong[0])[-1]
            plain = bare(comparison.old, cause[0])
            if plain is not None and is_compound(comparison.old, plain[0]):
                return self.finding(row, wrong[0])
            verdict = Compared(comparison.reason(cause))
        before, after = (
            TypeShape(function_name(table, record, record.name))
            for table, record in ((comparison.old, old), (comparison.new, new))
        )
        file, reason = self.objects[row], verdict.reason
        found = Finding(comparison, file, old.name, reason, before, after)
        return self.findings.setdefault((row, key), found)

    def finding(self, row: int, pair: Pair) -> Finding:
        """Return the finding of the difference that a pair leads to."""
        comparison = self.comparisons[row]
        old, new = comparison.old, comparison.new
        before, after = comparison.cause(pair)[-1]
        one, other = bare(old, before), bare(new, after)  # `const` of it is the same difference
        cause = (one[0], other[0]) if one and other else (before, after)
        known = self.findings.get((row, cause))
        if known is None:
            known = self.findings[row, cause] = Finding(
                comparison, self.objects[row], shown_name(old, cause[0]),
                comparison.reason(cause), shape_of(old, cause[0]), shape_of(new, cause[1]),
            )  # fmt: skip
        return known

    def matters(self, finding: Finding) -> bool:
        """Return whether the user has not answered for what was found."""
        names = {finding.title, finding.title.split(" ", 1)[-1]}
        return not names & self.accepted


def both_functions(comparison: Comparison) -> list[tuple[Record, Record]]:
    """Return the functions, defined or used, that both versions describe."""
    old, new = comparison.old, comparison.new
    tables = (old.functions, new.functions), (old.outer_functions, new.outer_functions)
    return [(a[key], b[key]) for a, b in tables for key in a if key in b]


def variable_pairs(before: ObjectFile, after: ObjectFile) -> list[Pair]:
    """Return the types of variables that may be the same one, by the names of their symbols."""
    olds, news = by_symbol(before), by_symbol(after)
    return [
        (one, other)
        for name in olds
        if name in news
        for one in olds[name]
        for other in news[name]
    ]


@lru_cache(maxsize=32)
def by_symbol(file: ObjectFile) -> dict[bytes, list[int]]:
    """Return the types of variables by name; static locals without their number."""
    table, section, value = type_table(file), file.symbol_sections, file.symbols["st_value"]
    rows: list[int] = np.flatnonzero(one_of(file.types(), _DATA_TYPES)).tolist()
    found: dict[bytes, list[int]] = {}
    for row in rows:
        at = int(section[row])
        type_ = table.variables.get((at, row if at == COMMON else int(value[row])))
        if type_ is not None:
            found.setdefault(base_name(file.symbol_names[row]), []).append(type_)
    return found


def defined(file: ObjectFile) -> set[bytes]:
    """Return the names that an object defines."""
    sections: list[int] = file.symbol_sections.tolist()
    return {
        name
        for name, section in zip(file.symbol_names, sections, strict=True)
        if section != UNDEFINED
    }


def is_compound(table: TypeTable, at: int) -> bool:
    """Return whether a type has a layout to show."""
    record = table.types.get(at)
    return record is not None and record.kind in {Kind.RECORD, Kind.UNION, Kind.ENUM}


def through(comparison: Comparison, pair: Pair) -> str:
    """Return ` (through struct node)` for what only leads to a difference."""
    table = comparison.old
    way = [at for at, _ in comparison.cause(pair) if is_compound(table, at)]
    names = list(dict.fromkeys(shown_name(table, at) for at in way[:-1]))
    return f" (through {', '.join(names)})" if names else ""
