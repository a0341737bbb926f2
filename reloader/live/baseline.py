"""The baseline: which object owns which byte of the running executable, generation 0.

Each watched object is matched with the place the linker gave it. The steps, in order:

1. names from the executable's symbol tables place sections, each proven by its bytes;
2. relocated fields of placed sections tell where their targets are: statics, constants, `.bss`;
3. what is left is searched for by its bytes;
4. every field and every merged string is judged against what the program has.

On stripped executables step 3 finds the first section and step 2 nearly all the others.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from reloader.arch.x86_64 import X86_64
from reloader.elf.image import Image
from reloader.elf.object import ABSOLUTE, COMMON, ObjectFile
from reloader.ids import I32, I64, NO_ADDR, NO_ROW, U64, Bool, Generation
from reloader.live.match.evidence import NOWHERE, Evidence
from reloader.live.match.judge import State, Verdict, function_rows, judge
from reloader.live.match.merged import STT_SECTION
from reloader.live.match.place import Placing, begin, place_by_names
from reloader.live.match.search import search
from reloader.live.match.tables import (
    SHF_EXECINSTR,
    SHF_TLS,
    SHF_WRITE,
    SHT_NOBITS,
    SHT_PROGBITS,
    STB_LOCAL,
    STT_TLS,
    Tables,
    build_tables,
)
from reloader.live.objects import DataMap, LiveObject

__all__ = [
    "Baseline",
    "CallSites",
    "Functions",
    "Owner",
    "Placement",
    "State",
    "match_baseline",
]


class Owner(NamedTuple):
    """What an address of the original executable belongs to."""

    object: int  # row of Baseline.placements
    section: int  # index in the file, or elf.object.COMMON
    offset: int  # in the section; in the variable for COMMON


@dataclass(frozen=True, slots=True, eq=False)
class Placement:
    """Where the linker put one object."""

    file: ObjectFile
    section_addr: U64  # (s,) or NO_ADDR: not linked, merged, not loaded, not found
    # (n,) of each defined symbol, or NO_ADDR; a thread-local one's offset from the thread pointer
    symbol_addr: U64
    state: State
    reason: str  # why it is not "matched", else ""
    shared: Bool  # (s,) the bytes belong to several objects: COMDAT or folded identical code


@dataclass(frozen=True, slots=True, eq=False)
class CallSites:
    """(c,) columns: relocated branch fields of the original code, sorted by address."""

    addr: U64  # of the 4-byte displacement
    target: U64
    object: I32  # row of Baseline.placements
    section: I32  # index in that file


@dataclass(frozen=True, slots=True, eq=False)
class Functions:
    """(f,) columns: the functions of all placed objects, sorted by address."""

    addr: U64
    size: U64  # as its symbol says; 0: not said
    next_addr: U64  # where the next function starts, or its section ends
    object: I32  # row of Baseline.placements
    symbol: I32  # index in that file's symbol table


@dataclass(frozen=True, slots=True, eq=False)
class Baseline:
    """All watched objects, matched."""

    image: Image
    placements: list[Placement]
    _starts: U64  # sorted ranges of sections and COMMON variables
    _ends: U64
    _owners: list[Owner]  # of each range, with the range's own offset 0
    _sites: CallSites
    _functions: Functions

    def live_object(self, row: int) -> LiveObject:
        """Return an object's generation 0."""
        placement = self.placements[row]
        return LiveObject(
            file=placement.file,
            generation=Generation(0),
            section_addr=placement.section_addr,
            symbol_addr=placement.symbol_addr,
            symbol_slot=np.full(len(placement.symbol_addr), NO_ROW, np.int32),
            data=_data_map(placement),
        )

    def owner(self, addr: int) -> Owner | None:
        """Return what an address belongs to, None if to no watched object."""
        row = int(np.searchsorted(self._starts, np.uint64(addr), side="right")) - 1
        if row < 0 or addr >= int(self._ends[row]):
            return None
        found = self._owners[row]
        return found._replace(offset=addr - int(self._starts[row]))

    def call_sites(self, functions: U64) -> CallSites:
        """Return the relocated calls and jumps to some functions.

        Calls that the assembler resolved itself, inside one section, have no relocation and are
        not among them.
        """
        sites = self._sites
        rows = np.isin(sites.target, functions)
        return CallSites(
            sites.addr[rows], sites.target[rows], sites.object[rows], sites.section[rows]
        )

    def functions(self) -> Functions:
        """Return the functions of all placed objects."""
        return self._functions


