"""What every name means: first within the transaction, then in the process.

Within the transaction a strong definition wins over COMMON, COMMON over weak, the first of
equals over the others; the largest of several COMMON ones gives the size. What is left is
asked of the process in one question. A weak definition that no live version owns gives way to
one that the process has already, as with a dynamic linker: all callers have to agree on one
copy.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from reloader.elf.gather import one_of
from reloader.elf.object import COMMON, ObjectFile
from reloader.errors.base import Place
from reloader.errors.data import DataLayoutError, LayoutRow
from reloader.errors.linking import (
    DuplicateRow,
    DuplicateSymbolError,
    MissingRow,
    UndefinedSymbolsError,
)
from reloader.ids import I32, I64, NO_ADDR, NO_ROW, U8, U64, Bool, Region
from reloader.link.graph import LinkGraph, Origin
from reloader.link.grow import lookup
from reloader.link.passes.start_stop import joined_block

STB_LOCAL, STB_WEAK, STB_GNU_UNIQUE = 0, 2, 10
STT_TLS, STT_GNU_IFUNC = 6, 10
GOT_NAME: Final = b"_GLOBAL_OFFSET_TABLE_"
TLS_BASE_NAME: Final = b"_TLS_MODULE_BASE_"
DSO_NAME: Final = b"__dso_handle"
WANTS_SLOT: Final = -2  # symbols.slot: a slot and a stub are to be made for it

Lines = Callable[[ObjectFile, int, int], str]  # (object, section, offset) -> `hud.c:41` or ""


def no_lines(_file: ObjectFile, _section: int, _offset: int) -> str:
    """Know no source line."""
    return ""


@dataclass(frozen=True, slots=True, eq=False)
class Definitions:
    """(k,) columns: what each of k names means in the process."""

    found: Bool
    addr: U64  # canonical address; of a TLS variable its offset from the thread pointer
    slot: I32  # SlotId of its stub, or NO_ROW
    type: U8  # STT_*, 0: not known
    size: U64  # bytes, 0: not known


class SymbolSource(Protocol):
    """The names that the process has outside of this transaction."""

    def find(self, names: Sequence[bytes]) -> Definitions:
        """Return what each name means."""
        ...

    def nearest(self, name: bytes) -> list[bytes]:
        """Return existing names that look like this one, nearest first."""
        ...


def unify(graph: LinkGraph) -> None:
    """Point every edge at the one definition that wins in this transaction.

    Raises:
        DuplicateSymbolError: Two strong definitions of one name.
    """
    if len(graph.objects) == 1:
        return  # the assembler has refused duplicates and resolved the rest
    symbols, edges = graph.symbols, graph.edges
    named = np.flatnonzero((symbols.binding != STB_LOCAL) & (symbols.object != NO_ROW))
    defined = named[
        one_of(symbols.origin[named], (Origin.BLOCK, Origin.ABSOLUTE, Origin.BOUND))
    ]
    winners = _winners(graph, defined.astype(np.int64))
    names = symbols.name
    winner = np.arange(len(names), dtype=np.int32)
    losers = np.setdiff1d(defined, list(winners.values()), assume_unique=True)
    wanting = np.concatenate([losers, named[symbols.origin[named] == Origin.UNDEFINED]])
    rows: list[int] = wanting.tolist()
    winner[wanting] = [winners.get(names[row], row) for row in rows]
    symbols.reloadable[losers] = False
    symbols.changed[losers] = False
    edges.symbol = winner[edges.symbol]


def names_of(graph: LinkGraph, rows: NDArray[Any]) -> list[bytes]:
    """Return the names of some symbols."""
    names = graph.symbols.name
    return [names[row] for row in rows.tolist()]


def _rank(graph: LinkGraph, rows: I64) -> I64:
    """Return 0 for strong, 1 for COMMON, 2 for weak definitions."""
    symbols = graph.symbols
    sections = np.concatenate([file.symbol_sections for file in graph.objects])
    common = sections[rows] == COMMON
    weak = one_of(symbols.binding[rows], (STB_WEAK, STB_GNU_UNIQUE))
    return np.where(weak, 2, np.where(common, 1, 0)).astype(np.int64)


def _winners(graph: LinkGraph, defined: I64) -> dict[bytes, int]:
    """Return the winning row of each defined name; refuse all strong duplicates at once."""
    symbols, blocks = graph.symbols, graph.blocks
    rank = _rank(graph, defined)
    # COMMON: the largest first. Else in the order of the objects; the sort is stable.
    size = np.where(rank == 1, symbols.size[defined].astype(np.int64), 0)
    order = np.lexsort((defined, -size, rank))
    order_rows = defined[order]
    rows, ranks = order_rows.tolist(), rank[order].tolist()
    winners: dict[bytes, int] = {}
    duplicates: list[DuplicateRow] = []
    names = names_of(graph, order_rows)
    for name, row, strength in zip(names, rows, ranks, strict=True):
        first = winners.setdefault(name, row)
        if first == row:
            continue
        if strength == 0:
            duplicates.append(
                DuplicateRow(
                    _text(name), _symbol_place(graph, first), _symbol_place(graph, row)
                )
            )
        elif strength == 1 and symbols.block[first] != NO_ROW:
            block = [int(symbols.block[first]), int(symbols.block[row])]
            blocks.align[block[0]] = blocks.align[block].max()
    if duplicates:
        raise DuplicateSymbolError(duplicates)
    return winners


def prefer_existing(graph: LinkGraph, source: SymbolSource) -> None:
    """Bind weak and COMMON definitions without a live version to what the process has.

    Raises:
        DataLayoutError: A COMMON variable is larger than the process's.
    """
    symbols = graph.symbols
    shared = one_of(symbols.binding, (STB_WEAK, STB_GNU_UNIQUE))
    common = np.zeros(len(shared), np.bool_)
    for owner, file in enumerate(graph.objects):
        rows = (file.symbol_sections == COMMON).nonzero()[0]
        common[rows + int(graph.first_symbol[owner])] = True
    shared |= common
    shared &= (symbols.origin == Origin.BLOCK) & (symbols.addr == np.uint64(NO_ADDR))
    shared &= symbols.visibility == 0
    rows = shared.nonzero()[0].astype(np.int32)
    if not len(rows):
        return
    found = source.find(names_of(graph, rows))
    same_kind = (found.type == STT_TLS) == (symbols.type[rows] == STT_TLS)
    _refuse_larger(graph, rows, found, common[rows] & found.found & same_kind)
    _bind(graph, rows, found, found.found & same_kind)
    taken = rows[found.found & same_kind]
    symbols.reloadable[taken] = False
    symbols.changed[taken] = False


def _refuse_larger(graph: LinkGraph, rows: I32, found: Definitions, common: Bool) -> None:
    """Refuse COMMON variables that do not fit into those of the process."""
    symbols = graph.symbols
    larger = common & (found.size != 0) & (found.size < symbols.size[rows])
    if larger.any():
        raise DataLayoutError(
            [
                LayoutRow(
                    graph.objects[int(symbols.object[rows[at]])].name,
                    _text(symbols.name[int(rows[at])]),
                    int(found.size[at]),
                    int(symbols.size[rows[at]]),
                )
                for at in larger.nonzero()[0].tolist()
            ]
        )


def _bind(graph: LinkGraph, rows: I32, found: Definitions, hit: Bool) -> None:
    """Make symbols mean what the process has."""
    symbols, taken = graph.symbols, rows[hit]
    symbols.origin[taken] = Origin.BOUND
    symbols.addr[taken] = found.addr[hit]
    symbols.slot[taken] = found.slot[hit]
    symbols.entry[taken] = np.where(found.slot[hit] == NO_ROW, found.addr[hit], NO_ADDR)
    known = found.type[hit] != 0
    symbols.type[taken[known]] = found.type[hit][known]
    symbols.size[taken[known]] = found.size[hit][known]


def live_edges(graph: LinkGraph) -> Bool:
    """Return (e,) which edges are written: alive, in a block that is placed."""
    blocks, edges = graph.blocks, graph.edges
    placed = blocks.live & ~blocks.same
    if bool((placed | (blocks.region == Region.NONE)).all()):  # a first load: all have edges
        return edges.live.copy()
    return edges.live & placed[edges.block]


def used_symbols(graph: LinkGraph) -> Bool:
    """Return (n,) which symbols live edges refer to."""
    used = np.zeros(len(graph.symbols.name), np.bool_)
    live = live_edges(graph)
    symbol = graph.edges.symbol
    used[symbol if bool(live.all()) else symbol[live]] = True
    return used


def resolve(graph: LinkGraph, source: SymbolSource, lines: Lines = no_lines) -> None:
    """Bind every undefined name that live edges use.

    Args:
        graph: Unified; blocks.live is set.
        source: The names of the process.
        lines: Finds the source line of a place, for the error.

    Raises:
        UndefinedSymbolsError: Some names are defined nowhere; carries all of them.
    """
    symbols = graph.symbols
    rows = (symbols.origin == Origin.UNDEFINED).nonzero()[0].astype(np.int32)
    if not len(rows):
        return
    rows = rows[used_symbols(graph)[rows]]
    rows = rows[~_made_by_linker(graph, rows, first=True)]
    found = source.find(names_of(graph, rows))
    # The address `dlsym` gives for a thread-local variable is that of one thread's copy.
    wants_thread = symbols.type[rows] == STT_TLS
    hit = found.found & (wants_thread == (found.type == STT_TLS))
    _bind(graph, rows, found, hit)
    rows = rows[~hit]
    rows = rows[~_made_by_linker(graph, rows, first=False)]
    weak = symbols.binding[rows] == STB_WEAK
    zero = rows[weak]
    symbols.origin[zero], symbols.offset[zero] = Origin.ABSOLUTE, 0
    symbols.addr[zero] = symbols.entry[zero] = 0
    missing = rows[~weak]
    if len(missing):
        raise UndefinedSymbolsError(_missing_rows(graph, missing, source, lines))


def _made_by_linker(graph: LinkGraph, rows: I32, *, first: bool) -> Bool:
    """Define the names that a linker makes up; return which rows were such.

    Some come before the process's own (`first`): the executable's have another meaning.
    """
    made = np.zeros(len(rows), np.bool_)
    for at, (row, name) in enumerate(zip(rows.tolist(), names_of(graph, rows), strict=True)):
        if first and name in (GOT_NAME, TLS_BASE_NAME, DSO_NAME):
            made[at] = _make_own(graph, row, name)
        elif not first and name.startswith((b"__start_", b"__stop_")):
            made[at] = _make_bound(graph, row, name)
    return made


def _make_own(graph: LinkGraph, row: int, name: bytes) -> bool:
    """Define a name that is every object's own."""
    symbols = graph.symbols
    if name == TLS_BASE_NAME:
        symbols.origin[row] = Origin.BOUND
        symbols.addr[row] = symbols.entry[row] = 0  # sequences are relaxed to local-exec
    if name == DSO_NAME:  # see libc_symbols: the address of a slot, the same in all versions
        symbols.origin[row], symbols.slot[row] = Origin.BOUND, WANTS_SLOT
        symbols.binding[row] = STB_LOCAL
    return True  # the GOT is made with the tables


