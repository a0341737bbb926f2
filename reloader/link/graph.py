"""LinkGraph: what one transaction links, as columns. Nothing that reads it knows ELF.

A *block* is the unit that is placed and replaced as a whole (a section of the object, or one
synthesised by a pass:
GOT, unwind table). A *symbol* names a place in a block, or something outside. An *edge* says
that bytes of a block depend
on a symbol: S + A with a kind that names the formula.

Every table grows only at its end, so row numbers are stable; a pass that drops rows clears
their `live` flag.
"""

from dataclasses import dataclass, field
from typing import Final

import numpy as np

from reloader.elf.object import ObjectFile
from reloader.ids import I32, I64, U8, U16, U32, U64, Bool
from reloader.link.section_names import SectionNames


class Origin:
    """Where a symbol's bytes are; the column Symbols.origin. Plain ints, as ids.Region."""

    BLOCK: Final = 0  # in a block of this graph (Symbols.block, Symbols.offset)
    UNDEFINED: Final = 1  # named, to be resolved outside of its object
    ABSOLUTE: Final = 2  # Symbols.offset is the address
    # has an address outside this graph: Symbols.addr (live generation, executable, library,
    # kept data)
    BOUND: Final = 3


ORIGIN_NAMES: Final[tuple[str, ...]] = ("block", "undefined", "absolute", "bound")  # by Origin


@dataclass(slots=True)
class Blocks:
    """(b,) columns."""

    # row of LinkGraph.objects, or NO_ROW for one that belongs to the whole transaction
    object: I32
    section: I32  # section index in that object, or NO_ROW for a synthesised block
    region: U8  # ids.Region
    size: U64  # bytes in the target
    align: U64  # power of two, at least 1
    content: I64  # offset of the first byte in LinkGraph.content, or NO_ROW: all zero
    merge: U16  # entity size of a SHF_MERGE section (1 for strings), 0: not mergeable
    live: Bool  # False: nothing reaches it; it is neither placed nor written
    same: Bool  # equal to the block of the live generation, all it refers to included
    # NO_ADDR until placed; set early, by match_old, for a block that keeps its address
    addr: U64


@dataclass(slots=True)
class Symbols:
    """(n,) columns.

    The order is that of the objects, each with the rows of its symbol table from its null entry
    on.
    """

    object: I32  # row of LinkGraph.objects, or NO_ROW
    source: I32  # index in that object's symbol table, or NO_ROW if synthesised
    name: list[bytes]
    origin: U8  # Origin
    block: I32  # for Origin.BLOCK, else NO_ROW
    offset: U64  # in the block, or the value of an ABSOLUTE symbol
    size: U64
    binding: U8  # STB_*
    type: U8  # STT_*
    visibility: U8  # STV_*
    # a function that callers reach through a stub and that flips (not .cold/.isra/... pieces)
    reloadable: Bool
    # a function whose bytes or targets differ from its live version, or that is new
    changed: Bool
    slot: I32  # SlotId of its stub, or NO_ROW
    addr: U64  # canonical address, S of an edge that takes the address; NO_ADDR until known
    # where a branch goes: the stub where it has one, else `addr`; NO_ADDR until known
    entry: U64


@dataclass(slots=True)
class Edges:
    """(e,) columns, sorted by block, then offset."""

    block: I32
    offset: U32  # of the field, in the block
    kind: U16  # row of the architecture's kind table
    symbol: I32
    addend: I64
    live: Bool  # False: a pass has made it unnecessary (a relaxed GOT load, a dead FDE)


@dataclass(slots=True)
class LinkGraph:
    """One transaction."""

    objects: list[ObjectFile]
    # the initial bytes of all blocks, one after the other, writable; fixups are written here
    content: U8
    blocks: Blocks
    symbols: Symbols
    edges: Edges
    # (o + 1,) rows of Symbols per object: first_symbol[i] : first_symbol[i + 1]
    first_symbol: I32
    # per object: (s,) block of a section, or NO_ROW
    block_of_section: list[I32] = field(default_factory=list[I32])
    # (o,) row of Symbols that is the start of an object's GOT, or NO_ROW; empty: none has one
    got_symbol: I32 = field(default_factory=lambda: np.zeros(0, np.int32))
    section_names: SectionNames | None = None  # of all objects together
    # blocks by the name of their section, for patterns asked so far (see names.named_blocks)
    named: dict[bytes, I32] = field(default_factory=dict[bytes, I32])

    def block_bytes(self, block: int) -> U8:
        """Return a writable view of a block's content; empty for a zero-filled block."""
        start = int(self.blocks.content[block])
        if start < 0:
            return self.content[:0]
        return self.content[start : start + int(self.blocks.size[block])]

    def edges_of(self, block: int) -> slice:
        """Return the rows of Edges that belong to a block."""
        first, last = np.searchsorted(self.edges.block, [block, block + 1])
        return slice(int(first), int(last))
