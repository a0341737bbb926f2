"""Old code that callers still have: which live module leads to a closure of a superseded unit.

Closed functions are forwarded (`forwarding`). A closure with an environment is not: its code
and what it captured belong together. Nor is a function that has no successor. Both go on as
they were until whoever keeps them asks the new version for another, so the user is told where
they are: the modules are walked from outside, while the program runs.
"""

from collections import deque
from collections.abc import Container, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Final, NamedTuple

import numpy as np

from reloader.elf.lines import LineTable
from reloader.elf.object import ObjectFile
from reloader.errors.base import ReloaderError
from reloader.hosts.caml.symbols import ANONYMOUS, UnitNames
from reloader.hosts.caml.transaction import Change, Unit
from reloader.hosts.caml.unit_object import UnitObject
from reloader.ids import NO_ADDR, Addr, SlotId
from reloader.live.host import Hold
from reloader.live.objects import LiveObject
from reloader.live.program import Program

WORD: Final = 8
PAGE: Final = 4096
HIGHEST: Final = 1 << 47  # of a user's addresses
MOST_WORDS: Final = 12_000  # that one search looks at, nearest to the modules first
BLOCK_COST: Final = 4  # words: what a block costs besides its fields
MOST_FIELDS: Final = 1_024  # of one block
MOST_NOTES: Final = 5
STT_FUNC: Final = 2
CONTINUATION, CLOSURE, INFIX, NO_SCAN = 245, 247, 249, 251  # tags; from the last on: no values
_SIZE_SHIFT: Final = 10


@dataclass(frozen=True, slots=True)
class OldVersion:
    """A superseded version of a unit."""

    name: str  # as the compiler has it
    begin: int  # of its code
    end: int
    file: ObjectFile
    functions: dict[int, int]  # address -> row of its symbol
    original: bool  # the executable's: its memory stays

    def shown(self, row: int) -> str:
        """Return a function as people write it; one without a name by its line."""
        file = self.file
        symbol = file.symbol_names[row]
        found = UnitNames([self.name]).shown(symbol) or symbol.decode("utf-8", "replace")
        if not found.endswith(f"({ANONYMOUS})"):
            return found
        section, offset = int(file.symbol_sections[row]), int(file.symbols["st_value"][row])
        line = LineTable.of(file).find(section, offset)
        return f"{found[:-1]} at {line})" if line else found


@dataclass(frozen=True, slots=True)
class OldCaller:
    """A closure of a superseded version that a live module leads to."""

    code_begin: int  # of its version
    function: str  # `Foo.adder`
    place: str  # `Bar.table`
    closed: bool  # it has no environment
    captured: bool  # by another closure, as a partial application does

    @property
    def text(self) -> str:
        """The closure in OCaml terms."""
        what = "" if self.closed else "a closure of "
        by = ", which a closure holds," if self.captured else ""
        return f"{what}{self.function}{by} in {self.place}"

    @property
    def note(self) -> str:
        """The same as a line of a report."""
        why = (
            "nothing leads it to new code"
            if self.closed
            else "its environment belongs to the old version"
        )
        return f"still old: {self.text} ({why})"


def old_version(name: str, unit: UnitObject, live: LiveObject) -> OldVersion:
    """Return what has to be known of a version that another takes the place of."""
    addr = live.symbol_addr
    rows = np.flatnonzero((live.file.types() == STT_FUNC) & (addr != np.uint64(NO_ADDR)))
    functions = {int(addr[row]): row for row in rows.tolist()}
    begin, end = int(addr[unit.rows.code_begin]), int(addr[unit.rows.code_end])
    return OldVersion(name, begin, end, live.file, functions, not live.generation)


class Step(NamedTuple):
    """One value of the walk."""

    value: int
    place: str
    captured: bool  # a closure leads to it


