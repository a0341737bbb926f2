"""Errors of the linker: what does not resolve, does not fit, or is not understood."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from reloader.errors.base import UNTOUCHED, Place, RefusedError, ReloaderError

_SHOWN = 20  # rows of one error that are printed; all of them are in its fields
_KIB, _MIB, _GIB = 1 << 10, 1 << 20, 1 << 30


def size_text(size: int) -> str:
    """Return a distance as people say it: `3.1 GiB`, `2 GiB`, `130 bytes`."""
    for unit, name in ((_GIB, "GiB"), (_MIB, "MiB"), (_KIB, "KiB")):
        if abs(size) >= unit:
            return f"{abs(size) / unit:.1f}".removesuffix(".0") + f" {name}"
    return f"{abs(size)} bytes"


def _lines(rows: Sequence[object], first: str, *, end: str) -> str:
    """Return one text of all rows: one row on one line, more under a heading."""
    if len(rows) == 1:
        return f"{rows[0]}. {end}"
    shown = [f"  {row}" for row in rows[:_SHOWN]]
    if len(rows) > _SHOWN:
        shown.append(f"  and {len(rows) - _SHOWN} more")
    return "\n".join([f"{len(rows)} {first}:", *shown, end])


@dataclass(frozen=True, slots=True)
class KindRow:
    """One relocation whose type is not in the architecture's table."""

    place: Place
    number: int

    def __str__(self) -> str:
        """Return where it is and its number."""
        return f"{self.place}: relocation type {self.number} is not known"


class UnknownRelocationError(RefusedError):
    """Some relocations have a type that this linker does not know."""

    code = "unknown-relocation"

    def __init__(self, rows: Sequence[KindRow], machine: str) -> None:
        self.rows = tuple(rows)
        self.machine = machine
        end = f"{UNTOUCHED} Build the object for {machine} with gcc or clang, without -mx32."
        super().__init__(_lines(self.rows, "relocations have an unknown type", end=end))


@dataclass(frozen=True, slots=True)
class FieldRow:
    """One relocation whose field ends past its section."""

    place: Place
    kind: str
    width: int  # bytes
    section_size: int  # bytes of file content

    def __str__(self) -> str:
        """Return where it is and the two numbers that disagree."""
        return (
            f"{self.place}: a {self.kind} field of {self.width} bytes ends past the section, "
            f"which has {self.section_size} bytes of content"
        )


class FieldOutsideError(RefusedError):
    """Some relocations patch bytes that their section does not have."""

    code = "field-outside"

    def __init__(self, rows: Sequence[FieldRow]) -> None:
        self.rows = tuple(rows)
        end = f"{UNTOUCHED} The file is damaged: build it again."
        super().__init__(_lines(self.rows, "relocations reach past their section", end=end))


@dataclass(frozen=True, slots=True)
class RangeRow:
    """One edge whose value does not fit its field."""

    place: Place
    symbol: str
    kind: str  # `PLT32`
    branch: bool
    pc: bool
    value: int  # the distance of a pc-relative edge, else the address; signed
    low: int  # least value that the field holds
    high: int  # greatest value that the field holds
    source: str = ""  # the file to build otherwise

    @classmethod
    def of_jump(cls, what: str, addr: int, distance: int) -> "RangeRow":
        """Return the row of a jump that we write ourselves."""
        place = Place(f"{what} jump at {addr:#x}")
        reach = 1 << 31
        return cls(place, "its target", "rel32", True, True, distance, -reach, reach - 1)  # noqa: FBT003  columns of one row

    def __str__(self) -> str:
        """Return where it is, the distance and the reach."""
        kind = self.kind.removeprefix("R_X86_64_")
        if self.pc:
            what = "call to" if self.branch else "reference to"
            far, reach = size_text(self.value), size_text(self.high + 1)
            away = f"{self.place}: {what} {self.symbol} is {far} away"
            return f"{away}, a {kind} edge reaches {reach}"
        return (
            f"{self.place}: {self.symbol} is {self.value & (1 << 64) - 1:#x}, "
            f"a {kind} edge holds {self.low:#x} to {self.high:#x}"
        )


