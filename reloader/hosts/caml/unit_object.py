"""A unit's object file: the symbols that the compiler puts around code and data.

4.x writes `camlFoo__frametable`, 5.x `camlFoo.frametable`; the module block is `camlFoo` in
both (asmcomp/emit.mlp, Compilenv.make_symbol).
"""

from dataclasses import dataclass, fields
from typing import Final

import numpy as np

from reloader.elf.object import ObjectFile
from reloader.link.graph import LinkGraph

PREFIX: Final = b"caml"
TABLE: Final = b"frametable"
WORD: Final = 8
SEPARATORS: Final = (b"__", b".")
SIZE_SHIFT: Final = 10  # of a block's size in words, in its header (runtime/caml/mlvalues.h)


@dataclass(frozen=True, slots=True)
class UnitRows:
    """Rows of an object's symbol table, -1 where it has no such symbol."""

    block: int
    frametable: int
    gc_roots: int
    data_begin: int
    data_end: int
    code_begin: int
    code_end: int
    entry: int


@dataclass(frozen=True, slots=True)
class UnitObject:
    """One unit, as its object file tells."""

    symbol: bytes  # of the module block
    rows: UnitRows
    block_size: int  # fields of the module block


@dataclass(frozen=True, slots=True)
class UnitPlace:
    """Addresses of a unit that is linked."""

    block: int
    frametable: int
    gc_roots: int
    data_begin: int
    data_end: int
    code_begin: int
    code_end: int
    entry: int


def is_unit(file: ObjectFile) -> bool:
    """Return whether an object is an OCaml unit."""
    return unit_symbol(file) is not None


def unit_symbol(file: ObjectFile) -> tuple[bytes, bytes] | None:
    """Return the symbol of a unit's module block and its separator, None for other objects."""
    for name in file.symbol_names:
        if name.startswith(PREFIX) and name.endswith(TABLE):
            for separator in SEPARATORS:
                if name.endswith(separator + TABLE):
                    return name[: -len(separator + TABLE)], separator
    return None


def read_unit(file: ObjectFile) -> UnitObject | None:
    """Return what an object file tells of its unit, None if it is none."""
    found = unit_symbol(file)
    if found is None:
        return None
    symbol, separator = found
    defined = {
        name: row
        for row, name in enumerate(file.symbol_names)
        if name.startswith(symbol) and int(file.symbol_sections[row]) > 0
    }
    if symbol not in defined:
        return None
    names = [field.name for field in fields(UnitRows)][1:]
    rows = [defined.get(symbol + separator + name.encode(), -1) for name in names]
    return UnitObject(symbol, UnitRows(defined[symbol], *rows), block_size(file, symbol))


def block_size(file: ObjectFile, symbol: bytes) -> int:
    """Return how many fields a unit's module block has: its header says."""
    row = file.symbol_names.index(symbol)
    section = file.sections[int(file.symbol_sections[row])]
    at = int(section["sh_offset"]) + int(file.symbols["st_value"][row]) - WORD
    header = int(np.frombuffer(file.data[at : at + WORD], "<u8")[0])
    return header >> SIZE_SHIFT


def place_of(graph: LinkGraph, row: int, unit: UnitObject) -> UnitPlace:
    """Return where a linked graph puts a unit; 0 for what it does not have."""
    first, addr = int(graph.first_symbol[row]), graph.symbols.addr
    rows = [getattr(unit.rows, field.name) for field in fields(UnitRows)]
    return UnitPlace(*(int(addr[first + at]) if at >= 0 else 0 for at in rows))
