"""A graph as built, made the graph of a version that differs in bytes of loaded sections alone.

What building finds is in the tables of the object, and these are shared (`alike`). Only marking
functions looks at bytes too: those before a field, and code that looks like a `lea` without a
relocation. Where an edit touches the first, or there is any of the second, it is built anew.
"""

from typing import Any

import numpy as np

from reloader.arch.base import Architecture
from reloader.elf.alike import changed_places
from reloader.elf.object import ObjectFile
from reloader.ids import I64, Bool, Region
from reloader.link.graph import LinkGraph
from reloader.link.passes.functions import content_fields, lea_candidates


def renewed(graph: LinkGraph, file: ObjectFile, arch: Architecture) -> LinkGraph | None:
    """Return a graph, changed, as that of an alike version of its one object; None: build it.

    Args:
        graph: As `pipeline.built` returned it; the caller's own.
        file: The version that it is to be of.
        arch: What it was built for.
    """
    at = changed_places(graph.objects[0].data, file.data)
    place = content_places(graph, at)
    if place is None:
        return None
    fields = content_fields(graph)
    is_field = np.zeros(len(graph.content) + 2, np.bool_)
    is_field[fields] = True
    if bool((is_field[place + 1] | is_field[place + 2]).any()):
        return None
    graph.content[place] = file.data[at]
    if len(fields) != relocation_count(graph) or leas_apart(graph, arch, is_field):
        return None
    graph.objects = [file]
    return graph


def leas_apart(graph: LinkGraph, arch: Architecture, is_field: Bool) -> bool:
    """Return whether code may hold a `lea` that is no edge."""
    if bool(is_field[arch.lea_fields(graph.content)].all()):
        return False
    return not bool(is_field[lea_candidates(graph, arch)[1]].all())


def content_places(graph: LinkGraph, at: I64) -> I64 | None:
    """Return where in the content bytes of the object's file are, None if any is not there."""
    blocks = graph.blocks
    rows = (blocks.content >= 0).nonzero()[0]
    headers: Any = graph.objects[0].sections
    start = headers["sh_offset"][blocks.section[rows]].astype(np.int64)
    order = start.argsort()
    rows, start = rows[order], start[order]
    row = start.searchsorted(at, side="right") - 1
    distance = at - start[row]
    if len(at) and not (len(rows) and bool((distance < blocks.size[rows[row]]).all())):
        return None
    return blocks.content[rows[row]] + distance


def relocation_count(graph: LinkGraph) -> int:
    """Return how many edges were made of relocations."""
    blocks = graph.block_of_section[0]
    loaded = (blocks >= 0) & (graph.blocks.region != Region.NONE)[blocks]
    return int(np.count_nonzero(loaded[graph.objects[0].relocation_sections]))
