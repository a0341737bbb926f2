"""Blocks by the name of their section.

One search over all names of an object: a call a name is ten times slower, and objects built
with -ffunction-sections have tens of thousands of them.
"""

import re
from functools import lru_cache
from typing import Any, Final

import numpy as np

from reloader.elf.object import ObjectFile
from reloader.ids import I64, Bool
from reloader.link.graph import LinkGraph

_ALLOC, _EXECINSTR = 2, 4  # SHF_ALLOC, SHF_EXECINSTR
_RUN_ONCE: Final = (b".init", b".fini")
UNWIND_NAME: Final = rb"\.eh_frame$"
# Sections that describe the bytes of one code block, whatever becomes of its functions.
OWN_BYTES_NAME: Final = rb"\.(?:eh_frame$|gcc_except_table|stack_sizes|llvm_bb_addr_map)"


def matching(names: list[bytes], pattern: bytes) -> I64:
    """Return the rows of the names that a pattern matches from their start."""
    return holding(names, rb"(?m)^" + pattern)


def holding(names: list[bytes], pattern: bytes) -> I64:
    """Return the rows of the names in which a pattern is found, ascending."""
    hits = [m.start() for m in re.finditer(pattern, b"\n".join(names))]
    if not hits:
        return np.zeros(0, np.int64)
    ends = np.cumsum(np.fromiter(map(len, names), np.int64, len(names)) + 1)
    return np.unique(np.searchsorted(ends, hits, side="right").astype(np.int64))


@lru_cache(maxsize=256)  # one pattern is asked for in several passes
def named_sections(file: ObjectFile, pattern: bytes) -> I64:
    """Return the sections of an object whose name matches a pattern from its start.

    Code and what is not loaded have nothing that is known by its name, `.init` and `.fini`
    aside: most sections are not even looked at.
    """
    rows = _by_name(file)
    found = matching([file.section_names[row] for row in rows.tolist()], pattern)
    return rows[found]


@lru_cache(maxsize=64)
def _by_name(file: ObjectFile) -> I64:
    headers: Any = file.sections
    flags = headers["sh_flags"]
    plain = ((flags & _ALLOC) != 0) & ((flags & _EXECINSTR) == 0)
    for row in np.flatnonzero((flags & _EXECINSTR) != 0).tolist():
        plain[row] = file.section_names[row] in _RUN_ONCE
    return np.flatnonzero(plain)


def named_blocks(graph: LinkGraph, pattern: bytes) -> Bool:
    """Return (b,) which blocks come from a section whose name matches a pattern."""
    named = np.zeros(len(graph.blocks.object), np.bool_)
    for file, block in zip(graph.objects, graph.block_of_section, strict=True):
        found = block[named_sections(file, pattern)]
        named[found[found >= 0]] = True
    return named
