"""stub."""
import numpy as np
from reloader.ids import I64, Bool
from reloader.link.passes.targets import Matcher


def same_functions(match: Matcher, rows: I64) -> Bool:
    """X."""
    return np.zeros(len(rows), np.bool_)
