"""LiveObject as bytes, so that a later daemon can go on where this one was killed.

The object file itself is kept apart, by digest; here are only the addresses: how many elements
each column has, then the columns one after the other. It is written twice a reload, and an npz
costs twenty times more.
"""

from typing import Any, Final

import numpy as np

from reloader.elf.object import ObjectFile
from reloader.ids import Generation
from reloader.live.objects import DataMap, LiveObject

_COLUMNS: Final = (
    "<u8", "<u8", "<i4",  # address of each section and symbol, slot of each symbol
    "<i4", "<u8", "<u8", "<u8",  # the data map: section, offset, size, address
)  # fmt: skip


def pack(live: LiveObject) -> bytes:
    """Return the addresses of a live object."""
    data = live.data
    columns: tuple[Any, ...] = (
        live.section_addr, live.symbol_addr, live.symbol_slot,
        data.section, data.offset, data.size, data.addr,
    )  # fmt: skip
    typed = [np.asarray(c, kind) for c, kind in zip(columns, _COLUMNS, strict=True)]
    sizes = np.array([len(column) for column in typed], "<u8")
    return b"".join([sizes.tobytes(), *(column.tobytes() for column in typed)])


def unpack(blob: bytes, file: ObjectFile, generation: int) -> LiveObject:
    """Return the live object that `pack` was given; `file` is its snapshot, read again."""
    sizes = np.frombuffer(blob, "<u8", len(_COLUMNS)).tolist()
    at = 8 * len(_COLUMNS)
    columns: list[Any] = []
    for kind, size in zip(_COLUMNS, sizes, strict=True):
        columns.append(np.frombuffer(blob, kind, size, at))
        at += columns[-1].nbytes
    return LiveObject(
        file, Generation(generation), columns[0], columns[1], columns[2], DataMap(*columns[3:])
    )
