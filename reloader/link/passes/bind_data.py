"""New code uses the variables that the live process has.

Each writable variable of a new version that continues one of the live version keeps its
address: its symbol becomes BOUND there, and references written as *section symbol + addend* are
given to the variable they mean (see `references`). New variables stay in their block, which is
placed whole: the bytes of kept variables in it are dead copies that nothing refers to.
"""

from collections.abc import Sequence

from reloader.arch.base import Architecture
from reloader.link.graph import LinkGraph
from reloader.link.passes.data_map import next_data_map, next_data_maps
from reloader.link.passes.data_report import DataReport, Problems
from reloader.link.passes.initialisers import InitialiserChange
from reloader.link.passes.object_data import ObjectBinder
from reloader.live.objects import LiveObject

__all__ = ["DataReport", "InitialiserChange", "bind_data", "next_data_map", "next_data_maps"]


def bind_data(
    graph: LinkGraph,
    live: Sequence[LiveObject | None],
    arch: Architecture,
    *,
    reinit: frozenset[str] = frozenset(),
) -> DataReport:
    """Bind the variables that exist in the process, and every reference to them.

    Args:
        graph: As built; functions may be bound already.
        live: For each object of the graph its live version, None for a first load.
        arch: To decode instructions around references.
        reinit: Names of variables to start anew although they exist: `x`, or `f.x` for a static
            local.

    Returns:
        What was kept, what is new, and which kept variables have another initialiser now.

    Raises:
        AmbiguousVariableError: Static locals of one name cannot be told apart.
        DataLayoutError: Variables changed their size.
        DataUnplacedError: Live variables in use have no known address.
        AmbiguousReferenceError: References may mean two variables that moved apart.
    """
    report, problems = DataReport(), Problems()
    used: set[str] = set()
    bindings: list[ObjectBinder] = []
    for row, before in enumerate(live):
        if before is not None:
            binder = ObjectBinder(graph, row, before, arch, reinit)
            binder.pair(report, problems)
            used |= binder.reinit_used
            bindings.append(binder)
    problems.refuse()
    for binder in bindings:
        binder.bind(problems)
    problems.refuse()
    for binder in bindings:
        binder.report(report)
    report.reinit_unused = sorted(reinit - used)
    return report
