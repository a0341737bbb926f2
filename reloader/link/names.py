"""Blocks by the name of their section.

One search over all names of an object: a call a name is ten times slower, and objects built
with -ffunction-sections have tens of thousands of them.
"""

import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Final

import numpy as np

from reloader.elf.object import ObjectFile
from reloader.ids import I64, U64, Bool
from reloader.link.graph import LinkGraph

_ALLOC, _EXECINSTR = 2, 4  # SHF_ALLOC, SHF_EXECINSTR
_FEW: Final = 256  # sections of an object whose names are remembered
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


def named_blocks(graph: LinkGraph, pattern: bytes) -> Bool:
    """Return (b,) which blocks come from a section whose name matches a pattern.

    What is found is kept with the graph; blocks are only ever added to it, without a section.
    """
    found = graph.named.get(pattern)
    if found is None:
        rows = matching_sections(graph.objects, pattern)
        blocks = np.concatenate([np.zeros(0, np.int32), *graph.block_of_section])[rows]
        found = graph.named[pattern] = blocks[blocks >= 0]
    named = np.zeros(len(graph.blocks.object), np.bool_)
    named[found] = True
    return named


def matching_sections(files: Sequence[ObjectFile], pattern: bytes) -> I64:
    """Return the rows, in the sections of all files together, whose name matches a pattern.

    Code and what is not loaded have nothing that is known by its name, `.init` and `.fini`
    aside: most sections are not even looked at.
    """
    headers: list[Any] = [file.sections for file in files]
    if not headers:
        return np.zeros(0, np.int64)
    flags = np.concatenate([header["sh_flags"] for header in headers])
    names = files[0].section_names
    if len(files) > 1:
        names = [name for file in files for name in file.section_names]
    if len(names) > _FEW:
        return _matching(names, flags, pattern)
    return _matching_few(tuple(names), flags.tobytes(), pattern)


@lru_cache(maxsize=256)
def _matching_few(names: tuple[bytes, ...], flags: bytes, pattern: bytes) -> I64:
    """Return `_matching` of a small object: the next version mostly has the same sections."""
    rows = _matching(list(names), np.frombuffer(flags, np.uint64), pattern)
    rows.flags.writeable = False
    return rows


def _matching(names: list[bytes], flags: U64, pattern: bytes) -> I64:
    plain = ((flags & _ALLOC) != 0) & ((flags & _EXECINSTR) == 0)
    if any(name in names for name in _RUN_ONCE):
        run_once = [row for row, name in enumerate(names) if name in _RUN_ONCE]
        plain[run_once] = (flags[run_once] & _EXECINSTR) != 0
    rows = np.flatnonzero(plain)
    return rows[matching([names[row] for row in rows.tolist()], pattern)]
