"""Which unit of a transaction is initialised before which: those it refers to come first."""

from collections.abc import Sequence

from reloader.elf.object import UNDEFINED, ObjectFile


def initialisation_order(files: Sequence[ObjectFile], blocks: Sequence[bytes]) -> list[int]:
    """Return the rows of some units, each behind those it refers to.

    Units cannot refer to each other in a circle, so every one has its place; equals stay in the
    order they were given in.

    Args:
        files: The units' objects.
        blocks: The symbol of each one's module block.
    """
    row_of = {name: row for row, name in enumerate(blocks)}
    needs = [sorted(_used(file, row_of) - {row}) for row, file in enumerate(files)]
    order: list[int] = []
    state = [0] * len(files)  # 1: being looked at, 2: placed
    for start in range(len(files)):
        stack = [start]
        while stack:
            row = stack[-1]
            state[row] = max(state[row], 1)
            waiting = [need for need in needs[row] if state[need] == 0]
            if waiting:
                stack.append(waiting[0])
                continue
            stack.pop()
            if state[row] != 2:
                state[row] = 2
                order.append(row)
    return order


def _used(file: ObjectFile, row_of: dict[bytes, int]) -> set[int]:
    """Return the units that an object refers to, by a block or anything else of theirs."""
    used: set[int] = set()
    for name, section in zip(file.symbol_names, file.symbol_sections.tolist(), strict=True):
        if section == UNDEFINED and name.startswith(b"caml"):
            row = row_of.get(name)
            if row is None:
                row = _owner(name, row_of)
            if row is not None:
                used.add(row)
    return used


def _owner(name: bytes, row_of: dict[bytes, int]) -> int | None:
    """Return the unit that a function is of: `camlFoo__f_12`, `camlFoo.f_12`."""
    for block, row in row_of.items():
        if name.startswith((block + b"__", block + b".")):
            return row
    return None
