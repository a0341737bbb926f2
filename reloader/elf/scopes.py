"""In which function each variable of an object is declared, read from its debug information.

A compiler numbers static locals (`x.0`, `x.1`) by its own order, which an edit changes; the
path of functions around the declaration is what stays. pyelftools takes some 30 us a record, so
the tree is walked here with nothing but the abbreviations' sizes, and only the records on the
path to a variable are read with it. Where records name their next sibling (gcc), subtrees
without an address in them are stepped over.
"""

from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, cast

from elftools.common.exceptions import DWARFError, ELFError
from elftools.construct.core import ConstructError
from elftools.dwarf.compileunit import CompileUnit
from elftools.dwarf.die import DIE
from elftools.dwarf.dwarfinfo import DWARFInfo

from reloader.elf.dwarf import DebugSections, debug_sections
from reloader.elf.object import ObjectFile

BROKEN: Final = (DWARFError, ELFError, ConstructError, KeyError, ValueError, IndexError)
_OP_ADDR: Final = 0x03  # DW_OP_addr: the address itself
_OP_ADDRX: Final = (0xA1, 0xFB)  # DW_OP_addrx, DW_OP_GNU_addr_index: an index into .debug_addr
_ADDR_SIZE: Final = 8
_KEPT: Final = 64  # objects whose scopes stay in memory

