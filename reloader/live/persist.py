"""LiveObject as bytes, so that a later daemon can go on where this one was killed.

The object file itself is kept apart, by digest; here are only the addresses, as arrays in one
uncompressed npz.
"""

import io

import numpy as np

from reloader.elf.object import ObjectFile
from reloader.ids import Generation
from reloader.live.objects import DataMap, LiveObject


def pack(live: LiveObject) -> bytes:
    """Return the addresses of a live object."""
    out = io.BytesIO()
    np.savez(
        out,
        section_addr=live.section_addr,
        symbol_addr=live.symbol_addr,
        symbol_slot=live.symbol_slot,
        data_section=live.data.section,
        data_offset=live.data.offset,
        data_size=live.data.size,
        data_addr=live.data.addr,
    )
    return out.getvalue()


def unpack(blob: bytes, file: ObjectFile, generation: int) -> LiveObject:
    """Return the live object that `pack` was given; `file` is its snapshot, read again."""
    with np.load(io.BytesIO(blob), allow_pickle=False) as arrays:
        return LiveObject(
            file=file,
            generation=Generation(generation),
            section_addr=arrays["section_addr"],
            symbol_addr=arrays["symbol_addr"],
            symbol_slot=arrays["symbol_slot"],
            data=DataMap(
                arrays["data_section"],
                arrays["data_offset"],
                arrays["data_size"],
                arrays["data_addr"],
            ),
        )
