"""Blocks by the name of their section."""

from typing import Final

import numpy as np

from reloader.elf.alike import of_tables
from reloader.elf.object import ObjectFile
from reloader.ids import I32, Bool
from reloader.link.graph import LinkGraph
from reloader.link.section_names import SectionNames

UNWIND_NAME: Final = rb"\.eh_frame$"
# Sections that describe the bytes of one code block, whatever becomes of its functions.
OWN_BYTES_NAME: Final = rb"\.(?:eh_frame$|gcc_except_table|stack_sizes|llvm_bb_addr_map)"


def named_blocks(graph: LinkGraph, pattern: bytes) -> Bool:
    """Return (b,) which blocks come from a section whose name matches a pattern.

    What is found is kept with the graph; blocks are only ever added to it, without a section.
    """
    found = graph.named.get(pattern)
    if found is None:
        known = _known_rows(graph.objects[0]) if len(graph.objects) == 1 else graph.named
        found = known[pattern] if pattern in known else _matching_blocks(graph, pattern)
        known[pattern] = graph.named[pattern] = found
    named = np.zeros(len(graph.blocks.object), np.bool_)
    named[found] = True
    return named


@of_tables
def _known_rows(_file: ObjectFile) -> dict[bytes, I32]:
    """Return what was found of an object alone, or of a version with the same sections."""
    return {}


def _matching_blocks(graph: LinkGraph, pattern: bytes) -> I32:
    graph.section_names = graph.section_names or SectionNames.of(graph.objects)
    rows = graph.section_names.matching(pattern)
    blocks = np.concatenate([np.zeros(0, np.int32), *graph.block_of_section])[rows]
    return blocks[blocks >= 0]
