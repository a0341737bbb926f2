"""Whether new versions of units fit the program, and each other.

What the compiler checks when it links an executable is checked here against the live
program: checksums of interfaces and of implementations that were inlined. Where an interface
changed, the units that rely on it have to be in the same transaction; one that only grew stays
good for all.
Declarations behind interfaces have no checksum; `changed_types` compares those.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from reloader.errors.ocaml import OtherCompilerError
from reloader.errors.ocaml_units import (
    ImportProblem,
    IncompatibleUnitsError,
    InlinedProblem,
    InterfaceProblem,
    Problem,
    TypeProblem,
    UnknownTypeProblem,
)
from reloader.hosts.caml.changed_types import (
    Names,
    changed_types,
    differences,
    full_name,
    visible_to_others,
)
from reloader.hosts.caml.globals_map import ProgramUnit
from reloader.hosts.caml.inspector import Inspector
from reloader.hosts.caml.units import Declaration, UnitInfo, shown_unit

Live = Mapping[str, UnitInfo]
Linked = Mapping[str, ProgramUnit]
STANDARD: Final = "Stdlib"


def refuse_incompatible(units: Sequence[UnitInfo], live: Live, linked: Linked) -> Names:
    """Refuse units that do not fit.

    Args:
        units: The new versions, all those of one transaction.
        live: What is known of the program's units, by name.
        linked: What the executable says of its units, by name.

    Returns:
        The full names of types whose old values new code would misread.

    Raises:
        IncompatibleUnitsError: All that does not fit.
    """
    problems: list[Problem] = []
    together = {unit.name: unit for unit in units}
    changed: Names = frozenset()
    for row in dependency_order(units):
        unit, before = units[row], live.get(units[row].name)
        problems += import_problems(unit, together, live, linked)
        if before is None:
            continue
        users = outside_users(unit.name, together, live, linked)
        changed = changed_types(before, unit, changed)
        old = outside_users(unit.name, together, live, linked, unit.interface_crc)
        problems += interface_problems(before, unit, old)
        problems += type_problems(before, unit, users, changed)
        problems += inlined_problems(unit, together, live)
    if problems:
        raise IncompatibleUnitsError(problems)
    return changed


def is_original(unit: UnitInfo, linked: Linked) -> bool:
    """Return whether compiled files are those that the executable was linked from."""
    known = linked.get(unit.name)
    if known is None or known.interface_crc != unit.interface_crc:
        return False
    return unit.implementation is None or unit.implementation.crc == known.implementation_crc


def refuse_other_compiler(inspector: Inspector, linked: Linked, program: str) -> None:
    """Refuse a compiler whose standard library is not the program's.

    Raises:
        OtherCompilerError: It has another interface.
    """
    known, compiler = linked.get(STANDARD), inspector.compiler
    crc = inspector.about()["standard_interface"]
    if known is not None and known.interface_crc not in {None, crc}:
        live = str(known.interface_crc)
        raise OtherCompilerError(program, STANDARD, live, compiler.version, compiler.where, crc)


def dependency_order(units: Sequence[UnitInfo]) -> list[int]:
    """Return the rows of units, each behind those that it imports."""
    row_of = {unit.name: row for row, unit in enumerate(units)}
    order: dict[int, None] = {}

    def place(row: int, above: tuple[int, ...]) -> None:
        for name in units[row].imports:
            other = row_of.get(name, row)
            if other not in order and other not in above:
                place(other, (*above, row))
        order.setdefault(row)

    for row in range(len(units)):
        place(row, (row,))
    return list(order)


def grew_only(before: UnitInfo, after: UnitInfo) -> bool:
    """Return whether whoever was compiled against the old interface may use the new unit."""
    texts = dict(after.interface)
    return all(texts.get(key) == text for key, text in before.interface)


def outside_users(
    name: str, together: Live, live: Live, linked: Linked, but: str | None = None
) -> tuple[str, ...]:
    """Return the live units outside of a transaction that may rely on a unit's interface.

    One of which nothing is known counts if it was linked later: a unit cannot use what is
    linked behind it. Those that were compiled against the version `but` are left out.
    """
    users = [
        other.shown
        for other in live.values()
        if other.name not in together and other.imports.get(name) not in {None, but}
    ]
    order = [unit.name for unit in linked.values() if unit.is_linked]
    later = order[order.index(name) + 1 :] if name in order else []
    unknown = [
        shown_unit(other)
        for other in later
        if other not in live and other not in together and other != "Std_exit"
    ]
    return (*users, *unknown)


def import_problems(
    unit: UnitInfo, together: Live, live: Live, linked: Linked
) -> Iterator[Problem]:
    """Yield what a unit was compiled against that is not in the program."""
    for name, crc in {**unit.imports, **interfaces_of(unit)}.items():
        now = _interface(name, together, live, linked)
        if crc is not None and now not in {None, crc}:
            yield ImportProblem(unit.shown, shown_unit(name), "interface", crc, str(now))
    for name, crc in implementations_of(unit).items():
        now = _implementation(name, together, live, linked)
        if crc is not None and now not in {None, crc}:
            yield ImportProblem(unit.shown, shown_unit(name), "implementation", crc, str(now))


def interfaces_of(unit: UnitInfo) -> Mapping[str, str | None]:
    """Return the interfaces that a unit's code was compiled against."""
    return unit.implementation.interfaces if unit.implementation else {}


