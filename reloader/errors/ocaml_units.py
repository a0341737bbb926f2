"""Why new versions of OCaml units do not fit the program."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from reloader.errors.base import UNTOUCHED, RefusedError

if TYPE_CHECKING:
    from collections.abc import Sequence


def listed(names: Sequence[str]) -> str:
    """Return `a, b and c`."""
    if len(names) < 2:
        return "".join(names)
    return f"{', '.join(names[:-1])} and {names[-1]}"


def both(before: str, after: str) -> list[str]:
    """Return a declaration in both versions as lines."""
    return [
        f"    in the program: {before or '(none)'}",
        f"    now:            {after or '(none)'}",
    ]


@dataclass(frozen=True, slots=True)
class InterfaceProblem:
    """Other units rely on what a unit no longer offers."""

    unit: str
    rows: tuple[tuple[str, str], ...]  # text before, and after
    users: tuple[str, ...]  # live units that were compiled against it

    def __str__(self) -> str:
        """Return each declaration before and after, and who has to be rebuilt."""
        use = "uses" if len(self.users) == 1 else "use"
        lines = [f"{self.unit}: its interface changed; {listed(self.users)} {use} the old one"]
        for before, after in self.rows:
            lines += both(before, after)
        lines.append(f"    Reload {listed(self.users)} together with it, or restart.")
        return "\n".join(lines)


@dataclass(frozen=True, slots=True)
class TypeProblem:
    """A type that other units hold values of has another declaration behind the interface."""

    unit: str
    path: str
    before: str
    after: str
    users: tuple[str, ...]

    def __str__(self) -> str:
        """Return the declaration before and after."""
        users = listed(self.users)
        lines = [f"{self.unit}: type {self.path} changed; {users} may hold old values"]
        lines += both(self.before, self.after)
        lines.append("    The new code would misread them. Restore the type, or restart.")
        return "\n".join(lines)


@dataclass(frozen=True, slots=True)
class UnknownTypeProblem:
    """Nothing tells what an abstract type is in one of the versions."""

    unit: str
    paths: tuple[str, ...]

    def __str__(self) -> str:
        """Return the types and the remedy."""
        return (
            f"{self.unit}: what is behind type {listed(self.paths)} is not known, since there "
            "is no .cmt file\n    Compile with -bin-annot; with dune, build @check too."
        )


@dataclass(frozen=True, slots=True)
class KeptTypeProblem:
    """A variable that is to be kept has another type."""

    unit: str
    path: str
    before: str
    after: str

    def __str__(self) -> str:
        """Return both types."""
        return "\n".join(
            [
                f"{self.unit}: {self.path} is marked to be kept, but its type changed",
                *both(self.before, self.after),
                "    Restore the type, or take the mark away, which loses its value.",
            ]
        )


@dataclass(frozen=True, slots=True)
class ImportProblem:
    """A unit was compiled against another version of an interface or implementation."""

    unit: str
    other: str
    what: str  # `interface` or `implementation`
    wanted: str  # checksums
    live: str

    def __str__(self) -> str:
        """Return both checksums and what to rebuild."""
        return (
            f"{self.unit} was compiled against another {self.what} of {self.other}: "
            f"{self.wanted}, the program has {self.live}\n"
            f"    Rebuild {self.unit}, and reload {self.other} with it if that changed."
        )


@dataclass(frozen=True, slots=True)
class InlinedProblem:
    """A live unit has code of the old version in its own."""

    unit: str
    user: str
    wanted: str  # checksums of the implementation
    new: str | None  # None: there is no .cmx

    def __str__(self) -> str:
        """Return who inlined what."""
        new = self.new or "unknown: its .cmx is missing"
        return (
            f"{self.unit}: {self.user} was optimised with its old code ({self.wanted}, now "
            f"{new}), which a reload of {self.unit} alone leaves there\n"
            f"    Rebuild and reload {self.user} with it, or build with -opaque, as dune's dev "
            "profile does."
        )


Problem = (
    InterfaceProblem
    | TypeProblem
    | UnknownTypeProblem
    | KeptTypeProblem
    | ImportProblem
    | InlinedProblem
)


class IncompatibleUnitsError(RefusedError):
    """New versions of units do not fit the program."""

    code = "ocaml-incompatible"

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join([*map(str, self.problems), UNTOUCHED]))


class MissingUnitsError(RefusedError):
    """New code uses units that the program was linked without, and that nothing at hand has."""

    code = "ocaml-missing-units"

    def __init__(self, users: Sequence[tuple[str, Sequence[str]]], symbols: str) -> None:
        self.users, self.symbols = tuple(users), symbols
        lines = [
            f"{user}: it uses {listed(units)}, and the program was linked without\n"
            "    Link the program with the library (-package, dune's libraries) and restart; a "
            "unit of yours: save its object or archive, too, or name both to `reloader load`."
            for user, units in self.users
        ]
        super().__init__("\n".join([*lines, symbols]))
