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

import numpy as np
from numpy.typing import NDArray

from reloader.elf.image import Image
from reloader.elf.object import ABSOLUTE, COMMON, ObjectFile
from reloader.ids import I64, NO_ADDR, NO_ROW, U64, Bool, Generation
from reloader.live.match.evidence import NOWHERE
from reloader.live.match.judge import State, Verdict, judge
from reloader.live.match.merged import STT_SECTION
from reloader.live.match.names import begin, place_by_names
from reloader.live.match.owned import (
    CallSites,
    Functions,
    Owner,
    call_sites,
    original_functions,
    owned_ranges,
)
from reloader.live.match.place import Placing
from reloader.live.match.search import place_by_local_names, search
from reloader.live.match.tables import (
    SHF_TLS,
    SHF_WRITE,
    SHT_NOBITS,
    SHT_PROGBITS,
    STB_LOCAL,
    STT_TLS,
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


@dataclass(frozen=True, slots=True, eq=False)
class Placement:
    """Where the linker put one object."""

    file: ObjectFile
    section_addr: U64  # (s,) or NO_ADDR: not linked, merged, not loaded, not found
    # (n,) of each defined symbol, or NO_ADDR; of a thread-local one the offset from the thread
    # pointer
    symbol_addr: U64
    state: State
    reason: str  # why it is not "matched", else ""
    shared: Bool  # (s,) the bytes belong to several objects: COMDAT or folded identical code


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
    place_by_local_names(placing)
    placed = np.flatnonzero(placing.base != NOWHERE)
    found = placing.reader.read(placed, placing.base[placed])
    verdicts = judge(placing, found)
    placements = _placements(placing, verdicts)
    rows = np.array(kept, np.int32)
    starts, ends, owners = owned_ranges(placing, kept)
    return Baseline(
        image=image,
        placements=[
            replace(placements[source[row]], file=file) for row, file in enumerate(objects)
        ],
        _starts=starts,
        _ends=ends,
        _owners=owners,
        _sites=call_sites(placing, found, rows),
        _functions=original_functions(placing, rows),
    )


def _empty(image: Image) -> Baseline:
    addrs, rows = np.zeros(0, np.uint64), np.zeros(0, np.int32)
    sites = CallSites(addrs, addrs, rows, rows)
    functions = Functions(addrs, addrs, addrs, rows, rows)
    return Baseline(image, [], addrs, addrs, [], sites, functions)


def _distinct(objects: Sequence[ObjectFile]) -> tuple[list[int], list[int]]:
    """Return the rows to match, and for every object the position in them of its content.

    A file that is watched beside the archive that holds it was linked once. Without a strong
    name it may have been linked twice.
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
