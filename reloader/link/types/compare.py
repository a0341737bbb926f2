"""Which types differ between two versions of an object, through everything they lead to.

Pairs of types, one of each version, are the nodes of a graph: a pair of records leads to the
pairs of their members' types, a pair of pointers to the pair of what they point at. Every pair
that can be reached is compared on its own, once; then each difference is spread backwards to
all pairs that lead to it. Types that lead back to themselves need nothing special.

A type that one side only declares, or does not describe, agrees with everything, but for names
that are known to have changed elsewhere in the transaction.
"""

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Final

from reloader.elf.types import Item, Kind, Record, TypeTable

Pair = tuple[int, int]  # offset of the old type, offset of the new one; 0: void
_WORDS: Final = {
    Kind.BASE: "a number", Kind.POINTER: "a pointer", Kind.REFERENCE: "a reference",
    Kind.RECORD: "a struct", Kind.UNION: "a union", Kind.ENUM: "an enum",
    Kind.ARRAY: "an array", Kind.FUNCTION: "a function", Kind.OTHER: "something else",
    Kind.MEMBER_POINTER: "a pointer to a member", Kind.ALIAS: "a typedef",
}  # fmt: skip


@dataclass(slots=True)
class Compared:
    """What one pair is by itself."""

    reason: str = ""  # why they differ, "": they do not
    children: list[Pair] = field(default_factory=list[Pair])


class Comparison:
    """The types of two versions of an object."""

    def __init__(
        self, old: TypeTable, new: TypeTable, changed: frozenset[str] = frozenset()
    ) -> None:
        """Begin; `changed` are names of records that are known to differ elsewhere."""
        self.old, self.new, self.changed_names = old, new, changed
        self.pairs: dict[Pair, Compared] = {}
        self.causes: dict[Pair, Pair] = {}  # the next pair on the way to a difference

    def compare(self, roots: Iterable[Pair]) -> None:
        """Compare some pairs and all that they lead to."""
        todo = [pair for pair in roots if pair not in self.pairs]
        settled = set(self.causes)
        users: dict[Pair, list[Pair]] = {}
        wrong: deque[Pair] = deque()
        while todo:
            pair = todo.pop()
            if pair in self.pairs:
                continue
            found = self.pairs[pair] = self.one(*pair)
            if found.reason:
                self.causes[pair] = pair
                wrong.append(pair)
            for child in found.children:
                users.setdefault(child, []).append(pair)
                if child not in self.pairs:
                    todo.append(child)
                elif child in settled and pair not in self.causes:
                    self.causes[pair] = child
                    wrong.append(pair)
        while wrong:
            cause = wrong.popleft()
            for user in users.get(cause, ()):
                if user not in self.causes:
                    self.causes[user] = cause
                    wrong.append(user)

    def differ(self, pair: Pair) -> bool:
        """Return whether two types that were compared differ, here or in what they lead to."""
        return pair in self.causes

    def cause(self, pair: Pair) -> list[Pair]:
        """Return the way from a pair that differs to the nearest difference, which is last."""
        way = [pair]
        while self.causes[way[-1]] != way[-1]:
            way.append(self.causes[way[-1]])
        return way

    def reason(self, pair: Pair) -> str:
        """Return why a pair differs by itself."""
        return self.pairs[pair].reason

    def named_pairs(self) -> dict[tuple[Kind, str], Pair]:
        """Return the records and enums that both versions describe, by kind and name."""
        new = self.new.named
        return {key: (at, new[key]) for key, at in self.old.named.items() if key in new}

    def one(self, old_at: int, new_at: int) -> Compared:
        """Compare two types without what they lead to."""
        before, after = bare(self.old, old_at), bare(self.new, new_at)
        if before is None or after is None:
            return Compared()
        old, new = before[1], after[1]
        if old.declared or new.declared:
            name = old.name or new.name
            opaque = name in self.changed_names
            return Compared(f"{name} changed in another object" if opaque else "")
        if old.kind is not new.kind:
            return Compared(f"{_WORDS[old.kind]} became {_WORDS[new.kind]}")
        found = _RULES.get(old.kind, _nothing)(old, new)
        if old.kind is Kind.RECORD:
            found.children += self.heirs(before[0], after[0])
        return found

    def heirs(self, old_at: int, new_at: int) -> list[Pair]:
        """Return the classes derived from a class: a pointer to it may point to one of them."""
        olds = self.old.derived.get(old_at)
        news = self.new.derived.get(new_at) if olds else None
        if not olds or not news:
            return []
        by_name = {self.new.types[at].name: at for at in news}
        names = ((at, self.old.types[at].name) for at in olds)
        return [(at, by_name[name]) for at, name in names if name in by_name]


