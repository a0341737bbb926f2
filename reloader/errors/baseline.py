"""What can be wrong with the running executable, and with objects that should be in it."""

from dataclasses import dataclass

from reloader.errors.base import UNTOUCHED, Place, RefusedError


@dataclass(slots=True)
class MalformedImageError(RefusedError):
    """The executable or shared library is not a readable ELF image."""

    path: str
    problem: str  # a clause: `the program headers end at byte 900, the file at 640`
    offset: int | None = None  # where in the file

    code = "malformed-image"

    def __str__(self) -> str:
        """Return where, what, and what to do."""
        where = Place(self.path or "the running executable", offset=self.offset)
        return (
            f"{where}: not a usable executable image: {self.problem}. {UNTOUCHED} "
            "Check that the file was copied or linked completely."
        )


@dataclass(slots=True)
class WrongImageError(RefusedError):
    """A valid ELF file, but not an x86-64 executable or shared library."""

    path: str
    found: str  # `a relocatable object`
    expected: str  # `an executable or shared library`

    code = "wrong-image"

    def __str__(self) -> str:
        """Return what it is and what it should be."""
        path = self.path or "the running executable"
        return f"{path}: is {self.found}, expected {self.expected}. {UNTOUCHED}"


@dataclass(slots=True)
class NotOfThisProgramError(RefusedError):
    """An object that the running program was not built from."""

    object: str
    reason: str  # the Placement's: the first section that disagrees, and why

    code = "not-of-this-program"

    def __str__(self) -> str:
        """Return the object, what disagrees, and what to do."""
        return (
            f"{self.object}: the running program was not built from this file: {self.reason}. "
            f"{UNTOUCHED} Restart the program from the current build, or watch the objects it "
            "was linked from."
        )
