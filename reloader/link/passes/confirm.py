"""Is this place really the field of an instruction, or do some bytes only look like one?

Only decoding from a known border between instructions tells. Known are the starts of functions
and the ends of relocated fields whose instruction ends with them, so the way is some hundred
bytes; for all candidates together the lengths of all instructions on the way are computed at
once. Where these are not surely known, the disassembler is asked.
"""

from typing import Final

import capstone
import numpy as np

from reloader.arch.base import Architecture
from reloader.elf.gather import rows_of
from reloader.ids import I32, I64, U8, Bool
from reloader.link.graph import LinkGraph

FIELD: Final = 4  # bytes of a pc-relative field
_AHEAD: Final = 16  # bytes after a way in which its last instruction may end
_EDGES_BACK: Final = 8  # relocated fields that are looked at in search of an instruction's end
_DONE: Final = 255  # in place of a length: nothing from here on matters


def confirmed(
    graph: LinkGraph, arch: Architecture, function_starts: I64, block: I32, offset: I64
) -> Bool:
    """Return which pc-relative fields end an instruction.

    Args:
        graph: The code.
        arch: Knows the lengths of instructions.
        function_starts: Places (block << 32 | offset) where functions begin.
        block: (c,) of each candidate.
        offset: (c,) of its field.
    """
    if not len(block):
        return np.zeros(0, np.bool_)
    key = (block.astype(np.int64) << 32) | offset
    way = borders(graph, arch, function_starts, key)
    first = way & 0xFFFF_FFFF
    order = np.lexsort((offset, way))
    heads = np.flatnonzero(np.diff(way[order], prepend=-1))
    good = np.zeros(len(block), np.bool_)
    good[order] = _walk(graph, arch, block[order], first[order], offset[order], heads)
    return good


def borders(graph: LinkGraph, arch: Architecture, function_starts: I64, key: I64) -> I64:
    """Return a place before each of some others at which an instruction surely begins.

    Args:
        graph: The code.
        arch: Knows which relocated fields are the end of an instruction.
        function_starts: Sorted places where functions begin.
        key: (c,) places, block << 32 | offset.
    """
    edges = graph.edges
    begin = key & ~0xFFFF_FFFF  # of the block, where no function begins before
    at = np.searchsorted(function_starts, key, side="right") - 1
    if len(function_starts):
        begin = np.maximum(begin, np.where(at >= 0, function_starts[at], 0))
    places = (edges.block.astype(np.int64) << 32) | edges.offset
    plain = arch.kinds["pc"] & (arch.kinds["width"] == FIELD)
    before = np.searchsorted(places, key - FIELD, side="right") - 1
    rows = np.arange(len(key))
    for _ in range(_EDGES_BACK):
        rows = rows[before[rows] >= 0]
        edge = before[rows]
        near = places[edge] >= begin[rows]
        rows, edge = rows[near], edge[near]
        if not len(rows):
            break
        field = graph.blocks.content[edges.block[edge]] + edges.offset[edge].astype(np.int64)
        ends = plain[edges.kind[edge]] & arch.ends_instruction(graph.content, field)
        begin[rows[ends]] = places[edge[ends]] + FIELD
        rows = rows[~ends]
        before[rows] -= 1
    return begin


def _walk(  # noqa: PLR0913, PLR0917  one argument a column
    graph: LinkGraph, arch: Architecture, block: I32, first: I64, offset: I64, heads: I64
) -> Bool:
    """Follow the instructions from each boundary past the candidates after it.

    All ways are laid one behind the other, and each byte gets the place of the instruction
    after it, so that all are walked at once.

    Args:
        graph: The code.
        arch: Knows the lengths of instructions.
        block: (c,) sorted by boundary, then offset.
        first: (c,) offset of the boundary.
        offset: (c,) of the field.
        heads: The first candidate of each boundary.
    """
    tails = np.append(heads[1:], len(block))
    size = offset[tails - 1] + FIELD - first[heads]
    begin = graph.blocks.content[block[heads]] + first[heads]
    room = size + _AHEAD
    start = np.cumsum(room) - room
    bytes_at = np.minimum(rows_of(begin, room), len(graph.content) - 1)
    lengths = arch.instruction_lengths(graph.content[bytes_at])
    lengths[rows_of(start + size, np.full(len(size), _AHEAD))] = _DONE
    reached = _reached(lengths, start)
    ends = offset + FIELD - first + np.repeat(start, tails - heads)
    good = reached[ends]
    stuck = np.flatnonzero(reached & (lengths == 0))
    for way in np.unique(np.searchsorted(start, stuck, side="right") - 1).tolist():
        own = slice(int(heads[way]), int(tails[way]))
        found = _decoded(graph, arch, int(begin[way]), int(size[way]))
        good[own] = [end in found for end in (ends[own] - start[way]).tolist()]
    return good


def _reached(lengths: U8, start: I64) -> Bool:
    """Return which places some instructions begin at, followed from some of them.

    In each round the steps are twice as long as before.

    Args:
        lengths: Of the instruction at each place, _DONE or 0 where nothing follows.
        start: Where the ways begin.
    """
    last = len(lengths) - 1
    step = np.arange(len(lengths)) + np.where(lengths == _DONE, 0, lengths)
    step = np.minimum(step, last)
    reached = np.zeros(len(lengths), np.bool_)
    reached[start] = True
    count = -1
    while True:
        rows = np.flatnonzero(reached)
        if len(rows) == count:
            return reached
        count = len(rows)
        reached[step[rows]] = True
        step = step.take(step)


def _decoded(graph: LinkGraph, arch: Architecture, begin: int, size: int) -> set[int]:
    """Return the distances at which the disassembler ends an instruction."""
    code = graph.content[begin : begin + size].tobytes()
    decoder = capstone.Cs(*arch.capstone)
    return {at + length for at, length, _, _ in decoder.disasm_lite(code, 0)}
