"""String tables: all names of a table at once, as a list of bytes.

Splitting the table once at its zero bytes and picking whole strings shares equal names as one
object (its hash is then computed once); only a name that is the tail of another, which
assemblers merge, needs a slice of its own.
"""

from typing import Any

import numpy as np

from reloader.errors.base import Place
from reloader.errors.objects import NameOffsetError, OverlapError, StringTableError
from reloader.ids import I32, I64, U8

# all names together may be this many times the file: merged tails of real objects stay far
# below, a forged table of overlapping names would otherwise ask for the square of its size
MAX_NAME_BYTES_PER_FILE_BYTE = 8


def read_names(table: U8, offsets: I64, place: Place, owner: str, limit: int) -> list[bytes]:
    """Return the name at each offset.

    Args:
        table: The string table's bytes.
        offsets: (n,) offsets in it.
        place: The object and the table's name, for errors.
        owner: What the names are of: `symbol`.
        limit: The file's size, which bounds what the names may take.

    Raises:
        StringTableError: The last byte is not zero.
        NameOffsetError: An offset is not in the table.
        OverlapError: The names are far larger than the file.
    """
    if not len(offsets):
        return []
    worst = int(np.argmax(offsets))
    if not len(table) and not int(offsets[worst]):
        return [b""] * len(offsets)
    if int(offsets[worst]) >= len(table):
        found = int(offsets[worst])
        raise NameOffsetError(place, f"{owner} {worst}", found, len(table))
    if int(table[-1]):
        raise StringTableError(place, "the string table", "does not end with a zero byte")
    zeros = np.flatnonzero(table == 0)
    string = np.searchsorted(zeros, offsets)
    starts = np.concatenate([np.zeros(1, np.int64), zeros[:-1] + 1])[string]
    ends = zeros[string]
    # splitting would make a list entry a zero byte; a table of hardly anything else is forged
    split = len(zeros) <= 4 * len(offsets) + 64
    tails = np.flatnonzero(starts != offsets) if split else np.arange(len(offsets))
    total = int((ends[tails] - offsets[tails]).sum())
    if total > MAX_NAME_BYTES_PER_FILE_BYTE * limit:
        raise OverlapError(
            place, f"the {owner} names", total, MAX_NAME_BYTES_PER_FILE_BYTE * limit
        )
    text = table.tobytes()
    if not split:
        return [text[a:b] for a, b in zip(offsets.tolist(), ends.tolist(), strict=True)]
    strings = text.split(b"\0")
    string[tails] = len(strings) + np.arange(len(tails))
    places = map(slice, offsets[tails].tolist(), ends[tails].tolist())
    strings.extend(map(text.__getitem__, places))
    return list(map(strings.__getitem__, string.tolist()))


def same_names(old: tuple[Any, I32, U8], new: tuple[Any, I32, U8]) -> bool:
    """Return whether the symbols of two tables have the same names.

    Args:
        old: A symbol table, each symbol's section and the string table.
        new: The same of another version, whose sections have the same names.
    """
    return (
        len(old[0]) == len(new[0])
        and np.array_equal(old[0]["st_name"], new[0]["st_name"])
        and np.array_equal(old[0]["st_info"], new[0]["st_info"])
        and np.array_equal(old[1], new[1])
        and np.array_equal(old[2], new[2])
    )
