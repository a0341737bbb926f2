"""Constructors of new variables in an object whose other variables live already.

A compiler makes one function an object that initialises all its variables that code has to
initialise. On a reload it must not run, since it would initialise the kept ones again; without
it a new `std::string` would be zeros that are none. So it runs where everything it initialises
is new, and an object is refused where it would do both.
"""

import re
from typing import Final

import numpy as np

from reloader.errors.thread_local import MixedConstructorError
from reloader.ids import I64, NO_ROW, Region
from reloader.link.graph import LinkGraph, Origin
from reloader.link.grow import append_symbols
from reloader.link.names import named_blocks
from reloader.link.passes.data_report import DataReport
from reloader.link.passes.pair_variables import own_variables
from reloader.live.objects import LiveObject

STT_FUNC, STT_SECTION = 2, 3
_INIT: Final = rb"\.init_array"
# what the function in the table calls, without a relocation where it is not optimised
_PARTS: Final = re.compile(
    rb"_Z41__static_initialization_and_destruction_0|__cxx_global_(?:var|array)_init"
)
_TO_NEXT: Final = 4  # from a pc-relative field to the end of its instruction


def plan_startup(graph: LinkGraph, live: list[LiveObject | None], report: DataReport) -> None:
    """Find the constructors that a reload has to run, and keep their code.

    Args:
        graph: Data is bound, functions are compared.
        live: For each object of the graph its live version, None for a first load.
        report: What became of variables; gets the functions, and blocks to keep.

    Raises:
        MixedConstructorError: One would initialise kept variables again.
    """
    tables = named_blocks(graph, _INIT).nonzero()[0]
    for block in tables.tolist():
        before = live[int(graph.blocks.object[block])]
        if before is None:
            continue
        for row in np.unique(graph.edges.symbol[graph.edges_of(block)]).tolist():
            _look_at(graph, row, report)


def has_startup(graph: LinkGraph) -> bool:
    """Return whether an object has functions that initialise its variables."""
    return bool(named_blocks(graph, _INIT).any())


def _look_at(graph: LinkGraph, row: int, report: DataReport) -> None:
    """Decide about one function of a table."""
    symbols = graph.symbols
    if symbols.origin[row] != Origin.BLOCK:
        return
    new, kept = _touched(graph, row)
    if not new:
        return
    name = symbols.name[row]
    if kept:
        raise MixedConstructorError(name.decode("utf-8", "replace"), sorted(new), sorted(kept))
    # Called once and where it is now: the function's own symbol, which may be one of the
    # program, does not become a changed one, whose callers would have to be sent here.
    symbols.changed[row] = False
    body = append_symbols(
        graph, [name], object=symbols.object[row], block=symbols.block[row],
        offset=symbols.offset[row], size=symbols.size[row], type=STT_FUNC,
    )  # fmt: skip
    report.startup += body.tolist()
    report.new_global_blocks.append(int(graph.symbols.block[row]))


def _parts(graph: LinkGraph, row: int) -> list[int]:
    """Return a function and the local ones that are parts of it."""
    symbols = graph.symbols
    owner = int(symbols.object[row])
    first, end = int(graph.first_symbol[owner]), int(graph.first_symbol[owner + 1])
    functions = (symbols.type[first:end] == STT_FUNC) & (symbols.block[first:end] != NO_ROW)
    rows: list[int] = (functions.nonzero()[0] + first).tolist()
    return [row, *(r for r in rows if r != row and _PARTS.match(symbols.name[r]))]


def _touched(graph: LinkGraph, row: int) -> tuple[set[str], set[str]]:
    """Return the new zero-filled variables and the kept variables that a function refers to."""
    symbols, blocks, edges = graph.symbols, graph.blocks, graph.edges
    new: set[str] = set()
    kept: set[str] = set()
    for part in _parts(graph, row):
        own = graph.edges_of(int(symbols.block[part]))
        offset = edges.offset[own].astype(np.int64)
        start = int(symbols.offset[part])
        inside = (offset >= start) & (offset < start + max(int(symbols.size[part]), 1))
        for edge in (inside.nonzero()[0] + own.start).tolist():
            target = int(edges.symbol[edge])
            block = int(symbols.block[target])
            if symbols.origin[target] == Origin.BLOCK:
                data = blocks.region[block] in {Region.DATA, Region.TLS}
                if data and blocks.content[block] == NO_ROW:
                    new.add(_name(graph, target, int(edges.addend[edge])))
            elif symbols.origin[target] == Origin.BOUND and _is_variable(graph, target):
                kept.add(_name(graph, target, int(edges.addend[edge])))
    return new, kept


def _is_variable(graph: LinkGraph, row: int) -> bool:
    """Return whether a bound symbol is writable data that its own object defines."""
    owner = int(graph.symbols.object[row])
    file = graph.objects[owner]
    section = int(file.symbol_sections[row - int(graph.first_symbol[owner])])
    writable, _ = own_variables(file)
    return graph.symbols.type[row] != STT_FUNC and section >= 0 and bool(writable[section])


def _name(graph: LinkGraph, row: int, addend: int) -> str:
    """Return a variable's name; of a section symbol, that of the variable at the addend."""
    symbols = graph.symbols
    name = symbols.name[row]
    if symbols.type[row] == STT_SECTION:
        owner = int(symbols.object[row])
        file = graph.objects[owner]
        section = int(file.symbol_sections[row - int(graph.first_symbol[owner])])
        _, table = own_variables(file)
        at: I64 = table.offset - (addend + _TO_NEXT)
        near = ((table.section == section) & (at <= 0)).nonzero()[0]
        if len(near):
            name = table.name[int(near[-1])]
    return name.decode("utf-8", "replace")
