"""What a linker adds to every object that it makes a module of: a handle, and a few functions.

`__dso_handle` names an object to the C library: destructors are registered with it, and called
for it when the object goes. It has to stay the same over all versions, so it is a slot's
address: slots are kept for the life of the process, and a later daemon finds them again.
`atexit` and the like are in no shared library; the linker links them into every module.
"""

from collections.abc import Sequence
from typing import Final

import numpy as np

from reloader.arch.base import Architecture
from reloader.ids import I32, NO_ADDR, NO_ROW, Region
from reloader.link.graph import LinkGraph, Origin
from reloader.link.grow import append_edges, append_filled_blocks, append_symbols
from reloader.link.names import named_blocks
from reloader.link.passes.resolve import DSO_NAME, WANTS_SLOT, used_symbols
from reloader.live.objects import LiveObject

FINI_NAME: Final = rb"\.fini_array"
STB_GLOBAL, STT_FUNC = 1, 2
_TO_NEXT: Final = -4  # from a pc-relative field to the end of its instruction


def add_shims(graph: LinkGraph, arch: Architecture) -> None:
    """Define `atexit` and its like for each object that uses them without having them."""
    symbols = graph.symbols
    named = [
        row
        for row in (symbols.origin == Origin.UNDEFINED).nonzero()[0].tolist()
        if symbols.name[row] in arch.shims and symbols.object[row] != NO_ROW
    ]
    used = used_symbols(graph) if named else ()
    for row in named:
        if used[row]:
            _define(graph, arch, row)


def _define(graph: LinkGraph, arch: Architecture, row: int) -> None:
    """Make a block of a shim's code, and an undefined symbol its start."""
    symbols, owner = graph.symbols, int(graph.symbols.object[row])
    shim = arch.shims[symbols.name[row]]
    size = np.array([len(shim.code)], np.int64)
    block = int(
        append_filled_blocks(graph, size, object=owner, region=Region.CODE, align=16)[0]
    )
    graph.block_bytes(block)[:] = np.frombuffer(shim.code, np.uint8)
    names = [name for _, _, name in shim.fields]
    targets = append_symbols(
        graph, names, object=owner, origin=Origin.UNDEFINED, binding=STB_GLOBAL, type=STT_FUNC
    )
    append_edges(
        graph,
        len(names),
        block=block,
        offset=np.array([offset for offset, _, _ in shim.fields]),
        kind=np.array([kind for _, kind, _ in shim.fields]),
        symbol=targets,
        addend=_TO_NEXT,
    )
    symbols = graph.symbols
    symbols.origin[row], symbols.block[row], symbols.offset[row] = Origin.BLOCK, block, 0


def add_handles(graph: LinkGraph, live: Sequence[LiveObject | None]) -> None:
    """Give a handle to new objects that have destructors to be registered for them."""
    blocks = graph.blocks
    owners = np.unique(blocks.object[named_blocks(graph, FINI_NAME) & blocks.live])
    new = [owner for owner in owners.tolist() if live[owner] is None]
    if new:
        append_symbols(
            graph,
            [DSO_NAME] * len(new),
            object=np.array(new, np.int32),
            origin=Origin.BOUND,
            slot=WANTS_SLOT,
        )


def handle_rows(graph: LinkGraph) -> dict[int, int]:
    """Return the handle's address of each object that has one; slots are assigned."""
    symbols = graph.symbols
    has: I32 = (
        (
            (symbols.slot >= 0)
            & (symbols.object != NO_ROW)
            & (symbols.addr != np.uint64(NO_ADDR))
        )
        .nonzero()[0]
        .astype(np.int32)
    )
    return {
        int(symbols.object[row]): int(symbols.addr[row])
        for row in has.tolist()
        if symbols.name[row] == DSO_NAME
    }
