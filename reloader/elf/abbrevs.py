"""How the records of a debug information unit are laid out, prepared for reading them fast.

A type table wants a few attributes of every record and nothing of the rest, so runs of what is
not wanted become one step. The abbreviations are the same for most versions of an object: what
was prepared is kept.
"""

from functools import lru_cache
from typing import Final, NamedTuple

from elftools.dwarf.enums import ENUM_DW_AT, ENUM_DW_FORM, ENUM_DW_TAG

# What a step does with its attribute.
(SKIP, SKIP_LEB, NUMBER, SIGNED, UNSIGNED, CONSTANT, STRING, STRP, LINE_STRP, STRX, STRX_LEB,
 REF, REF_LEB, REF_ADDR, SIGNATURE, EXPRESSION) = range(16)  # fmt: skip

_SIZES: Final = {  # (what a wanted attribute of this form becomes, its bytes)
    "addr": (SKIP, 8), "data1": (NUMBER, 1), "data2": (NUMBER, 2), "data4": (NUMBER, 4),
    "data8": (NUMBER, 8), "data16": (SKIP, 16), "flag": (NUMBER, 1),
    "flag_present": (CONSTANT, 0),
    "ref1": (REF, 1), "ref2": (REF, 2), "ref4": (REF, 4), "ref8": (REF, 8),
    "ref_sig8": (SIGNATURE, 8), "strx1": (STRX, 1), "strx2": (STRX, 2), "strx3": (STRX, 3),
    "strx4": (STRX, 4), "addrx1": (SKIP, 1), "addrx2": (SKIP, 2), "addrx3": (SKIP, 3),
    "addrx4": (SKIP, 4),
}  # fmt: skip
_OFFSETS: Final = {  # 4 bytes, or 8 in 64-bit DWARF
    "strp": STRP, "line_strp": LINE_STRP, "sec_offset": NUMBER, "ref_addr": REF_ADDR,
    "strp_sup": SKIP, "GNU_ref_alt": SKIP, "GNU_strp_alt": SKIP,
}  # fmt: skip
_LEBS: Final = {
    "udata": UNSIGNED, "sdata": SIGNED, "ref_udata": REF_LEB, "strx": STRX_LEB,
    "addrx": SKIP_LEB, "loclistx": SKIP_LEB, "rnglistx": SKIP_LEB,
    "GNU_addr_index": SKIP_LEB, "GNU_str_index": STRX_LEB,
}  # fmt: skip
_BLOCKS: Final = {"exprloc": 0, "block": 0, "block1": 1, "block2": 2, "block4": 4}

_WANTED: Final = (
    "sibling", "location", "name", "byte_size", "bit_offset", "bit_size", "const_value",
    "upper_bound", "decl_file", "abstract_origin", "artificial", "count",
    "data_member_location",
    "declaration", "encoding", "external", "specification", "type", "virtuality",
    "vtable_elem_location", "data_bit_offset", "linkage_name", "str_offsets_base", "addr_base",
    "containing_type", "MIPS_linkage_name", "GNU_addr_base",
)  # fmt: skip
_FORM_NAMES: Final = {
    number: name.removeprefix("DW_FORM_") for name, number in ENUM_DW_FORM.items()
}


def number_of(kind: str, name: str) -> int:
    """Return the number of `tag` or `attribute` NAME."""
    table = {"tag": ENUM_DW_TAG, "attribute": ENUM_DW_AT}[kind]
    prefix = {"tag": "DW_TAG_", "attribute": "DW_AT_"}[kind]
    return int(table[prefix + name])


_ATTRIBUTES: Final = {number_of("attribute", name): name for name in _WANTED}


class Step(NamedTuple):
    """One wanted attribute, or a run of others."""

    what: int  # SKIP ...
    size: int  # bytes; for an EXPRESSION of its length field; for a CONSTANT its value
    attribute: str  # "": skipped


class Shape(NamedTuple):
    """One abbreviation."""

    tag: int
    children: bool
    steps: tuple[Step, ...]


@lru_cache(maxsize=64)
def shapes_of(table: bytes, offset_size: int) -> dict[int, Shape]:
    """Return the abbreviations of one table by their code.

    Args:
        table: `.debug_abbrev` from the unit's own table on.
        offset_size: 4, or 8 in 64-bit DWARF.

    Raises:
        ValueError: It has a form that nobody knows.
        IndexError: It is cut off.
    """
    shapes: dict[int, Shape] = {}
    at = 0
    while at < len(table):
        code, at = uleb(table, at)
        if code == 0:
            break
        tag, at = uleb(table, at)
        children, at = bool(table[at]), at + 1
        steps: list[Step] = []
        while True:
            attribute, at = uleb(table, at)
            form, at = uleb(table, at)
            if attribute == form == 0:
                break
            constant = 1
            if _FORM_NAMES.get(form) == "implicit_const":
                constant, at = sleb(table, at)
            _add(steps, _ATTRIBUTES.get(attribute, ""), form, constant, offset_size)
        shapes[code] = Shape(tag, children, tuple(steps))
    return shapes


def _add(steps: list[Step], attribute: str, form: int, constant: int, wide: int) -> None:
    what, size = _step(_FORM_NAMES.get(form, ""), wide)
    if what == CONSTANT:
        if attribute:
            steps.append(Step(CONSTANT, constant, attribute))
    elif what == EXPRESSION or (attribute and what not in {SKIP, SKIP_LEB}):
        steps.append(Step(what, size, attribute))
    elif what == STRING:
        steps.append(Step(what, size, ""))
    elif not size:
        steps.append(Step(SKIP_LEB, 0, attribute))
    elif attribute:  # an address: that it is there is all that is wanted
        steps.append(Step(SKIP, size, attribute))
    elif steps and steps[-1].what == SKIP and not steps[-1].attribute:
        steps[-1] = Step(SKIP, steps[-1].size + size, "")
    else:
        steps.append(Step(SKIP, size, ""))


def _step(form: str, offset_size: int) -> tuple[int, int]:
    if form in _SIZES:
        return _SIZES[form]
    if form in _OFFSETS:
        return _OFFSETS[form], offset_size
    if form in _LEBS:
        return _LEBS[form], 0
    if form in _BLOCKS:
        return EXPRESSION, _BLOCKS[form]
    if form == "string":
        return STRING, 0
    if form == "implicit_const":
        return CONSTANT, 0
    raise ValueError(form)


def uleb(data: bytes, at: int) -> tuple[int, int]:
    """Return (value, offset after it) of an unsigned LEB128."""
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7


def sleb(data: bytes, at: int) -> tuple[int, int]:
    """Return (value, offset after it) of a signed LEB128."""
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            return (value - (1 << shift) if byte & 0x40 else value), at
