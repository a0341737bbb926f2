"""Blocks by the name of their section."""

from typing import Final

import numpy as np

from reloader.ids import Bool
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
        graph.section_names = graph.section_names or SectionNames.of(graph.objects)
        rows = graph.section_names.matching(pattern)
        blocks = np.concatenate([np.zeros(0, np.int32), *graph.block_of_section])[rows]
        found = graph.named[pattern] = blocks[blocks >= 0]
    named = np.zeros(len(graph.blocks.object), np.bool_)
    named[found] = True
    return named