def bare(table: TypeTable, at: int) -> tuple[int, Record] | None:
    """Return a type without `typedef`, `const` and the like; None for `void` and unknown."""
    for _ in range(64):
        record = table.types.get(at)
        if record is None:
            return None
        if record.kind is not Kind.ALIAS:
            return at, record
        at = record.type
    return None


def compare_functions(old: Record, new: Record) -> Compared:
    """Compare two functions: what callers pass and get."""
    if len(old.items) != len(new.items):
        return Compared(f"{count(old.items)} became {count(new.items)}")
    if old.variadic != new.variadic:
        return Compared("the `...` of its parameters came or went")
    if old.type and not new.type:
        return Compared("it returns nothing any more")
    pairs = [(old.type, new.type)] if old.type else []
    pairs += [(a.type, b.type) for a, b in zip(old.items, new.items, strict=True)]
    return Compared("", pairs)


def count(items: list[Item]) -> str:
    """Return `1 parameter`, `2 parameters`."""
    return f"{len(items)} parameter{'' if len(items) == 1 else 's'}"


def _nothing(_old: Record, _new: Record) -> Compared:
    return Compared()


def _pointers(old: Record, new: Record) -> Compared:
    if old.word != new.word or old.size != new.size:
        return Compared("another kind of pointer")
    return Compared("", [(old.type, new.type)])


def _bases(old: Record, new: Record) -> Compared:
    if old.size != new.size:
        return Compared(f"{old.size} bytes became {new.size}")
    if old.encoding != new.encoding:
        return Compared(f"{old.name} became {new.name}: the same bytes mean another number")
    return Compared()


def _arrays(old: Record, new: Record) -> Compared:
    known = all(old.counts) and all(new.counts)
    if known and old.counts != new.counts:
        texts = ["".join(f"[{n}]" for n in counts) for counts in (old.counts, new.counts)]
        return Compared(f"{texts[0]} became {texts[1]}")
    return Compared("", [(old.type, new.type)])


def _enums(old: Record, new: Record) -> Compared:
    """Values that exist keep their meaning; new ones and plain renames are harmless."""
    if old.size != new.size:
        return Compared(f"{old.size} bytes became {new.size}")
    before = {item.name: item.place for item in old.items}
    after = {item.name: item.place for item in new.items}
    for name, value in before.items():
        if name in after and after[name] != value:
            return Compared(f"{name} was {value}, is {after[name]}")
    fresh = {value for name, value in after.items() if name not in before}
    for name, value in before.items():
        if name not in after and value not in fresh:
            return Compared(f"{name} ({value}) is gone")
    return Compared()


def _records(old: Record, new: Record) -> Compared:
    if old.slots != new.slots:
        return Compared(_slots(old, new))
    if old.size != new.size:
        return Compared(f"{old.size} bytes became {new.size}")
    before, after = keyed(old), keyed(new)
    pairs: list[Pair] = []
    renamed = {
        (item.place, item.bits): item for key, item in after.items() if key not in before
    }
    for key, item in before.items():
        other = after.get(key) or renamed.pop((item.place, item.bits), None)
        if other is None:
            return Compared(f"{item.name or 'a member'} is gone")
        if (item.place, item.bits, item.virtual) != (other.place, other.bits, other.virtual):
            return Compared(moved(item, other))
        pairs.append((item.type, other.type))
    if renamed:
        item = next(iter(renamed.values()))
        return Compared(f"{item.name or 'a member'} is new", pairs)
    return Compared("", pairs)


def moved(item: Item, other: Item) -> str:
    """Return what became of a member's place."""
    name = item.name or "a base class"
    if item.bits != other.bits:
        return f"{name} had {item.bits or 'all'} bits, has {other.bits or 'all'}"
    at, to = item.place, other.place
    if at % 8 or to % 8:
        return f"{name} was at bit {at}, is at bit {to}"
    return f"{name} was at byte {at // 8}, is at byte {to // 8}"


def keyed(record: Record) -> dict[object, Item]:
    """Return members by name, nameless ones and base classes by their place."""
    return {
        item.name if item.name and not item.base else (item.base, item.place): item
        for item in record.items
    }


def _slots(old: Record, new: Record) -> str:
    for index in sorted({*old.slots, *new.slots}):
        before, after = old.slots.get(index), new.slots.get(index)
        if before != after:
            return f"virtual function {index} was {before or 'none'}, is {after or 'none'}"
    return ""


_RULES: Final[dict[Kind, Callable[[Record, Record], Compared]]] = {
    Kind.BASE: _bases,
    Kind.POINTER: _pointers,
    Kind.REFERENCE: _pointers,
    Kind.RECORD: _records,
    Kind.UNION: _records,
    Kind.ENUM: _enums,
    Kind.ARRAY: _arrays,
    Kind.FUNCTION: compare_functions,
    Kind.MEMBER_POINTER: _pointers,
}
