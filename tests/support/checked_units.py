"""OCaml units from outside: do module blocks, function values and slots lead to what is live?

A unit's functions are in no slot of a symbol. The books say which version is live, which module
blocks others know it by, and which slots its functions have; the process is read as the runtime
does, by headers and closures (runtime/caml/mlvalues.h). For the checker.
"""

import json
from collections.abc import Iterator, Sequence
from typing import Any, Final

from stubs import layout
from tests.support.outside import REGIONS, Outside

_UNIT: Final = "unit "  # how the name of a unit's row begins
_CLOSURE: Final = 247  # the tag of a block that is one function
_CODE_BEGIN = 5  # in a row of what the runtime knows


class Units:
    """All units of one target."""

    def __init__(self, outside: Outside) -> None:
        self.outside = outside
        rows = outside.rows("SELECT name, data FROM host_rows WHERE target=?", outside.target)
        texts = {row["name"]: json.loads(row["data"]) for row in rows}
        # units that were freed since the last reload may be among them
        self.known = {place[_CODE_BEGIN] for place in texts.get("registered", [])}
        self.units: dict[tuple[str, str], dict[str, Any]] = {}
        for name, unit in texts.items():
            if name.startswith(_UNIT):
                path, member = json.loads(name.removeprefix(_UNIT))
                self.units[path, member] = unit
        self.owners = {
            row["slot"]: (row["path"], row["member"])
            for row in outside.rows("SELECT * FROM slot_keys WHERE target=?", outside.target)
        }
        self.superseded = {
            row["addr"]
            for row in outside.rows(
                "SELECT addr FROM allocations"
                " WHERE target=? AND freed IS NULL AND superseded IS NOT NULL",
                outside.target,
            )
        }

    def problems(self) -> Iterator[str]:
        """Yield what does not agree."""
        live = {
            (row["path"], row["member"]): row["digest"]
            for row in self.outside.rows(
                "SELECT path, member, digest FROM live_objects WHERE target=?",
                self.outside.target,
            )
        }
        for key, unit in self.units.items():
            where = f"unit {unit['info']['name']}"
            if live.get(key) != unit["digest"]:
                yield f"{where}: version {unit['digest']}, {live.get(key)} is live"
            yield from (f"{where}: {text}" for text in self.of_block(unit))
            yield from (f"{where}: {text}" for text in self.of_slots(key, unit))
            yield from (f"{where}: {text}" for text in self.of_faces(unit))

    def of_block(self, unit: dict[str, Any]) -> Iterator[str]:
        """The live version is in memory that is held, and its function values lead to stubs."""
        block, begin = unit["block"], unit["code_begin"]
        if not begin:
            if self.outside.in_arena(block):
                yield f"its block is at {block:#x}, and its code the executable's"
            return
        if begin not in self.known:
            yield f"the runtime does not know its code at {begin:#x}"
        for addr in (block, begin):
            if not self.is_live(addr):
                yield f"its live version is at {addr:#x}, which nobody holds for it"
                return
        for field in functions(unit["info"]["slots"]):
            code = self.closed_code(self.value(block, field["chain"]))
            if code and self.outside.in_arena(code) and self.stub_slot(code) is None:
                yield f"{field['path']} is {code:#x}: who captures it gets no later version"

    def of_slots(self, key: tuple[str, str], unit: dict[str, Any]) -> Iterator[str]:
        """The functions' slots are the unit's, and lead to what is live."""
        for slot in unit["slots"]:
            if self.owners.get(slot) != key:
                yield f"slot {slot} is owned by {self.owners.get(slot)}"
                continue
            code = self.end_of(slot)
            if not code or (self.outside.in_arena(code) and not self.is_live(code)):
                yield f"slot {slot} leads to {code:#x}, which is no live version's"

    def of_faces(self, unit: dict[str, Any]) -> Iterator[str]:
        """Each block that others know has the live version's functions."""
        now = {field["path"]: field for field in functions(unit["info"]["slots"])}
        for block, fields, outdated in unit["faces"]:
            if self.outside.in_arena(block) and not self.is_held(block):
                yield f"others know it by a block at {block:#x}, which nobody holds"
                continue
            for field in functions(fields):
                new = now.get(field["path"])
                if outdated or new is None or new["type"] != field["type"]:
                    continue
                value = self.value(block, field["chain"])
                wanted = self.value(unit["block"], new["chain"])
                if value != wanted and self.closed_code(wanted):
                    yield f"{field['path']} at {block:#x} is {value:#x}, not {wanted:#x}"

    def is_held(self, addr: int) -> bool:
        """Return whether an address is in memory of ours that is not free."""
        return self.outside.holder_of(addr) is not None

    def is_live(self, addr: int) -> bool:
        """Return whether an address is in memory that is held, and not for old code's sake."""
        found = self.outside.holder_of(addr)
        return found is not None and found[0] not in self.superseded

    def end_of(self, slot: int) -> int:
        """Return the code that a slot leads to, by other units' slots too; 0: there is none."""
        seen: set[int] = set()
        while slot not in seen and slot < len(self.outside.slots):
            seen.add(slot)
            code = int(self.outside.slots[slot])
            next_slot = self.stub_slot(code)
            if next_slot is None:
                return code
            slot = next_slot
        return 0

    def stub_slot(self, addr: int) -> int | None:
        """Return the slot whose stub is at an address."""
        begin, _, _ = self.outside.region(REGIONS.index("code"))
        slot, rest = divmod(addr - begin, layout.STUB_SIZE)
        return slot if not rest and slot in self.owners else None

    def value(self, block: int, chain: Sequence[int]) -> int:
        """Return a field of a module block, or of a module in it, and so on."""
        value = block
        for index in chain:
            if value & 1 or not value:
                return 0
            value = self.words(value + 8 * index, 1)[0]
        return value

    def closed_code(self, value: int) -> int:
        """Return the code of a function without environment, 0 for what is none."""
        if value & 1 or not value:
            return 0
        header, code, info, full = self.words(value - 8, 4)
        if header & 0xFF != _CLOSURE or (info & (1 << 56) - 1) >> 1 < header >> 10:
            return 0
        return code if info >> 56 in {0, 1} else full

    def words(self, addr: int, count: int) -> list[int]:
        """Return words of the process."""
        data = self.outside.read(addr, 8 * count)
        return [int.from_bytes(data[at : at + 8], "little") for at in range(0, 8 * count, 8)]


def functions(fields: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the fields of a module block that are functions."""
    return [field for field in fields if field["kind"] == "function"]
