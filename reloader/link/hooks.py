"""The borders between passes where others may look at a link graph, and change it.

They are JITLink's, so whoever knows its plugins knows these. What holds at each border is said
beside its name; docs/graph.md describes the columns.
"""

from enum import StrEnum
from typing import Protocol

from reloader.arch.base import Architecture
from reloader.link.graph import LinkGraph


class Border(StrEnum):
    """A place between two passes; the value is the name of a plugin's hook."""

    # built, bound to what is live and compared with it; names not unified, nothing pruned
    PRE_PRUNE = "pre_prune"
    # blocks.live says what will be placed; GOT entries, stubs and thunks are not built yet
    POST_PRUNE = "post_prune"
    # every block and symbol has its final address; no byte of a field is written
    POST_ALLOCATION = "post_allocation"
    # accesses through a GOT entry that need none were made direct; no field is written
    PRE_FIXUP = "pre_fixup"
    # graph.content is what will be written into the process
    POST_FIXUP = "post_fixup"


class Hooks(Protocol):
    """Who is called at the borders."""

    def at(self, border: Border, graph: LinkGraph, arch: Architecture) -> None:
        """Look at a graph, or change it; an error refuses the transaction."""
        ...
