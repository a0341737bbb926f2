"""The two roots of every error that a user sees, and the place an error points at."""

from dataclasses import dataclass

UNTOUCHED = "Nothing was changed."


@dataclass(frozen=True, slots=True)
class Place:
    """Where in the input something is wrong: `hud.o .text+0x41 (hud.c:41)`."""

    object: str  # the object's name as shown to people: path, or path(member)
    section: str = ""
    # bytes from the section's start (from the file's start if no section)
    offset: int | None = None
    line: str = ""  # `hud.c:41` where the object has line information

    def __str__(self) -> str:
        """Return the place as it stands at the start of an error text."""
        text = self.object
        if self.section:
            text += f" {self.section}"
        if self.offset is not None:
            text += f"+{self.offset:#x}" if self.section else f" at byte {self.offset:#x}"
        return f"{text} ({self.line})" if self.line else text


class ReloaderError(Exception):
    """Something could not be done; `str()` is the whole text for people.

    A subclass has typed fields and builds its text in one place: what failed, where, the two
    numbers that
    disagree, what to do, and that nothing was changed.
    """

    code = "failed"  # a stable word for programs, one a subclass


class RefusedError(ReloaderError):
    """Refused on purpose: the process and the state are as before."""

    code = "refused"