class FixupRangeError(RefusedError):
    """Some edges cannot hold their value; no byte was written."""

    code = "fixup-range"

    def __init__(self, rows: Sequence[RangeRow]) -> None:
        self.rows = tuple(rows)
        first = self.rows[0]
        what = first.source or first.place.object
        near = "Move the arena closer with --arena-near"
        near += f", or build {what} with -mcmodel=large." if first.place.section else "."
        low = f"Build {what} with -fPIC, or run a program linked with -no-pie."
        end = f"{UNTOUCHED} {near if any(row.pc for row in self.rows) else low}"
        super().__init__(_lines(self.rows, "values do not fit their fields", end=end))


class DuplicateSymbolError(RefusedError):
    """Two objects of one transaction define the same strong symbol."""

    code = "duplicate-symbol"

    def __init__(self, rows: Sequence["DuplicateRow"]) -> None:
        self.rows = tuple(rows)
        end = (
            f"{UNTOUCHED} Rename one of them or make it static; objects of two different "
            "programs are loaded one after the other, not together."
        )
        super().__init__(_lines(self.rows, "symbols are defined twice", end=end))


@dataclass(frozen=True, slots=True)
class DuplicateRow:
    """One name with its two definitions."""

    name: str
    first: Place
    second: Place

    def __str__(self) -> str:
        """Return the name and both places."""
        return f"{self.name} is defined in {self.first} and in {self.second}"


@dataclass(frozen=True, slots=True)
class MissingRow:
    """One name that nobody defines, and the first place that wants it."""

    name: str
    place: Place
    uses: int  # how many edges want it
    nearest: tuple[str, ...] = field(default=())

    def __str__(self) -> str:
        """Return the place, the name and what comes near it."""
        more = f" and {self.uses - 1} more" if self.uses > 1 else ""
        near = f" (near: {', '.join(self.nearest)})" if self.nearest else ""
        return f"{self.place}{more}: {self.name} is not defined anywhere{near}"


class UndefinedSymbolsError(RefusedError):
    """Some names that live code needs are defined nowhere."""

    code = "undefined-symbols"

    def __init__(self, rows: Sequence[MissingRow], remedy: str = "") -> None:
        self.rows = tuple(rows)
        remedy = remedy or (
            "Load the object or archive that defines "
            f"{'it' if len(self.rows) == 1 else 'them'} in the same transaction."
        )
        end = f"{UNTOUCHED} {remedy}"
        super().__init__(_lines(self.rows, "symbols are not defined anywhere", end=end))


@dataclass(frozen=True, slots=True)
class UnsupportedRow:
    """One use of something that this linker does not do yet."""

    place: Place
    symbol: str
    why: str

    def __str__(self) -> str:
        """Return where, what and why."""
        return f"{self.place}: {self.symbol}: {self.why}"


class UnsupportedSymbolError(RefusedError):
    """Live code uses a kind of symbol or code sequence that is refused."""

    code = "unsupported-symbol"

    def __init__(self, rows: Sequence[UnsupportedRow], remedy: str) -> None:
        self.rows = tuple(rows)
        super().__init__(
            _lines(self.rows, "uses cannot be linked", end=f"{UNTOUCHED} {remedy}")
        )


class UnwindTableError(RefusedError):
    """An `.eh_frame` section cannot be taken apart."""

    code = "unwind-table"

    def __init__(self, place: Place, why: str) -> None:
        self.place = place
        self.why = why
        super().__init__(f"{place}: {why}. {UNTOUCHED} The file is damaged: build it again.")


class BrokenFactError(ReloaderError):
    """A pass left the graph in a state that a later step relies on not to be: a bug of ours."""

    code = "broken-fact"

    def __init__(self, fact: str, rows: Sequence[int]) -> None:
        self.fact = fact
        self.rows = tuple(rows)
        shown = ", ".join(map(str, self.rows[:_SHOWN]))
        super().__init__(
            f"The link graph is wrong: {fact} (rows {shown}). {UNTOUCHED} "
            "This is a bug of reloader: please report it with the object files."
        )
