"""What stops new code from using the live process's variables."""

from collections.abc import Sequence
from dataclasses import dataclass

from reloader.errors.base import UNTOUCHED, Place, RefusedError


def reinit_command(names: Sequence[str]) -> str:
    """Return what to type to have variables start anew."""
    return f"reloader load {' '.join(f'--reinit {name}' for name in names)} FILE"


@dataclass(frozen=True, slots=True)
class Member:
    """One member of a variable's type, as far as its layout goes."""

    offset: int
    size: int
    type: str
    name: str

    def __str__(self) -> str:
        """Return `+8 8 double weight`."""
        return f"+{self.offset:<4} {self.size:<4} {self.type} {self.name}".rstrip()


@dataclass(frozen=True, slots=True)
class Layout:
    """A variable's type: `struct cfg`, 48 bytes, and its members."""

    type: str
    size: int
    members: tuple[Member, ...] = ()


@dataclass(frozen=True, slots=True)
class LayoutRow:
    """A variable whose live bytes the new code would misread."""

    object: str
    name: str
    live_size: int
    new_size: int
    live_layout: Layout | None = None  # None: no debug information
    new_layout: Layout | None = None

    def __str__(self) -> str:
        """Return the variable with both sizes, and both layouts side by side where known."""
        text = (
            f"{self.object}: {self.name} has {self.live_size} bytes in the program, "
            f"{self.new_size} in the new object"
        )
        if self.live_layout is None or self.new_layout is None:
            return text
        return "\n".join([text, *side_by_side(self.live_layout, self.new_layout)])


def side_by_side(live: Layout, new: Layout) -> list[str]:
    """Return both layouts as lines of two columns; a `*` marks the lines that differ."""
    left = [f"in the program: {live.type}", *map(str, live.members)]
    return columns(left, [f"in the new object: {new.type}", *map(str, new.members)])


def columns(left: list[str], right: list[str]) -> list[str]:
    """Return two lists of lines side by side; a `*` marks the lines that differ."""
    count = max(len(left), len(right))
    left = left + [""] * (count - len(left))
    right = right + [""] * (count - len(right))
    width = max(map(len, left)) + 2
    lines = [f"    {left[0]:<{width}}  {right[0]}"]
    for one, other in zip(left[1:], right[1:], strict=True):
        mark = " " if one == other else "*"
        lines.append(f"    {one:<{width}}{mark} {other}".rstrip())
    return lines


class DataLayoutError(RefusedError):
    """Variables that exist in the program have another size in the new object."""

    code = "data-layout"

    def __init__(self, rows: Sequence[LayoutRow]) -> None:
        self.rows = tuple(rows)
        command = reinit_command([row.name for row in self.rows])
        these = "this variable" if len(self.rows) == 1 else "these variables"
        remedy = (
            f"{UNTOUCHED} Restore the size, or start {these} anew, losing the live value: "
            f"{command}"
        )
        super().__init__("\n".join([*map(str, self.rows), remedy]))


@dataclass(frozen=True, slots=True)
class VariableRow:
    """Variables of one name in one object that cannot be told apart."""

    object: str
    name: str
    live: tuple[str, ...]
    new: tuple[str, ...]

    def __str__(self) -> str:
        """Return who could be who."""
        return (
            f"{self.object}: {', '.join(self.live)} in the program and {', '.join(self.new)} "
            f"in the new object are all called {self.name}; which one continues which is not "
            "certain"
        )


class AmbiguousVariableError(RefusedError):
    """Static variables of one name were renumbered and nothing tells which is which."""

    code = "ambiguous-variable"

    def __init__(self, rows: Sequence[VariableRow]) -> None:
        self.rows = tuple(rows)
        command = reinit_command([row.name for row in self.rows])
        remedy = (
            f"{UNTOUCHED} Compile with -g, which says in which function each one is, give "
            f"them different names, or start them anew, losing the live values: {command}"
        )
        super().__init__("\n".join([*map(str, self.rows), remedy]))


@dataclass(frozen=True, slots=True)
class ReferenceRow:
    """A reference to a place between variables that no longer stand side by side."""

    place: Place
    function: str  # or the table that holds it; "": unknown
    section: str  # the data section referred to
    offset: int  # in it
    candidates: tuple[str, ...]

    def __str__(self) -> str:
        """Return the place and the variables it may mean."""
        user = f" in {self.function}" if self.function else ""
        means = " or ".join(self.candidates) or "data without a name"
        target = f"{self.section}+{self.offset:#x}"
        return f"{self.place}: the reference{user} to {target} may mean {means}"


class AmbiguousReferenceError(RefusedError):
    """The layout of a data section changed and some references could mean two variables."""

    code = "ambiguous-reference"

    def __init__(self, rows: Sequence[ReferenceRow]) -> None:
        self.rows = tuple(rows)
        objects = ", ".join(sorted({row.place.object for row in self.rows}))
        remedy = (
            "The variables of that section moved apart, so the two readings lead to "
            f"different addresses. {UNTOUCHED} Build {objects} with -fdata-sections, which "
            "gives each variable a section of its own, and reload it."
        )
        super().__init__("\n".join([*map(str, self.rows), remedy]))


@dataclass(frozen=True, slots=True)
class UnplacedRow:
    """A variable that the running program uses at an address that is not known."""

    object: str
    name: str
    section: str

    def __str__(self) -> str:
        """Return which variable."""
        what = f"{self.name} ({self.section})"
        return f"{self.object}: the address of {what} in the program is not known"


class DataUnplacedError(RefusedError):
    """Live variables whose place in the program was not found."""

    code = "data-unplaced"

    def __init__(self, rows: Sequence[UnplacedRow]) -> None:
        self.rows = tuple(rows)
        command = reinit_command([row.name for row in self.rows])
        remedy = (
            f"{UNTOUCHED} Attach to a program with its symbol table, or start them anew, "
            f"losing the live values: {command}"
        )
        super().__init__("\n".join([*map(str, self.rows), remedy]))
