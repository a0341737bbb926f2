"""Which superseded memory is still reached, given the words that point into it.

A word anywhere keeps what it points into, that keeps what its code refers to, and old data that
is kept keeps what its words point to. What remains is unreachable and stays so: nobody is left
who could make a pointer to it.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from reloader.ids import U64, Generation
from reloader.live.frames import Span
from reloader.live.scan import Hits, Ranges
from reloader.live.target import Allocation

Edge = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Retirement:
    """Memory that nothing of ours refers to any more; it is freed as a whole."""

    generation: Generation
    object: tuple[str, str]  # (path, member)
    allocations: tuple[Allocation, ...]
    references: frozenset[int] = frozenset()  # addresses that its code and data refer to
    # (start, end) ranges that lead to it and are not freed with it: the stubs of functions that
    # no longer exist. Two such ranges are equal or apart.
    watched: tuple[Span, ...] = ()
    # a language's runtime has proven that no memory of its own holds it, and what else has such
    # words is no pointer: only stacks and registers count
    proven: bool = False


class Reach:
    """Waiting memory as a graph: one node each, then one for each watched range."""

    def __init__(self, waiting: Sequence[Retirement], guard: int | None) -> None:
        """Take what waits, and glibc's pointer guard if it is known."""
        self.count = len(waiting)
        stubs = {span: self.count for row in waiting for span in row.watched}
        stubs = {span: self.count + at for at, span in enumerate(stubs)}
        spans = [
            (int(part.addr), int(part.addr) + part.size, row)
            for row, one in enumerate(waiting)
            for part in one.allocations
        ]
        spans += [(start, end, node) for (start, end), node in stubs.items()]
        self.ranges = Ranges.of(spans, guard)
        self.proven = {row for row, one in enumerate(waiting) if one.proven}
        self.stacks: Sequence[Span] = ()  # where words count even for what is proven
        self.edges: set[Edge] = {
            (stubs[span], row) for row, one in enumerate(waiting) for span in one.watched
        }
        for row, one in enumerate(waiting):
            self.edges |= {(row, to) for to in self.nodes(one.references)}

    def know_guard(self, guard: int | None) -> None:
        """Search for mangled pointers, too, from now on."""
        self.ranges = replace(self.ranges, guard=guard)

    def nodes(self, words: Iterable[int] | U64) -> list[int]:
        """Return the nodes that words point into."""
        rows = self.ranges.row(np.array(list(words), np.uint64))
        return self.ranges.owner[rows[rows >= 0]].tolist()

    def counting(self, hits: Hits) -> Hits:
        """Return the words without those that prove nothing."""
        proven = np.isin(self.ranges.owner[hits.row], list(self.proven))
        return hits.only(~proven | ~hits.apart(self.stacks))

    def held(self, hits: Hits, known: set[int]) -> set[int]:
        """Return which of what waits is held, directly or by another that is.

        Args:
            hits: The words that point into the ranges.
            known: Nodes that are held for another reason.
        """
        if self.proven:
            hits = self.counting(hits)
        source, to = self.ranges.row(hits.addr), self.ranges.owner[hits.row]
        held = known | set(to[source < 0].tolist())
        inner = source >= 0
        owners = self.ranges.owner[source[inner]].tolist()
        edges = self.edges | set(zip(owners, to[inner].tolist(), strict=True))
        while more := {to for source, to in edges if source in held} - held:
            held |= more
        return {node for node in held if node < self.count}


def unreached(rows: Sequence[Retirement], words: U64) -> list[Retirement]:
    """Return the memory that some words lead to neither directly nor on the way."""
    reach = Reach(rows, None)
    held = reach.held(Hits(), set(reach.nodes(words)))
    return [row for at, row in enumerate(rows) if at not in held]