class Pages:
    """Words of the program, read a page at a time."""

    def __init__(self, program: Program) -> None:
        """Begin with none."""
        self._read = program.target.read
        self._known: dict[int, memoryview[int]] = {}

    def word(self, addr: int) -> int:
        """Return an aligned word, 0 where nothing is mapped."""
        if not PAGE <= addr < HIGHEST:  # the program moves blocks: a header may be anything
            return 0
        page = addr // PAGE
        if page not in self._known:
            try:
                content = self._read(Addr(page * PAGE), PAGE).tobytes()
            except ReloaderError:
                content = bytes(PAGE)
            self._known[page] = memoryview(content).cast("Q")
        return self._known[page][addr % PAGE // WORD]


@dataclass(slots=True)
class OldCode:
    """The superseded versions of one program's units, and the search for what leads to them."""

    versions: list[OldVersion] = field(default_factory=list[OldVersion])
    _texts: dict[tuple[int, int], str] = field(default_factory=dict[tuple[int, int], str])

    def add(self, changes: Iterable[Change]) -> None:
        """Take note of the versions that a transaction took the place of."""
        for change in changes:
            if change.before and change.old:
                name = change.before.info.name
                self.versions.append(old_version(name, change.before.object, change.old))

    def forget(self, known: Container[int]) -> None:
        """Drop versions that the runtime has forgotten: others may be there soon.

        Args:
            known: Where the code of those begins that it has not.
        """
        self.versions = [row for row in self.versions if row.original or row.begin in known]
        self._texts = {at: text for at, text in self._texts.items() if at[0] in known}

    def notes(self, program: Program, units: Sequence[Unit]) -> list[str]:
        """Return lines for a report, at most a few."""
        found = list(dict.fromkeys(row.note for row in self.callers(program, units)))
        more = len(found) - MOST_NOTES
        return found[:MOST_NOTES] + ([f"still old: {more} more functions"] if more > 0 else [])

    def named(
        self, holds: Sequence[Hold], program: Program, units: Sequence[Unit]
    ) -> list[Hold]:
        """Return what holds versions, in OCaml terms; who was named is not looked for again."""
        fresh = [hold for hold in holds if (hold.addr, hold.holder) not in self._texts]
        callers = self.callers(program, units) if fresh else []
        for hold in fresh:
            places = [row.text for row in callers if row.code_begin == hold.addr]
            text = "; ".join(dict.fromkeys(places[:MOST_NOTES])) or hold.text
            self._texts[hold.addr, hold.holder] = text
        return [replace(hold, text=self._texts[hold.addr, hold.holder]) for hold in holds]

    def callers(self, program: Program, units: Sequence[Unit]) -> list[OldCaller]:
        """Return the closures of superseded versions that modules lead to."""
        return list(Search(program, units, self.versions).run()) if self.versions else []


class Search:
    """One walk from the module blocks, breadth first."""

    def __init__(
        self, program: Program, units: Sequence[Unit], versions: Sequence[OldVersion]
    ) -> None:
        """Look for some versions from the modules of units."""
        self.pages = Pages(program)
        self.program, self.units, self.versions = program, units, versions
        self.low = min(row.begin for row in versions)
        self.high = max(row.end for row in versions)
        self.forwarded = {
            original: slot
            for slot, original in enumerate(program.table.original)
            if original and program.redirects.get(slot)
        }
        arena, count = program.target.arena, len(program.table)
        self.first_stub = int(arena.stub_addr(SlotId(0)))
        self.last_stub = int(arena.stub_addr(SlotId(count)))

    def run(self) -> Iterator[OldCaller]:
        """Yield what is found."""
        blocks = [face.block for unit in self.units for face in unit.faces]
        seen = {*blocks, *(unit.block for unit in self.units)}
        todo = deque(self.roots())
        looked = 0
        while todo and looked < MOST_WORDS:
            step = todo.popleft()
            value = step.value
            if not is_block(value) or value in seen:
                continue
            seen.add(value)
            is_closure, fields = self.fields(value)
            looked += BLOCK_COST + len(fields)
            if is_closure:
                found = self.old_caller(step)
                if found:
                    yield found
            todo.extend(Step(word, step.place, is_closure) for word in fields if not word & 7)

    def roots(self) -> Iterator[Step]:
        """Yield what the fields of the units' modules hold, the innermost first."""
        for unit in self.units:
            for slot in sorted(unit.info.slots, key=lambda slot: -len(slot.chain)):
                block = unit.block
                for index in slot.chain[:-1]:
                    block = self.pages.word(block + index * WORD) if is_block(block) else 0
                if is_block(block):
                    value = self.pages.word(block + slot.chain[-1] * WORD)
                    yield Step(value, f"{unit.info.shown}.{slot.path}", captured=False)

    def fields(self, value: int) -> tuple[bool, list[int]]:
        """Return whether a block is a closure, and the values in it."""
        word = self.pages.word
        header, start = word(value - WORD), value
        tag = header & 0xFF
        if tag == INFIX:
            start = value - (header >> _SIZE_SHIFT) * WORD
            header = word(start - WORD)
            tag = header & 0xFF
        size = (header & ((1 << 54) - 1)) >> _SIZE_SHIFT
        if tag >= NO_SCAN or tag == CONTINUATION:
            return False, []
        first = environment(word(start + WORD)) if tag == CLOSURE else 0
        last = min(size, first + MOST_FIELDS)
        return tag == CLOSURE, [word(start + at * WORD) for at in range(first, last)]

    def old_caller(self, step: Step) -> OldCaller | None:
        """Return a closure as somebody's that goes on with old code, else None."""
        word, value = self.pages.word, step.value
        info = word(value + WORD)
        arity = info >> 56
        code = self.leads_to(word(value) if arity in {0, 1} else word(value + 2 * WORD))
        if not self.low <= code < self.high:
            return None
        for version in self.versions:
            row = version.functions.get(code)
            if row is not None and version.begin <= code < version.end:
                closed = not self.fields(value)[1]
                shown = version.shown(row)
                return OldCaller(version.begin, shown, step.place, closed, step.captured)
        return None

    def leads_to(self, code: int) -> int:
        """Return where code ends up: behind a stub, or the jump at an original's entry."""
        slots = self.program.target.arena.slots
        if self.first_stub <= code < self.last_stub:
            return int(slots[(code - self.first_stub) // self.program.arch.stub_size])
        if code in self.forwarded:
            return int(slots[self.forwarded[code]])
        return code


def environment(info: int) -> int:
    """Return the field of a closure in which its environment begins (`Start_env_closinfo`)."""
    return (info & ((1 << 56) - 1)) >> 1


def is_block(value: int) -> bool:
    """Return whether a value may be a pointer."""
    return not value & 7 and PAGE <= value < HIGHEST
