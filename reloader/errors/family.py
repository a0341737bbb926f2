"""What can stand in the way of reloading several processes at once."""

from reloader.errors.base import UNTOUCHED, RefusedError


class LibraryMissingError(RefusedError):
    """New code uses a library that some process does not have where the first one has it.

    Attributes:
        library: The library's path.
        names: Some of the symbols that the new code takes from it.
        pid: The process without it.
        first: The process that symbols were looked up in.
    """

    code = "library-missing"

    def __init__(self, library: str, names: list[str], pid: int, first: int) -> None:
        """Build the text."""
        self.library, self.names, self.pid, self.first = library, names, pid, first
        shown = ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
        super().__init__(
            f"{shown}: process {first} has {library}, process {pid}, which was forked from the"
            f" same program, does not have it at that place: it was loaded after the fork."
            f" {UNTOUCHED} Load the library before the program forks, or end process {pid}."
        )
