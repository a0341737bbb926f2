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
from reloader.ids import I32, I64, Bool, Region
from reloader.link.graph import LinkGraph

FIELD: Final = 4  # bytes of a pc-relative field
_AHEAD: Final = 16  # bytes that are looked at after the last candidate


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
    places = boundaries(graph, arch, function_starts)
    key = (block.astype(np.int64) << 32) | offset
    around = places[np.searchsorted(places, key, side="right") - 1]
    first = np.where((around >> 32) == block, around & 0xFFFF_FFFF, 0)
    way = (block.astype(np.int64) << 32) | first
    order = np.lexsort((offset, way))
    heads = np.flatnonzero(np.diff(way[order], prepend=-1))
    good = np.zeros(len(block), np.bool_)
    good[order] = _walk(graph, arch, block[order], first[order], offset[order], heads)
    return good


def boundaries(graph: LinkGraph, arch: Architecture, function_starts: I64) -> I64:
    """Return sorted places where an instruction surely begins."""
    edges, kinds = graph.edges, arch.kinds
    plain = kinds["pc"] & (kinds["width"] == FIELD)
    rows = np.flatnonzero(plain[edges.kind] & (graph.blocks.region[edges.block] == Region.CODE))
    field = graph.blocks.content[edges.block[rows]] + edges.offset[rows].astype(np.int64)
    rows = rows[arch.ends_instruction(graph.content, field)]
    ends = (edges.block[rows].astype(np.int64) << 32) + edges.offset[rows] + FIELD
    return np.sort(np.concatenate([function_starts, ends]))


def _walk(  # noqa: PLR0913, PLR0917  one argument a column
    graph: LinkGraph, arch: Architecture, block: I32, first: I64, offset: I64, heads: I64
) -> Bool:
    """Follow the instructions from each boundary past the candidates after it.

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
    span = np.minimum(size + _AHEAD, len(graph.content) - begin)
    lengths = arch.instruction_lengths(graph.content[rows_of(begin, span)]).tolist()
    shift = (np.cumsum(span) - span).tolist()
    good = np.zeros(len(block), np.bool_)
    ends = offset + FIELD - first
    rows = zip(
        heads.tolist(), tails.tolist(), shift, size.tolist(), begin.tolist(), strict=True
    )
    for head, tail, start, last, at in rows:
        wanted = ends[head:tail].tolist()
        found = _ends(lengths, start, last, set(wanted))
        if found is None:
            found = _decoded(graph, arch, at, last)
        good[head:tail] = [end in found for end in wanted]
    return good


def _ends(lengths: list[int], start: int, last: int, wanted: set[int]) -> set[int] | None:
    """Return which of some distances end an instruction, None where a length is not known."""
    at, found = 0, set[int]()
    while at < last:
        length = lengths[start + at]
        if not length:
            return None
        at += length
        if at in wanted:
            found.add(at)
    return found


def _decoded(graph: LinkGraph, arch: Architecture, begin: int, size: int) -> set[int]:
    """Return the distances at which the disassembler ends an instruction."""
    code = graph.content[begin : begin + size].tobytes()
    decoder = capstone.Cs(*arch.capstone)
    return {at + length for at, length, _, _ in decoder.disasm_lite(code, 0)}
