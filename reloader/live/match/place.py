"""Placing: which section is where, each place proven by its bytes.

A candidate place comes from a symbol of the executable, from a decoded field, or from a
search. None is believed: the section's bytes must be there, relocated fields masked, in a
segment with the right protection, and no other section may hold the range.
"""

from bisect import bisect_right
from dataclasses import dataclass, field

import numpy as np

from reloader.elf.image import Image
from reloader.ids import I64, Bool
from reloader.live.match.evidence import NOWHERE, Evidence, Reader
from reloader.live.match.tables import (
    SHF_EXECINSTR,
    SHF_TLS,
    SHF_WRITE,
    SHT_NOBITS,
    STB_LOCAL,
    STB_WEAK,
    Tables,
)

STT_GNU_IFUNC = 10
EQUAL = -1  # offset_of_difference: all bytes agree
MISFIT = -2  # ... the range is not aligned, or not in a segment of its kind


@dataclass(frozen=True, slots=True)
class Fault:
    """A section that a symbol puts at an address where its bytes are not."""

    section: int
    base: int
    offset: int  # of the first differing byte, or MISFIT
    symbol: int  # row of the symbol by which it was expected there


@dataclass(slots=True)
class Candidates:
    """(c,) columns."""

    section: I64
    base: I64
    symbol: I64  # row of the symbol that says so

    def take(self, rows: I64 | Bool) -> "Candidates":
        """Return some rows."""
        return Candidates(self.section[rows], self.base[rows], self.symbol[rows])


