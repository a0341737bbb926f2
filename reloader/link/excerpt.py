"""What an edit changed in an object, and what that needs: all that has to be linked again.

Of an object with a section a function an edit changes a few sections. Those are taken, with the
sections that depend on them and those that they refer to, as an object of its own beside the
same excerpt of the live version (`cut`). The passes see only these two, so a reload costs what
changed and not what the object holds. What is left out keeps its place, which is proven here:
its bytes and its relocations are the same, and nothing it refers to moves.

Where that cannot be proven at a glance (other sections or symbols, another layout of variables,
constructors), there is no excerpt and the whole object is linked and compared.
"""

import re
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from reloader.arch.base import Architecture
from reloader.elf.alike import of_tables
from reloader.elf.constants import (
    SHF_ALLOC,
    SHF_EXECINSTR,
    SHF_TLS,
    STT_FUNC,
    STT_SECTION,
)
from reloader.elf.gather import one_of, rows_of
from reloader.elf.object import COMMON, ObjectFile
from reloader.ids import I32, I64, NO_ADDR, Bool
from reloader.link.cut import Cut, Records, cut_of, unwind_records
from reloader.link.difference import differing_sections, moved_symbols, same_shape
from reloader.link.passes.pair_variables import writable_sections
from reloader.live.objects import LiveObject

_UNKNOWN: Final = np.uint64(NO_ADDR)
LEAST_SECTIONS: Final = 64  # of smaller objects the whole is linked as quickly
MOST: Final = 0.5  # of the relocations: an excerpt that is larger is not worth its making
_ARRAYS: Final = (14, 15, 16)  # INIT_ARRAY FINI_ARRAY PREINIT_ARRAY
# run by themselves, or gathered by a name: who refers to them is not in this object
_BY_NAME: Final = re.compile(
    rb"\.(?:(?:pre)?init|fini|init_array|fini_array|preinit_array|ctors|dtors)\b|[A-Za-z_]\w*$"
)
_GATHERS: Final = (b"__start_", b"__stop_")
_NUMBER: Final = re.compile(rb"(?:(?:\.lto_priv)?\.[0-9]+)+$|_(?:[0-9]|_[0-9]+_)$")
_STATIC_LOCAL: Final = re.compile(rb"_ZZ|\w+\.\w")
_PIECE: Final = re.compile(rb"\.(?:cold\b|part\.|isra\.|constprop\.|lto_priv\.)")
_UNWIND: Final = b".eh_frame"
_OFFSET_BITS: Final = 40


def excerpt(live: LiveObject, new: ObjectFile, arch: Architecture) -> Cut | None:
    """Return what has to be linked of a new version, None: all of it."""
    if len(new.sections) < LEAST_SECTIONS or not same_shape(live.file, new):
        return None
    if _unwind_tables(new)[1] > 1:
        return None
    changed = differing_sections(live.file, new)
    moved = moved_symbols(live.file, new)
    homes = new.symbol_sections[moved]
    if bool((homes <= 0).any()):
        return None
    changed[homes] = True
    choice = _Choice(live, new, arch, changed)
    return choice.cut() if choice.is_code_or_constants(homes) else None


@dataclass(frozen=True, slots=True, eq=False)
class _References:
    """(r,) columns: the relocations of one version."""

    section: I32  # that a relocation patches
    target: I32  # that its symbol is in, 0: none
    table: I64  # rows that stand in the unwind table
    ordered: bool  # by section

    def within(self, sections: Bool) -> I64:
        """Return the rows of relocations of some sections."""
        if not self.ordered:
            return np.flatnonzero(sections[self.section])
        chosen = np.flatnonzero(sections).astype(np.int32)
        first = self.section.searchsorted(chosen)
        return rows_of(first, self.section.searchsorted(chosen, side="right") - first)


@of_tables
def _unwind_tables(file: ObjectFile) -> tuple[int, int]:
    """Return the first unwind table, 0 if there is none, and how many there are."""
    names = file.section_names
    count = names.count(_UNWIND)
    return names.index(_UNWIND) if count else 0, count


@of_tables
def _references(file: ObjectFile) -> _References:
    section, (unwind, _) = file.relocation_sections, _unwind_tables(file)
    target = np.maximum(file.symbol_sections[file.relocations["r_sym"]], 0)
    ordered = bool((section[1:] >= section[:-1]).all())
    return _References(section, target, np.flatnonzero(section == unwind), ordered)


