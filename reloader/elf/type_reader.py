"""Reading the types of an object from its debug information.

It is one walk over the records. Bodies of functions are stepped over where the compiler says
how far they reach (gcc) and no variable with an address is declared in them.
"""

from bisect import bisect_left
from collections import OrderedDict
from typing import Any, Final

import numpy as np

from reloader.elf.abbrevs import Shape, number_of, uleb
from reloader.elf.die import Attributes, Unit, expression_of
from reloader.elf.dwarf import some_debug_sections
from reloader.elf.object import COMMON, ObjectFile
from reloader.elf.scopes import BROKEN
from reloader.elf.types import Item, Kind, Record, TypeTable

_KEPT: Final = 48  # objects whose types stay in memory
_MOST_TYPES: Final = 100_000  # of all of them, some 400 bytes each
_LEAST: Final = 2  # both versions of one object
_DEEPEST: Final = 200  # records in records; a damaged file may have no end
_BUILTIN: Final = "__builtin_"  # gcc declares a function that it knows so, without parameters
_WRITE_ALLOC: Final = 0x3  # SHF_WRITE | SHF_ALLOC
_WRITE_ALLOC_EXEC: Final = 0x7
_SECTIONS: Final = frozenset({
    ".debug_info", ".debug_abbrev", ".debug_str", ".debug_str_offsets", ".debug_line_str",
    ".debug_addr",
})  # fmt: skip


def type_table(obj: ObjectFile) -> TypeTable:
    """Return the types of an object; `known` is false where it does not tell."""
    found = _cache.get(obj.digest)
    if found is None:
        try:
            found = _read(obj)
        except BROKEN:
            found = TypeTable()
        _cache[obj.digest] = found
        total = sum(len(table.types) for table in _cache.values())
        while len(_cache) > _KEPT or (total > _MOST_TYPES and len(_cache) > _LEAST):
            total -= len(_cache.popitem(last=False)[1].types)
    else:
        _cache.move_to_end(obj.digest)
    return found


def forget(obj: ObjectFile) -> None:
    """Read an object anew when it is asked for the next time."""
    _cache.pop(obj.digest, None)


_cache: OrderedDict[str, TypeTable] = OrderedDict()


def _read(obj: ObjectFile) -> TypeTable:
    sections = some_debug_sections(obj, _SECTIONS)
    table = TypeTable()
    if ".debug_info" not in sections.data or ".debug_abbrev" not in sections.data:
        return table
    pointers = sections.pointers[".debug_info"]
    headers: Any = obj.sections
    flags = headers["sh_flags"][np.maximum(pointers.section, 0)]
    data = (pointers.section == COMMON) | (flags & _WRITE_ALLOC_EXEC == _WRITE_ALLOC)
    places: list[int] = pointers.at[data].tolist()
    base = 0
    while base < len(sections.data[".debug_info"]):
        unit = Unit(sections, base)
        _Walk(unit, table, places).run()
        base = unit.end
    table.known = bool(table.functions or table.variables or table.types)
    apart = b".debug_types" in obj.section_names or (
        obj.section_names.count(b".debug_info") > 1
    )
    table.complete = table.known and not apart
    _name_records(table)
    return table


def _name_records(table: TypeTable) -> None:
    """Take the typedef's name for a nameless record, and say who is derived from whom."""
    for at, record in table.types.items():
        if record.kind is Kind.ALIAS and record.word == "typedef" and record.name:
            target = table.types.get(record.type)
            if target is not None and not target.name and not target.declared:
                table.named.setdefault((target.kind, record.name), record.type)
        for item in record.items:
            if item.base:
                table.derived.setdefault(item.type, []).append(at)
    for record in table.types.values():
        first = _inherited_slots(table, record, 0) if record.slots else 0
        # what overrides a function of the base class has that one's place
        record.slots = {index: name for index, name in record.slots.items() if index >= first}


