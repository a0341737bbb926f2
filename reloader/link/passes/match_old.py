"""Which blocks and functions are equal to what the live generation has.

A block keeps its address if its bytes are the same outside relocated fields and each field
refers to the same thing. "The same thing" may be another block of the object that is the same
itself (a switch's jump table points into the function that points at the table), so the
answer is the greatest fixpoint: assume all equal, and spread every difference backwards. A
function that callers reach through its stub or its first entry spreads nothing.

Functions are then compared one by one inside the blocks that differ, for the report, and so
that callers of what did not change are left alone.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from reloader.elf.constants import STT_FUNC, STT_GNU_IFUNC
from reloader.ids import I64, NO_ROW, Bool, Region
from reloader.link.graph import LinkGraph, Origin
from reloader.link.passes.in_place import Compared, same_in_place
from reloader.link.passes.match_functions import same_functions
from reloader.link.passes.matcher import (
    NO_ADDR,
    Matcher,
    find_edges,
    number_names,
    pair_functions,
)
from reloader.link.passes.targets import compare_targets
from reloader.link.passes.undecided import Moves, Undecided, can_wait
from reloader.link.passes.versions import (
    Fields,
    Units,
    equal_bytes,
    pair_relocations,
    pair_sections,
    spread,
    version_of,
)
from reloader.live.objects import LiveObject


def match_old(
    graph: LinkGraph,
    live: Sequence[LiveObject | None],
    kinds: NDArray[np.void],
    moves: Moves | None = None,
) -> list[Undecided]:
    """Set blocks.same, the address of blocks that keep it, and symbols.changed.

    Args:
        graph: Functions and data are bound: edges to kept variables have BOUND symbols, and
            functions that existed before have their canonical address.
        live: live[i] is the live version of graph.objects[i], None for a first load.
        kinds: The architecture's KIND table.
        moves: See Moves; None: every function is compared now.

    Returns:
        Functions that count as changed until they are compared.
    """
    undecided: list[Undecided] = []
    graph.blocks.same[:] = False
    graph.symbols.changed[:] = function_symbols(graph)
    if not any(live):
        return undecided
    fields = Fields.of(kinds)
    numbers = kinds["number"][graph.edges.kind].astype(np.int64)
    for row, version in enumerate(live):
        if version is None:
            continue
        match = matcher(graph, row, version, fields, numbers)
        compared = match_blocks(match)
        undecided += mark_changed(match, compared, moves)
    return undecided


def changed_functions(graph: LinkGraph) -> list[int]:
    """Return the rows of the function symbols whose code differs from its live version."""
    return graph.symbols.changed.nonzero()[0].tolist()


def function_symbols(graph: LinkGraph) -> Bool:
    """Return (n,) whether a symbol is a function defined in code of this graph."""
    symbols = graph.symbols
    kind = (symbols.type == STT_FUNC) | (symbols.type == STT_GNU_IFUNC)
    defined = (symbols.origin == Origin.BLOCK) & (symbols.block >= 0)
    if not len(graph.blocks.region):
        return defined & kind
    return defined & kind & (graph.blocks.region[symbols.block] == Region.CODE)


def matcher(
    graph: LinkGraph, row: int, live: LiveObject, fields: Fields, numbers: I64
) -> Matcher:
    """Return both versions of an object, sections, functions and names paired."""
    old, new = version_of(live.file, fields), version_of(graph.objects[row], fields)
    old_name, new_name = number_names(old, new)
    return Matcher(
        graph=graph,
        row=row,
        live=live,
        fields=fields,
        old=old,
        new=new,
        old_of_section=pair_sections(old, new),
        old_of_function=pair_functions(old, new),
        old_name=old_name,
        new_name=new_name,
        edge=find_edges(graph, row, new, numbers),
    )


def match_blocks(match: Matcher) -> Compared:
    """Set `same`, and the kept address, of one object's blocks; return what was compared."""
    graph, live = match.graph, match.live
    units = section_units(match)
    same = equal_bytes(match.old, match.new, units)
    paired, pairs = pair_relocations(match.old, match.new, units)
    same &= paired & same_function_places(match, units)
    verdict = compare_targets(match, pairs)
    unit_of_section = np.full(len(match.new.flags), NO_ROW, np.int64)
    unit_of_section[units.new_section] = np.arange(len(units.size))
    used = unit_of_section[verdict.new_section]
    depends = verdict.depends & (used >= 0) & (verdict.old_place == verdict.new_place)
    depends &= verdict.old_section == match.old_of_section[verdict.new_section]
    same[pairs.unit[~verdict.equal & ~depends]] = False
    spread(same, pairs.unit[depends], used[depends])
    blocks = graph.block_of_section[match.row][units.new_section[same]]
    graph.blocks.same[blocks] = True
    addr = live.section_addr[units.old_section[same]]
    kept = (addr.astype(np.int64) != NO_ADDR) & (graph.blocks.region[blocks] != Region.TLS)
    graph.blocks.addr[blocks[kept]] = addr[kept]
    whole = np.zeros(len(match.new.flags), np.bool_)
    whole[units.new_section[paired]] = True
    return Compared(whole, pairs, verdict)