class _Choice:
    """Which sections of an object are taken."""

    def __init__(
        self, live: LiveObject, new: ObjectFile, arch: Architecture, changed: Bool
    ) -> None:
        self.live, self.old, self.new, self.arch = live, live.file, new, arch
        self.unwind = _unwind_tables(new)[0]
        headers: Any = new.sections
        self.flags = headers["sh_flags"].astype(np.int64)
        self.loaded = (self.flags & SHF_ALLOC) != 0
        self.loaded[self.unwind] = False  # describes code, and is cut with it
        self.writable = writable_sections(new)
        self.changed = changed & self.loaded
        self.before = _references(self.old)
        self.after = _references(new)

    def is_code_or_constants(self, moved: I32) -> bool:
        """Return whether only code, constants and initial values changed, in their places.

        Args:
            moved: Sections in which symbols moved: no variable may have.
        """
        headers: Any = self.new.sections
        size = headers["sh_size"] != self.old.sections["sh_size"]
        size[moved] = True
        rows = np.flatnonzero(self.changed)
        fixed = self.writable | ((self.flags & SHF_TLS) != 0)
        return (
            bool(len(rows))
            and not bool((fixed & size & self.loaded).any())
            and not bool(((self.flags[rows] & SHF_TLS) != 0).any())
            and not self.by_themselves(rows)
        )

    def by_themselves(self, rows: I64) -> bool:
        """Return whether one of some sections runs by itself or is gathered by its name."""
        names = self.new.section_names
        if bool(one_of(self.new.sections["sh_type"][rows], _ARRAYS).any()):
            return True
        return any(_BY_NAME.match(names[int(row)]) for row in rows)

    def cut(self) -> Cut | None:
        """Return the excerpt, None where it would be too large or is not certain."""
        whole = self.dependents()
        if whole is None:
            return None
        targets = self.needed(whole)
        if targets is None:
            return None
        rows = self.before.within(whole), self.after.within(whole)
        if len(rows[1]) > MOST * len(self.new.relocations):
            return None
        code = whole & ((self.flags & SHF_EXECINSTR) != 0)
        records = [
            unwind_records(file, self.unwind, held.table, code[held.target[held.table]])
            for file, held in ((self.old, self.before), (self.new, self.after))
        ]
        if records[0] is None or records[1] is None:
            return None
        tables = records[0], records[1]
        if not self.reach(whole, targets, tables):
            return None
        chosen = whole | targets
        cut = cut_of(self.live, self.new, chosen, self.unwind, tables, rows)
        return cut if self.is_certain(cut) else None

    def dependents(self) -> Bool | None:
        """Return the changed sections and those that have to be compared with them.

        A reference to the start of a function that others know by its address does not depend
        on the function's bytes.
        """
        members, frontier = self.changed.copy(), self.changed & ~self.writable
        section, target = self.after.section, self.after.target
        while bool(frontier.any()):
            rows = np.flatnonzero(frontier[target] & ~members[section])
            rows = rows[self.loaded[section[rows]]]
            rows = rows[~self.means_start(rows, frontier)]
            users = np.unique(section[rows]).astype(np.int64)
            if self.by_themselves(users):
                return None
            members[users] = True
            frontier = np.zeros(len(members), np.bool_)
            frontier[users[~self.writable[users]]] = True
        return members

    def means_start(self, rows: I64, frontier: Bool) -> Bool:
        """Return which relocations mean the start of a function with an address of its own."""
        new, arch = self.new, self.arch
        table = new.relocations[rows]
        symbol, section = table["r_sym"], self.after.section[rows]
        kind = arch.kind_of_number[np.minimum(table["r_type"], len(arch.kind_of_number) - 1)]
        pc = arch.kinds["pc"][kind]
        start = new.sections["sh_offset"][section].astype(np.int64)
        field = start + table["r_offset"].astype(np.int64)
        takes = arch.is_branch(new.data, field) | arch.is_lea(new.data, field)
        takes &= (self.flags[section] & SHF_EXECINSTR) != 0
        place = table["r_addend"] + np.where(pc, 4, 0)
        types = new.types()
        named = (types[symbol] == STT_FUNC) & (place == 0)
        of_section = (types[symbol] == STT_SECTION) & (place >= 0)
        functions, keys = self.starts(frontier)
        key = (self.after.target[rows].astype(np.int64) << _OFFSET_BITS) + place
        at = np.minimum(keys.searchsorted(key), max(len(keys) - 1, 0))
        hit = of_section & (keys[at] == key) if len(keys) else np.zeros(len(rows), np.bool_)
        return (named & functions[symbol] | hit) & (~pc | takes)

    def starts(self, frontier: Bool) -> tuple[Bool, I64]:
        """Return which symbols of some sections are such functions, and their places."""
        new = self.new
        unmoved = self.old.symbols["st_value"] == new.symbols["st_value"]
        is_start = (new.types() == STT_FUNC) & (new.symbol_sections > 0) & unmoved
        is_start &= frontier[np.maximum(new.symbol_sections, 0)]
        is_start &= self.live.symbol_addr != _UNKNOWN
        rows = np.flatnonzero(is_start)
        for row in rows.tolist():
            is_start[row] = not _PIECE.search(new.symbol_names[row])
        rows = rows[is_start[rows]]
        value = new.symbols["st_value"][rows].astype(np.int64)
        home = new.symbol_sections[rows].astype(np.int64)
        return is_start, np.sort((home << _OFFSET_BITS) + value)

    def needed(self, whole: Bool) -> Bool | None:
        """Return the sections that some refer to; those that have no place join `whole`.

        None: a variable would have to be placed.
        """
        targets = np.zeros(len(whole), np.bool_)
        targets[self.before.target[self.before.within(whole)]] = True
        todo = whole
        while True:
            found = np.zeros(len(whole), np.bool_)
            found[self.after.target[self.after.within(todo)]] = True
            todo = self.unplaced(found & self.loaded & ~whole)
            if bool((todo & self.fixed()).any()):
                return None
            whole |= todo
            targets |= found
            if not bool(todo.any()):
                return targets & self.loaded & ~whole

    def fixed(self) -> Bool:
        """Return (s,) which sections hold variables."""
        return self.writable | ((self.flags & SHF_TLS) != 0)

    def unplaced(self, sections: Bool) -> Bool:
        """Return which of some sections have no certain place in the process."""
        sections = sections.copy()
        fixed = sections & self.fixed()
        sections &= (self.live.section_addr == _UNKNOWN) | fixed
        mapped = np.zeros(len(sections), np.bool_)
        data = self.live.data.section
        mapped[data[data >= 0]] = True
        sections &= ~(fixed & mapped)
        for row in np.flatnonzero(sections & fixed).tolist():
            own = self.new.defined_in(row)
            own = own[self.new.types()[own] != STT_SECTION]
            known = self.live.symbol_addr[own] != _UNKNOWN
            sections[row] = not (len(own) and bool(known.all()))
        return sections

    def reach(self, whole: Bool, targets: Bool, tables: tuple[Records, Records]) -> bool:
        """Take what unwind records refer to; return whether all of that has a place."""
        for rows, records in zip((self.before, self.after), tables, strict=True):
            targets[rows.target[records.rows]] = True
        targets &= self.loaded & ~whole
        return not bool(self.unplaced(targets).any())

    def is_certain(self, cut: Cut) -> bool:
        """Return whether names mean in the excerpt what they mean in the whole object."""
        data = self.live.data
        mapped = data.section[data.section >= 0]
        split = np.flatnonzero(np.bincount(mapped, minlength=len(self.flags)) > 1)
        variables = cut.file.symbol_sections
        home = cut.sections[np.maximum(variables, 0)]
        held = (variables > 0) & self.fixed()[home]
        commons = cut.symbols[variables == COMMON]
        names = cut.file.symbol_names
        return (
            not bool(np.isin(split, cut.sections).any())
            and bool((self.live.symbol_addr[commons] != _UNKNOWN).all())
            and not any(name.startswith(_GATHERS) for name in names)
            and not any(self.may_be_another(names[row]) for row in np.flatnonzero(held))
        )

    def may_be_another(self, name: bytes) -> bool:
        """Return whether a variable is a static local of whose name there are several.

        A compiler numbers them, and an edit may change which number is whose.
        """
        if not _STATIC_LOCAL.match(name):
            return False
        base = _NUMBER.sub(b"", name)
        return sum(other.startswith(base) for other in self.new.symbol_names) > 1