@dataclass(slots=True)
class Placing:
    """The state of one match."""

    tables: Tables
    image: Image
    reader: Reader
    base: I64  # (s,)
    shared: Bool  # (s,) several sections have this range
    name_addr: I64  # (names,) where a global name is
    in_image: Bool  # (names,) its address is from the executable's symbol table
    seen: I64  # (n,) where fields say a symbol is: locals of merged sections
    placed_count: I64  # (o,) sections of an object that have a place
    faults: dict[int, Fault] = field(default_factory=dict[int, Fault])
    rivals: dict[int, int] = field(default_factory=dict[int, int])
    # a section that lost its range -> the one that has it
    starts: list[int] = field(default_factory=list[int])  # claimed ranges, sorted
    claims: list[tuple[int, int]] = field(default_factory=list[tuple[int, int]])
    # (end, section) of each range
    waiting: list[Candidates] = field(default_factory=list[Candidates])

    def offset_of_difference(self, section: int, base: int) -> int:
        """Compare a section with the image: EQUAL, MISFIT, or the first differing offset."""
        tables = self.tables
        size, flags = int(tables.size[section]), int(tables.flags[section])
        if base % int(tables.align[section]) or not self._fits(base, size, flags):
            return MISFIT
        there = self.image.bytes_at(base, size)
        if int(tables.type[section]) == SHT_NOBITS:
            differs = there != 0 if not flags & SHF_TLS else np.zeros(0, np.bool_)
        elif len(there) != size:
            return MISFIT
        else:
            start = int(tables.start[section])
            differs = there != tables.content[start : start + size]
            differs &= ~tables.masked[start : start + size]
        return int(differs.argmax()) if differs.any() else EQUAL

    def _fits(self, base: int, size: int, flags: int) -> bool:
        if flags & SHF_TLS:
            tls = self.image.tls
            return tls is not None and tls.addr <= base and base + size <= tls.addr + tls.size
        if base < self.image.low or base + size > self.reader.high:
            return False
        wanted = self.image.executable if flags & SHF_EXECINSTR else self.image.writable
        if not flags & (SHF_EXECINSTR | SHF_WRITE):
            return True
        return bool(((wanted[:, 0] <= base) & (wanted[:, 1] >= base + size)).any())

    def accept(self, found: Candidates) -> I64:
        """Place what its bytes prove, the largest first; return the new sections."""
        order = np.argsort(-self.tables.size[found.section], kind="stable")
        new: list[int] = []
        for row in order.tolist():
            section, base = int(found.section[row]), int(found.base[row])
            if self.base[section] != NOWHERE:
                continue
            symbol = int(found.symbol[row])
            offset = self.offset_of_difference(section, base)
            if offset != EQUAL:
                self._fault(Fault(section, base, offset, symbol))
            elif self.claim(section, base, symbol):
                new.append(section)
        return np.array(new, np.int64)

    def _fault(self, fault: Fault) -> None:
        if int(self.tables.binding[fault.symbol]) != STB_WEAK:
            self.faults.setdefault(fault.section, fault)

    def claim(self, section: int, base: int, symbol: int) -> bool:
        """Take a range for a section; False if another has it."""
        tables = self.tables
        end = base + int(tables.size[section])
        is_tbss = tables.flags[section] & SHF_TLS and tables.type[section] == SHT_NOBITS
        if not is_tbss:  # .tbss takes no room in the image
            at = bisect_right(self.starts, base)
            holder = self._holder(at, base, end)
            if holder is None:
                self.starts.insert(at, base)
                self.claims.insert(at, (end, section))
            elif not self._may_share(section, base, holder, symbol):
                self.rivals[section] = holder
                return False
            else:
                self.shared[[section, holder]] = True
        self.base[section] = base
        self.faults.pop(section, None)
        self.placed_count[tables.object[section]] += 1
        return True

    def _holder(self, at: int, base: int, end: int) -> int | None:
        """Return a section whose range overlaps, given where `base` sorts in."""
        if at and self.claims[at - 1][0] > base:
            return self.claims[at - 1][1]
        return self.claims[at][1] if at < len(self.starts) and self.starts[at] < end else None

    def symbol_name(self, symbol: int) -> str:
        """Return a symbol's name for people."""
        tables = self.tables
        owner = int(tables.symbol_object[symbol])
        name = tables.objects[owner].symbol_names[symbol - int(tables.first_symbol[owner])]
        return name.decode("utf-8", "replace")

    def section_at(self, addr: int) -> int:
        """Return the section that has an address, or NOWHERE."""
        at = bisect_right(self.starts, addr)
        if at and addr < self.claims[at - 1][0]:
            return self.claims[at - 1][1]
        return NOWHERE

    def _may_share(self, section: int, base: int, holder: int, symbol: int) -> bool:
        """Return whether two sections are one copy: COMDAT, or folded identical code.

        Another object's section that defines the same strong name is neither: that object was
        not linked.
        """
        tables = self.tables
        same = base == self.base[holder] and tables.size[section] == tables.size[holder]
        if not same or not tables.flags[section] & SHF_EXECINSTR:
            return bool(same and tables.comdat[section] and tables.comdat[holder])
        if tables.comdat[section] and tables.comdat[holder]:
            return True
        if symbol < 0 or tables.name[symbol] < 0:
            return symbol >= 0
        mine = tables.name == tables.name[symbol]
        return not bool((mine & (tables.symbol_section == holder)).any())

    def spread(self, new: I64) -> None:
        """Follow the fields of newly placed sections until they lead to nothing new."""
        while len(new):
            self._name_definitions(new)
            found = self.reader.read(new, self.base[new])
            local = self._local_candidates(found)
            named = self._learn(found)
            begun = (self.placed_count > 0)[self.tables.object[named.section]]
            self.waiting.append(named.take(~begun))
            new = np.concatenate([self.accept(local), self.accept(named.take(begun))])

    def _name_definitions(self, new: I64) -> None:
        """Note the addresses of the global names that newly placed sections define."""
        tables = self.tables
        is_new = np.zeros(len(self.base), np.bool_)
        is_new[new] = True
        section = tables.symbol_section
        rows = np.flatnonzero(
            (section >= 0) & (tables.name >= 0) & (tables.binding != STB_WEAK)
        )
        rows = rows[is_new[section[rows]]]
        rows = rows[~self.in_image[tables.name[rows]]]
        self.name_addr[tables.name[rows]] = self.base[section[rows]] + tables.value[rows]

    def _local_candidates(self, found: Evidence) -> Candidates:
        """Return where fields put sections of their own object."""
        tables = self.tables
        symbol = tables.relocation_symbol[found.relocation]
        local = (tables.binding[symbol] == STB_LOCAL) & (tables.symbol_section[symbol] >= 0)
        symbol, target = symbol[local], found.target[local]
        self.seen[symbol] = target
        section = tables.symbol_section[symbol]
        open_rows = tables.wanted[section] & (self.base[section] == NOWHERE)
        symbol, section = symbol[open_rows], section[open_rows]
        return unique(Candidates(section, target[open_rows] - tables.value[symbol], symbol))

    def _learn(self, found: Evidence) -> Candidates:
        """Note where fields put global names; return where that puts their definitions."""
        symbol = self.tables.relocation_symbol[found.relocation]
        name = self.tables.name[symbol]
        new = (name >= 0) & ~self.in_image[name]
        name, target = name[new], found.target[new]
        pairs = np.unique(np.stack([name, target]), axis=1)
        fresh = self.name_addr[pairs[0]] != pairs[1]
        name, target = pairs[0][fresh], pairs[1][fresh]
        unknown = self.name_addr[name] == NOWHERE
        self.name_addr[name[unknown]] = target[unknown]
        return self.definitions(name, target)

    def definitions(self, name: I64, addr: I64) -> Candidates:
        """Return the places of the sections that define names with known addresses."""
        tables = self.tables
        section = tables.symbol_section
        rows = np.flatnonzero((section >= 0) & (tables.name >= 0))
        rows = rows[tables.wanted[section[rows]] & (self.base[section[rows]] == NOWHERE)]
        order = np.argsort(name, kind="stable")
        sorted_name = name[order]
        first = np.searchsorted(sorted_name, tables.name[rows], side="left")
        last = np.searchsorted(sorted_name, tables.name[rows], side="right")
        symbol = np.repeat(rows, last - first)
        which = order[_spans(first, last)]
        return unique(Candidates(section[symbol], addr[which] - tables.value[symbol], symbol))


def _spans(starts: I64, ends: I64) -> I64:
    sizes = ends - starts
    skipped = np.cumsum(sizes) - sizes
    return np.arange(int(sizes.sum())) + np.repeat(starts - skipped, sizes)


def unique(found: Candidates) -> Candidates:
    """Return each (section, base) once."""
    order = np.lexsort((found.base, found.section))
    section, base = found.section[order], found.base[order]
    new = np.ones(len(order), np.bool_)
    new[1:] = (section[1:] != section[:-1]) | (base[1:] != base[:-1])
    return found.take(order[new])
