"""The variables of one object: which are kept, where they are, and what refers to them."""

from functools import lru_cache, partial
from typing import Final

import numpy as np

from reloader.arch.base import Architecture
from reloader.elf.alike import of_tables
from reloader.elf.layout import is_array
from reloader.elf.object import COMMON, ObjectFile
from reloader.errors.base import Place
from reloader.errors.data import (
    LayoutRow,
    ReferenceRow,
    UnplacedRow,
    VariableRow,
)
from reloader.ids import I32, I64, NO_ADDR, NO_ROW, U64, Bool, Region
from reloader.link.graph import LinkGraph, Origin
from reloader.link.passes.bind_references import Binder, Bound
from reloader.link.passes.data_map import in_data_block
from reloader.link.passes.data_places import (
    find_edges,
    header,
    inside_variables,
    layout_at,
    live_addrs,
    section_called,
    section_name,
    users_of,
)
from reloader.link.passes.data_report import DataReport, Kept, Problems, Restarted
from reloader.link.passes.initialisers import changed_initialisers
from reloader.link.passes.pair_variables import (
    Names,
    Pairing,
    UsersOf,
    own_variables,
    pair_variables,
)
from reloader.link.passes.references import Side
from reloader.live.objects import LiveObject

_STT_SECTION: Final = 3
_LARGEST_GAP: Final = 64  # bytes between variables that alignment explains
# how unwind tables of C++ and Rust refer to a function; every object may have its own
_PERSONALITY: Final = b"DW.ref."
_UNKNOWN: Final = np.uint64(NO_ADDR)


@lru_cache(maxsize=8)  # the new version of one reload is the old one of the next
def _own_side(file: ObjectFile, arch: Architecture) -> tuple[Side, Names]:
    writable, variables = own_variables(file)
    return Side(file, variables, writable, arch), _own_names(file)


@of_tables
def _own_names(file: ObjectFile) -> Names:
    return Names(file, own_variables(file)[1])


def side_of(
    file: ObjectFile, arch: Architecture, within: Bool | None = None
) -> tuple[Side, Names]:
    """Return one version's variables, those in some sections only if `within` is given."""
    writable, variables = own_variables(file, within)
    if writable is own_variables(file)[0]:
        return _own_side(file, arch)
    return Side(file, variables, writable, arch), Names(file, variables)


