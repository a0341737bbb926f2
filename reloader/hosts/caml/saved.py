"""What a later daemon has to know of units, as rows of the state.

A live unit's compiled files may be those of another version by then, and what the runtime still
knows of superseded versions is told nowhere else.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import fields
from operator import attrgetter
from typing import Final

from reloader.elf.object import ObjectFile
from reloader.hosts.caml.transaction import Face, Unit
from reloader.hosts.caml.unit_object import UnitObject, UnitPlace
from reloader.hosts.caml.units import UnitInfo, plain, slot_from_json, unit_from_json
from reloader.live.program import Key

UNIT: Final = "unit "  # as it is now
ORIGINAL: Final = "original "  # as it was linked
REGISTERED: Final = "registered"
_PLACE: Final = attrgetter(*(field.name for field in fields(UnitPlace)))


def unit_name(key: Key) -> str:
    """Return the row's name of a unit."""
    return UNIT + json.dumps(key)


def save_units(units: Iterable[tuple[Unit, ObjectFile]], *, original: bool) -> dict[str, str]:
    """Return the rows of units; with `original` also what they were linked from."""
    rows: dict[str, str] = {}
    for unit, file in units:
        rows[unit_name(unit.key)] = save_unit(unit, file.digest)
        if original:
            row = {"digest": file.digest, "info": unit.info.to_json()}
            rows[ORIGINAL + json.dumps(unit.key)] = json.dumps(row)
    return rows


def versions(rows: Mapping[str, str]) -> dict[str, UnitInfo]:
    """Return what is known of versions of units, by the digest of their objects."""
    texts = [text for name, text in rows.items() if name.startswith((UNIT, ORIGINAL))]
    found = [json.loads(text) for text in texts]
    return {row["digest"]: unit_from_json(row["info"]) for row in found}


def save_unit(unit: Unit, digest: str) -> str:
    """Return a unit, whose object has a digest, as JSON."""
    return json.dumps({
        "digest": digest,
        "info": unit.info.to_json(),
        "block": unit.block,
        "faces": [
            [face.block, [plain(slot) for slot in face.slots], sorted(face.outdated)]
            for face in unit.faces
        ],
        "code_begin": unit.code_begin,
        "slots": sorted(unit.slots),
    })  # fmt: skip


def load_unit(key: Key, text: str, unit: UnitObject) -> Unit:
    """Return the unit that `save_unit` was given."""
    row = json.loads(text)
    faces = [
        Face(block, tuple(slot_from_json(slot) for slot in slots), frozenset(outdated))
        for block, slots, outdated in row["faces"]
    ]
    return Unit(
        key, unit, unit_from_json(row["info"]), row["block"], faces, row["code_begin"],
        set(row["slots"]),
    )  # fmt: skip


def saved_units(rows: Mapping[str, str]) -> Iterable[tuple[Key, str]]:
    """Yield the units of some rows."""
    for name, text in rows.items():
        if name.startswith(UNIT):
            path, member = json.loads(name.removeprefix(UNIT))
            yield (path, member), text


def save_places(places: Iterable[UnitPlace]) -> str:
    """Return what the runtime knows as JSON."""
    return json.dumps([_PLACE(place) for place in places])


def load_places(text: str) -> dict[int, UnitPlace]:
    """Return what `save_places` was given, by the start of the code."""
    places = [UnitPlace(*row) for row in json.loads(text)] if text else []
    return {place.code_begin: place for place in places}
