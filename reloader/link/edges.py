"""Relocations -> edges: gathered, sorted, their kinds and fields checked."""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Final

import numpy as np

from reloader.arch.base import Architecture
from reloader.elf.object import ObjectFile
from reloader.errors.base import Place
from reloader.errors.linking import FieldOutsideError, FieldRow, KindRow, UnknownRelocationError
from reloader.ids import I32, I64, NO_ROW, U16, U32, Region
from reloader.link.graph import Blocks, Edges
from reloader.link.kinds import kind_columns

_WIDEST: Final = 8  # bytes of a field


def joined(columns: Sequence[Any]) -> Any:  # noqa: ANN401  arrays of one type
    """Return several arrays as one; a single one is not copied."""
    if len(columns) == 1:
        return columns[0]
    record = columns[0].dtype
    if record.names is None:
        return np.concatenate(columns)
    # for each pair of records numpy would work out anew what both are
    return np.concatenate([column.view(np.uint8) for column in columns]).view(record)


def edges_of(
    files: Sequence[ObjectFile],
    of_section: I32,
    section_firsts: I64,
    blocks: Blocks,
    arch: Architecture,
) -> Edges:
    """Return the edges of all allocated blocks, sorted by block, then offset.

    Args:
        files: The transaction's objects.
        of_section: The block of each section of all files together, or NO_ROW.
        section_firsts: (o + 1,) where each file's sections begin among them.
        blocks: All of them.
        arch: Knows the kinds.

    Raises:
        UnknownRelocationError: Some relocations have a type that `arch` does not know.
        FieldOutsideError: Some relocations patch bytes past the end of their section.
    """
    raw: Any = joined([file.relocations for file in files])
    counts = [len(file.relocations) for file in files]
    section = joined([file.relocation_sections for file in files])
    symbol = raw["r_sym"].astype(np.int32)
    if len(files) > 1:
        firsts = np.cumsum([0, *(len(file.symbols) for file in files)])[:-1]
        symbol += np.repeat(firsts.astype(np.int32), counts)
        section = section + np.repeat(section_firsts[:-1], counts)
    loaded = (of_section >= 0) & (blocks.region != Region.NONE)[of_section]
    columns = [
        np.where(loaded, of_section, NO_ROW)[section],
        raw["r_offset"].astype(np.uint32),
        raw["r_type"],
        symbol,
        raw["r_addend"],
    ]
    rows = _loaded_in_order(columns[0], columns[1])
    block, offset, number, symbol, addend = (
        columns if rows is None else [column[rows] for column in columns]
    )
    edges = Edges(
        block=block,
        offset=offset,
        kind=_kinds_of(files, blocks, (block, offset, number), arch),
        symbol=symbol,
        addend=addend.astype(np.int64),
        live=np.ones(len(block), np.bool_),
    )
    _check_fields(files, blocks, edges, arch)
    return edges


def _loaded_in_order(block: I32, offset: U32) -> I64 | None:
    """Return the relocations of loaded blocks by block and offset, None: all, as they are."""
    rows = None
    if len(block) and int(block.min()) < 0:
        rows = (block >= 0).nonzero()[0]
        block, offset = block[rows], offset[rows]
    if _is_sorted(block, offset):
        return rows
    # runs that are sorted already take this sort one look
    order = np.argsort((block.astype(np.int64) << 32) | offset, kind="stable")
    return order if rows is None else rows[order]


def _is_sorted(block: I32, offset: U32) -> bool:
    """Return whether edges are in the order of their block, then of their offset."""
    if bool((block[1:] < block[:-1]).any()):
        return False
    falls = offset[1:] < offset[:-1]
    rows = falls.nonzero()[0]
    return bool((block[rows + 1] != block[rows]).all())


def _kinds_of(
    files: Sequence[ObjectFile],
    blocks: Blocks,
    columns: tuple[I32, U32, U32],
    arch: Architecture,
) -> U16:
    """Return the kind row of every relocation; refuse all unknown ones at once.

    Args:
        files: The transaction's objects.
        blocks: Their blocks.
        columns: Block, offset and ELF number of every relocation.
        arch: Knows the kinds.
    """
    block, offset, number = columns
    known = _known_kinds(arch)
    if not len(number) or int(number.max()) < len(known):
        row = known[number]
    else:
        row = np.append(known, np.int16(NO_ROW))[np.minimum(number, len(known))]
    if len(row) and int(row.min()) < 0:
        bad = (row == NO_ROW).nonzero()[0]
        places = [_place(files, blocks, int(block[i]), int(offset[i])) for i in bad]
        rows = [KindRow(p, int(number[i])) for p, i in zip(places, bad, strict=True)]
        raise UnknownRelocationError(rows, arch.name)
    return row.view(np.uint16)


@lru_cache
def _known_kinds(arch: Architecture) -> Any:  # noqa: ANN401  an int16 column
    return arch.kind_of_number.astype(np.int16)


def _check_fields(
    files: Sequence[ObjectFile], blocks: Blocks, edges: Edges, arch: Architecture
) -> None:
    rows = _last_edges(blocks, edges)
    width = kind_columns(arch).width[edges.kind[rows]]
    size = np.where(blocks.content >= 0, blocks.size, 0).astype(np.int64)
    past = (size[edges.block[rows]] - edges.offset[rows] < width) & (width > 0)
    bad = rows[past]
    if len(bad):
        kinds = arch.kinds[edges.kind[bad]]
        raise FieldOutsideError(
            [
                FieldRow(
                    _place(files, blocks, int(edges.block[i]), int(edges.offset[i])),
                    str(kind["name"]),
                    int(kind["width"]),
                    int(size[edges.block[i]]),
                )
                for i, kind in zip(bad.tolist(), kinds, strict=True)
            ]
        )


def _last_edges(blocks: Blocks, edges: Edges) -> I64:
    """Return the edges that begin in the last bytes of their block, and maybe others.

    The edges are sorted: these stand at the end of each block's.
    """
    block, offset = edges.block, edges.offset
    size = np.where(blocks.content >= 0, blocks.size, 0).astype(np.int64) - _WIDEST
    rows = np.append(block[1:] != block[:-1], len(block) > 0).nonzero()[0]
    found: list[I64] = []
    while len(rows):
        if len(found) > _WIDEST:  # many fields on the same bytes
            return np.arange(len(block))
        rows = rows[offset[rows].astype(np.int64) > size[block[rows]]]
        found.append(rows)
        before = rows[rows > 0] - 1
        rows = before[block[before] == block[before + 1]]
    return np.sort(np.concatenate([np.zeros(0, np.int64), *found]))


def _place(files: Sequence[ObjectFile], blocks: Blocks, block: int, offset: int) -> Place:
    file = files[int(blocks.object[block])]
    section = file.section_names[int(blocks.section[block])].decode("utf-8", "replace")
    return Place(file.name, section, offset)
