"""Search: find sections by their bytes alone, for what symbols and fields did not reach.

A hit counts only if no claimed range overlaps it, no decoded field disagrees with what is
known, and there is enough to go by: 24 bytes that are neither masked nor zero, or one field
that agrees.
"""

from collections.abc import Iterator

import numpy as np

from reloader.ids import I64, Bool
from reloader.live.match.evidence import NOWHERE, Evidence
from reloader.live.match.names import place_waiting
from reloader.live.match.place import EQUAL, Candidates, Placing
from reloader.live.match.tables import SHF_EXECINSTR, SHT_NOBITS, STB_LOCAL

ENOUGH = 24  # telling bytes that make a hit credible without an agreeing field
FEW = 8  # ... below which a section's bytes are not even worth a search
HITS = 64  # hits that are looked at; more say that the bytes are not telling
SHORTEST = 4  # bytes of a pattern that is worth a search
TRIES = 4  # sections of an unplaced object that are searched before it counts as not linked


def search(placing: Placing) -> None:
    """Find what is left."""
    image = placing.image.memory.tobytes()
    for section in _first_of_each_object(placing):
        if placing.base[section] == NOWHERE:
            _try(placing, image, section)
    for section in _rest(placing):
        if placing.base[section] == NOWHERE:
            _try(placing, image, section)


def _try(placing: Placing, image: bytes, section: int) -> bool:
    base = find(placing, image, section)
    if base == NOWHERE or not placing.claim(section, base, -1):
        return False
    placing.spread(np.array([section], np.int64))
    place_waiting(placing)
    return True


def _open(placing: Placing) -> Bool:
    """Return (s,) sections that may be somewhere and have not been found.

    A section with a global function that the executable's full symbol table does not know was
    discarded, or its object was not linked.
    """
    tables = placing.tables
    rows = tables.wanted & (placing.base == NOWHERE) & (tables.type != SHT_NOBITS)
    for section in placing.faults:
        rows[section] = False
    if len(placing.image.symtab):
        named = np.flatnonzero((tables.name >= 0) & (tables.symbol_section >= 0))
        unknown = named[~placing.in_image[tables.name[named]]]
        rows[tables.symbol_section[unknown]] = False
    return rows


def _first_of_each_object(placing: Placing) -> Iterator[int]:
    """Yield the largest sections of objects that have no place yet, the largest first."""
    tables = placing.tables
    rows = np.flatnonzero(_open(placing) & (tables.telling >= FEW))
    rows = rows[np.argsort(-tables.size[rows], kind="stable")]
    tries = np.zeros(len(tables.objects), np.int64)
    for section in rows.tolist():
        owner = int(tables.object[section])
        if placing.placed_count[owner] == 0 and tries[owner] < TRIES:
            tries[owner] += 1
            yield section


def _rest(placing: Placing) -> list[int]:
    """Return what is left of objects that have a place, the largest first."""
    tables = placing.tables
    begun = (placing.placed_count > 0)[tables.object]
    rows = np.flatnonzero(_open(placing) & begun)
    return rows[np.argsort(-tables.size[rows], kind="stable")].tolist()


def find(placing: Placing, image: bytes, section: int) -> int:
    """Return the one place that a section's bytes and fields allow, or NOWHERE."""
    pattern, shift = _pattern(placing, section)
    if not pattern:
        return NOWHERE
    good: list[int] = []
    proven: list[int] = []
    for base in _hits(placing, image, section, pattern, shift):
        if placing.offset_of_difference(section, base) != EQUAL:
            continue
        agreeing, disagreeing = agreement(placing, section, base)
        if disagreeing:
            continue
        if agreeing:
            proven.append(base)
        elif placing.tables.telling[section] >= ENOUGH:
            good.append(base)
    chosen = [base for base in proven or good if _is_free(placing, section, base)]
    return chosen[0] if len(chosen) == 1 else NOWHERE


def _is_free(placing: Placing, section: int, base: int) -> bool:
    end = base + int(placing.tables.size[section])
    first = np.searchsorted(np.array(placing.starts, np.int64), base, side="right")
    at = int(first)
    before = at and placing.claims[at - 1][0] > base
    return not before and not (at < len(placing.starts) and placing.starts[at] < end)


def _hits(
    placing: Placing, image: bytes, section: int, pattern: bytes, shift: int
) -> Iterator[int]:
    """Yield the addresses at which the pattern stands, within the section's alignment."""
    low, align = placing.image.low, int(placing.tables.align[section])
    for start, end in _windows(placing, section):
        at = image.find(pattern, start, end)
        count = 0
        while at >= 0 and count < HITS:
            base = at - shift + low
            if base % align == 0:
                count += 1
                yield base
            at = image.find(pattern, at + 1, end)


def _windows(placing: Placing, section: int) -> list[tuple[int, int]]:
    """Return the index ranges of the image that can hold a section."""
    low, size = placing.image.low, len(placing.image.memory)
    if placing.tables.type[section] in (14, 15, 16):  # SHT_*_ARRAY
        ranges = placing.image.init_arrays
    elif placing.tables.flags[section] & SHF_EXECINSTR:
        ranges = placing.image.executable
    else:
        return [(0, size)]
    return [(max(int(first) - low, 0), int(last) - low) for first, last in ranges]