def implementations_of(unit: UnitInfo) -> Mapping[str, str | None]:
    """Return the units whose code a unit's compiler looked into."""
    return unit.implementation.imports if unit.implementation else {}


def _interface(name: str, together: Live, live: Live, linked: Linked) -> str | None:
    known = together.get(name) or live.get(name) or linked.get(name)
    return known.interface_crc if known else None


def _implementation(name: str, together: Live, live: Live, linked: Linked) -> str | None:
    known = together.get(name) or live.get(name)
    if known is not None:
        return known.implementation.crc if known.implementation else None
    return linked[name].implementation_crc if name in linked else None


def interface_problems(
    before: UnitInfo, after: UnitInfo, users: tuple[str, ...]
) -> Iterator[Problem]:
    """Yield what users of the old interface would miss."""
    if not users or before.interface_crc == after.interface_crc or grew_only(before, after):
        return
    texts = dict(after.interface)
    rows = [(text, texts.get(key, "")) for key, text in before.interface]
    changed = tuple(row for row in rows if row[0] != row[1])
    yield InterfaceProblem(after.shown, changed, users)


def type_problems(
    before: UnitInfo, after: UnitInfo, users: tuple[str, ...], changed: Names
) -> Iterator[Problem]:
    """Yield the types whose values others may hold, and that changed behind the interface."""
    if not users:
        return
    unknown = [
        row.path
        for unit in (before, after)
        for row in unit.types
        if row.abstract and not unit.complete
    ]
    if unknown:
        yield UnknownTypeProblem(after.shown, tuple(dict.fromkeys(unknown)))
    reached = visible_to_others(before, changed) | visible_to_others(after, changed)
    own = {row.path: row for row in differences(before, after)}
    for path in {row.path: None for row in (*before.types, *after.types)}:
        if full_name(after.name, path) not in reached:
            continue
        if path in own:
            texts = own[path].before, own[path].after
        else:
            texts = _made_of(before.types, path, own), _made_of(after.types, path, own)
        yield TypeProblem(after.shown, path, *texts, users)


def _made_of(types: Sequence[Declaration], path: str, own: Mapping[str, object]) -> str:
    """Return a declaration whose own text did not change, and those behind it that did."""
    texts = [row.text for row in types if row.path == path or row.path in own]
    return "; ".join(texts)


def inlined_problems(unit: UnitInfo, together: Live, live: Live) -> Iterator[Problem]:
    """Yield live units that have code of a unit's old version in their own."""
    now = unit.implementation.crc if unit.implementation else None
    for other in live.values():
        wanted = implementations_of(other).get(unit.name)
        if wanted not in {None, now} and other.name not in together:
            yield InlinedProblem(unit.shown, other.shown, str(wanted), now)
