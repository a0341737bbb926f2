"""What a later daemon has to know of units, as rows of the state.

A live unit's compiled files may be those of another version by then, and what the runtime still
knows of superseded versions is told nowhere else.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import Final

from reloader.hosts.caml.transaction import Face, Unit
from reloader.hosts.caml.unit_object import UnitObject, UnitPlace
from reloader.hosts.caml.units import plain, slot_from_json, unit_from_json
from reloader.live.program import Key

UNIT: Final = "unit "
REGISTERED: Final = "registered"


def unit_name(key: Key) -> str:
    """Return the row's name of a unit."""
    return UNIT + json.dumps(key)


def save_unit(unit: Unit) -> str:
    """Return a unit as JSON."""
    return json.dumps({
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
    return json.dumps([asdict(place) for place in places])


def load_places(text: str) -> dict[int, UnitPlace]:
    """Return what `save_places` was given, by the start of the code."""
    places = [UnitPlace(**row) for row in json.loads(text)] if text else []
    return {place.code_begin: place for place in places}
