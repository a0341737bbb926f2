"""Which thread-local variable of a new version is which of the live one; room for new ones.

They are paired like other variables, and a changed size is refused like theirs. A kept one is
bound to its offset from the thread pointer. A new one gets room when all sizes are known: each
of its own, so that any of them can go without the others.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from reloader.elf.alike import of_tables
from reloader.elf.object import COMMON, ObjectFile
from reloader.errors.data import LayoutRow, VariableRow
from reloader.ids import I32, I64, NO_ADDR, NO_ROW, Bool, Region
from reloader.link.graph import LinkGraph, Origin
from reloader.link.passes.data_report import DataReport, Kept, Problems
from reloader.link.passes.pair_variables import Names, Variables, pair_variables, variables_of
from reloader.link.passes.resolve import used_symbols
from reloader.live.objects import LiveObject

STT_TLS: Final = 6
_SHF_TLS: Final = 0x400
_UNKNOWN: Final = np.uint64(NO_ADDR)

TakeThreadRoom = Callable[[Sequence[int], Sequence[int]], I64]  # sizes, alignments -> offsets


@dataclass(frozen=True, slots=True, eq=False)
class ThreadPieces:
    """(p,) columns: the variables that got room."""

    symbol: I32  # row of the graph
    block: I32
    start: I64  # in the block
    size: I64  # bytes
    offset: I64  # from the thread pointer


NO_PIECES: Final = ThreadPieces(
    np.zeros(0, np.int32), np.zeros(0, np.int32), *(np.zeros(0, np.int64) for _ in range(3))
)


@of_tables
def thread_variables(file: ObjectFile) -> Variables:
    """Return the thread-local variables that an object defines, COMMON ones included."""
    headers: Any = file.sections
    return variables_of(file, (headers["sh_flags"] & _SHF_TLS) != 0, (STT_TLS,))


def pair_thread_locals(
    graph: LinkGraph,
    live: Sequence[LiveObject | None],
    report: DataReport,
    reinit: frozenset[str] = frozenset(),
) -> None:
    """Bind the thread-local variables that go on, and say what became of all.

    Args:
        graph: Data is bound.
        live: For each object of the graph its live version, None for a first load.
        report: What was found of other variables; gets the rest.
        reinit: Names of variables to start anew although they exist.

    Raises:
        AmbiguousVariableError: Static locals of one name cannot be told apart.
        DataLayoutError: Variables changed their size.
    """
    problems = Problems()
    if not any(live) and not bool((graph.symbols.type == STT_TLS).any()):
        return
    for row, before in enumerate(live):
        file = graph.objects[row]
        if len(thread_variables(file).name) or (
            before is not None and len(thread_variables(before.file).name)
        ):
            _Pairs(graph, row, before, reinit).work(report, problems)
    problems.refuse()


class _Pairs:
    """The thread-local variables of one object in two versions."""

    def __init__(
        self, graph: LinkGraph, row: int, before: LiveObject | None, reinit: frozenset[str]
    ) -> None:
        self.graph, self.row, self.before, self.reinit = graph, row, before, reinit
        self.file = graph.objects[row]
        self.new = thread_variables(self.file)
        self.rows = self.new.symbol + graph.first_symbol[row]
        self.names = Names(self.file, self.new)

    def work(self, report: DataReport, problems: Problems) -> None:
        """Bind what is kept, unbind the rest."""
        old_row = np.full(len(self.rows), NO_ROW, np.int32)
        anew = {row for row in range(len(self.rows)) if self.wanted(row, report)}
        if self.before is not None:
            old_row = self.pair(self.before, anew, report, problems)
        symbols = self.graph.symbols
        fresh = self.rows[old_row == NO_ROW]
        symbols.origin[fresh], symbols.addr[fresh] = Origin.BLOCK, _UNKNOWN
        symbols.entry[fresh] = _UNKNOWN
        if self.before is None:
            return
        report.reinitialised += [self.names.shown(row) for row in sorted(anew)]
        # rustc makes some that nothing refers to, and that the linker left out
        used = ~self.new.local | np.isin(self.rows, self.graph.edges.symbol)
        new = [row for row in np.flatnonzero((old_row < 0) & used).tolist() if row not in anew]
        report.new += [self.names.shown(row) for row in new]
        shared = self.rows[(old_row == NO_ROW) & ~self.new.local]
        blocks: list[int] = np.unique(symbols.block[shared]).tolist()
        report.new_global_blocks += [block for block in blocks if block >= 0]

    def wanted(self, row: int, report: DataReport) -> bool:
        """Return whether the user asked to start a variable anew."""
        if not self.reinit or self.before is None:
            return False
        used = self.names.called(row) & self.reinit
        report.reinit_unused = [name for name in report.reinit_unused if name not in used]
        return bool(used)

    def pair(
        self, before: LiveObject, anew: set[int], report: DataReport, problems: Problems
    ) -> I32:
        """Return the live variable that each one continues, and bind it there."""
        past = thread_variables(before.file)
        old_names = Names(before.file, past)
        pairing = pair_variables(old_names, self.names)
        old_row = pairing.old_row
        old_row[sorted(anew)] = NO_ROW
        for group in pairing.ambiguous:
            if not anew.issuperset(group.rows):
                row = VariableRow(self.file.name, group.name, group.live, group.new)
                problems.variables.append(row)
        report.removed += [old_names.shown(row) for row in pairing.removed.tolist()]
        report.pairs.append(Kept(self.row, old_names, self.names, old_row))
        symbols = self.graph.symbols
        for new in (old_row >= 0).nonzero()[0].tolist():
            old = int(old_row[new])
            addr = before.symbol_addr[past.symbol[old]]
            if addr == _UNKNOWN:
                old_row[new] = NO_ROW
                continue
            sizes = int(past.size[old]), int(self.new.size[new])
            name = self.names.shown(new)
            if sizes[0] != sizes[1]:
                problems.layouts.append(LayoutRow(self.file.name, name, *sizes))
            symbols.origin[self.rows[new]] = Origin.BOUND
            symbols.addr[self.rows[new]] = symbols.entry[self.rows[new]] = addr
            if initial(before.file, past, old) != initial(self.file, self.new, new):
                report.thread_initialiser_changed.append(name)
        return old_row


def initial(file: ObjectFile, table: Variables, row: int) -> bytes:
    """Return a variable's initial bytes, before relocation; zeros for .tbss and COMMON."""
    section, start, size = (int(c[row]) for c in (table.section, table.offset, table.size))
    if section == COMMON:
        return bytes(size)
    return file.section_bytes(section)[start : start + size].tobytes().ljust(size, b"\0")


