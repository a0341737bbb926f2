"""Which functions are called through pointers, so that data of before may come to them.

A virtual function, a callback in a table, the code of a closure: who calls it is not in any
table of symbols. What was made by the old version reaches the new one with its old layout.
"""

import re
from collections.abc import Collection
from typing import Final

import numpy as np

from reloader.arch.base import Architecture
from reloader.elf.types import Record
from reloader.ids import Region
from reloader.link.graph import LinkGraph
from reloader.link.names import OWN_BYTES_NAME, named_blocks
from reloader.link.passes.functions import content_fields

STT_FUNC: Final = 2
# gcc names a closure `run()::<lambda(int)>`, and its functions `...Z3runvEUliE_...`
_GCC: Final = re.compile(r"(\w+)\([^()]*\)(?: const)?::<lambda\(")
# clang names its functions `...Z3runvE3$_0...`
_CLANG: Final = re.compile(r".*(Z[NL\d]\w*E\d+\$_\d+)")


def taken_names(graph: LinkGraph, arch: Architecture) -> frozenset[str]:
    """Return the functions whose address stands in data, or is put together in code."""
    blocks, edges, symbols = graph.blocks, graph.edges, graph.symbols
    region = blocks.region[edges.block]
    rows = np.flatnonzero(
        edges.live & (region != Region.NONE) & ~named_blocks(graph, OWN_BYTES_NAME)[edges.block]
    )
    from_code = region[rows] == Region.CODE
    field = content_fields(graph)[rows]
    takes = arch.is_lea(graph.content, field) | ~arch.kinds["pc"][edges.kind[rows]]
    function = symbols.type[edges.symbol[rows]] == STT_FUNC
    rows = rows[~from_code | (function & takes)]
    found: list[int] = np.unique(edges.symbol[rows]).tolist()
    return frozenset(symbols.name[row].decode("utf-8", "replace") for row in found)


def handed_out(key: str, record: Record, taken: Collection[str]) -> list[str]:
    """Return through which functions data of before may come to one.

    Args:
        key: Its linkage name; of one that only exists inside of others its plain name.
        record: It.
        taken: From `taken_names`.
    """
    if key in taken:
        return [key]
    inside = _GCC.search(record.name)
    if inside is not None:
        scope = f"{len(inside[1])}{inside[1]}"
        return sorted(name for name in taken if scope in name and "EUl" in name)
    closure = _CLANG.match(key)
    return sorted(name for name in taken if closure[1] in name) if closure else []
