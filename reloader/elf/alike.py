"""Versions of an object that differ in the bytes of loaded sections and in nothing else.

A new number in a condition, another constant: headers, symbols, relocations and debug
information stay the same to the last byte. Such a version shares its tables with the one
before, and with them all that was ever worked out of them (`of_tables`).
"""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Concatenate, Final, ParamSpec, Protocol, TypeVar

import numpy as np

from reloader.elf.constants import SHF_ALLOC, SHT_NOBITS, SHT_NULL
from reloader.elf.fingerprint import Fingerprint
from reloader.elf.object import ObjectFile
from reloader.ids import I64, U8

T = TypeVar("T")
P = ParamSpec("P")


class HasFile(Protocol):
    """What is made of one version of an object."""

    @property
    def file(self) -> ObjectFile:
        """The version."""
        ...


V = TypeVar("V", bound=HasFile)

_PROGBITS: Final = 1
_MOST_SECTIONS: Final = 1 << 16  # of an object whose layout is worth looking at
_HEADER: Final = 64  # bytes of the ELF header
_WORD: Final = 8  # bytes that are compared at once
_LAST: Final[list[tuple[U8, U8, I64]]] = []
_KEPT: Final = 8  # answers of one question: of the objects that change just now


def of_tables(
    function: Callable[Concatenate[ObjectFile, P], T],
) -> Callable[Concatenate[ObjectFile, P], T]:
    """Keep what a function finds in an object's tables, for all versions that share them.

    It must look at no byte of a loaded section, and nobody may change what it returns. Its
    other arguments are known by being the very same.
    """
    known: OrderedDict[tuple[int, ...], tuple[object, object, T]] = OrderedDict()

    def kept(file: ObjectFile, *args: P.args, **named: P.kwargs) -> T:
        key = (id(file.tables), *map(id, args), *map(id, named.values()))
        found = known.get(key)
        if found is not None:
            return found[2]
        value = function(file, *args, **named)
        known[key] = (file.tables, (args, named), value)  # alive: their ids are not used again
        if len(known) > _KEPT:
            known.popitem(last=False)  # one step: threads that answer questions come here
        return value

    return kept


def of_equal_tables(function: Callable[[V, V], T]) -> Callable[[V, V], T]:
    """Keep what two versions with the same tables are paired by; see `of_tables`."""
    known: OrderedDict[int, tuple[object, T]] = OrderedDict()

    def kept(old: V, new: V) -> T:
        tables = new.file.tables
        if old.file.tables is not tables:
            return function(old, new)
        found = known.get(id(tables))
        if found is None:
            found = known[id(tables)] = tables, function(old, new)
            if len(known) > _KEPT:
                known.popitem(last=False)
        return found[1]

    return kept


def alike(old: ObjectFile, data: U8) -> ObjectFile | None:
    """Return bytes as a version of an object with the same tables, None if they differ.

    Args:
        old: A version whose tables are checked already.
        data: Read-only.
    """
    if len(old.data) != len(data):
        return None
    at = changed_places(old.data, data)
    start, end, _ = contents(old)
    if not len(start):
        return None
    row = np.maximum(start.searchsorted(at, side="right") - 1, 0)
    if not bool(((start[row] <= at) & (at < end[row])).all()):
        return None
    new = replace(old, data=data, fingerprint=Fingerprint(data))
    object.__setattr__(new, "tables", old.tables)
    return new


def changed_places(old: U8, new: U8) -> I64:
    """Return the places at which two files of one size differ.

    They are asked for when a version is read and when it is compared: the last ones are kept.
    """
    for one, other, places in _LAST:
        if one is old and other is new:
            return places
    whole = len(new) & ~(_WORD - 1)
    words = (old[:whole].view(np.uint64) != new[:whole].view(np.uint64)).nonzero()[0]
    at = np.append((words[:, None] * _WORD + np.arange(_WORD)).reshape(-1),
                   np.arange(whole, len(new)))  # fmt: skip
    places = at[old[at] != new[at]]
    _LAST[:] = [(old, new, places)]
    return places


@of_tables
def contents(file: ObjectFile) -> tuple[I64, I64, I64]:
    """Return start, end and section of loaded bytes that are no table; none if in doubt.

    Sorted by start.
    """
    headers: Any = file.sections
    none = np.zeros(0, np.int64)
    if len(headers) > _MOST_SECTIONS:
        return none, none, none
    kind, size = headers["sh_type"], headers["sh_size"].astype(np.int64)
    stored = ((kind != SHT_NULL) & (kind != SHT_NOBITS) & (size > 0)).nonzero()[0]
    start = headers["sh_offset"][stored].astype(np.int64)
    order = start.argsort(kind="stable")
    stored, start = stored[order], start[order]
    end = start + size[stored]
    # what several tables lie in is in no compiler's file, and means nothing by itself
    table = int(file.data[40:48].view("<u8")[0])
    inside = (start < table + headers.nbytes) & (table < end)
    if bool((start[1:] < end[:-1]).any() or inside.any() or (start < _HEADER).any()):
        return none, none, none
    plain = (headers["sh_flags"][stored] & SHF_ALLOC != 0) & (kind[stored] == _PROGBITS)
    return start[plain], end[plain], stored[plain]
