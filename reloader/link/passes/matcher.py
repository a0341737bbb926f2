"""Both versions of one object side by side: what pairs their sections, functions and names."""

from dataclasses import dataclass
from functools import lru_cache
from itertools import repeat

import numpy as np
from numpy.typing import NDArray

from reloader.elf.alike import of_equal_tables
from reloader.ids import I64, NO_ROW
from reloader.link.graph import LinkGraph
from reloader.link.passes.versions import Fields, Version, function_rows, key_of, pair_keys
from reloader.live.objects import LiveObject

NO_ADDR = -1  # ids.NO_ADDR seen as int64


@dataclass(frozen=True, slots=True)
class Matcher:
    """Both versions of one object, and what pairs their sections and symbols."""

    graph: LinkGraph
    row: int  # of graph.objects
    live: LiveObject
    fields: Fields
    old: Version
    new: Version
    old_of_section: I64  # (s,) the old section of each new one, or NO_ROW
    old_of_function: I64  # (n,) the old function of each new one, or NO_ROW
    old_name: I64  # (n_old,) a number for each name
    new_name: I64  # (n_new,) the same numbers; NO_ROW for a name the old version lacks
    edge: I64  # (r,) graph edge of each relocation of `new`, or NO_ROW

    @property
    def alike(self) -> bool:
        """Whether only bytes of loaded sections differ: all tables are the same."""
        return self.old.file.tables is self.new.file.tables


@of_equal_tables
def pair_functions(old: Version, new: Version) -> I64:
    """Return for each new symbol that is a function the old one of its name and localness."""
    flags = (1 << 63) - 1
    old_rows = function_rows(old.file, old.flags | 1, flags)
    new_rows = function_rows(new.file, new.flags | 1, flags)
    pairs = pair_keys(function_keys(old, old_rows), function_keys(new, new_rows))
    result = np.full(len(new.file.symbols), NO_ROW, np.int64)
    found = pairs >= 0
    result[new_rows[found]] = old_rows[pairs[found]]
    return result


def function_keys(version: Version, rows: NDArray[np.int32]) -> list[tuple[bytes, bool]]:
    """Return what a function is known by in every version: its name and its localness."""
    names = version.file.symbol_names
    local: list[bool] = (version.file.bindings()[rows] == 0).tolist()
    return [(names[row], own) for row, own in zip(rows.tolist(), local, strict=True)]


@of_equal_tables
@lru_cache(maxsize=4)  # asked for by the comparison of variables and of functions
def number_names(old: Version, new: Version) -> tuple[I64, I64]:
    """Return a number for each symbol's name, equal in both versions for equal names."""
    before, after = old.file.symbol_names, new.file.symbol_names
    row_of = dict(zip(before, range(len(before)), strict=True))
    old_number = np.fromiter(map(row_of.__getitem__, before), np.int64, len(before))
    found = map(row_of.get, after, repeat(NO_ROW))
    return old_number, np.fromiter(found, np.int64, len(after))


def find_edges(graph: LinkGraph, row: int, new: Version, numbers: I64) -> I64:
    """Return the graph edge that was made of each relocation, or NO_ROW.

    Args:
        graph: Its edges are sorted by block, then offset; passes may have added some.
        row: The object's row.
        new: Its relocations.
        numbers: (e,) relocation type of each edge.
    """
    block = graph.block_of_section[row][new.section].astype(np.int64)
    key = key_of(block, new.offset)
    edges = key_of(graph.edges.block.astype(np.int64), graph.edges.offset.astype(np.int64))
    first = edges.searchsorted(key)
    result = np.full(len(key), NO_ROW, np.int64)
    # a marker or a pass may have put a second edge on the same field
    for step in (0, 1):
        at = np.minimum(first + step, max(len(edges) - 1, 0))
        if not len(edges):
            break
        hit = (result < 0) & (block >= 0) & (edges[at] == key) & (numbers[at] == new.number)
        result[hit] = at[hit]
    # two relocations of one field cannot be told apart: they have no edge, and count as changed
    twice = (key[1:] == key[:-1]).nonzero()[0]
    result[twice] = NO_ROW
    result[twice + 1] = NO_ROW
    return result