def match_baseline(
    objects: Sequence[ObjectFile], image: Image, kinds: NDArray[np.void]
) -> Baseline:
    """Match objects with the executable they were linked into.

    Args:
        objects: Plain objects and archive members; the same content twice is matched once.
        image: The executable that runs, as read through /proc/PID/exe.
        kinds: (k,) KIND, the architecture's relocation kinds.
    """
    kept, source = _distinct(objects)
    if not kept:
        return _empty(image)
    tables = build_tables([objects[row] for row in kept], kinds)
    placing = begin(tables, image)
    place_by_names(placing)
    search(placing)
    placed = np.flatnonzero(placing.base != NOWHERE)
    found = placing.reader.read(placed, placing.base[placed])
    verdicts = judge(placing, found)
    placements = _placements(placing, verdicts)
    rows = np.array(kept, np.int32)
    starts, ends, owners = _ranges(placing, kept)
    return Baseline(
        image=image,
        placements=[
            replace(placements[source[row]], file=file) for row, file in enumerate(objects)
        ],
        _starts=starts,
        _ends=ends,
        _owners=owners,
        _sites=_call_sites(placing, found, rows),
        _functions=_functions(placing, rows),
    )


def _empty(image: Image) -> Baseline:
    addrs, rows = np.zeros(0, np.uint64), np.zeros(0, np.int32)
    sites = CallSites(addrs, addrs, rows, rows)
    functions = Functions(addrs, addrs, addrs, rows, rows)
    return Baseline(image, [], addrs, addrs, [], sites, functions)


def _distinct(objects: Sequence[ObjectFile]) -> tuple[list[int], list[int]]:
    """Return the rows to match, and for every object the position in them of its content.

    A file that is watched beside the archive that holds it was linked once. Without a strong name
    it may have been linked twice.
    """
    kept: list[int] = []
    source: list[int] = []
    first: dict[str, int] = {}
    for row, file in enumerate(objects):
        strong = (file.symbol_sections >= 0) & (file.bindings() == 1)  # STB_GLOBAL
        known = first.get(file.digest) if strong.any() else None
        if known is None:
            known = first.setdefault(file.digest, len(kept)) if strong.any() else len(kept)
            kept.append(row)
        source.append(known)
    return kept, source


def _placements(placing: Placing, verdicts: list[Verdict]) -> list[Placement]:
    tables = placing.tables
    section_addr = _addresses(placing.base)
    symbol_addr = _symbol_addresses(placing)
    placements: list[Placement] = []
    for row, (file, verdict) in enumerate(zip(tables.objects, verdicts, strict=True)):
        sections = slice(int(tables.first_section[row]), int(tables.first_section[row + 1]))
        symbols = slice(int(tables.first_symbol[row]), int(tables.first_symbol[row + 1]))
        placements.append(
            Placement(
                file, section_addr[sections], symbol_addr[symbols], verdict.state,
                verdict.reason, placing.shared[sections],
            )
        )  # fmt: skip
    return placements


def _addresses(internal: I64) -> U64:
    return np.where(internal == NOWHERE, np.uint64(NO_ADDR), internal.view(np.uint64))


def _symbol_addresses(placing: Placing) -> U64:
    """Return (n,) where each defined symbol is."""
    tables = placing.tables
    section, name = tables.symbol_section, tables.name
    inside = np.maximum(section, 0)
    base = np.where(section >= 0, placing.base[inside], NOWHERE)
    addr = np.where(base != NOWHERE, base + tables.value, NOWHERE)
    by_name = np.where(name >= 0, placing.name_addr[np.maximum(name, 0)], NOWHERE)
    # a copy of another object serves a COMDAT one that lost; merged pieces moved by themselves
    elsewhere = (section >= 0) & (tables.comdat[inside] | tables.merge[inside])
    addr = np.where((addr == NOWHERE) & (elsewhere | (section == COMMON)), by_name, addr)
    piece = (section >= 0) & tables.merge[inside] & (tables.binding == STB_LOCAL)
    piece &= tables.symbol_type != STT_SECTION
    addr = np.where(piece, placing.seen, addr)
    result = _addresses(addr)
    tls = placing.image.tls
    if tls is not None:
        shift = np.uint64(tls.addr - tls.tpoff(0))
        is_tls = (tables.symbol_type == STT_TLS) & (addr != NOWHERE)
        result = np.where(is_tls, result - shift, result)
    return np.where(section == ABSOLUTE, tables.value.view(np.uint64), result)


