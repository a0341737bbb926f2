"""What a unit's functions are apart from addresses: which ones an edit changed.

Two versions of a function are compared with relocated fields masked and with the numbers left
out that the compiler puts behind names. Constants and local functions have no name that lasts,
so what they hold counts as a part of whoever uses them.
"""

import re
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Final

from reloader.elf.object import ObjectFile
from reloader.hosts.caml.symbols import ESCAPE, LAST
from reloader.hosts.caml.transaction import Change
from reloader.hosts.caml.unit_object import SEPARATORS, SIZE_SHIFT, WORD
from reloader.hosts.caml.units import Slot

STAMP: Final = re.compile(rb"_\d+$")
STB_LOCAL: Final = 0
STT_FUNC, STT_SECTION = 2, 3
R_X86_64_64: Final = 1
STATIC: Final = 3 << 8  # of the header of a constant: the collector's colour
REACHED: Final = 16  # bytes of an unnamed constant: of what code points into
ENTRY: Final = "entry"  # what a unit's initialiser is called


@dataclass(frozen=True, slots=True)
class Shapes:
    """One version of a unit."""

    functions: dict[str, tuple[bytes, ...]]  # by name; several are local to something
    entry: tuple[bytes, ...]  # the initialiser's

    def of(self, slot: Slot) -> tuple[bytes, ...]:
        """Return what a field's function is, nothing if it is no function of the unit's."""
        return self.functions.get(base_name(slot.path), ())


@dataclass(frozen=True, slots=True)
class Item:
    """A function or a constant with its relocations taken out."""

    content: bytes
    uses: tuple[tuple[int, int, int, int], ...]  # offset, type, symbol, addend


def base_name(path: str) -> str:
    """Return a function's name without the modules that it is in."""
    found = LAST.fullmatch(path)
    return (found[2] or found[3] or found[4]) if found else path


def shapes_of(file: ObjectFile, symbol: bytes, slots: Sequence[Slot]) -> Shapes:
    """Return what a unit's functions are.

    Args:
        file: Its object.
        symbol: Its module block's.
        slots: Its fields: functions of their names are told one by one.
    """
    return Reader(file, symbol, {base_name(slot.path) for slot in slots}).shapes()


class LiveShapes:
    """The live versions of units that were replaced, each compared with the next."""

    def __init__(self) -> None:
        """Begin with none."""
        self._live: dict[tuple[str, str], tuple[ObjectFile, Shapes]] = {}

    def difference(self, change: Change) -> tuple[list[str], list[str]]:
        """Return the functions that are new or not what they were, and what else to know."""
        shown, unit, before = change.info.shown, change.object, change.before
        now = shapes_of(change.file, unit.symbol, change.info.slots)
        known = self._live.get(change.file.key)
        self._live[change.file.key] = change.file, now
        if before is None or change.old is None:
            return [f"{shown}.{new.path}" for _, new in change.functions], []
        if known is not None and known[0] is change.old.file:
            then = known[1]
        else:
            then = shapes_of(change.old.file, before.object.symbol, before.info.slots)
        found = [
            f"{shown}.{new.path}"
            for old, new in change.functions
            if old is None or now.of(new) != then.of(old)
        ]
        if found:
            return found, []
        if now == then:
            return [], [f"{shown}: only debug information changed"]
        return [], [f"{shown}: its functions are as they were, its initialiser changed"]


