"""Which writable variable of an object's new version is which of its live version.

By name, where names are stable. Static locals are not: a compiler numbers them (`x.0`, `x.1`)
in an order that an edit changes, so the same name may denote another variable of equal size.
They are paired by the function they are declared in, which debug information tells; without it
only where nothing can be confused. Two names that could each be the other are refused, never
guessed.
"""

import re
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from reloader.elf.alike import of_tables
from reloader.elf.gather import one_of
from reloader.elf.object import COMMON, ObjectFile
from reloader.elf.scopes import Scope, scopes_of
from reloader.ids import I32, I64, NO_ROW, Bool

_DATA_TYPES: Final = (0, 1, 5)  # STT_NOTYPE (assembly), STT_OBJECT, STT_COMMON
_WRITE_ALLOC: Final = 0x3  # SHF_WRITE | SHF_ALLOC
_CODE_OR_TLS: Final = 0x404  # SHF_EXECINSTR | SHF_TLS
_CONTENTS: Final = (1, 8)  # SHT_PROGBITS, SHT_NOBITS
_CONSTANT: Final = (
    b".data.rel.ro", b".init_array", b".fini_array", b".preinit_array", b".ctors", b".dtors",
    b".eh_frame", b".gcc_except_table",
)  # fmt: skip
# `x.0` (gcc), `f.x` and `f.x.1` (clang), `_ZZ1fvE1x_0` (C++)
_NUMBER: Final = re.compile(rb"(?:(?:\.lto_priv)?\.[0-9]+)+$")
_DISCRIMINATOR: Final = re.compile(rb"_(?:[0-9]|_[0-9]+_)$")


@dataclass(frozen=True, slots=True, eq=False)
class Variables:
    """(v,) columns: the writable variables of one object, sorted by section, then offset."""

    symbol: I32  # index in the object's symbol table
    section: I32  # index, or COMMON
    offset: I64  # in the section; for COMMON the symbol's index
    size: I64  # bytes; up to the next symbol where the table has none
    local: Bool
    name: list[bytes]

    def end(self) -> I64:
        """Return (v,) the offset after each variable."""
        return self.offset + self.size


@dataclass(frozen=True, slots=True)
class Ambiguous:
    """Some variables of one name that cannot be told apart."""

    name: str
    live: tuple[str, ...]  # as the live version names them
    new: tuple[str, ...]
    rows: tuple[int, ...]  # of the new Variables


@dataclass(frozen=True, slots=True, eq=False)
class Pairing:
    """What became of each variable."""

    old_row: I32  # (new,) row of the live version's Variables, or NO_ROW
    removed: I32  # rows of the live version's Variables that no new one continues
    ambiguous: tuple[Ambiguous, ...]


@of_tables
def writable_sections(file: ObjectFile) -> Bool:
    """Return (s,) which sections hold variables: not constants that only the loader writes."""
    headers: Any = file.sections
    flags = headers["sh_flags"]
    writable = ((flags & _WRITE_ALLOC) == _WRITE_ALLOC) & ((flags & _CODE_OR_TLS) == 0)
    writable &= one_of(headers["sh_type"], _CONTENTS)
    for section in np.flatnonzero(writable).tolist():
        writable[section] = not file.section_names[section].startswith(_CONSTANT)
    writable.flags.writeable = False  # all versions share it
    return writable


@of_tables
def _own_variables(file: ObjectFile) -> tuple[Bool, Variables]:
    writable = writable_sections(file)
    writable.flags.writeable = False
    return writable, variables_of(file, writable)


def own_variables(file: ObjectFile, within: Bool | None = None) -> tuple[Bool, Variables]:
    """Return the writable sections of an object and their variables.

    Args:
        file: The object; what is found is kept for the next few questions about it.
        within: (s,) only these sections count.
    """
    writable, variables = _own_variables(file)
    if within is None or bool((within | ~writable).all()):
        return writable, variables
    return writable & within, variables_of(file, writable & within)


