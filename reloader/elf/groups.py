"""Section groups: which sections belong together, and the name that makes them one."""

from typing import Final

import numpy as np
from numpy.typing import NDArray

from reloader.elf.constants import GRP_COMDAT, SHT_GROUP
from reloader.elf.gather import gather
from reloader.errors.base import Place
from reloader.errors.objects import EntrySizeError, IndexRangeError, OverlapError
from reloader.ids import I32, U8

WORD: Final = np.dtype("<u4")


def read_groups(
    data: U8,
    sections: NDArray[np.void],
    symbol_names: list[bytes],
    name: str,
) -> tuple[I32, dict[int, bytes]]:
    """Return the (s,) group each section belongs to, and the COMDAT groups' signatures.

    Raises:
        ObjectError: A group is empty, overlaps others, or names what does not exist.
    """
    member_of = np.zeros(len(sections), np.int32)
    groups = (sections["sh_type"] == SHT_GROUP).nonzero()[0]
    if not len(groups):
        return member_of, {}
    sizes = sections["sh_size"][groups]
    for row in ((sizes % np.uint64(4) != 0) | (sizes < 4)).nonzero()[0][:1].tolist():
        raise EntrySizeError(Place(name), f"group {int(groups[row])}", int(sizes[row]), 4)
    if sum(sizes.tolist()) > len(data):
        raise OverlapError(Place(name), "the groups", sum(sizes.tolist()), len(data))
    words = gather(data, sections["sh_offset"][groups], sizes, WORD)
    counts = (sizes // np.uint64(4)).astype(np.int64)
    first = np.cumsum(counts) - counts
    is_member = np.ones(len(words), np.bool_)
    is_member[first] = False
    members, owner = words[is_member], np.repeat(groups, counts)[is_member]
    for row in (members >= len(sections)).nonzero()[0][:1].tolist():
        place, found = Place(name), int(members[row])
        text = f"group {int(owner[row])}"
        raise IndexRangeError(place, text, "section", found, len(sections))
    member_of[members] = owner
    signatures = sections["sh_info"][groups]
    for row in (signatures >= len(symbol_names)).nonzero()[0][:1].tolist():
        text, found = f"group {int(groups[row])}", int(signatures[row])
        raise IndexRangeError(Place(name), text, "symbol", found, len(symbol_names))
    comdat = (words[first] & GRP_COMDAT).nonzero()[0]
    pairs = zip(groups[comdat].tolist(), signatures[comdat].tolist(), strict=True)
    return member_of, {group: symbol_names[symbol] for group, symbol in pairs}
