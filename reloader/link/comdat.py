"""COMDAT groups: of several with one signature the first in the transaction wins."""

from collections.abc import Sequence

import numpy as np

from reloader.elf.object import ObjectFile
from reloader.ids import I64, NO_ROW, Bool
from reloader.link.graph import LinkGraph, Origin

STB_LOCAL = 0


def lost_groups(files: Sequence[ObjectFile], firsts: I64) -> Bool:
    """Return which sections belong to a COMDAT group that lost.

    Args:
        files: The transaction's objects.
        firsts: (o + 1,) where each file's sections begin among those of all.
    """
    winners: set[bytes] = set()
    lost = np.zeros(int(firsts[-1]), np.bool_)
    for row, file in enumerate(files):
        signatures = file.group_signatures
        if not signatures:
            continue
        losers = [group for group, name in signatures.items() if name in winners]
        winners.update(signatures.values())
        if losers:
            lost[firsts[row] : firsts[row + 1]] = np.isin(file.group_sections, losers)
    return lost


def bind_lost_locals(graph: LinkGraph, lost: Bool, firsts: I64) -> None:
    """Point local symbols of a losing COMDAT section at the winner's section of the same name.

    As GNU ld does it, and only where the sizes agree: a table beside a group (exception data,
    for example) may refer to the group's section by its section symbol.
    """
    if not bool(lost.any()):
        return
    winners: dict[tuple[bytes, bytes], tuple[int, int]] = {}
    for row, file in enumerate(graph.objects):
        for section in np.flatnonzero(file.group_sections != 0).tolist():
            signature = file.group_signatures.get(int(file.group_sections[section]), b"")
            key = (signature, file.section_names[section])
            size = int(file.sections["sh_size"][section])
            if not lost[firsts[row] + section]:
                winners[key] = (int(graph.block_of_section[row][section]), size)
                continue
            block, winner_size = winners.get(key, (NO_ROW, NO_ROW))
            if size == winner_size:
                _bind_locals(graph, row, section, block)


def _bind_locals(graph: LinkGraph, row: int, section: int, block: int) -> None:
    symbols, file = graph.symbols, graph.objects[row]
    own = file.defined_in(section)
    rows = (own + np.uint32(graph.first_symbol[row])).astype(np.int64)
    local = rows[symbols.binding[rows] == STB_LOCAL]
    symbols.origin[local] = Origin.BLOCK
    symbols.block[local] = block
    symbols.offset[local] = file.symbols["st_value"][local - int(graph.first_symbol[row])]
