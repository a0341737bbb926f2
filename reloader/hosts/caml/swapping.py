"""What of a unit's new version takes the place of what: functions, kept state, exported fields.

Only a value that means the same in both versions may replace another: code that was compiled
against the old one will use it. So it goes by path, kind, type and what the type is made of.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace

from reloader.hosts.caml.changed_types import Names, continues
from reloader.hosts.caml.script import Move, Place, Script
from reloader.hosts.caml.transaction import Change, Face, Unit
from reloader.hosts.caml.units import FUNCTION, Slot, UnitInfo


def needs_block(before: UnitInfo, after: UnitInfo, changed: Names) -> bool:
    """Return whether a unit exports what no block that others know can hold.

    Units that are compiled against it get its new block; those before go on with theirs. An
    interface's checksum says nothing here: it covers source locations too.
    """
    old, new = before.exported(), after.exported()
    if [(slot.path, slot.chain) for slot in old] != [(slot.path, slot.chain) for slot in new]:
        return True
    return not all(continues(a, b, changed) for a, b in zip(old, new, strict=True))


def pairs(
    before: UnitInfo | None, after: UnitInfo, changed: Names
) -> list[tuple[Slot | None, Slot]]:
    """Return the function fields of a unit, each with the one it continues."""
    known = {slot.path: slot for slot in before.slots} if before else {}
    found: list[tuple[Slot | None, Slot]] = []
    for slot in after.slots:
        if slot.kind == FUNCTION:
            old = known.get(slot.path)
            same = old is not None and continues(old, slot, changed)
            found.append((old if same else None, slot))
    return found


def after(change: Change) -> Unit:
    """Return a unit as it is once a change of it is live."""
    before, place = change.before, change.place
    known = before.faces if before else []
    faces = [replace(face, outdated=face.outdated | change.changed) for face in known]
    if before is None or needs_block(before.info, change.info, change.changed):
        faces.append(Face(place.block, change.info.exported()))
    return Unit(
        change.file.key, change.object, change.info, place.block, faces, place.code_begin,
        change.slots,
    )  # fmt: skip


def swap_units(script: Script, changes: Sequence[Change]) -> None:
    """Let the agent initialise units and swap them in, one behind the other."""
    for change in changes:
        script.register(change.info.shown, change.place)
    for change in changes:
        name, block, before = change.info.shown, change.place.block, change.before
        script.initialise(name, change.place.entry)
        if before is None:
            continue
        kept = ((old.chain, new.chain) for old, new in change.state.pairs)
        script.keep(name, _moves(before.block, block, kept))
        both = ((old.chain, new.chain) for old, new in change.functions if old)
        script.pair(name, _moves(before.block, block, both))
        script.swap(name, [move for face in before.faces for move in _swaps(face, change)])


def _moves(
    old: int, new: int, chains: Iterable[tuple[tuple[int, ...], tuple[int, ...]]]
) -> list[Move]:
    """Return places of two blocks, each chain from its block."""
    return [(Place(old, before), Place(new, after)) for before, after in chains]


def _swaps(face: Face, change: Change) -> list[Move]:
    """Return the fields of a block that get new values."""
    now = {slot.path: slot for slot in change.info.exported()}
    outdated = face.outdated | change.changed
    both = (
        (old.chain, now[old.path].chain)
        for old in face.slots
        if old.path in now and continues(old, now[old.path], outdated)
    )
    return _moves(face.block, change.place.block, both)
