"""Rows of the tables: looking up through NO_ROW, and adding new ones.

Blocks and symbols are added at the end, edges in their place.
"""

from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from reloader.ids import I32, I64, NO_ADDR, NO_ROW, Region
from reloader.link.graph import Edges, LinkGraph, Origin

T = TypeVar("T", bound=np.generic)

_BLOCK: dict[str, Any] = {
    "object": NO_ROW, "section": NO_ROW, "region": Region.RODATA, "size": 0, "align": 8,
    "content": NO_ROW, "merge": 0, "live": True, "same": False, "addr": NO_ADDR,
}  # fmt: skip
_SYMBOL: dict[str, Any] = {
    "object": NO_ROW, "source": NO_ROW, "origin": Origin.BLOCK, "block": NO_ROW, "offset": 0,
    "size": 0, "binding": 0, "type": 0, "visibility": 0, "reloadable": False, "changed": False,
    "slot": NO_ROW, "addr": NO_ADDR, "entry": NO_ADDR,
}  # fmt: skip


def lookup(column: NDArray[T], rows: I32, otherwise: int) -> NDArray[T]:
    """Return column[rows], with another value where the row is NO_ROW."""
    if not len(column):
        return np.full(len(rows), otherwise, column.dtype)
    found = column.take(rows, mode="clip")
    found[rows < 0] = otherwise
    return found


def _extend(table: Any, count: int, columns: dict[str, Any]) -> I32:  # noqa: ANN401  any table
    """Append rows to every array column of a table; return their row numbers."""
    first = len(table.block if isinstance(table, Edges) else table.object)
    for name, value in columns.items():
        old = getattr(table, name)
        grown = np.empty(first + count, old.dtype)
        grown[:first] = old
        grown[first:] = value
        setattr(table, name, grown)
    return np.arange(first, first + count, dtype=np.int32)


def some_edges(edges: Edges, rows: NDArray[Any]) -> Edges:
    """Return copies of some rows of the edges; all of them in their order are not copied."""
    if len(rows) == len(edges.block):
        return edges
    return Edges(*(getattr(edges, name)[rows] for name in Edges.__dataclass_fields__))


def append_blocks(graph: LinkGraph, count: int, **columns: Any) -> I32:  # noqa: ANN401  scalars or arrays
    """Append blocks, by default zero-filled read-only ones of nobody; return their rows."""
    return _extend(graph.blocks, count, _BLOCK | columns)


def append_filled_blocks(graph: LinkGraph, sizes: I64, **columns: Any) -> I32:  # noqa: ANN401  as above
    """Append blocks with zeroed content of their own; return their rows."""
    start = len(graph.content)
    graph.content = np.concatenate([graph.content, np.zeros(int(sizes.sum()), np.uint8)])
    content = start + np.cumsum(sizes) - sizes
    return append_blocks(graph, len(sizes), size=sizes, content=content, **columns)


def append_symbols(graph: LinkGraph, names: list[bytes], **columns: Any) -> I32:  # noqa: ANN401  as above
    """Append symbols, by default local ones of nobody in a block; return their rows."""
    rows = _extend(graph.symbols, len(names), _SYMBOL | columns)
    graph.symbols.name.extend(names)
    return rows


def append_edges(graph: LinkGraph, count: int, **columns: Any) -> None:  # noqa: ANN401  as above
    """Add edges and sort the table again by block, then offset: edge rows change."""
    edges = graph.edges
    if not count:
        return
    _extend(edges, count, {"live": True, "addend": 0} | columns)
    key = (edges.block.astype(np.int64) << 32) | edges.offset
    if bool((key[1:] >= key[:-1]).all()):
        return
    order = np.argsort(key, kind="stable")
    for name in Edges.__dataclass_fields__:
        setattr(edges, name, getattr(edges, name)[order])
