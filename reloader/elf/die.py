"""The records of one debug information unit, read one at a time, wanted attributes only."""

from collections.abc import Callable
from typing import Any, Final, cast

from reloader.elf.abbrevs import (
    CONSTANT,
    EXPRESSION,
    LINE_STRP,
    NUMBER,
    REF,
    REF_ADDR,
    REF_LEB,
    SIGNATURE,
    SIGNED,
    SKIP,
    SKIP_LEB,
    STRING,
    STRP,
    STRX,
    STRX_LEB,
    UNSIGNED,
    Shape,
    shapes_of,
    sleb,
    uleb,
)
from reloader.elf.dwarf import DebugSections

Attributes = dict[str, Any]  # ints, texts, and (start, size) of an expression
_TYPE_UNITS: Final = (2, 6)  # DW_UT_type, DW_UT_split_type
_PLAIN: Final = frozenset({NUMBER, REF})
_SKELETON_UNITS: Final = (4, 5)  # DW_UT_skeleton, DW_UT_split_compile


class Unit:
    """One unit of `.debug_info`."""

    def __init__(self, sections: DebugSections, base: int) -> None:
        data = self.data = sections.data[".debug_info"]
        self.sections = sections
        self.base = base
        size, at, self.wide = int.from_bytes(data[base : base + 4], "little"), base + 4, 4
        if size == 0xFFFFFFFF:
            size, at, self.wide = int.from_bytes(data[at : at + 8], "little"), at + 8, 8
        self.end = at + size
        if self.end > len(data) or size < 8:
            raise ValueError(base)
        self.version, at = int.from_bytes(data[at : at + 2], "little"), at + 2
        kind = 1
        if self.version >= 5:
            kind, at = data[at], at + 2
        self.abbrevs = int.from_bytes(data[at : at + self.wide], "little")
        at += self.wide + (self.version < 5)
        if kind in _TYPE_UNITS:
            at += 8 + self.wide
        elif kind in _SKELETON_UNITS:
            at += 8
        self.first = at  # offset of the unit's own record
        table = sections.data[".debug_abbrev"]
        self.shapes = shapes_of(table[self.abbrevs :] if self.abbrevs else table, self.wide)
        self.text = sections.data.get(".debug_str", b"")
        self.names: dict[int, str] = {}
        self.strings_base = 8 if self.version >= 5 else 0
        self.top: Attributes = {}

    def at(self, at: int) -> tuple[Shape | None, Attributes, int]:
        """Return (shape, wanted attributes, offset after them); no shape: children end here."""
        data = self.data
        code, at = (data[at], at + 1) if data[at] < 0x80 else uleb(data, at)
        if code == 0:
            return None, {}, at
        shape = self.shapes[code]
        found: Attributes = {}
        for what, size, name in shape.steps:
            if what == SKIP:
                at += size
                if name:
                    found[name] = True
            elif what == STRP:
                offset = int.from_bytes(data[at : at + size], "little")
                at += size
                if name:
                    found[name] = self.names.get(offset) or self.name(offset)
            elif what in _PLAIN:
                value = int.from_bytes(data[at : at + size], "little")
                found[name] = value if what == NUMBER else value + self.base
                at += size
            elif what == CONSTANT:
                found[name] = size
            else:
                value, at = _RARE[what](self, at, size)
                if name:
                    found[name] = value
        return shape, found, at

    def string(self, at: int, _size: int) -> tuple[str, int]:
        """Read a text in the record itself."""
        end = self.data.index(0, at)
        return self.data[at:end].decode("utf-8", "replace"), end + 1

    def expression(self, at: int, size: int) -> tuple[tuple[int, int], int]:
        """Read where an expression's bytes are."""
        if size:
            length, at = int.from_bytes(self.data[at : at + size], "little"), at + size
        else:
            length, at = uleb(self.data, at)
        return (at, length), at + length

    def reference(self, at: int, size: int) -> tuple[int, int]:
        """Read an offset in the section."""
        return int.from_bytes(self.data[at : at + size], "little"), at + size

    def signature(self, at: int, size: int) -> tuple[int, int]:
        """Read the number of a type in a type unit: no offset of any record."""
        return -int.from_bytes(self.data[at : at + size], "little"), at + size

    def line_text(self, at: int, size: int) -> tuple[str, int]:
        """Read a text of `.debug_line_str`."""
        start = int.from_bytes(self.data[at : at + size], "little")
        texts = self.sections.data.get(".debug_line_str", b"\0")
        return texts[start : texts.index(0, start)].decode("utf-8", "replace"), at + size

    def index(self, at: int, size: int) -> tuple[str, int]:
        """Read a text by a fixed-size index."""
        return self.indexed(int.from_bytes(self.data[at : at + size], "little")), at + size

    def leb_index(self, at: int, _size: int) -> tuple[str, int]:
        """Read a text by its index."""
        value, at = uleb(self.data, at)
        return self.indexed(value), at

    def unsigned(self, at: int, _size: int) -> tuple[int, int]:
        """Read a number."""
        return uleb(self.data, at)

    def signed(self, at: int, _size: int) -> tuple[int, int]:
        """Read a number that may be negative."""
        return sleb(self.data, at)

    def leb_reference(self, at: int, _size: int) -> tuple[int, int]:
        """Read an offset in the unit."""
        value, at = uleb(self.data, at)
        return self.base + value, at

    def name(self, offset: int) -> str:
        """Return a text of `.debug_str`."""
        text = self.text[offset : self.text.index(0, offset)].decode("utf-8", "replace")
        self.names[offset] = text
        return text

    def indexed(self, index: int) -> str:
        """Return a text by its index in `.debug_str_offsets`."""
        table = self.sections.data.get(".debug_str_offsets", b"")
        at = int(self.top.get("str_offsets_base", self.strings_base)) + index * self.wide
        if at + self.wide > len(table):
            return ""  # the unit's own record, before its base is known
        return self.name(int.from_bytes(table[at : at + self.wide], "little"))

    def place(self, location: Any) -> tuple[int, int] | None:  # noqa: ANN401 - any attribute
        """Return (section, offset) of what a location's first operation points at."""
        start, size = expression_of(location)
        if not size:
            return None
        operation = self.data[start]
        if operation in {0x03, 0x0C, 0x0E}:  # DW_OP_addr, const4u and const8u (thread-local)
            return self.sections.pointers[".debug_info"].find(start + 1)
        if operation in {0xA1, 0xFB} and ".debug_addr" in self.sections.pointers:
            index, _ = uleb(self.data, start + 1)  # DW_OP_addrx, DW_OP_GNU_addr_index
            base = self.top.get("addr_base", self.top.get("GNU_addr_base", 0))
            return self.sections.pointers[".debug_addr"].find(int(base) + 8 * index)
        return None


def expression_of(value: Any) -> tuple[int, int]:  # noqa: ANN401 - any attribute
    """Return (start, size) of an attribute that is an expression; of any other nothing."""
    return cast("tuple[int, int]", value) if isinstance(value, tuple) else (0, 0)


_RARE: Final[dict[int, Callable[[Unit, int, int], tuple[Any, int]]]] = {
    STRING: Unit.string,
    EXPRESSION: Unit.expression,
    REF_ADDR: Unit.reference,
    SIGNATURE: Unit.signature,
    LINE_STRP: Unit.line_text,
    STRX: Unit.index,
    STRX_LEB: Unit.leb_index,
    UNSIGNED: Unit.unsigned,
    SKIP_LEB: Unit.unsigned,
    SIGNED: Unit.signed,
    REF_LEB: Unit.leb_reference,
}
