"""Names for numbers: typed ids, array types and the sentinels for "unknown".

An address is where the *target* sees a byte; an offset is a distance inside something. They
never mix:
`Addr` and `Offset` are different types to the checker. Columns use plain numpy dtypes; a
column's meaning is
written where the column is declared.
"""

from typing import Final, NewType

import numpy as np
from numpy.typing import NDArray

Addr = NewType("Addr", int)  # a virtual address in the target
Offset = NewType("Offset", int)  # bytes from the start of a section, block or region
BlockId = NewType("BlockId", int)  # a row of LinkGraph.blocks
SymbolId = NewType("SymbolId", int)  # a row of LinkGraph.symbols
SlotId = NewType("SlotId", int)  # an index into the slot table and into the stub table
# all that one reload made live; 0 is the executable itself
Generation = NewType("Generation", int)

U8 = NDArray[np.uint8]
U16 = NDArray[np.uint16]
U32 = NDArray[np.uint32]
U64 = NDArray[np.uint64]
I8 = NDArray[np.int8]
I32 = NDArray[np.int32]
I64 = NDArray[np.int64]
Bool = NDArray[np.bool_]

# an address column's "has none"; 0 is a real value (weak undefined)
NO_ADDR: Final = 0xFFFF_FFFF_FFFF_FFFF
NO_ROW: Final = -1  # an int32 id column's "refers to no row"


class Region:
    """Which mapping of the arena a byte lives in; decides its protection in the target.

    Plain ints: numpy takes five times as long to compare a column with an enum's member.
    """

    CODE: Final = 0  # R-X private
    RODATA: Final = 1  # R-- private, written once before publication
    DATA: Final = 2  # RW- private
    TLS: Final = 3  # a thread's block; its "address" is an offset from the thread pointer
    NONE: Final = 4  # never loaded: debug info, notes, symbol tables


REGION_NAMES: Final[tuple[str, ...]] = ("code", "rodata", "data", "tls", "none")  # by Region
