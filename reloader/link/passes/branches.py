"""Branches that the assembler resolved, found without decoding.

Calls and `lea` inside a section have no relocation. When some function grows, the fields of
all calls across it change although the callers did not; and if `g` goes and `h` moves to its
place, `call g` and `call h` are the same bytes. So every 4-byte and every 1-byte number of
the code is taken for a branch that might be. The few that lead to a function's start are
compared by *which* function that is, before and now. Where this explains every differing
byte, the function is the same; a function for which it does not, or for which it disagrees,
is decoded. A chance hit costs a decoding; to hide a change it would have to be a number that
is the distance to the same function's first byte in both versions.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from reloader.elf.gather import rows_of
from reloader.ids import I32, I64, NO_ROW, U8, Bool
from reloader.link.passes.matcher import Matcher
from reloader.link.passes.versions import Units

if TYPE_CHECKING:
    from reloader.link.passes.match_functions import Functions

_PIECE: Final = 1 << 16  # bytes at a time: what is computed of them stays in the caches
_NARROW: Final = 1 << 31  # bytes of a section whose places fit into 32 bits with a sign


@dataclass(frozen=True, slots=True)
class Branches:
    """What is known of the branches without relocation."""

    user: I64  # functions that run into another's bytes without a stub
    used: I64  # the function whose bytes they are
    short_user: I64  # the same by 1-byte numbers, of which most are no branch at all
    short_used: I64
    unsure: Bool  # (u,) has to be decoded


def unmoved(match: Matcher, functions: "Functions") -> Bool:
    """Return (u,) whether every function of a section is where it was, as large as it was.

    A branch that leads to the same function has the same bytes there.
    """
    units = functions.units
    stays = functions.paired & (units.new_start == units.old_start)
    stays &= match.old_of_section[units.new_section] == units.old_section
    moved = np.zeros(len(match.new.flags), np.bool_)
    moved[units.new_section[~stays]] = True
    return ~moved[units.new_section]


def find_branches(
    match: Matcher, functions: "Functions", raw: Bool, in_place: Bool
) -> Branches:
    """Find the branches between the functions of a section.

    Args:
        match: Both versions.
        functions: Those still taken for the same have equal sizes and relocations.
        raw: (u,) whether their bytes are equal too.
        in_place: (u,) see `unmoved`; these are taken for the same only if their bytes are.
    """
    units = functions.units
    unsure = functions.same & ~raw
    look = ~in_place | ~functions.reloadable  # branches into a piece count wherever it is
    users: dict[int, list[I64]] = {4: [np.zeros(0, np.int64)], 1: [np.zeros(0, np.int64)]}
    uses: dict[int, list[I64]] = {4: [np.zeros(0, np.int64)], 1: [np.zeros(0, np.int64)]}
    for section in np.unique(units.new_section[look]).tolist():
        mine = (units.new_section == section).nonzero()[0]
        if len(mine) < 2:
            continue
        start, size = int(match.new.start[section]), int(match.new.size[section])
        code = np.frombuffer(match.new.masked, np.uint8)[start : start + size]
        entries = entry_table(functions, mine, size)
        explained = np.zeros(size, np.bool_)
        doubtful = np.zeros(len(raw), np.bool_)
        for at, target, width in candidates(code, entries):
            user = functions.holding(np.full(len(at), section), at)
            rows = ((user >= 0) & (user != target)).nonzero()[0]
            rows = rows[functions.same[user[rows]]]
            user, used, at_rows = user[rows], target[rows], at[rows]
            stays = functions.known[used] & leads_alike(
                match, units, (user, used), at_rows, width
            )
            piece = ~functions.reloadable[used]
            doubtful[user[~stays]] = True
            explained[(at_rows[stays][:, None] + np.arange(width)).reshape(-1)] = True
            users[width].append(user[stays & piece])
            uses[width].append(used[stays & piece])
        changed = mine[(functions.same & ~raw)[mine]]
        unsure[changed] = unexplained(match, units, changed, explained)
        unsure |= doubtful
    return Branches(
        user=np.concatenate(users[4]),
        used=np.concatenate(uses[4]),
        short_user=np.concatenate(users[1]),
        short_used=np.concatenate(uses[1]),
        unsure=unsure,
    )


def leads_alike(
    match: Matcher, units: Units, pair: tuple[I64, I64], at: I64, width: int
) -> Bool:
    """Return whether the number at the same place of the old code led to the same function.

    Args:
        match: Both versions.
        units: The functions.
        pair: (p,) functions that hold the number, and (p,) functions it leads to now.
        at: (p,) offset of the number in the new section.
        width: Of the number, 4 or 1.
    """
    user, used = pair
    old = np.frombuffer(match.old.masked, np.uint8)
    home = units.old_section[user]
    place = at - units.new_start[user] + units.old_start[user]
    dtype = np.dtype("<i4") if width == 4 else np.dtype("i1")
    after = numbers_at(
        np.frombuffer(match.new.masked, np.uint8),
        match.new.start[units.new_section[user]] + at,
        dtype,
    )
    before = numbers_at(old, match.old.start[home] + place, dtype)
    now = at + width + after - units.new_start[used]
    then = place + width + before - units.old_start[used]
    return (now == then) & (units.old_section[used] == home)


def numbers_at(data: U8, at: I64, dtype: np.dtype[Any]) -> I64:
    """Return the numbers at any byte offsets; what lies past the end is zero."""
    places = at[:, None] + np.arange(dtype.itemsize)
    found = data[np.minimum(places, len(data) - 1)]
    return found.view(dtype).reshape(-1).astype(np.int64)


def unexplained(match: Matcher, units: Units, rows: I64, explained: Bool) -> Bool:
    """Return which functions have differing bytes that no branch explains.

    Args:
        match: Both versions.
        units: The functions.
        rows: (k,) functions of one section, equal in size.
        explained: (size,) bytes of the section that belong to branches to the same function.
    """
    size = units.size[rows]
    unit = np.repeat(np.arange(len(rows)), size)
    at = rows_of(units.new_start[rows], size)
    new_at = at + np.repeat(match.new.start[units.new_section[rows]], size)
    old_start = match.old.start[units.old_section[rows]] + units.old_start[rows]
    old, new = (np.frombuffer(v.masked, np.uint8) for v in (match.old, match.new))
    differs = (new[new_at] != old[rows_of(old_start, size)]) & ~explained[at]
    result = np.zeros(len(rows), np.bool_)
    result[unit[differs]] = True
    return result


def entry_table(functions: "Functions", rows: NDArray[np.intp], size: int) -> I32:
    """Return (size + 1,) the function entered at each byte, or NO_ROW.

    A function that is no stub's target may be entered anywhere.
    """
    table = np.full(size + 1, NO_ROW, np.int32)
    units = functions.units
    for row in rows[~functions.reloadable[rows]].tolist():
        first = int(units.new_start[row])
        table[first : first + int(units.size[row])] = row
    table[np.minimum(units.new_start[rows], size)] = rows
    return table


def candidates(code: U8, entries: I32) -> list[tuple[I64, I64, int]]:
    """Return (position, function it leads to, the number's width)."""
    found: list[tuple[I64, I64, int]] = []
    none = np.zeros(0, np.int64)
    for width, dtype in ((4, "<i4"), (1, "i1")):
        count = max(len(code) - width + 1, 0)
        # one element a byte position: numpy may look at unaligned, overlapping views
        number = np.ndarray((count,), dtype, code, strides=(1,))
        parts = [
            leading(number[first : first + _PIECE], first, width, entries)
            for first in range(0, count, _PIECE)
        ]
        at, to = map(np.concatenate, zip((none, none), *parts, strict=True))
        found.append((at, to, width))
    return found


def leading(number: Any, first: int, width: int, entries: I32) -> tuple[I64, I64]:  # noqa: ANN401  any integer column
    """Return the positions that lead to an entry, and the entry.

    Args:
        number: (p,) the number at each position.
        first: The first position.
        width: Bytes of a number.
        entries: See `entry_table`.
    """
    # A sum that is too large for 32 bits becomes negative, and a negative one large: both are
    # outside. A section of two gigabytes takes 64.
    narrow = len(entries) <= _NARROW
    to = np.arange(first + width, first + width + len(number)).astype("i4" if narrow else "i8")
    to += number
    rows = (to.view("u4" if narrow else "u8") < len(entries)).nonzero()[0]
    target = entries[to[rows]]
    hit = (target >= 0).nonzero()[0]
    return rows[hit] + first, target[hit].astype(np.int64)
