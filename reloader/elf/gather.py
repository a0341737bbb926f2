"""Many pieces of a file as one array, without a view a piece.

An object of 20,000 functions has 20,000 relocation tables; a `frombuffer` for each costs ten
times more than one fancy index over all of them. Assemblers write the tables one after the
other, and then a plain slice is enough.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reloader.ids import I64, U8, U64, Bool


def one_of(column: NDArray[Any], values: Sequence[int]) -> Bool:
    """Return which elements are one of a few numbers; `np.isin` costs ten times more."""
    hit = column == int(values[0])
    for value in values[1:]:
        hit |= column == int(value)
    return hit


def rows_of(first: I64, count: I64) -> I64:
    """Return first[0], first[0]+1, ... for count[0] rows, then the same of the next range."""
    total = int(count.sum())
    before = np.cumsum(count) - count
    return np.repeat(first - before, count) + np.arange(total, dtype=np.int64)


def gather(data: U8, starts: U64, sizes: U64, dtype: np.dtype[Any]) -> NDArray[Any]:
    """Return the records of all ranges, one range after the other.

    Args:
        data: The file.
        starts: (k,) byte offsets; every range lies in the file.
        sizes: (k,) bytes, multiples of the record's size.
        dtype: The record.
    """
    first, size = starts.astype(np.int64), sizes.astype(np.int64)
    kept = size > 0
    first, size = first[kept], size[kept]
    if not len(first):
        return np.zeros(0, dtype)
    if bool(np.all(first[1:] == first[:-1] + size[:-1])):
        return data[int(first[0]) : int(first[-1] + size[-1])].view(dtype)
    unit = np.dtype("<u8") if dtype.itemsize % 8 == 0 else np.dtype("<u4")
    phase = int(first[0]) % unit.itemsize
    if bool(np.any(first % unit.itemsize != phase)):
        end = first + size
        breaks = np.flatnonzero(first[1:] != end[:-1]) + 1
        heads, tails = np.append(0, breaks), np.append(breaks, len(first)) - 1
        runs = zip(first[heads].tolist(), end[tails].tolist(), strict=True)
        return np.concatenate([data[a:b] for a, b in runs]).view(dtype)
    last = phase + (len(data) - phase) // unit.itemsize * unit.itemsize
    words = data[phase:last].view(unit)
    rows = rows_of((first - phase) // unit.itemsize, size // unit.itemsize)
    return words[rows].view(dtype)
