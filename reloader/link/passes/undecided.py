"""Functions whose comparison can wait until the new code runs.

A block that surely holds a changed function is placed whole, and where every function in it
lives in memory of ours already, all their slots flip, whatever the edit did to each. Which of
them it changed is then wanted for nothing but the report. The comparison, which decodes and
follows constants, is a fifth of linking a small object: it is made when callers have the new
code.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from reloader.ids import I32, I64, Bool
from reloader.link.cache import copied
from reloader.link.graph import LinkGraph
from reloader.link.passes.match_functions import function_sizes, same_functions
from reloader.link.passes.matcher import Matcher

_STB_GLOBAL = 1  # below it local ones, above it those of which another object's copy may win

Moves = Callable[[I32], Bool]  # whether the slots of functions (rows of the graph) flip anyway


@dataclass(frozen=True, slots=True)
class Undecided:
    """Functions that count as changed for the time being."""

    match: Matcher  # its graph is a copy: linking changes the other
    rows: I64  # of Symbols

    @classmethod
    def of(cls, match: Matcher, rows: I64) -> "Undecided":
        """Keep what the comparison will need."""
        return cls(replace(match, graph=copied(match.graph)), rows)

    def decide(self, graph: LinkGraph) -> None:
        """Clear `changed` of the functions that are as they were."""
        graph.symbols.changed[self.rows[same_functions(self.match, self.rows)]] = False


def can_wait(match: Matcher, rows: I64, moves: Moves) -> bool:
    """Return whether linking does the same whatever becomes of some functions.

    Args:
        match: blocks.same is final.
        rows: Functions in blocks that differ.
        moves: See Moves.
    """
    symbols = match.graph.symbols
    if bool((symbols.binding[rows] > _STB_GLOBAL).any()):
        return False
    source = symbols.source[rows]
    was = match.old_of_function[source]
    changed = was < 0
    changed |= function_sizes(match.new)[source] != function_sizes(match.old)[was]
    reached = symbols.reloadable[rows]
    if not bool(moves(rows[reached & ~changed].astype(np.int32)).all()):
        return False
    block = symbols.block[rows]
    sure = np.zeros(len(match.graph.blocks.object), np.bool_)
    sure[block[reached & changed]] = True
    return bool(sure[block].all())
