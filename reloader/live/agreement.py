"""Types of one transaction: who has to agree, and the variables that are converted.

A variable of another layout stands in the way, unless the user named a C function for it. Then
it starts anew, and that function gets the old storage and the new one before anybody runs the
new code.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from reloader.elf.object import ObjectFile
from reloader.errors.data import DataLayoutError
from reloader.errors.types import (
    MigrationFailedError,
    MigrationMissingError,
    TypeChangedError,
)
from reloader.ids import NO_ADDR, NO_ROW, Addr
from reloader.link.graph import LinkGraph, Origin
from reloader.link.layout import body_addr
from reloader.link.passes.data_report import DataReport, Restarted
from reloader.link.types.agree import Agreement
from reloader.live.host import Plain
from reloader.live.objects import LiveObject
from reloader.live.program import Key, Program
from reloader.live.target import Target


@dataclass(frozen=True, slots=True)
class Migration:
    """One variable to convert."""

    variable: Restarted
    function: str
    symbol: int  # row of the graph, NO_ROW: the program has the function already


def agreement_of(program: Program, objects: Sequence[ObjectFile]) -> Agreement:
    """Compare the types of objects with those of their live versions."""
    live = [program.objects.get(file.key) for file in objects]
    stays = partial(staying, program, objects)
    return Agreement(objects, live, stays, program.wishes.accepted)


def staying(program: Program, objects: Sequence[ObjectFile]) -> list[LiveObject]:
    """Return the live objects that a transaction leaves at their version."""
    digests: dict[Key, str] = {file.key: file.digest for file in objects}
    return [
        live
        for key, live in program.objects.items()
        if digests.get(key, live.file.digest) == live.file.digest
    ]


def untold(program: Program, agreement: Agreement) -> list[str]:
    """Return what to say of objects without debug information; said once of each."""
    if not isinstance(program.host, Plain):
        return []  # its language compares interfaces by itself
    told = program.wishes.told
    names = [name for name in agreement.silent if name not in told]
    told.update(names)
    if not names:
        return []
    has = "has" if len(names) == 1 else "have"
    text = "of variables and functions only sizes are compared, not types (compile with -g)"
    return [f"{', '.join(names)} {has} no debug information that tells types: {text}"]


def to_migrate(error: Exception, migrate: Mapping[str, str]) -> frozenset[str]:
    """Return the variables that an error is about, if the user named a function for each."""
    names: list[str] = []
    if isinstance(error, DataLayoutError):
        names = [row.name for row in error.rows]
    elif isinstance(error, TypeChangedError):
        if any(row.calls or row.objects for row in error.rows):
            return frozenset()
        names = [label.split(" ")[0] for row in error.rows for label in row.variables]
    if names and all(function_for(name, migrate) for name in names):
        return frozenset(names)
    return frozenset()


def function_for(variable: str, migrate: Mapping[str, str]) -> str:
    """Return the function that converts `x`, or the static local `f.x`; "" if there is none."""
    return migrate.get(variable) or migrate.get(variable.rpartition(".")[2], "")


def plan_migrations(
    program: Program, graph: LinkGraph, data: DataReport, names: frozenset[str]
) -> list[Migration]:
    """Find the functions that convert some variables.

    Raises:
        MigrationMissingError: One is neither in the transaction nor in the program.
    """
    found: list[Migration] = []
    for variable in data.restarted if names else ():
        if variable.name not in names or variable.old_addr == NO_ADDR:
            continue
        function = function_for(variable.name, program.wishes.migrate)
        symbol = defined_row(graph, function.encode())
        if symbol == NO_ROW and not program.index.find([function.encode()]).found[0]:
            raise MigrationMissingError(variable.name, function)
        found.append(Migration(variable, function, symbol))
    return found


def defined_row(graph: LinkGraph, name: bytes) -> int:
    """Return the symbol of a function that the transaction defines, or NO_ROW."""
    rows = [row for row, known in enumerate(graph.symbols.name) if known == name]
    inside = [row for row in rows if graph.symbols.origin[row] == Origin.BLOCK]
    return inside[0] if inside else NO_ROW


def migration_roots(graph: LinkGraph, migrations: Sequence[Migration]) -> list[int]:
    """Return the blocks that have to be placed although nothing may refer to them."""
    rows = [item.symbol for item in migrations if item.symbol != NO_ROW]
    rows += [item.variable.symbol for item in migrations]
    blocks: list[int] = graph.symbols.block[np.array(rows, np.int64)].tolist()
    return [block for block in blocks if block != NO_ROW]


def conversions_of(
    program: Program, graph: LinkGraph, migrations: Sequence[Migration]
) -> list[tuple[Migration, int, int]]:
    """Return for each variable the addresses of its function and of its new storage."""
    found: list[tuple[Migration, int, int]] = []
    for item in migrations:
        if item.symbol != NO_ROW:  # its body: a stub may lead to an older version still
            function = int(body_addr(graph)[item.symbol])
        else:
            function = int(program.index.find([item.function.encode()]).addr[0])
        found.append((item, function, int(graph.symbols.addr[item.variable.symbol])))
    return found


def convert(process: Target, conversions: Sequence[tuple[Migration, int, int]]) -> None:
    """Let a process convert its variables: new storage is written, nobody reads it yet.

    Raises:
        MigrationFailedError: A function threw an exception.
    """
    for item, function, fresh in conversions:
        _, thrown = process.call_catching(Addr(function), item.variable.old_addr, fresh)
        if thrown is not None:
            raise MigrationFailedError(item.variable.name, item.function, thrown)


def migration_notes(migrations: Sequence[Migration]) -> list[str]:
    """Return what to tell of converted variables."""
    return [f"{item.variable.name} was converted by {item.function}" for item in migrations]
