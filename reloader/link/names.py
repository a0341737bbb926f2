"""Blocks by the name of their section.

One search over all names of an object: a call a name is ten times slower, and objects built
with -ffunction-sections have tens of thousands of them.
"""

import re
from functools import lru_cache
from typing import Final

import numpy as np

from reloader.elf.object import ObjectFile
from reloader.ids import I64, Bool
from reloader.link.graph import LinkGraph

UNWIND_NAME: Final = rb"\.eh_frame$"
# Sections that describe the bytes of one code block, whatever becomes of its functions.
OWN_BYTES_NAME: Final = rb"\.(?:eh_frame$|gcc_except_table|stack_sizes|llvm_bb_addr_map)"


def matching(names: list[bytes], pattern: bytes) -> I64:
    """Return the rows of the names that a pattern matches from their start."""
    hits = [m.start() for m in re.finditer(rb"(?m)^" + pattern, b"\n".join(names))]
    ends = np.cumsum([len(name) + 1 for name in names])
    return np.searchsorted(ends, hits, side="right").astype(np.int64)


@lru_cache(maxsize=24)  # one pattern is asked for in several passes
def named_sections(file: ObjectFile, pattern: bytes) -> I64:
    """Return the sections of an object whose name matches a pattern from its start."""
    return matching(file.section_names, pattern)


def named_blocks(graph: LinkGraph, pattern: bytes) -> Bool:
    """Return (b,) which blocks come from a section whose name matches a pattern."""
    named = np.zeros(len(graph.blocks.object), np.bool_)
    for file, block in zip(graph.objects, graph.block_of_section, strict=True):
        found = block[named_sections(file, pattern)]
        named[found[found >= 0]] = True
    return named