def _inherited_slots(table: TypeTable, record: Record, depth: int) -> int:
    """Return how many virtual functions a class has from its first base."""
    for item in record.items:
        base = table.types.get(item.type) if item.base and not item.virtual else None
        if base is not None and item.place == 0 and depth < _DEEPEST:
            own = max(base.slots, default=-1) + 1
            return max(own, _inherited_slots(table, base, depth + 1))
    return 0


def _tags() -> dict[int, tuple[Kind, str]]:
    rows = {
        "base_type": (Kind.BASE, ""), "pointer_type": (Kind.POINTER, ""),
        "reference_type": (Kind.REFERENCE, "&"),
        "rvalue_reference_type": (Kind.REFERENCE, "&&"),
        "structure_type": (Kind.RECORD, "struct"), "class_type": (Kind.RECORD, "class"),
        "union_type": (Kind.UNION, "union"), "enumeration_type": (Kind.ENUM, "enum"),
        "array_type": (Kind.ARRAY, ""), "subroutine_type": (Kind.FUNCTION, ""),
        "ptr_to_member_type": (Kind.MEMBER_POINTER, ""), "typedef": (Kind.ALIAS, "typedef"),
        "const_type": (Kind.ALIAS, "const"), "volatile_type": (Kind.ALIAS, "volatile"),
        "restrict_type": (Kind.ALIAS, ""), "atomic_type": (Kind.ALIAS, "_Atomic"),
        "unspecified_type": (Kind.OTHER, ""), "string_type": (Kind.OTHER, ""),
        "subrange_type": (Kind.OTHER, ""),
    }  # fmt: skip
    return {number_of("tag", name): row for name, row in rows.items()}


_TYPES: Final = _tags()
_SUBPROGRAM: Final = number_of("tag", "subprogram")
_VARIABLE: Final = number_of("tag", "variable")
_NAMESPACE: Final = number_of("tag", "namespace")
_MEMBER: Final = number_of("tag", "member")
_INHERITANCE: Final = number_of("tag", "inheritance")
_ENUMERATOR: Final = number_of("tag", "enumerator")
_SUBRANGE: Final = number_of("tag", "subrange_type")
_PARAMETER: Final = number_of("tag", "formal_parameter")
_PLACED: Final = frozenset({_MEMBER, _INHERITANCE})
_ADDRESSES: Final = frozenset({Kind.POINTER, Kind.REFERENCE})
_NAMED: Final = frozenset({Kind.RECORD, Kind.UNION, Kind.ENUM})
_VARIADIC: Final = number_of("tag", "unspecified_parameters")
_LAMBDA: Final = b"lambda"
_CALLS: Final = {number_of("tag", "call_site"), 0x4109}  # DW_TAG_GNU_call_site
# What comes after the parameters in a function whose body is stepped over.
_BODY: Final = _CALLS | {
    number_of("tag", name)
    for name in ("variable", "lexical_block", "inlined_subroutine", "label")
}


