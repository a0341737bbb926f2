"""Dynamic relocations of an executable: what the loader will write, as the file tells it."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from reloader.elf.dynamic import Dynamic, symbol_names
from reloader.elf.image_file import ImageFile
from reloader.errors.baseline import MalformedImageError
from reloader.ids import I64, U64

# psABI numbers of the relocations that stay in a linked file
R_COPY, R_GLOB_DAT, R_JUMP_SLOT, R_RELATIVE = 5, 6, 7, 8


@dataclass(frozen=True, slots=True, eq=False)
class NamedAddrs:
    """(n,) columns: fields that the dynamic loader fills with the address of a name."""

    name: list[bytes]
    addr: U64  # of the field


def apply_relative(
    file: ImageFile, dynamic: Dynamic, bias: int
) -> tuple[NamedAddrs, NamedAddrs, U64]:
    """Write what RELATIVE relocations write; return GOT entries, copies, unknown fields."""
    rows = dynamic.relocations
    kinds = rows["r_type"]
    fields = rows["r_offset"].astype(np.uint64)
    relative = kinds == R_RELATIVE
    _store(file, fields[relative], rows["r_addend"][relative] + np.int64(bias))
    if len(dynamic.relr):
        words = file.memory[_indices(file, dynamic.relr)].reshape(-1).view(np.int64)
        _store(file, dynamic.relr, words + np.int64(bias))
    by_name = (kinds == R_GLOB_DAT) | (kinds == R_JUMP_SLOT)
    unknown = np.sort(fields[~relative & (kinds != R_COPY)] + np.uint64(bias))
    got = _named(file, dynamic, np.flatnonzero(by_name), bias)
    return got, _named(file, dynamic, np.flatnonzero(kinds == R_COPY), bias), unknown


def _named(file: ImageFile, dynamic: Dynamic, rows: NDArray[np.intp], bias: int) -> NamedAddrs:
    chosen = dynamic.relocations[rows]
    count = len(dynamic.symbols)
    if len(chosen) and int(chosen["r_sym"].max()) >= count:
        text = f"a relocation names symbol {int(chosen['r_sym'].max())}, there are {count}"
        raise MalformedImageError(file.path, text)
    offsets = dynamic.symbols["st_name"][chosen["r_sym"]]
    addrs = chosen["r_offset"].astype(np.uint64) + np.uint64(bias)
    return NamedAddrs(symbol_names(dynamic.strings, offsets), addrs)


def _indices(file: ImageFile, fields: U64) -> I64:
    starts = fields.astype(np.int64) - file.low
    if len(starts) and (int(starts.min()) < 0 or int(starts.max()) + 8 > len(file.memory)):
        text = "a dynamic relocation lies outside of its segments"
        raise MalformedImageError(file.path, text)
    return starts[:, None] + np.arange(8)


def _store(file: ImageFile, fields: U64, values: I64) -> None:
    rows = values.astype("<i8").view(np.uint8).reshape(-1, 8)
    file.memory[_indices(file, fields)] = rows
