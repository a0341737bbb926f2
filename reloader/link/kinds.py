"""The kind table as contiguous columns for passes over all edges.

A column of the record table is strided; indexing it with a million edges costs three times
what a plain array does. Questions that one pass asks together are bits of one column.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import numpy as np

from reloader.arch.base import Architecture
from reloader.ids import I8, U8, U16, Bool

PC: Final = 1  # the place P is subtracted
OTHER: Final = 2  # its formula is not S + A, S + A - P or one that means the same
LIMITED: Final = 4  # checked, and not by the limits of a signed 4-byte field
FREE: Final = 8  # wraps by definition, no check
LONG: Final = 16  # 4 bytes wide
EMPTY: Final = 32  # a marker, writes nothing
_MANY: Final = 4096  # edges from which on comparing is quicker
_MOST_KINDS: Final = 8
_PLAIN: Final = ("S + A", "S + A - P", "L + A", "L + A - P", "T + A")


@dataclass(frozen=True, slots=True, eq=False)
class KindColumns:
    """(k,) columns by row of the kind table."""

    traits: U8  # the bits above
    width: U8
    table: U8
    branch: Bool
    # may be a branch, the byte before its field tells
    maybe_branch: Bool
    # bytes from a pc-relative field to the end of its instruction, 0 for others
    to_next: I8


@lru_cache
def kind_columns(arch: Architecture) -> KindColumns:
    """Return the columns of an architecture's kind table."""
    kinds = arch.kinds
    width, pc = kinds["width"], kinds["pc"]
    minus_place = np.char.endswith(kinds["formula"], "- P")
    other = ~np.isin(kinds["formula"], _PLAIN) & (width > 0)
    signed = kinds["checked"] & kinds["signed"] & (width == 4)
    traits = np.zeros(len(kinds), np.uint8)
    for bit, holds in (
        (PC, minus_place & ~other),
        (OTHER, other),
        (LIMITED, kinds["checked"] & ~signed & (width > 0)),
        (FREE, ~kinds["checked"] | (width == 0)),
        (LONG, width == 4),
        (EMPTY, width == 0),
    ):
        traits |= np.where(holds, np.uint8(bit), np.uint8(0))
    return KindColumns(
        traits=traits,
        width=width.copy(),
        table=kinds["table"].copy(),
        branch=kinds["branch"].copy(),
        maybe_branch=pc & (width == 4) & ~kinds["branch"] & (kinds["table"] == 0),
        to_next=np.where(pc, width, 0).astype(np.int8),
    )


def of_kinds(kind: U16, wanted: Bool) -> Bool:
    """Return (e,) which edges are of some kinds.

    Args:
        kind: (e,) row of the kind table.
        wanted: (k,) by that row. A comparison with each costs less than a look-up with many
            edges if they are few.
    """
    if len(kind) < _MANY:
        return wanted[kind]
    rows: list[int] = wanted.nonzero()[0].tolist()
    if len(rows) > _MOST_KINDS:
        return wanted[kind]
    hit = np.zeros(len(kind), np.bool_)
    for row in rows:
        hit |= kind == np.uint16(row)
    return hit