class ObjectBinder:
    """The work on one object that has a live version."""

    def __init__(
        self,
        graph: LinkGraph,
        row: int,
        before: LiveObject,
        arch: Architecture,
        reinit: frozenset[str],
    ) -> None:
        self.graph, self.row, self.before, self.reinit = graph, row, before, reinit
        self.file = graph.objects[row]
        self.first = int(graph.first_symbol[row])
        self.new, self.new_names = side_of(self.file, arch, in_data_block(graph, row))
        self.old, self.old_names = side_of(before.file, arch)
        self.reinit_used: set[str] = set()
        self.restarted: list[int] = []
        self.restarted_from: dict[int, int] = {}  # rows of the live version's variables

    def pair(self, report: DataReport, problems: Problems) -> None:
        """Decide which variables are kept, and where each of them is in the process."""
        pairing = pair_variables(self.old_names, self.new_names, self.users)
        self.old_row = pairing.old_row.copy()
        self.refuse_ambiguous(pairing, problems)
        if self.reinit:
            self.restart((self.old_row >= 0).nonzero()[0].tolist())
        self.check_sizes(problems)
        self.place(problems)
        self.follow_aliases()
        self.tell_removed(pairing, report)

    def users(self) -> UsersOf:
        """Return the functions that use each variable, in both versions."""
        return users_of(self.old), users_of(self.new)

    def refuse_ambiguous(self, pairing: Pairing, problems: Problems) -> None:
        """Gather the names that nothing decides, but those that the user wants anew."""
        for group in pairing.ambiguous:
            rows = [row for row in group.rows if not self.wanted_anew(row)]
            if rows:
                problems.variables.append(
                    VariableRow(self.file.name, group.name, group.live, group.new)
                )
            else:
                self.restarted += group.rows

    def wanted_anew(self, row: int) -> bool:
        """Return whether the user asked to start a variable anew."""
        if not self.reinit:
            return False
        names = self.new_names.called(row) & self.reinit
        self.reinit_used |= names
        return bool(names)

    def restart(self, rows: list[int]) -> None:
        """Make the variables new that the user wants anew."""
        for row in rows:
            if self.wanted_anew(row):
                self.restarted_from[row] = int(self.old_row[row])
                self.old_row[row] = NO_ROW
                self.restarted.append(row)

    def check_sizes(self, problems: Problems) -> None:
        """Gather the kept variables whose size changed."""
        kept = (self.old_row >= 0).nonzero()[0]
        old_size = self.old.variables.size[self.old_row[kept]]
        for row in kept[old_size != self.new.variables.size[kept]].tolist():
            before = int(self.old_row[row])
            problems.layouts.append(
                LayoutRow(
                    self.file.name,
                    self.new_names.shown(row),
                    int(self.old.variables.size[before]),
                    int(self.new.variables.size[row]),
                    layout_at(self.old, before),
                    layout_at(self.new, row),
                )
            )

    def place(self, problems: Problems) -> None:
        """Find the live address of each kept variable.

        One that was never loaded (dropped by --gc-sections, or not used by any code so far) is
        new; but if live code refers to it, its address must be known.
        """
        self.addr: U64 = np.full(len(self.old_row), NO_ADDR, np.uint64)
        old = self.old.variables
        kept = (self.old_row >= 0).nonzero()[0]
        addr = self.live_places(self.old_row[kept])
        self.addr[kept] = addr
        for row in kept[addr == _UNKNOWN].tolist():
            before = int(self.old_row[row])
            self.old_row[row] = NO_ROW
            if old.name[before].startswith(_PERSONALITY):
                continue
            if self.in_use(before):
                section = section_name(self.before.file, int(old.section[before]))
                name = self.new_names.shown(row)
                problems.unplaced.append(UnplacedRow(self.file.name, name, section))

    def live_places(self, past: I32) -> U64:
        """Return where variables of the live version are, NO_ADDR where nothing tells."""
        old = self.old.variables
        addr = live_addrs(self.before.data, old.section[past], old.offset[past])
        lost = addr == _UNKNOWN  # a COMDAT section whose copy in another object was taken
        addr[lost] = self.before.symbol_addr[old.symbol[past[lost]]]
        return addr

    def in_use(self, past: int) -> bool:
        """Return whether code or constants that are in the process refer to a live variable."""
        old, file = self.old, self.before.file
        table, variables = old.references, old.variables
        loaded = self.before.section_addr != _UNKNOWN
        inside = table.section == variables.section[past]
        inside &= (old.guessed >= variables.offset[past]) & (
            old.guessed < variables.end()[past]
        )
        if bool((inside & loaded[table.source]).any()):
            return True
        named = file.relocations["r_sym"] == variables.symbol[past]
        return bool((named & loaded[file.relocation_sections]).any())

    def follow_aliases(self) -> None:
        """Give a new name of a kept variable that variable's address."""
        table = self.new.variables
        if not bool((self.old_row < 0).any()):
            return
        known = {
            (int(table.section[row]), int(table.offset[row]), int(table.size[row])): row
            for row in (self.old_row >= 0).nonzero()[0].tolist()
        }
        for row in (self.old_row < 0).nonzero()[0].tolist():
            place = int(table.section[row]), int(table.offset[row]), int(table.size[row])
            if place in known and row not in self.restarted:
                self.old_row[row] = self.old_row[known[place]]
                self.addr[row] = self.addr[known[place]]

    def tell_removed(self, pairing: Pairing, report: DataReport) -> None:
        """Report the variables that the new version has no more, or only as constants."""
        constant = set(self.file.symbol_names)
        for row in map(int, pairing.removed):
            name = self.old.variables.name[int(row)]
            still = name in constant and name not in self.new.variables.name
            where = report.became_constant if still else report.removed
            where.append(self.old_names.shown(row))

    def bind(self, problems: Problems) -> None:
        """Bind the symbols of kept variables and the references to their sections."""
        symbols, table = self.graph.symbols, self.new.variables
        kept = self.old_row >= 0
        self.bind_unnamed(problems)
        if not kept.any():
            return
        self.drop_dead_edges(kept)
        rows = table.symbol[kept] + self.first
        symbols.origin[rows] = Origin.BOUND
        symbols.block[rows] = NO_ROW
        symbols.addr[rows] = self.addr[kept]
        symbols.entry[rows] = self.addr[kept]
        split: list[int] = []
        for section in sorted(set(table.section[kept].tolist()) - {COMMON}):
            base = self.common_base(section, kept)
            if base is None:
                split.append(section)
            else:
                self.bind_section(section, base)
        if split:
            self.bind_split(split, kept, problems)

    def bind_split(self, sections: list[int], kept: Bool, problems: Problems) -> None:
        """Bind the references to sections whose variables moved apart."""
        binder = Binder(self.old, self.new, self.old_row, self.addr, self.holds_array)
        for section in sections:
            self.apply(binder.bind(section, self.needed(kept)), problems)

    def holds_array(self, row: int) -> bool | None:
        """Return whether a new variable may hold an array, None if nothing tells."""
        table = self.new.variables
        return is_array(self.file, int(table.section[row]), int(table.offset[row]))

    def needed(self, kept: Bool) -> Bool:
        """Return which references are not in the dead initial bytes of a kept variable."""
        table = self.new.references
        return ~inside_variables(self.new.variables, kept, table.source, table.field)

    def drop_dead_edges(self, kept: Bool) -> None:
        """Clear the edges in the initial bytes of kept variables: nobody reads those bytes."""
        graph = self.graph
        data = (graph.blocks.object == self.row) & (graph.blocks.region == Region.DATA)
        own = data[graph.edges.block].nonzero()[0]
        if not len(own):
            return
        section = graph.blocks.section[graph.edges.block[own]]
        offset = graph.edges.offset[own].astype(np.int64)
        dead = inside_variables(self.new.variables, kept, section, offset)
        graph.edges.live[own[dead]] = False

    def common_base(self, section: int, kept: Bool) -> int | None:
        """Return the address of a section's start if all its variables agree on one."""
        table = self.new.variables
        own = (table.section == section).nonzero()[0]
        if not kept[own].all():
            return None
        base = self.addr[own].view(np.int64) - table.offset[own]
        if (base != base[0]).any() or not self.gaps_are_padding(section, own):
            return None
        return int(base[0])

    def gaps_are_padding(self, section: int, own: I64) -> bool:
        """Return whether nothing without a name lies between the variables of a section."""
        table, old = self.new.variables, self.old.variables
        size = int(header(self.file, section, "sh_size"))
        past = self.old_row[own]
        before = int(old.section[past[0]])
        unmoved = bool((old.offset[past] == table.offset[own]).all()) and before >= 0
        if unmoved and size == int(header(self.before.file, before, "sh_size")):
            return True
        start = np.append(table.offset[own], size)
        end = np.append(0, np.maximum.accumulate(table.end()[own]))
        gaps = (start > end).nonzero()[0]
        content = self.file.section_bytes(section)
        return all(
            start[gap] - end[gap] < _LARGEST_GAP and not content[end[gap] : start[gap]].any()
            for gap in gaps.tolist()
        )

    def bind_unnamed(self, problems: Problems) -> None:
        """Bind writable sections that have references but no variables (assembly)."""
        references = self.new.references
        named = set(self.new.variables.section.tolist())
        for section in sorted(set(references.section.tolist()) - named):
            name = self.file.section_names[int(section)]
            size = header(self.file, section, "sh_size")
            past = section_called(self.before.file, name)
            base = self.before.data.find(past, 0)
            if base == NO_ADDR:
                continue  # new, or never loaded
            if size == header(self.before.file, past, "sh_size"):
                self.bind_section(section, base)
                continue
            for row in (references.section == section).nonzero()[0].tolist():
                problems.references.append(self.describe(row, self.new.target(row), ()))

    def section_symbols(self, section: int) -> I32:
        """Return the graph's rows of a section's own symbols."""
        rows = self.file.defined_in(section)
        return (rows[self.file.types()[rows] == _STT_SECTION] + self.first).astype(np.int32)

    def bind_section(self, section: int, base: int) -> None:
        """Make every reference to a section go to the live one."""
        symbols, rows = self.graph.symbols, self.section_symbols(section)
        symbols.origin[rows] = Origin.BOUND
        symbols.block[rows] = NO_ROW
        symbols.addr[rows] = np.uint64(base & NO_ADDR)
        symbols.entry[rows] = np.uint64(base & NO_ADDR)

    def apply(self, bound: Bound, problems: Problems) -> None:
        """Retarget the edges of some references to their variables' symbols."""
        problems.references += [self.describe(*item) for item in
                                ((open_.row, open_.target, open_.candidates)
                                 for open_ in bound.undecided)]  # fmt: skip
        graph, table, references = self.graph, self.new.variables, self.new.references
        block = graph.block_of_section[self.row][references.source[bound.row]]
        edge = find_edges(graph, block, references.field[bound.row])
        graph.edges.symbol[edge] = table.symbol[bound.variable] + self.first
        graph.edges.addend[edge] = references.addend[bound.row] - table.offset[bound.variable]

    def describe(self, row: int, target: int, candidates: tuple[int, ...]) -> ReferenceRow:
        """Return what people need to know of an undecided reference."""
        references = self.new.references
        source, offset = int(references.source[row]), int(references.field[row])
        user = b""
        if references.code[row]:
            user = self.new.code.function_at(source, offset).name
        place = Place(self.file.name, section_name(self.file, source), offset)
        section = section_name(self.file, int(references.section[row]))
        names = tuple(self.new_names.shown(candidate) for candidate in candidates)
        return ReferenceRow(place, user.decode("utf-8", "replace"), section, target, names)

    def report(self, report: DataReport) -> None:
        """Tell what became of the object's variables."""
        table, names = self.new.variables, self.new_names
        anew = set(self.restarted)
        report.reinitialised += [names.shown(row) for row in sorted(anew)]
        report.pairs.append(Kept(self.row, self.old_names, names, self.old_row))
        for row, past in self.restarted_from.items():
            addr = int(self.live_places(np.array([past], np.int32))[0])
            symbol = int(table.symbol[row]) + self.first
            report.restarted.append(Restarted(names.shown(row), symbol, addr))
        fresh = [r for r in (self.old_row < 0).nonzero()[0].tolist() if r not in anew]
        report.new += [names.shown(row) for row in fresh]
        shared = table.symbol[((self.old_row < 0) & ~table.local).nonzero()[0]] + self.first
        blocks = set(self.graph.symbols.block[shared].tolist())
        report.new_global_blocks += sorted(blocks - {NO_ROW})
        report.comparisons.append(
            partial(changed_initialisers, self.old, self.new, self.old_row, self.addr, names)
        )