_FIXED: Final = {
    "DW_FORM_addr": 8, "DW_FORM_data1": 1, "DW_FORM_data2": 2, "DW_FORM_data4": 4,
    "DW_FORM_data8": 8, "DW_FORM_data16": 16, "DW_FORM_flag": 1, "DW_FORM_flag_present": 0,
    "DW_FORM_implicit_const": 0, "DW_FORM_ref1": 1, "DW_FORM_ref2": 2, "DW_FORM_ref4": 4,
    "DW_FORM_ref8": 8, "DW_FORM_ref_sig8": 8, "DW_FORM_strx1": 1, "DW_FORM_strx2": 2,
    "DW_FORM_strx3": 3, "DW_FORM_strx4": 4, "DW_FORM_addrx1": 1, "DW_FORM_addrx2": 2,
    "DW_FORM_addrx3": 3, "DW_FORM_addrx4": 4,
}  # fmt: skip
_OFFSETS: Final = {  # 4 bytes, or 8 in 64-bit DWARF
    "DW_FORM_strp", "DW_FORM_line_strp", "DW_FORM_sec_offset", "DW_FORM_ref_addr",
    "DW_FORM_strp_sup", "DW_FORM_GNU_ref_alt", "DW_FORM_GNU_strp_alt",
}  # fmt: skip
_LEB: Final = {
    "DW_FORM_udata", "DW_FORM_sdata", "DW_FORM_ref_udata", "DW_FORM_strx", "DW_FORM_addrx",
    "DW_FORM_loclistx", "DW_FORM_rnglistx", "DW_FORM_GNU_addr_index", "DW_FORM_GNU_str_index",
}  # fmt: skip
_BLOCKS: Final = {  # bytes of the length in front; 0: LEB128
    "DW_FORM_exprloc": 0, "DW_FORM_block": 0, "DW_FORM_block1": 1, "DW_FORM_block2": 2,
    "DW_FORM_block4": 4,
}  # fmt: skip
_SCOPES: Final = {
    "DW_TAG_subprogram", "DW_TAG_namespace", "DW_TAG_class_type", "DW_TAG_structure_type",
    "DW_TAG_union_type",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Scope:
    """Where a variable is declared."""

    path: tuple[str, ...]  # functions (and namespaces) around it, outermost first
    name: str
    blocks: tuple[int, ...]  # which lexical block in each level of blocks, counted from 0

    def __str__(self) -> str:
        """Return the name as people and `--reinit` write it: `function.variable`."""
        return ".".join([*self.path, self.name])


class _Shape(NamedTuple):
    """One abbreviation, as far as the walk needs it."""

    tag: str
    children: bool
    steps: tuple[tuple[str, int, str], ...]  # (how to step, bytes, attribute if it matters)


class Found(NamedTuple):
    """A variable's record with an address."""

    chain: tuple[int, ...]  # offsets of the records around it, the unit's first
    blocks: tuple[int, ...]
    at: int  # offset of its record
    target: tuple[int, int]  # (section, offset)


def variable_scopes(obj: ObjectFile) -> dict[tuple[int, int], tuple[str, ...]]:
    """Return (scope path..., name) of every variable with an address, by (section, offset)."""
    return {key: (*scope.path, scope.name) for key, scope in scopes_of(obj).items()}


def scopes_of(obj: ObjectFile) -> dict[tuple[int, int], Scope]:
    """Return the scope of every variable that has an address, by (section, offset).

    Empty where the object has no debug information or one that cannot be read: it is a help for
    pairing variables, never a reason to refuse an object.
    """
    found = _cache.get(obj.digest)
    if found is None:
        try:
            found = _read(debug_sections(obj))
        except BROKEN:
            found = {}
        _cache[obj.digest] = found
        while len(_cache) > _KEPT:
            _cache.popitem(last=False)
    return found


_cache: OrderedDict[str, dict[tuple[int, int], Scope]] = OrderedDict()


def _read(sections: DebugSections) -> dict[tuple[int, int], Scope]:
    if ".debug_info" not in sections.data or ".debug_abbrev" not in sections.data:
        return {}
    info = sections.info()
    scopes: dict[tuple[int, int], Scope] = {}
    for unit in info.iter_CUs():
        cu = unit
        names = _Names(info, cu)
        for found in variables_of(sections, cu):
            scope = names.scope(found)
            if scope is not None:
                scopes[found.target] = scope
    return scopes


class _Names:
    """Names of the records of one unit, each read once."""

    def __init__(self, info: DWARFInfo, unit: CompileUnit) -> None:
        self.info = info
        self.unit = unit
        self.known: dict[int, tuple[str, str]] = {}

    def scope(self, found: Found) -> Scope | None:
        name = self.of(found.at)[1]
        path: list[str] = []
        for tag, outer in (self.of(at) for at in found.chain):
            if tag == "DW_TAG_inlined_subroutine":
                path = [outer]  # declared in the function that was inlined
            elif tag in _SCOPES and outer:
                path.append(outer)
        return Scope(tuple(path), name, found.blocks) if name else None

    def of(self, at: int) -> tuple[str, str]:
        """Return (tag, name); a concrete function has the name of its abstract one."""
        known = self.known.get(at)
        if known is None:
            die = self.info.get_DIE_from_refaddr(at, self.unit)
            known = self.known[at] = (str(die.tag), _name(die))
        return known


def _name(die: DIE) -> str:
    while True:
        if "DW_AT_name" in die.attributes:
            return die.attributes["DW_AT_name"].value.decode("utf-8", "replace")
        for link in ("DW_AT_abstract_origin", "DW_AT_specification"):
            if link in die.attributes:
                die = die.get_DIE_from_attribute(link)
                break
        else:
            return ""


def variables_of(sections: DebugSections, unit: CompileUnit) -> Iterator[Found]:
    """Yield the variables of one unit whose location is an address, in file order."""
    return _Walk(sections, unit).run()


class _Walk:
    """One pass over a unit's records that reads nothing but their sizes and locations."""

    def __init__(self, sections: DebugSections, unit: CompileUnit) -> None:
        self.data = sections.data[".debug_info"]
        self.sections = sections
        self.pointers = sections.pointers[".debug_info"]
        self.at_list: list[int] = self.pointers.at.tolist()
        self.unit = unit
        header = cast("Any", unit).header
        self.indexed = header["version"] >= 5 and ".debug_addr" in sections.data
        self.base = int(cast("Any", unit).cu_offset)
        self.offset_size = int(cast("Any", unit).structs.dwarf_format) // 8
        self.shapes: dict[int, _Shape] = {}

    def run(self) -> Iterator[Found]:
        at = int(cast("Any", self.unit).cu_die_offset)
        end = self.base + int(cast("Any", self.unit).size)
        chain: list[int] = []
        counts: list[int] = []  # lexical blocks seen so far, one counter a level
        blocks: list[int] = []  # ordinal of the block a level is, or -1
        while at < end:
            code, after = _uleb(self.data, at)
            if code == 0:
                chain.pop()
                counts.pop()
                blocks.pop()
                at = after
                if not chain:
                    return
                continue
            shape = self.shapes.get(code) or self.shape(code)
            after, sibling, location = self.step(shape, after)
            if location is not None and shape.tag == "DW_TAG_variable":
                target = self.target(*location)
                if target is not None:
                    inner = tuple(block for block in blocks if block >= 0)
                    yield Found(tuple(chain), inner, at, target)
            ordinal = -1
            if shape.tag == "DW_TAG_lexical_block" and counts:
                ordinal = counts[-1]
                counts[-1] += 1
            if shape.children and sibling and not self.wanted(after, sibling):
                after = sibling
            elif shape.children:
                chain.append(at)
                counts.append(0)
                blocks.append(ordinal)
            at = after

    def wanted(self, start: int, end: int) -> bool:
        """Return whether a variable of the bytes from start to end may have an address."""
        if self.indexed:
            return True  # the address is in another section, nothing here shows it
        row = bisect_left(self.at_list, start)
        return row < len(self.at_list) and self.at_list[row] < end

    def target(self, start: int, size: int) -> tuple[int, int] | None:
        """Return what a location expression that begins with an address refers to."""
        if not size:
            return None
        if self.data[start] == _OP_ADDR:
            return self.pointers.find(start + 1)
        if self.data[start] in _OP_ADDRX and ".debug_addr" in self.sections.pointers:
            index, _ = _uleb(self.data, start + 1)
            at = self.address_base() + index * _ADDR_SIZE
            return self.sections.pointers[".debug_addr"].find(at)
        return None

    def address_base(self) -> int:
        attributes = cast("Any", self.unit).get_top_DIE().attributes
        for name in ("DW_AT_addr_base", "DW_AT_GNU_addr_base"):
            if name in attributes:
                return int(attributes[name].value)
        return 0

    def shape(self, code: int) -> _Shape:
        declared = cast("Any", self.unit).get_abbrev_table().get_abbrev(code)
        steps: list[tuple[str, int, str]] = []
        for spec in declared["attr_spec"]:
            how, size = self.how(str(spec.form))
            name = str(spec.name)
            mattering = name if name in {"DW_AT_sibling", "DW_AT_location"} else ""
            if how == "skip" and not mattering and steps and steps[-1][0] == "skip":
                before = steps[-1]
                if not before[2]:
                    steps[-1] = ("skip", before[1] + size, "")
                    continue
            steps.append((how, size, mattering))
        children = bool(declared.has_children())
        shape = self.shapes[code] = _Shape(str(declared["tag"]), children, tuple(steps))
        return shape

    def how(self, form: str) -> tuple[str, int]:
        if form in _FIXED:
            return "skip", _FIXED[form]
        if form in _OFFSETS:
            return "skip", self.offset_size
        if form in _LEB:
            return "leb", 0
        if form in _BLOCKS:
            return "block", _BLOCKS[form]
        if form == "DW_FORM_string":
            return "string", 0
        raise ValueError(form)  # noqa: EM101 RUF100  an unknown form: the object has no scopes

    def step(self, shape: _Shape, at: int) -> tuple[int, int, tuple[int, int] | None]:
        """Return (offset after the attributes, sibling's offset or 0, location's bytes)."""
        data, sibling, location = self.data, 0, None
        for how, size, name in shape.steps:
            start = at
            if how == "skip":
                at += size
                if name == "DW_AT_sibling":
                    sibling = self.base + int.from_bytes(data[start:at], "little")
            elif how == "leb":
                while data[at] & 0x80:
                    at += 1
                at += 1
            elif how == "string":
                at = data.index(0, at) + 1
            else:
                if size:
                    length, start = int.from_bytes(data[at : at + size], "little"), at + size
                else:
                    length, start = _uleb(data, at)
                at = start + length
                if name == "DW_AT_location":
                    location = (start, length)
        return at, sibling, location


def _uleb(data: bytes, at: int) -> tuple[int, int]:
    """Return (value, offset after it) of an unsigned LEB128."""
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