class Reader:
    """Reads one object."""

    def __init__(self, file: ObjectFile, symbol: bytes, known: set[str]) -> None:
        """Take the unit's object, and the names that stand for themselves."""
        self.file, self.symbol, self.known = file, symbol, known
        self.section: list[int] = file.symbol_sections.tolist()
        self.value: list[int] = file.symbols["st_value"].tolist()
        self.type: list[int] = file.types().tolist()
        self.local = (file.bindings() == STB_LOCAL).tolist()
        self.at = {  # what local symbol is where
            (self.section[row], self.value[row]): row
            for row, local in enumerate(self.local)
            if local and self.type[row] != STT_SECTION
        }
        self.names = [self.short(name) for name in file.symbol_names]
        self.end = self.ends()
        self.uses = self.relocations()
        self._done: dict[int, bytes] = {}  # what each symbol is

    def shapes(self) -> Shapes:
        """Return what every function is that has a name."""
        found: dict[str, list[tuple[int, bytes]]] = {}
        for row, name in enumerate(self.names):
            if self.section[row] > 0 and self.type[row] == STT_FUNC and self.stands(row):
                found.setdefault(name, []).append((self.value[row], self.shape(row)))
        functions = {name: tuple(s for _, s in sorted(rows)) for name, rows in found.items()}
        return Shapes(functions, functions.pop(ENTRY, ()))

    def short(self, name: bytes) -> str:
        """Return a symbol without its unit and its number."""
        for separator in SEPARATORS:
            if name.startswith(self.symbol + separator):
                text = STAMP.sub(b"", name[len(self.symbol + separator) :]).decode()
                return ESCAPE.sub(lambda found: chr(int(found[1], 16)), text)
        return STAMP.sub(b"", name).decode("utf-8", "replace")

    def stands(self, row: int) -> bool:
        """Return whether a symbol's name tells what it is; else its content does."""
        name = self.names[row]
        if self.section[row] <= 0 or name == ENTRY:
            return True
        if self.type[row] == STT_FUNC:
            return name in self.known
        return not self.local[row]

    def ends(self) -> list[int]:
        """Return where each symbol's bytes end: at the next one, where it has no size."""
        starts: dict[int, set[int]] = {}
        for section, at in zip(self.section, self.value, strict=True):
            if section > 0:
                starts.setdefault(section, set()).add(at)
        end_of: dict[tuple[int, int], int] = {}
        for section, every in starts.items():
            content = self.file.section_bytes(section).tobytes()
            end = len(content)
            for at in sorted(every, reverse=True):
                end_of[section, at] = end
                end = at - WORD if is_block(content, at, end) else at
        size: list[int] = self.file.symbols["st_size"].tolist()
        rows = zip(self.section, self.value, size, strict=True)
        return [at + more if more else end_of.get((s, at), at) for s, at, more in rows]

    def relocations(self) -> dict[int, tuple[list[int], list[tuple[int, int, int, int]]]]:
        """Return offsets, and (offset, type, symbol, addend), of each section's in order."""
        rows = self.file.relocations
        columns = (
            self.file.relocation_sections,
            *(rows[name] for name in ("r_offset", "r_type", "r_sym", "r_addend")),
        )
        found: dict[int, list[tuple[int, int, int, int]]] = {}
        for section, *use in zip(*(column.tolist() for column in columns), strict=True):
            found.setdefault(section, []).append(self.named(use[0], use[1], use[2], use[3]))
        return {key: ([u[0] for u in sorted(of)], sorted(of)) for key, of in found.items()}

    def named(self, at: int, kind: int, used: int, addend: int) -> tuple[int, int, int, int]:
        """Return a relocation by the local symbol that it means, if it has one."""
        if self.type[used] == STT_SECTION:
            shift = 0 if kind == R_X86_64_64 else -4
            row = self.at.get((self.section[used], addend - shift))
            if row is not None:
                return at, kind, row, shift
        return at, kind, used, addend

    def item(self, row: int) -> Item:
        """Return a symbol's bytes, and what they refer to."""
        section, start, end = self.section[row], self.value[row], self.end[row]
        content = bytearray(self.file.section_bytes(section)[start:end].tobytes())
        offsets, uses = self.uses.get(section, ([], []))
        own = uses[bisect_left(offsets, start) : bisect_left(offsets, end)]
        for at, kind, _, _ in own:
            size = 8 if kind == R_X86_64_64 else 4
            content[at - start : at - start + size] = bytes(size)
        return Item(
            bytes(content),
            tuple((at - start, kind, used, more) for at, kind, used, more in own),
        )

    def shape(self, row: int) -> bytes:
        """Return what a symbol is: a digest of its content and of all that belongs to it."""
        # constants may be long lists: one behind the other, not one inside of the other
        under_way = {row: self.parts(row)}
        while under_way:
            at, parts = next(reversed(under_way.items()))
            part = next((p for p in parts if p not in self._done and p not in under_way), None)
            if part is not None:
                under_way[part] = self.parts(part)
                continue
            del under_way[at]
            self._done[at] = self.digest(at)
        return self._done[row]

    def parts(self, row: int) -> Iterator[int]:
        """Yield the symbols that a symbol refers to and that are told by their content."""
        section = self.section[row]
        offsets, uses = self.uses.get(section, ([], []))
        first, last = self.value[row], self.end[row]
        for _, _, used, _ in uses[bisect_left(offsets, first) : bisect_left(offsets, last)]:
            if not self.stands(used) and self.type[used] != STT_SECTION:
                yield used

    def digest(self, row: int) -> bytes:
        """Return what a symbol is once all that belongs to it is known."""
        item = self.item(row)
        digest = blake2b(item.content, digest_size=16)
        for at, kind, used, addend in item.uses:
            if self.type[used] == STT_SECTION:
                token = self.reached(used, addend if kind == R_X86_64_64 else addend + 4)
            elif self.stands(used):
                token = self.names[used].encode() + addend.to_bytes(8, "little", signed=True)
            else:  # b"": it is inside of itself
                token = self._done.get(used, b"")
            digest.update(b"%d %d %d " % (at, kind, len(token)) + token)
        return digest.digest()

    def reached(self, row: int, at: int) -> bytes:
        """Return the bytes of a section that something without a name refers to."""
        return self.file.section_bytes(self.section[row])[at : at + REACHED].tobytes()


def is_block(content: bytes, start: int, end: int) -> bool:
    """Return whether a constant has a header before it; compiler's own tables have none."""
    header = int.from_bytes(content[max(start - WORD, 0) : start], "little")
    # the last one is followed by a word that is nothing's (emit.mlp, end_assembly)
    ends = {end, end - WORD}
    return header & STATIC == STATIC and start + WORD * (header >> SIZE_SHIFT) in ends
