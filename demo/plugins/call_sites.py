"""A plugin that records every place that calls one function, in each reload.

    plugins = ["demo/plugins/call_sites.py"]    # reloader.toml

The function's name comes from the environment of the daemon (`CALL_SITES_OF`), the record goes
to `call_sites.json` in the daemon's folder: a list of {"caller", "object", "address"} for each
generation. At `post_fixup` every block has its final address and bytes, so the addresses are
those of the call instructions' fields as the process will run them; they count once `emitted`
says that the generation is live.
"""

import json
import os
from pathlib import Path

import numpy as np

from reloader.arch.base import Architecture
from reloader.ids import NO_ADDR
from reloader.link.graph import LinkGraph, Origin
from reloader.link.passes.functions import branch_edges
from reloader.session.plugins import Event

Site = dict[str, str | int]


def call_sites(graph: LinkGraph, arch: Architecture, name: bytes) -> list[Site]:
    """Return every call or jump of a placed block that leads to a function."""
    edges, blocks, symbols = graph.edges, graph.blocks, graph.symbols
    meant = np.array([known == name for known in symbols.name], np.bool_)
    placed = blocks.live & ~blocks.same & (blocks.addr != np.uint64(NO_ADDR))
    calls = meant[edges.symbol] & branch_edges(graph, arch) & placed[edges.block]
    return [
        {
            "caller": function_at(graph, int(edges.block[row]), int(edges.offset[row])),
            "object": graph.objects[int(blocks.object[edges.block[row]])].name,
            "address": int(blocks.addr[edges.block[row]]) + int(edges.offset[row]),
        }
        for row in np.flatnonzero(calls).tolist()
    ]


def function_at(graph: LinkGraph, block: int, offset: int) -> str:
    """Return the function that holds a place of a block."""
    symbols = graph.symbols
    start, size = symbols.offset.astype(np.int64), symbols.size.astype(np.int64)
    here = (symbols.origin == Origin.BLOCK) & (symbols.block == block)
    here &= (start <= offset) & (offset < start + size)
    rows = np.flatnonzero(here).tolist()
    return symbols.name[rows[0]].decode() if rows else "?"


class CallSites:
    """The plugin."""

    def __init__(self) -> None:
        """Take the function's name and the file from the environment."""
        self.name = os.environ.get("CALL_SITES_OF", "").encode()
        self.path = Path(os.environ.get("CALL_SITES_FILE", "call_sites.json"))
        self.found: list[Site] = []
        self.generations: dict[int, list[Site]] = {}

    def post_fixup(self, graph: LinkGraph, arch: Architecture) -> None:
        """Find the calls in what is about to become live."""
        self.found = call_sites(graph, arch, self.name)

    def emitted(self, event: Event) -> None:
        """Keep them: this generation is live."""
        self.generations[event.generation] = self.found
        self.path.write_text(json.dumps(self.generations, indent=2) + "\n", encoding="utf-8")


plugin = CallSites()
