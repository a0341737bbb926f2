"""What the type of a variable looks like, for people and to tell arrays from scalars."""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import Any, Final, TypeVar, cast

from elftools.dwarf.compileunit import CompileUnit
from elftools.dwarf.die import DIE
from elftools.dwarf.dwarfinfo import DWARFInfo

from reloader.elf.dwarf import debug_sections
from reloader.elf.object import ObjectFile
from reloader.elf.scopes import BROKEN, variables_of
from reloader.errors.data import Layout, Member

_ADDR_SIZE: Final = 8
_KEPT: Final = 8  # objects whose variables' records stay at hand
_DEEPEST: Final = 40  # levels of types in types; a damaged file may name itself
_RECORDS: Final = ("DW_TAG_structure_type", "DW_TAG_class_type", "DW_TAG_union_type")
_WORDS: Final = {
    "DW_TAG_structure_type": "struct ",
    "DW_TAG_class_type": "class ",
    "DW_TAG_union_type": "union ",
    "DW_TAG_enumeration_type": "enum ",
    "DW_TAG_const_type": "const ",
    "DW_TAG_volatile_type": "volatile ",
}
_ALIASES: Final = ("DW_TAG_typedef", "DW_TAG_const_type", "DW_TAG_volatile_type",
                   "DW_TAG_restrict_type", "DW_TAG_atomic_type")  # fmt: skip


def variable_layout(obj: ObjectFile, section: int, offset: int) -> Layout | None:
    """Return the layout of the variable at a place, None if the object does not tell."""
    return _ask(obj, section, offset, _layout)


def is_array(obj: ObjectFile, section: int, offset: int) -> bool | None:
    """Return whether the variable at a place is or holds an array, None if nothing tells."""
    return _ask(obj, section, offset, lambda die: _holds_array(die, 0))


_T = TypeVar("_T")


def _ask(
    obj: ObjectFile, section: int, offset: int, question: Callable[[DIE], _T]
) -> _T | None:
    """Ask something of the type of the variable at a place."""
    try:
        variables = _variables(obj)
        at = variables.places.get((section, offset))
        if at is None:
            return None
        info, unit = variables.info, variables.units[at]
        type_ = _type_of(info.get_DIE_from_refaddr(at, unit))
        return None if type_ is None else question(type_)
    except BROKEN:
        return None


@dataclass(frozen=True, slots=True, eq=False)
class _Variables:
    """Where the records of one object's variables are."""

    info: DWARFInfo
    places: dict[tuple[int, int], int]  # (section, offset) -> offset of the record
    units: dict[int, CompileUnit]  # by offset of the record


_cache: OrderedDict[str, _Variables] = OrderedDict()


def _variables(obj: ObjectFile) -> _Variables:
    found = _cache.get(obj.digest)
    if found is None:
        sections = debug_sections(obj)
        found = _cache[obj.digest] = _Variables(sections.info(), {}, {})
        if ".debug_info" in sections.data:
            for unit in found.info.iter_CUs():
                for variable in variables_of(sections, unit):
                    found.places[variable.target] = variable.at
                    found.units[variable.at] = unit
        while len(_cache) > _KEPT:
            _cache.popitem(last=False)
    return found


def _type_of(die: DIE) -> DIE | None:
    """Return the record of a variable's or member's type."""
    for _ in range(_DEEPEST):
        if "DW_AT_type" in die.attributes:
            return die.get_DIE_from_attribute("DW_AT_type")
        for link in ("DW_AT_abstract_origin", "DW_AT_specification"):
            if link in die.attributes:
                die = die.get_DIE_from_attribute(link)
                break
        else:
            return None
    return None


def _bare(die: DIE) -> DIE | None:
    """Return a type without `typedef`, `const` and the like; None for `void`."""
    for _ in range(_DEEPEST):
        if die.tag not in _ALIASES:
            return die
        inner = _type_of(die)
        if inner is None:
            return None
        die = inner
    return None


def _layout(die: DIE) -> Layout:
    bare = _bare(die)
    members = _members(bare) if bare is not None and bare.tag in _RECORDS else ()
    return Layout(_type_name(die), _size(die), members)


def _members(record: DIE) -> tuple[Member, ...]:
    members: list[Member] = []
    for child in cast("Any", record).iter_children():
        type_ = _type_of(child)
        if (
            child.tag != "DW_TAG_member"
            or type_ is None
            or "DW_AT_external" in child.attributes
        ):
            continue
        members.append(Member(_offset(child), _size(type_), _type_name(type_), _name(child)))
    return tuple(members)


def _offset(member: DIE) -> int:
    """Return the byte that a member, or the first bit of a bit-field, is in."""

    def number(name: str) -> int | None:
        attribute: Any = member.attributes.get(f"DW_AT_{name}")
        value: Any = attribute.value if attribute is not None else None
        return value if isinstance(value, int) else None

    start = number("data_bit_offset")
    if start is not None:
        return start // 8
    place = number("data_member_location") or 0
    from_top = number(
        "bit_offset"
    )  # before DWARF 5: counted from the storage unit's highest bit
    if from_top is None:
        return place
    unit, bits = number("byte_size") or 0, number("bit_size") or 0
    return place + (unit * 8 - from_top - bits) // 8


def _name(die: DIE) -> str:
    name: Any = die.attributes.get("DW_AT_name")
    return name.value.decode("utf-8", "replace") if name is not None else ""


def _counts(array: DIE) -> list[int]:
    """Return the elements of each dimension of an array; 0 where it is open."""
    counts: list[int] = []
    for child in cast("Any", array).iter_children():
        for attribute, more in (("DW_AT_count", 0), ("DW_AT_upper_bound", 1)):
            bound: Any = child.attributes.get(attribute)
            if bound is not None and isinstance(bound.value, int):
                counts.append(bound.value + more)
                break
        else:
            counts.append(0)
    return counts


def _size(die: DIE, depth: int = 0) -> int:
    bare = _bare(die)
    if bare is None or depth > _DEEPEST:
        return 0
    if "DW_AT_byte_size" in bare.attributes:
        return int(bare.attributes["DW_AT_byte_size"].value)
    if bare.tag == "DW_TAG_array_type":
        element = _type_of(bare)
        return prod(_counts(bare)) * (_size(element, depth + 1) if element else 0)
    return _ADDR_SIZE if "pointer" in str(bare.tag) or "reference" in str(bare.tag) else 0


def _type_name(die: DIE, depth: int = 0) -> str:
    inner = _type_of(die) if depth < _DEEPEST else None
    below = _type_name(inner, depth + 1) if inner is not None else "void"
    tag = str(die.tag)
    if tag == "DW_TAG_pointer_type":
        return "void *" if inner is None else f"{below} *".replace("* *", "**")
    if tag == "DW_TAG_array_type":
        return below + "".join(f"[{count or ''}]" for count in _counts(die))
    if tag == "DW_TAG_subroutine_type":
        return f"{below} ()"
    if tag in {"DW_TAG_const_type", "DW_TAG_volatile_type"}:
        return _WORDS[tag] + below
    return _WORDS.get(tag, "") + (_name(die) or "{...}")


def _holds_array(die: DIE, depth: int) -> bool:
    bare = _bare(die)
    if bare is None or depth > _DEEPEST:
        return False
    if bare.tag == "DW_TAG_array_type":
        return True
    if bare.tag not in _RECORDS:
        return False
    types = (_type_of(child) for child in cast("Any", bare).iter_children())
    return any(_holds_array(type_, depth + 1) for type_ in types if type_ is not None)
