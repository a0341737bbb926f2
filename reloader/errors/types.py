"""What stops new code from sharing data and calls with code of another layout."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from reloader.errors.base import UNTOUCHED, RefusedError
from reloader.errors.data import columns, reinit_command

_SHOWN: Final = 8  # names in one line; the rest is counted
_MOST_LINES: Final = 40  # of one layout
_MOST_CALLS: Final = 4  # lines on callers


@dataclass(frozen=True, slots=True)
class TypeShape:
    """A type as people read it: `struct body, 24 bytes`, and a line for each part."""

    title: str
    lines: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class TypeRow:
    """One type on which the new code and what stays in the program do not agree."""

    object: str
    name: str  # `struct body`, or the function's
    reason: str  # `mass was at byte 8, is at byte 16`
    live: TypeShape
    new: TypeShape
    variables: tuple[str, ...] = ()  # kept ones that hold it, or lead to it
    calls: tuple[str, ...] = ()  # `step is called by main.o (main)`
    objects: tuple[str, ...] = ()  # not reloaded now, with the old layout
    pointers: tuple[str, ...] = ()  # functions to which data of before comes through pointers

    def __str__(self) -> str:
        """Return what changed, both sides, and whom it touches."""
        lines = [f"{self.object}: {self.name} changed: {self.reason}"]
        lines += columns(
            [f"in the program: {self.live.title}", *shortened(self.live.lines)],
            [f"in the new object: {self.new.title}", *shortened(self.new.lines)],
        )
        if self.variables:
            lines.append(f"    variables that keep the old layout: {listed(self.variables)}")
        lines += [f"    {call}" for call in shortened(self.calls, _MOST_CALLS)]
        if self.pointers:
            lines.append(
                "    what was made before has the old layout and comes to the new code through "
                f"pointers: {listed(self.pointers)}"
            )
        if self.objects:
            what = "this object uses" if len(self.objects) == 1 else "these objects use"
            lines.append(f"    {what} the old layout and would go on: {listed(self.objects)}")
        return "\n".join(lines)


def shortened(lines: Sequence[str], most: int = _MOST_LINES) -> list[str]:
    """Return lines, those past a limit counted."""
    if len(lines) <= most:
        return list(lines)
    return [*lines[:most], f"... and {len(lines) - most} more"]


def listed(names: Sequence[str]) -> str:
    """Return the first few names and how many more there are."""
    more = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {more} more" if more > 0 else "")


class TypeChangedError(RefusedError):
    """Data or calls would cross between two layouts."""

    code = "type-changed"

    def __init__(self, rows: Sequence[TypeRow]) -> None:
        self.rows = tuple(rows)
        plain = sorted({name.split(" ")[0] for row in self.rows for name in row.variables})
        stale = sorted({name for row in self.rows for name in row.objects})
        callers = any(row.calls for row in self.rows)
        ways = ["Restore the layout"]
        if stale or callers:
            which = f" ({listed(stale)})" if stale else ""
            ways.append(f"reload the objects on the other side together with this one{which}")
        if any(row.pointers for row in self.rows):
            names = ", ".join(f'"{row.name}"' for row in self.rows if row.pointers)
            ways.append(
                "restart the program; or, if nothing of the old layout is in use any more, say "
                f"so: [types] in reloader.toml, accept = [{names}]"
            )
        if plain:
            ways.append(
                f"start the variables anew, losing the live values: "
                f"{reinit_command(plain)}, or convert "
                f'them: [migrate] in reloader.toml, {plain[0]} = "FUNCTION" (docs/types.md)'
            )
        text = "; or ".join(ways)
        super().__init__("\n".join([*map(str, self.rows), f"{UNTOUCHED} {text}."]))


class MigrationMissingError(RefusedError):
    """The function that is to convert a variable is not there."""

    code = "migration-missing"

    def __init__(self, variable: str, function: str) -> None:
        self.variable, self.function = variable, function
        super().__init__(
            f"{variable} changed its layout and is to be converted by {function} ([migrate] in "
            f"reloader.toml), but neither the new objects nor the program define {function}. "
            f"{UNTOUCHED} Define it, not static: void {function}(const void *old, void *fresh)."
        )


class MigrationFailedError(RefusedError):
    """The function that was to convert a variable threw an exception."""

    code = "migration-failed"

    def __init__(self, variable: str, function: str, thrown: str) -> None:
        self.variable, self.function, self.thrown = variable, function, thrown
        what = f"an exception ({thrown})" if thrown else "an exception"
        super().__init__(
            f"{function} threw {what} while it converted {variable}; the program goes on with "
            f"the old variable and the old code. {UNTOUCHED}"
        )
