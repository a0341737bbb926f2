"""One name, one meaning: what becomes of definitions that another live object has, too.

A strong definition wins over a weak one, whoever is reloaded; the weak one is bound to it. Of
two strong ones in two objects, which no linker takes together, the newest wins: a function that
moves from one source to another arrives in two reloads, or in one. It takes over the canonical
address, so that every caller finds it; a variable is the one that there is.
"""

from collections.abc import Iterator

import numpy as np

from reloader.elf.stable_names import of_toolchain
from reloader.errors.data import DataLayoutError, LayoutRow
from reloader.ids import NO_ADDR, Region
from reloader.link.graph import LinkGraph, Origin
from reloader.link.passes.data_report import DataReport
from reloader.link.passes.resolve import names_of
from reloader.live.program import Program
from reloader.live.symbols import STB_GLOBAL, STB_WEAK, STT_FUNC, Known

STT_OBJECT = 1


def settle_names(program: Program, graph: LinkGraph, data: DataReport) -> None:
    """Let the graph's global definitions agree with those of live objects outside of it.

    Args:
        program: What is live.
        graph: With its change set.
        data: What became of variables; gets notes.

    Raises:
        DataLayoutError: A variable is there with another size.
    """
    symbols = graph.symbols
    yield_to_strong(program, graph)
    problems: list[LayoutRow] = []
    for row, known in held_elsewhere(program, graph):
        name = symbols.name[row].decode("utf-8", "replace")
        if known.owner not in program.objects:
            if of_toolchain(graph.objects[int(symbols.object[row])].path):
                continue  # a copy of the same
            data.notes.append(
                f"{name}: the executable has its own, which code that is not reloaded goes on"
                " to use"
            )
        elif int(symbols.type[row]) == known.type == STT_FUNC:
            symbols.addr[row] = known.addr
            data.notes += _also(program, graph, name, known)
        elif int(symbols.type[row]) == known.type == STT_OBJECT and _is_variable(graph, row):
            if known.size and known.size != int(symbols.size[row]):
                owner = graph.objects[int(symbols.object[row])].name
                problems.append(LayoutRow(owner, name, known.size, int(symbols.size[row])))
            _bind_variable(graph, row, known)
            data.new = [new for new in data.new if new != name]
            data.notes += _also(program, graph, name, known)
    if problems:
        raise DataLayoutError(problems)


def yield_to_strong(program: Program, graph: LinkGraph) -> None:
    """Let weak definitions have no address of their own where a strong one is live.

    What has none is bound to the process's, see `resolve.prefer_existing`.
    """
    symbols, rows = graph.symbols, program.index.rows
    keys = {file.key for file in graph.objects}
    own = (symbols.binding == STB_WEAK) & (symbols.origin == Origin.BLOCK)
    weak = np.flatnonzero(own & (symbols.visibility == 0))
    found = map(rows.get, names_of(graph, weak))
    lost = [known is not None and known.strong and known.owner not in keys for known in found]
    symbols.addr[weak[lost]] = NO_ADDR


def held_elsewhere(program: Program, graph: LinkGraph) -> Iterator[tuple[int, Known]]:
    """Yield strong definitions, with what the process has of that name from somebody else.

    One that its own object had before and that has no address starts anew.
    """
    if not program.objects:
        return  # all that is known is a host's
    symbols, rows = graph.symbols, program.index.rows
    fresh = (symbols.binding == STB_GLOBAL) & (symbols.addr == np.uint64(NO_ADDR))
    fresh &= (symbols.origin == Origin.BLOCK) & (symbols.visibility == 0)
    new = np.flatnonzero(fresh)
    found = map(rows.get, names_of(graph, new))
    for row, known in zip(new.tolist(), found, strict=True):
        if known is None or not known.strong:
            continue
        if known.owner != graph.objects[int(symbols.object[row])].key:
            yield row, known


def _also(program: Program, graph: LinkGraph, name: str, known: Known) -> list[str]:
    """Say that an object which is not reloaded defines a name as well."""
    if known.owner in {file.key for file in graph.objects}:
        return []
    file = program.objects[known.owner].file
    return [f"{name} is defined in {file.name} as well: what was loaded last counts"]


def _is_variable(graph: LinkGraph, row: int) -> bool:
    return int(graph.blocks.region[int(graph.symbols.block[row])]) == Region.DATA


def _bind_variable(graph: LinkGraph, row: int, known: Known) -> None:
    symbols = graph.symbols
    symbols.origin[row] = Origin.BOUND
    symbols.addr[row] = symbols.entry[row] = known.addr
    symbols.changed[row] = symbols.reloadable[row] = False
