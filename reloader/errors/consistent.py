"""Errors of switching at one instant: threads that never were outside of what changes."""

from collections.abc import Sequence
from dataclasses import dataclass

from reloader.errors.base import UNTOUCHED, RefusedError

_SHOWN = 8  # threads spelled out; the rest is counted


@dataclass(frozen=True, slots=True)
class Standing:
    """One thread that is inside functions which are to change."""

    tid: int
    thread: str  # its name
    functions: tuple[str, ...]  # innermost first
    certain: bool  # False: its stack cannot be unwound, a word on it looks like a return

    def __str__(self) -> str:
        """Return the words that stand for it in an error text."""
        names = ", called by ".join(self.functions)
        doubt = "" if self.certain else " (as far as its stack can be read)"
        return f"thread {self.thread} ({self.tid}) is in {names}{doubt}"


class NeverOutsideError(RefusedError):
    """At no stop all threads were outside of the functions that are to change together.

    Attributes:
        standing: Who stood where at the last stop.
        tries: How often all threads were stopped.
        seconds: How long that went on.
    """

    code = "never-outside"

    def __init__(self, standing: Sequence[Standing], tries: int, seconds: float) -> None:
        self.standing, self.tries, self.seconds = tuple(standing), tries, seconds
        lines = [f"  {row}" for row in self.standing[:_SHOWN]]
        if len(self.standing) > _SHOWN:
            lines.append(f"  and {len(self.standing) - _SHOWN} more threads")
        head = (
            "some thread was inside functions that are to change together at each of"
            f" {tries} stops in {seconds:.1f} s; at the last one:"
        )
        super().__init__(
            "\n".join([head, *lines, UNTOUCHED])
            + " Let the program leave these functions, wait longer with `consistent_limit_s`,"
            " or reload without --consistent: then each function changes at its next call."
        )