def _pattern(placing: Placing, section: int) -> tuple[bytes, int]:
    """Return the longest run of bytes that linking leaves alone, and where it starts.

    A table of pointers has none: there the values that the linker must have written are the
    pattern.
    """
    tables = placing.tables
    start, size = int(tables.start[section]), int(tables.size[section])
    masked, content = tables.masked[start : start + size], tables.content[start : start + size]
    edges = np.flatnonzero(np.diff(np.concatenate([[True], masked, [True]]).astype(np.int8)))
    if len(edges):
        runs = edges.reshape(-1, 2)
        best = int((runs[:, 1] - runs[:, 0]).argmax())
        first, last = int(runs[best, 0]), int(runs[best, 1])
        if last - first >= SHORTEST and content[first:last].any():
            return content[first:last].tobytes(), first
    return _expected(placing, section), 0


def _expected(placing: Placing, section: int) -> bytes:
    """Return a section as the linker must have written it, b"" if a target is not known."""
    tables = placing.tables
    rows = tables.relocations_of(np.array([section], np.int64))
    kinds = tables.kinds[tables.relocation_kind[rows]]
    target = known_targets(placing, rows)
    if not len(rows) or (target == NOWHERE).any() or (kinds["formula"] != "S + A").any():
        return b""
    if (kinds["width"] != 8).any():
        return b""
    start, size = int(tables.start[section]), int(tables.size[section])
    content = tables.content[start : start + size].copy()
    words = (target + tables.relocation_addend[rows]).view(np.uint8).reshape(-1, 8)
    content[tables.relocation_offset[rows][:, None] + np.arange(8)] = words
    return content.tobytes()


def known_targets(placing: Placing, relocations: I64) -> I64:
    """Return where the symbols of relocations are, as far as placements and names tell."""
    tables = placing.tables
    symbol = tables.relocation_symbol[relocations]
    section, name = tables.symbol_section[symbol], tables.name[symbol]
    own = (tables.binding[symbol] == STB_LOCAL) & (section >= 0)
    base = placing.base[np.where(own, section, 0)]
    local = np.where(own & (base != NOWHERE), base + tables.value[symbol], NOWHERE)
    return np.where(name >= 0, placing.name_addr[np.maximum(name, 0)], local)


def agreement(placing: Placing, section: int, base: int) -> tuple[int, int]:
    """Return how many fields of a section, if it were at `base`, agree and disagree.

    A field agrees also if the bytes of its target's section stand where it leads.
    """
    where = np.array([section], np.int64)
    found = placing.reader.read(where, np.array([base], np.int64))
    known = known_targets(placing, found.relocation)
    told = known != NOWHERE
    agrees = known[told] == found.target[told]
    agreeing, disagreeing = int(agrees.sum()), int((~agrees).sum())
    if agreeing or disagreeing:
        return agreeing, disagreeing
    return _telling_targets(placing, found), 0


def _telling_targets(placing: Placing, found: Evidence) -> int:
    """Return how many fields lead to unplaced sections whose bytes stand there."""
    tables = placing.tables
    symbol = tables.relocation_symbol[found.relocation]
    named = tables.name[symbol] >= 0
    local = ~named & (tables.symbol_section[symbol] >= 0)
    targets = Candidates(
        tables.symbol_section[symbol[local]],
        found.target[local] - tables.value[symbol[local]],
        symbol[local],
    )
    others = placing.definitions(tables.name[symbol[named]], found.target[named])
    count = 0
    for part in (targets, others):
        for section, base in zip(part.section.tolist(), part.base.tolist(), strict=True):
            if tables.telling[section] >= FEW and tables.wanted[section]:
                count += placing.offset_of_difference(section, base) == EQUAL
    return count


def place_by_local_names(placing: Placing) -> None:
    """Place sections that nothing refers to by the local symbols of the executable.

    Only names that the executable has once count, of the same size, and only for objects that
    have a place already.
    """
    tables, known = placing.tables, placing.image.symtab
    rows = np.flatnonzero(
        (known.binding == STB_LOCAL) & (known.section != 0) & (known.size > 0)
    )
    seen: dict[tuple[bytes, int], int] = {}
    for row in rows.tolist():
        key = (known.name[row], int(known.size[row]))
        seen[key] = NOWHERE if key in seen else int(known.addr[row])
    if not seen:
        return
    open_sections = _open(placing) & (placing.placed_count > 0)[tables.object]
    local = (
        (tables.binding == STB_LOCAL) & (tables.symbol_section >= 0) & (tables.symbol_size > 0)
    )
    symbols = np.flatnonzero(local)
    symbols = symbols[open_sections[tables.symbol_section[symbols]]]
    for symbol in symbols.tolist():
        name = placing.symbol_name(symbol).encode()
        addr = seen.get((name, int(tables.symbol_size[symbol])), NOWHERE)
        section = int(tables.symbol_section[symbol])
        base = addr - int(tables.value[symbol])
        if addr == NOWHERE or placing.base[section] != NOWHERE:
            continue
        if placing.offset_of_difference(section, base) == EQUAL:
            placing.claim(section, base, -1)