def variables_of(
    file: ObjectFile, writable: Bool, types: tuple[int, ...] = _DATA_TYPES
) -> Variables:
    """Return the variables defined in some sections of an object, and its COMMON ones."""
    where = file.symbol_sections
    common = where == COMMON
    inside = (where >= 0) & writable[np.maximum(where, 0)]
    rows = ((common | inside) & one_of(file.types(), types)).nonzero()[0]
    section = where[rows]
    offset = np.where(section == COMMON, rows, file.symbols["st_value"][rows]).astype(np.int64)
    order = np.lexsort((rows, offset, section))
    rows, section, offset = rows[order], section[order], offset[order]
    size = file.symbols["st_size"][rows].astype(np.int64)
    for row in (size == 0).nonzero()[0].tolist():
        size[row] = _room(file, section, offset, row)
    return Variables(
        symbol=rows.astype(np.int32),
        section=section,
        offset=offset,
        size=size,
        local=file.bindings()[rows] == 0,
        name=[file.symbol_names[row] for row in rows.tolist()],
    )


def _room(file: ObjectFile, section: I32, offset: I64, row: int) -> int:
    """Return the bytes from a symbol without a size to the next one or the section's end."""
    later = offset[(section == section[row]) & (offset > offset[row])]
    headers: Any = file.sections
    end = later.min() if len(later) else headers["sh_size"][section[row]]
    return int(end) - int(offset[row])


def is_scoped(name: bytes, *, local: bool) -> bool:
    """Return whether a symbol is a static local, whose name an edit elsewhere may change."""
    return local and (b"." in name[1:] or name.startswith(b"_ZZ"))


def base_name(name: bytes) -> bytes:
    """Return a static local's name without the number that moves between builds."""
    base = _NUMBER.sub(b"", name)
    return _DISCRIMINATOR.sub(b"", base) if base.startswith(b"_ZZ") else base


class Names:
    """How the variables of one version are called; reads debug information when asked."""

    def __init__(self, file: ObjectFile, variables: Variables) -> None:
        self.file = file
        self.variables = variables
        self._scopes: dict[tuple[int, int], Scope] | None = None
        self._by_name: dict[tuple[bytes, bool], list[int]] | None = None
        self.by_itself: Pairing | None = None  # with a version of the same tables, if certain

    def scope(self, row: int) -> Scope | None:
        """Return where a variable is declared, None if nothing says so."""
        if self._scopes is None:
            self._scopes = scopes_of(self.file)
        place = int(self.variables.section[row]), int(self.variables.offset[row])
        scope = self._scopes.get(place)
        return scope if scope is not None and scope.path else None

    def by_name(self) -> dict[tuple[bytes, bool], list[int]]:
        """Return the rows by (name without number, is it a static local)."""
        if self._by_name is None:
            self._by_name = defaultdict(list)
            local = self.variables.local.tolist()
            for row, name in enumerate(self.variables.name):
                scoped = is_scoped(name, local=local[row])
                self._by_name[base_name(name) if scoped else name, scoped].append(row)
        return self._by_name

    def shown(self, row: int) -> str:
        """Return the name for people: `x`, or `f.x` for a static local."""
        name = self.variables.name[row]
        if is_scoped(name, local=bool(self.variables.local[row])):
            scope = self.scope(row)
            return str(scope) if scope else name.decode("utf-8", "replace")
        return name.decode("utf-8", "replace")

    def called(self, row: int) -> set[str]:
        """Return every name a user may mean a variable by."""
        name = self.variables.name[row]
        names = {name.decode("utf-8", "replace"), self.shown(row)}
        if is_scoped(name, local=bool(self.variables.local[row])):
            names.add(base_name(name).decode("utf-8", "replace"))
            scope = self.scope(row)
            names |= {scope.name} if scope else set()
        return names


UsersOf = tuple[Mapping[int, set[bytes]], Mapping[int, set[bytes]]]


