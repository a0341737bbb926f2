"""Every process of a family has to have the libraries that new code is bound to.

Symbols are looked up in one process. What was mapped when it forked is at the same place in
all; what was loaded by one of them afterwards is in that one alone.
"""

from collections.abc import Iterable

import numpy as np

from reloader.errors.family import LibraryMissingError
from reloader.errors.live import TargetGoneError
from reloader.link.graph import Origin
from reloader.live.maps import ARENA_NAME
from reloader.live.plan import Plan
from reloader.live.program import Program
from reloader.live.target import Mapping


def require_same_libraries(program: Program, plan: Plan) -> None:
    """Make sure that what new code is bound to is in every process.

    Raises:
        LibraryMissingError: Some process does not have it.
    """
    first, *others = program.target.members()
    if not others:
        return
    used = used_files(first.maps(), plan)
    for member in others:
        try:
            there = {place(row) for row in member.maps()}
        except TargetGoneError:  # forgotten
            continue
        for mapping, names in used:
            if place(mapping) not in there:
                raise LibraryMissingError(mapping.name, names, member.pid, first.pid)


def place(mapping: Mapping) -> tuple[int, int, int]:
    """Return what a part of a file is known by in any process."""
    return int(mapping.start), mapping.file_offset, mapping.inode


def used_files(mappings: Iterable[Mapping], plan: Plan) -> list[tuple[Mapping, list[str]]]:
    """Return the mapped files that symbols are bound to, and these."""
    symbols = plan.graph.symbols
    rows = np.flatnonzero(symbols.origin == Origin.BOUND)
    addrs = symbols.addr[rows]
    found: list[tuple[Mapping, list[str]]] = []
    for mapping in mappings:
        if not mapping.inode or mapping.name == ARENA_NAME:
            continue
        hits = (addrs >= np.uint64(mapping.start)) & (addrs < np.uint64(mapping.end))
        inside: list[int] = rows[hits].tolist()
        if inside:
            names = [symbols.name[row].decode("utf-8", "replace") for row in inside]
            found.append((mapping, names))
    return found