def section_units(match: Matcher) -> Units:
    """Return the sections that can be the same: equal headers, and not writable data."""
    blocks = match.graph.block_of_section[match.row]
    has_block = blocks >= 0
    region = match.graph.blocks.region[np.maximum(blocks, 0)]
    loaded = has_block & (region != Region.DATA) & (region != Region.NONE)
    rows = (loaded & (match.old_of_section >= 0)).nonzero()[0].astype(np.int64)
    was = match.old_of_section[rows]
    if not match.alike:
        new, old = match.new.file.sections[rows], match.old.file.sections[was]
        equal = np.ones(len(rows), np.bool_)
        for column in ("sh_type", "sh_flags", "sh_size", "sh_addralign", "sh_entsize"):
            equal &= new[column] == old[column]
        rows, was = rows[equal], was[equal]
    zero = np.zeros(len(rows), np.int64)
    return Units(rows, zero, was, zero, match.new.size[rows])


def same_function_places(match: Matcher, units: Units) -> Bool:
    """Return (u,) whether each function of a section has its namesake at the same place.

    A renamed function may have the same bytes, but no address that callers know it by.
    """
    if match.alike:
        return np.ones(len(units.size), np.bool_)
    new, old = match.new.file, match.old.file
    rows = (match.old_of_function >= 0).nonzero()[0]
    was = match.old_of_function[rows]
    home = new.symbol_sections[rows]
    moved = new.symbols["st_value"][rows] != old.symbols["st_value"][was]
    moved |= match.old_of_section[np.maximum(home, 0)] != old.symbol_sections[was]
    bad = np.zeros(len(match.new.flags), np.bool_)
    bad[home[moved]] = True
    types = new.types()
    functions = (types == STT_FUNC) | (types == STT_GNU_IFUNC)
    fresh = functions & (match.old_of_function < 0) & (new.symbol_sections >= 0)
    bad[new.symbol_sections[fresh]] = True
    return ~bad[units.new_section]


def mark_changed(match: Matcher, compared: Compared, moves: Moves | None) -> list[Undecided]:
    """Clear `changed` of the object's functions that are as they were, or leave some open."""
    graph = match.graph
    first, last = (int(row) for row in graph.first_symbol[match.row : match.row + 2])
    mine = graph.symbols.changed[first:last].nonzero()[0].astype(np.int64) + first
    whole = graph.blocks.same[graph.symbols.block[mine]]
    graph.symbols.changed[mine[whole]] = False
    rest = mine[~whole]
    if not len(rest):
        return []
    same = same_in_place(match, compared, rest)
    if same is None:
        if moves is not None and can_wait(match, rest, moves):
            return [Undecided.of(match, rest)]
        same = same_functions(match, rest)
    graph.symbols.changed[rest[same]] = False
    return []
