"""Thread-local variables: every sequence becomes the one for a known offset (local-exec).

A variable of the executable, or of a library loaded at start, is at the same distance from
every thread's pointer, so the question that dynamic sequences ask at run time has its answer
now. A variable without such an offset is new to the process and is refused here.
"""

from functools import lru_cache

import numpy as np

from reloader.arch.base import Architecture, Table
from reloader.elf.gather import one_of
from reloader.errors.linking import UnsupportedRow, UnsupportedSymbolError
from reloader.ids import I64, NO_ADDR, Bool
from reloader.link.graph import LinkGraph, Origin
from reloader.link.kinds import kind_columns, of_kinds
from reloader.link.passes.functions import content_fields
from reloader.link.passes.resolve import Lines, edge_place, live_edges, no_lines

STT_TLS = 6
_REWRITTEN = (Table.TLS_GD, Table.TLS_LD, Table.TLS_DESC)
_NEW = "a thread-local variable that the running program does not have yet"
_NEW_REMEDY = (
    "Start the program anew for new thread-local variables, or make them plain variables."
)
_FORM = "a thread-local access in an instruction sequence that is not known"
_FORM_REMEDY = "Build the object without -mcmodel=large, or with -ftls-model=initial-exec."


def relax_thread_locals(graph: LinkGraph, arch: Architecture, lines: Lines = no_lines) -> None:
    """Rewrite dynamic sequences, in place; `__tls_get_addr` is not called any more.

    Raises:
        UnsupportedSymbolError: A sequence has a form that we do not know.
    """
    edges = graph.edges
    rows = of_kinds(edges.kind, one_of(kind_columns(arch).table, _REWRITTEN)).nonzero()[0]
    rows = rows[live_edges(graph)[rows]] if len(rows) else rows
    if not len(rows):
        return
    table = kind_columns(arch).table[edges.kind[rows]]
    out = arch.rewrite_thread_local(graph.content, content_fields(graph)[rows], table)
    if not out.done.all():
        _refuse(graph, rows[~out.done], (_FORM, _FORM_REMEDY), lines)
    _kill_calls(graph, rows, out.void - content_fields(graph)[rows])
    edges.kind[rows] = out.kind
    edges.offset[rows] += out.shift.astype(np.uint32)
    edges.addend[rows] += out.addend
    edges.live[rows] = arch.kinds["width"][out.kind] > 0


def _kill_calls(graph: LinkGraph, rows: I64, distance: I64) -> None:
    """Make the edges dead that belonged to the calls which were rewritten."""
    edges = graph.edges
    key = (edges.block.astype(np.int64) << 32) | edges.offset
    calls = key[rows] + distance
    known = distance > 0
    edges.live[np.isin(key, calls[known])] = False


def refuse_new_thread_locals(
    graph: LinkGraph, arch: Architecture, lines: Lines = no_lines
) -> None:
    """Refuse uses of thread-local variables without a known offset.

    Raises:
        UnsupportedSymbolError: Live code uses some.
    """
    symbols, edges = graph.symbols, graph.edges
    placeless = (symbols.origin == Origin.BLOCK) & (symbols.addr == np.uint64(NO_ADDR))
    placeless &= symbols.type == STT_TLS
    offset = of_kinds(edges.kind, _offset_kinds(arch))
    if not placeless.any() and not offset.any():
        return
    wrong = live_edges(graph) & (placeless[edges.symbol] | (offset & ~_has_offset(graph)))
    if wrong.any():
        _refuse(graph, wrong.nonzero()[0], (_NEW, _NEW_REMEDY), lines)


@lru_cache
def _offset_kinds(arch: Architecture) -> Bool:
    """Return (k,) which kinds store an offset from the thread pointer."""
    kinds = arch.kinds
    return np.char.startswith(kinds["formula"], "T") | (kinds["table"] == Table.TLS_IE)


def _has_offset(graph: LinkGraph) -> Bool:
    """Return (e,) whether an edge's symbol has an offset from the thread pointer."""
    symbols = graph.symbols
    known = (symbols.addr != np.uint64(NO_ADDR)) & (symbols.type == STT_TLS)
    return known[graph.edges.symbol]


def _refuse(graph: LinkGraph, rows: I64, why: tuple[str, str], lines: Lines) -> None:
    symbols = graph.symbols
    raise UnsupportedSymbolError(
        [
            UnsupportedRow(
                edge_place(graph, row, lines),
                symbols.name[int(graph.edges.symbol[row])].decode("utf-8", "replace"),
                why[0],
            )
            for row in rows.tolist()
        ],
        why[1],
    )