def pair_variables(
    old: Names, new: Names, users: Callable[[], UsersOf] | None = None
) -> Pairing:
    """Pair the variables of two versions of an object.

    Args:
        old: The live version.
        new: The version to load.
        users: Asked only where names and debug information do not decide: for each version the
            functions that use a variable, by row. A static local is used by its own function.
    """
    if old is new and old.by_itself is not None:
        return old.by_itself
    old_row = np.full(len(new.variables.name), NO_ROW, np.int32)
    groups = _groups(old, new)
    ambiguous: list[Ambiguous] = []
    asked: UsersOf | None = None
    for (name, scoped), (olds, news) in groups.items():
        if not olds or not news:
            continue
        pairs = _by_scope(old, new, olds, news) if scoped else _by_order(olds, news)
        if pairs is None and users is not None and scoped:
            asked = asked or users()
            pairs = _by_users(asked, olds, news)
        if pairs is None:
            before, after = (sorted(map(names.shown, rows)) for names, rows in
                             ((old, olds), (new, news)))  # fmt: skip
            text = name.decode("utf-8", "replace")
            ambiguous.append(Ambiguous(text, tuple(before), tuple(after), tuple(news)))
            continue
        for past, row in pairs:
            old_row[row] = past
    lost = np.ones(len(old.variables.name), np.bool_)
    lost[old_row[old_row >= 0]] = False
    pairing = Pairing(old_row, lost.nonzero()[0].astype(np.int32), tuple(ambiguous))
    if old is new and asked is None and not ambiguous:
        old.by_itself = pairing
    return pairing


_Groups = dict[tuple[bytes, bool], tuple[list[int], list[int]]]


def _groups(old: Names, new: Names) -> _Groups:
    """Return the rows of both versions by (name without number, is it a static local)."""
    before, after = old.by_name(), new.by_name()
    names = [*before, *(name for name in after if name not in before)]
    return {name: (before.get(name, []), after.get(name, [])) for name in names}


def _by_order(olds: list[int], news: list[int]) -> list[tuple[int, int]] | None:
    """Pair one with one; several of one plain name (`ld -r`) cannot be told apart."""
    return [(olds[0], news[0])] if len(olds) == len(news) == 1 else None


def _by_scope(
    old: Names, new: Names, olds: list[int], news: list[int]
) -> list[tuple[int, int]] | None:
    """Pair static locals by the function they are declared in; None if that does not decide."""
    before, after = ([names.scope(row) for row in rows] for names, rows in
                     ((old, olds), (new, news)))  # fmt: skip
    if None in before or None in after:
        return _by_order(olds, news)
    pairs: list[tuple[int, int]] = []
    places = [_by_place(before, olds), _by_place(after, news)]
    for path in places[0].keys() & places[1].keys():
        left, right = places[0][path], places[1][path]
        if len(left) == len(right) == 1:
            pairs.append((next(iter(left.values())), next(iter(right.values()))))
        elif left.keys() == right.keys():
            pairs += [(left[key], right[key]) for key in left]
        else:
            return None  # one of several in one function came or went
    return pairs


def _by_place(
    scopes: list[Scope | None], rows: list[int]
) -> dict[tuple[str, ...], dict[tuple[int, ...], int]]:
    """Return rows by (function path, name), then by block and order of declaration."""
    places: dict[tuple[str, ...], dict[tuple[int, ...], int]] = defaultdict(dict)
    for scope, row in zip(scopes, rows, strict=True):
        if scope is not None:
            inner = places[*scope.path, scope.name]
            same = sum(key[:-1] == scope.blocks for key in inner)
            inner[*scope.blocks, same] = row
    return places


def _by_users(users: UsersOf, olds: list[int], news: list[int]) -> list[tuple[int, int]] | None:
    """Pair static locals by the functions that use them; None if any use is shared."""
    pairs: list[tuple[int, int]] = []
    for side, rows in zip(users, (olds, news), strict=True):
        used = [name for row in rows for name in side.get(row, set[bytes]())]
        if len(used) != len(set(used)) or not all(side.get(row) for row in rows):
            return None
    for after in news:
        found = [row for row in olds if users[0][row] & users[1][after]]
        if len(found) > 1:
            return None
        pairs += [(before, after) for before in found]
    taken = [before for before, _ in pairs]
    return pairs if len(taken) == len(set(taken)) else None