def place_thread_locals(graph: LinkGraph, take: TakeThreadRoom | None) -> ThreadPieces:
    """Give room to the new thread-local variables that are in use or that others may name.

    Args:
        graph: Resolved; its edges are final but for tables.
        take: Gives room in every thread; None: there is none.

    Returns:
        The variables that got room; their symbols have their offset.

    Raises:
        ThreadRoomError: They do not fit; carries both numbers.
    """
    pieces = _wanting(graph)
    if take is None or not len(pieces.symbol):
        return NO_PIECES
    symbols = graph.symbols
    align = graph.blocks.align[pieces.block].astype(np.int64)
    inside = pieces.start & -pieces.start  # the greatest power of two that divides it
    align = np.where(inside > 0, np.minimum(align, inside), align)
    pieces.offset[:] = take(pieces.size.tolist(), align.tolist())
    # all names of one place, so that aliases agree
    at = {
        (int(b), int(s)): int(o)
        for b, s, o in zip(pieces.block, pieces.start, pieces.offset, strict=True)
    }
    for row in _unplaced(graph).nonzero()[0].tolist():
        offset = at.get((int(symbols.block[row]), int(symbols.offset[row])))
        if offset is not None:
            symbols.addr[row] = symbols.entry[row] = np.uint64(offset & NO_ADDR)
            symbols.origin[row] = Origin.BOUND
    return pieces


def _unplaced(graph: LinkGraph) -> Bool:
    """Return (n,) which symbols are thread-local variables without a place, in live blocks."""
    symbols, blocks = graph.symbols, graph.blocks
    inside = (symbols.type == STT_TLS) & (symbols.origin == Origin.BLOCK)
    block = np.maximum(symbols.block, 0)
    inside &= (symbols.block >= 0) & (symbols.addr == _UNKNOWN)
    return inside & (blocks.region[block] == Region.TLS) & blocks.live[block]


def _wanting(graph: LinkGraph) -> ThreadPieces:
    """Return the variables that need room, one row a place."""
    symbols = graph.symbols
    unplaced = _unplaced(graph)
    if not unplaced.any():
        return NO_PIECES
    used = used_symbols(graph)
    placed = {symbols.name[row] for row in (unplaced & used).nonzero()[0].tolist()}
    rows: list[tuple[int, int, int, int]] = []
    for owner, file in enumerate(graph.objects):
        table = thread_variables(file)
        own: list[int] = (table.symbol + graph.first_symbol[owner]).tolist()
        sizes: list[int] = table.size.tolist()
        for row, size, local in zip(own, sizes, table.local.tolist(), strict=True):
            name = symbols.name[row]
            if unplaced[row] and (used[row] or not (local or name in placed)):
                rows.append((row, int(symbols.block[row]), int(symbols.offset[row]), size))
                placed.add(name)
    distinct = {(block, start): (row, size) for row, block, start, size in sorted(rows)}
    table_rows = [(row, block, start, size) for (block, start), (row, size) in distinct.items()]
    columns = np.array(table_rows, np.int64).reshape(-1, 4).T
    return ThreadPieces(
        symbol=columns[0].astype(np.int32),
        block=columns[1].astype(np.int32),
        start=columns[2].copy(),
        size=columns[3].copy(),
        offset=np.zeros(columns.shape[1], np.int64),
    )


def initial_values(graph: LinkGraph, pieces: ThreadPieces) -> list[tuple[int, bytes]]:
    """Return (offset from the thread pointer, initial bytes) of variables; fixups are done."""
    values: list[tuple[int, bytes]] = []
    for block, start, size, offset in zip(
        pieces.block.tolist(), pieces.start.tolist(), pieces.size.tolist(),
        pieces.offset.tolist(), strict=True,
    ):  # fmt: skip
        data = graph.block_bytes(block)[start : start + size].tobytes()
        values.append((offset, data.ljust(size, b"\0")))
    return values