class _Walk:
    """One pass over a unit's records."""

    def __init__(self, unit: Unit, table: TypeTable, places: list[int]) -> None:
        self.unit, self.table, self.places = unit, table, places
        self.depth = 0
        # of functions and variables that a later record may complete
        self.records: dict[int, Record] = {}
        self.linkage: dict[int, str] = {}
        self.declared: dict[int, int] = {}  # type of a static member by its record
        self.indexed = unit.version >= 5 and ".debug_addr" in unit.sections.data
        # types of closures stand inside of the functions that make them
        self.closures = _LAMBDA in unit.sections.data.get(".debug_str", b"")

    def run(self) -> None:
        """Read the unit."""
        unit = self.unit
        shape, top, after = unit.at(unit.first)
        unit.top = top
        self.table.units.append((unit.end, str(unit.at(unit.first)[1].get("name", ""))))
        if shape is not None and shape.children:
            self.children(after, "", outermost=True)

    def children(self, at: int, scope: str, *, outermost: bool = False) -> int:
        """Read the records up to the end of their parent; return the offset after it."""
        unit = self.unit
        self.depth += 1
        if self.depth > _DEEPEST:
            raise ValueError(at)
        while at < unit.end:
            start = at
            shape, found, at = unit.at(at)
            if shape is None:
                break
            at = self.record(shape, found, start, at, scope, outermost=outermost)
        self.depth -= 1
        return at

    def record(  # noqa: PLR0913  a record and where it is
        self,
        shape: Shape,
        found: Attributes,
        start: int,
        at: int,
        scope: str,
        *,
        outermost: bool,
    ) -> int:
        """Read one record with its children; return the offset after them."""
        tag = shape.tag
        if tag in _TYPES:
            return self.type(shape, found, start, at, scope)
        if tag == _SUBPROGRAM:
            return self.function(shape, found, start, at, scope, outermost=outermost)
        if tag == _VARIABLE:
            self.variable(found, start, outermost=outermost)
        elif tag == _NAMESPACE and shape.children:
            return self.children(at, f"{scope}{found.get('name', '')}::", outermost=outermost)
        return self.inside(shape, found, at, scope)

    def inside(self, shape: Shape, found: Attributes, at: int, scope: str) -> int:
        """Read what is in a record that is nothing itself; step over it where that is sure."""
        if not shape.children:
            return at
        sibling = found.get("sibling", 0)
        if sibling > at and (shape.tag in _CALLS or not self.matters(at, sibling)):
            return sibling
        return self.children(at, scope)

    def matters(self, start: int, end: int) -> bool:
        """Return whether some bytes may declare a variable with an address, or a closure."""
        if self.indexed or self.closures:
            return True
        row = bisect_left(self.places, start)
        return row < len(self.places) and self.places[row] < end

    def variable(self, found: Attributes, start: int, *, outermost: bool) -> None:
        """Take a variable with an address, or one that is defined elsewhere."""
        origin = found.get("specification", found.get("abstract_origin", 0))
        type_ = found.get("type", self.declared.get(origin, 0))
        self.declared[start] = type_
        place = self.unit.place(found.get("location"))
        if place is not None:
            self.table.variables[place] = type_
        elif outermost and found.get("declaration") and found.get("external"):
            name = found.get("linkage_name") or found.get("name", "")
            self.table.outer_variables[name] = type_

    def type(self, shape: Shape, found: Attributes, start: int, at: int, scope: str) -> int:
        """Take a type."""
        kind, word = _TYPES[shape.tag]
        name = found.get("name", "")
        record = Record(kind, name, word, found.get("byte_size", -1), found.get("type", 0))
        record.encoding = found.get("encoding", 0)
        record.declared = bool(found.get("declaration"))
        record.file = found.get("decl_file", 0)
        if record.size == -1 and kind in _ADDRESSES:
            record.size = 8
        self.table.types[start] = record
        full = scope + name
        if name and not record.declared and kind in _NAMED:
            self.table.named[kind, full] = start
        return self.parts(record, at, f"{full}::") if shape.children else at

    def parts(self, record: Record, at: int, scope: str) -> int:
        """Read what a type is made of; return the offset after it."""
        unit = self.unit
        while at < unit.end:
            start = at
            shape, found, at = unit.at(at)
            if shape is None:
                break
            tag = shape.tag
            if tag in _PLACED:
                self.member(record, found, inherited=tag == _INHERITANCE)
                self.declared[start] = found.get("type", 0)
            elif tag == _ENUMERATOR:
                value = found.get("const_value", 0) & ((1 << 8 * max(record.size, 1)) - 1)
                record.items.append(Item(found.get("name", ""), 0, value))
            elif tag == _PARAMETER:
                record.items.append(Item("", found.get("type", 0), 0))
            elif tag == _SUBRANGE:
                record.counts.append(_count(found))
            elif tag == _VARIADIC:
                record.variadic = True
            else:
                if tag == _SUBPROGRAM and found.get("virtuality"):
                    self.virtual(record, found)
                if tag == _SUBPROGRAM and found.get("name") == "operator()":
                    record.name = record.name or f"{scope.rstrip(':')}::{{closure}}".lstrip(":")
                self.depth += 1
                at = self.record(shape, found, start, at, scope, outermost=False)
                self.depth -= 1
                continue
            at = self.inside(shape, found, at, scope)
        return at

    def member(self, record: Record, found: Attributes, *, inherited: bool) -> None:
        """Take a member or a base class; a static member is a variable of its own."""
        if found.get("external") or found.get("declaration"):
            return
        name, type_ = found.get("name", ""), found.get("type", 0)
        virtual = bool(inherited and found.get("virtuality"))
        bits = found.get("bit_size", 0)
        item = Item(
            name, type_, _bit_offset(self.unit, found, virtual), bits, inherited, virtual
        )
        record.items.append(item)

    def virtual(self, record: Record, found: Attributes) -> None:
        """Take a virtual function; one that the compiler declared itself adds no slot."""
        start, size = expression_of(found.get("vtable_elem_location"))
        if size and not found.get("artificial"):
            index, _ = uleb(self.unit.data, start + 1)  # DW_OP_constu
            record.slots[index] = found.get("linkage_name") or found.get("name", "")

    def function(  # noqa: PLR0913  a record and where it is
        self,
        shape: Shape,
        found: Attributes,
        start: int,
        at: int,
        scope: str,
        *,
        outermost: bool,
    ) -> int:
        """Take a function with its parameters."""
        origin = self.records.get(found.get("specification", 0))
        name = found.get("name", "") or (origin.name if origin else "")
        key = found.get("linkage_name") or found.get("MIPS_linkage_name")
        key = key or self.linkage.get(found.get("specification", 0)) or name
        record = Record(
            Kind.FUNCTION, name, type=found.get("type", origin.type if origin else 0)
        )
        record.declared = bool(found.get("declaration"))
        self.records[start], self.linkage[start] = record, key
        if key and not record.declared:
            self.table.functions[key] = record
        elif key and outermost and found.get("external") and not name.startswith(_BUILTIN):
            self.table.outer_functions[key] = record
        if not shape.children:
            return at
        sibling = found.get("sibling", 0)
        skip = sibling > at and not self.matters(at, sibling)
        return self.body(record, at, sibling if skip else 0, f"{scope}{name}::")

    def body(self, record: Record, at: int, end: int, scope: str) -> int:
        """Read parameters, and what else is in a function unless its end is given."""
        unit = self.unit
        while at < unit.end:
            start = at
            shape, found, at = unit.at(at)
            if shape is None:
                break
            if shape.tag == _PARAMETER:
                record.items.append(Item("", found.get("type", 0), 0))
                at = self.inside(shape, found, at, scope)
            elif shape.tag == _VARIADIC:
                record.variadic = True
            elif end and shape.tag in _BODY:
                return end
            else:
                self.depth += 1
                at = self.record(shape, found, start, at, scope, outermost=False)
                self.depth -= 1
        return at


def _count(found: Attributes) -> int:
    for name, more in (("count", 0), ("upper_bound", 1)):
        bound = found.get(name)
        if isinstance(bound, int):
            return (bound + more) & 0xFFFFFFFF
    return 0


def _bit_offset(unit: Unit, found: Attributes, virtual: bool) -> int:  # noqa: FBT001 - its own
    """Return where a member begins, counted in bits from the record's start."""
    if "data_bit_offset" in found:
        return int(found["data_bit_offset"])
    place: Any = found.get("data_member_location", 0)
    start, size = expression_of(place)
    if size:  # DWARF 2: DW_OP_plus_uconst; virtual bases: a computation
        constant = not virtual and unit.data[start] == 0x23
        place = uleb(unit.data, start + 1)[0] if constant else 0
    bits = int(place) * 8
    if "bit_offset" in found:  # before DWARF 5: from the storage unit's highest bit
        bits += found.get("byte_size", 0) * 8 - found["bit_offset"] - found.get("bit_size", 0)
    return bits