def _make_bound(graph: LinkGraph, row: int, name: bytes) -> bool:
    """Define `__start_SEC` or `__stop_SEC` where placed blocks are that section."""
    symbols = graph.symbols
    block = joined_block(graph, name.split(b"_", 3)[3])
    if block == NO_ROW:
        return False
    symbols.origin[row], symbols.block[row] = Origin.BLOCK, block
    symbols.offset[row] = 0 if name.startswith(b"__start_") else graph.blocks.size[block]
    return True


def _missing_rows(
    graph: LinkGraph, missing: I32, source: SymbolSource, lines: Lines
) -> list[MissingRow]:
    """Return one row a name, at the first place that wants it."""
    edges, symbols = graph.edges, graph.symbols
    used = (live_edges(graph) & np.isin(edges.symbol, missing)).nonzero()[0]
    places: dict[bytes, list[int]] = {}
    for edge in used.tolist():
        places.setdefault(symbols.name[int(edges.symbol[edge])], []).append(edge)
    return [
        MissingRow(
            _text(name),
            edge_place(graph, wants[0], lines),
            len(wants),
            tuple(_text(near) for near in source.nearest(name)),
        )
        for name, wants in places.items()
    ]


def edge_place(graph: LinkGraph, edge: int, lines: Lines = no_lines) -> Place:
    """Return where an edge's field is, for people."""
    block, offset = int(graph.edges.block[edge]), int(graph.edges.offset[edge])
    return block_place(graph, block, offset, lines)


def block_place(graph: LinkGraph, block: int, offset: int, lines: Lines = no_lines) -> Place:
    """Return a place in a block, for people."""
    row, section = int(graph.blocks.object[block]), int(graph.blocks.section[block])
    if row == NO_ROW:
        return Place("the transaction's tables", "", offset)
    file = graph.objects[row]
    if section == NO_ROW:
        return Place(file.name, "GOT", offset)
    name = _text(file.section_names[section])
    return Place(file.name, name, offset, lines(file, section, offset))


def _symbol_place(graph: LinkGraph, row: int) -> Place:
    symbols = graph.symbols
    file = graph.objects[int(symbols.object[row])]
    block = int(lookup(symbols.block, np.array([row], np.int32), NO_ROW)[0])
    if block == NO_ROW or graph.blocks.section[block] == NO_ROW:
        return Place(file.name)
    return block_place(graph, block, int(symbols.offset[row]))


def _text(name: bytes) -> str:
    return name.decode("utf-8", "replace")
