"""What became of the variables of a transaction, and what stands in the way of binding them."""

from dataclasses import dataclass, field

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
from reloader.link.passes.initialisers import InitialiserChange


@dataclass(slots=True)
class DataReport:
    """What became of the variables of a transaction; names as people write them."""

    kept: list[str] = field(default_factory=list[str])
    new: list[str] = field(default_factory=list[str])
    reinitialised: list[str] = field(default_factory=list[str])
    removed: list[str] = field(default_factory=list[str])  # the new version has it no more
    # writable in the program, constant in the new version: its live value is not used any more
    became_constant: list[str] = field(default_factory=list[str])
    initialiser_changed: list[InitialiserChange] = field(
        default_factory=list[InitialiserChange]
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