def _ranges(placing: Placing, kept: list[int]) -> tuple[U64, U64, list[Owner]]:
    """Return the sorted ranges of sections and COMMON variables, with their owners."""
    tables = placing.tables
    starts, ends = list(placing.starts), [end for end, _ in placing.claims]
    owners = [
        Owner(kept[int(tables.object[section])], tables.index_of(section), 0)
        for _, section in placing.claims
    ]
    taken: set[int] = set()
    for symbol in tables.common_symbols().tolist():
        addr = int(placing.name_addr[tables.name[symbol]])
        if addr != NOWHERE and addr not in taken and placing.section_at(addr) == NOWHERE:
            taken.add(addr)  # the first object that has the name owns it
            starts.append(addr)
            ends.append(addr + int(tables.symbol_size[symbol]))
            owners.append(Owner(kept[int(tables.symbol_object[symbol])], COMMON, 0))
    order = np.argsort(np.array(starts, np.uint64), kind="stable")
    return (
        np.array(starts, np.uint64)[order],
        np.array(ends, np.uint64)[order],
        [owners[row] for row in order.tolist()],
    )


def _call_sites(placing: Placing, found: Evidence, rows: I32) -> CallSites:
    """Return every relocated branch of the placed code, as linked."""
    tables, image = placing.tables, placing.image
    section = tables.relocation_section[found.relocation]
    kind = tables.relocation_kind[found.relocation]
    near = (tables.flags[section] & SHF_EXECINSTR) != 0
    near &= (tables.kinds["width"][kind] == 4) & tables.kinds["pc"][kind]  # noqa: PLR2004  rel32
    field = found.field - image.low
    near &= X86_64().is_branch(image.memory, field)
    section, field = section[near], field[near]
    words = image.memory[field[:, None] + np.arange(4)].reshape(-1).view("<i4")
    order = np.argsort(field, kind="stable")
    owner = tables.object[section]
    target = field + image.low + 4 + words
    return CallSites(
        (field + image.low)[order].view(np.uint64),
        target[order].view(np.uint64),
        rows[owner[order]],
        (section - tables.first_section[owner])[order].astype(np.int32),
    )


def _functions(placing: Placing, rows: I32) -> Functions:
    """Return the functions of all placed objects and where each may extend to."""
    tables = placing.tables
    symbol = function_rows(placing)
    section = tables.symbol_section[symbol]
    addr = placing.base[section] + tables.value[symbol]
    order = np.argsort(addr, kind="stable")
    symbol, section, addr = symbol[order], section[order], addr[order]
    known = placing.image.symtab
    others = known.addr[(known.type == 2) & (known.section != 0)].view(np.int64)  # STT_FUNC
    ends = placing.base[section] + tables.size[section]
    starts = np.unique(np.concatenate([addr, others, [np.iinfo(np.int64).max]]))
    following = starts[np.searchsorted(starts, addr, side="right")]
    owner = tables.symbol_object[symbol]
    return Functions(
        addr.view(np.uint64),
        tables.symbol_size[symbol].astype(np.uint64),
        np.minimum(following, ends).view(np.uint64),
        rows[owner],
        (symbol - tables.first_symbol[owner]).astype(np.int32),
    )


def _data_map(placement: Placement) -> DataMap:
    """Return where an object's variables are; relocated constants are not among them."""
    file = placement.file
    flags, kind = file.sections["sh_flags"], file.sections["sh_type"]
    kept = ((flags & SHF_WRITE) != 0) & ((flags & SHF_TLS) == 0)
    kept &= np.isin(kind, [SHT_PROGBITS, SHT_NOBITS])
    kept &= placement.section_addr != np.uint64(NO_ADDR)
    constant = [name.startswith(b".data.rel.ro") for name in file.section_names]
    sections = np.flatnonzero(kept & ~np.array(constant, np.bool_))
    common = np.flatnonzero(
        (file.symbol_sections == COMMON) & (placement.symbol_addr != np.uint64(NO_ADDR))
    )
    return DataMap(
        section=np.concatenate([np.full(len(common), COMMON), sections]).astype(np.int32),
        offset=np.concatenate([common, np.zeros(len(sections))]).astype(np.uint64),
        size=np.concatenate(
            [file.symbols["st_size"][common], file.sections["sh_size"][sections]]
        ).astype(np.uint64),
        addr=np.concatenate(
            [placement.symbol_addr[common], placement.section_addr[sections]]
        ).astype(np.uint64),
    )
