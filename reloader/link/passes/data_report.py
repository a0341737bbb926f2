"""What became of the variables of a transaction, and what stands in the way of binding them."""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from reloader.errors.data import (
    AmbiguousReferenceError,
    AmbiguousVariableError,
    DataLayoutError,
    DataUnplacedError,
    LayoutRow,
    ReferenceRow,
    UnplacedRow,
    VariableRow,
)
from reloader.ids import I32
from reloader.link.passes.initialisers import InitialiserChange
from reloader.link.passes.pair_variables import Names


@dataclass(frozen=True, slots=True, eq=False)
class Kept:
    """The variables of one object in both versions; thread-local ones are apart."""

    row: int  # of the graph's objects
    old: Names
    new: Names
    old_row: I32  # (new,) row of the old ones that each continues, or NO_ROW


@dataclass(frozen=True, slots=True)
class Restarted:
    """A variable that is initialised anew."""

    name: str
    symbol: int  # row of the graph
    old_addr: int  # in the process; NO_ADDR: unknown, or thread-local


@dataclass(slots=True)
class DataReport:
    """What became of the variables of a transaction; names as people write them."""

    pairs: list[Kept] = field(default_factory=list[Kept])
    restarted: list[Restarted] = field(default_factory=list[Restarted])
    notes: list[str] = field(default_factory=list[str])  # whole sentences
    new: list[str] = field(default_factory=list[str])
    reinitialised: list[str] = field(default_factory=list[str])
    removed: list[str] = field(default_factory=list[str])  # the new version has it no more
    # writable in the program, constant in the new version: its live value is not used any more
    became_constant: list[str] = field(default_factory=list[str])
    # finds the kept variables whose initial value differs: only the report asks, once the new
    # code runs
    comparisons: list[Callable[[], list[InitialiserChange]]] = field(
        default_factory=list[Callable[[], list[InitialiserChange]]]
    )
    # thread-local ones: each thread keeps its own value
    thread_initialiser_changed: list[str] = field(default_factory=list[str])
    # rows of the graph: functions to call once, since all they initialise is new
    startup: list[int] = field(default_factory=list[int])
    reinit_unused: list[str] = field(
        default_factory=list[str]
    )  # asked for, but no such variable
    # blocks that hold a new variable another object may ask for later by name: keep them live
    new_global_blocks: list[int] = field(default_factory=list[int])

    @property
    def kept(self) -> list[str]:
        """The variables that keep their values."""
        return [
            pair.new.shown(row)
            for pair in self.pairs
            for row in np.flatnonzero(pair.old_row >= 0).tolist()
        ]

    def initialiser_changes(self) -> list[InitialiserChange]:
        """Return the kept variables that would start with another value now."""
        return [change for compare in self.comparisons for change in compare()]


@dataclass(slots=True)
class Problems:
    """What one transaction cannot be linked for, gathered over all objects."""

    variables: list[VariableRow] = field(default_factory=list[VariableRow])
    layouts: list[LayoutRow] = field(default_factory=list[LayoutRow])
    unplaced: list[UnplacedRow] = field(default_factory=list[UnplacedRow])
    references: list[ReferenceRow] = field(default_factory=list[ReferenceRow])

    def refuse(self) -> None:
        """Raise what was found, the cause before its consequence."""
        if self.variables:
            raise AmbiguousVariableError(self.variables)
        if self.layouts:
            raise DataLayoutError(self.layouts)
        if self.unplaced:
            raise DataUnplacedError(self.unplaced)
        if self.references:
            raise AmbiguousReferenceError(self.references)
