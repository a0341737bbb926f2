"""Errors around thread-local variables and what objects register with the C library."""

from reloader.errors.base import UNTOUCHED, RefusedError, ReloaderError


class ThreadRoomError(RefusedError):
    """New thread-local variables do not fit into what every thread has."""

    code = "thread-room"

    def __init__(self, wanted: int, align: int, free: int, size: int) -> None:
        self.wanted, self.align, self.free, self.size = wanted, align, free, size
        why = f"{free} of {size} bytes are free"
        if align > 64:  # that of the room itself
            why = f"one wants an alignment of {align} bytes, the room has 64"
        super().__init__(
            f"new thread-local variables need {wanted} bytes in every thread, and of the room "
            f"for them {why}. {UNTOUCHED} Make them smaller or plain variables, or start the "
            "program under `reloader run`, which has room for 4096 bytes."
        )


class ConstructorError(ReloaderError):
    """A constructor threw an exception."""

    code = "constructor-threw"

    def __init__(self, function: str, kind: str) -> None:
        self.function, self.kind = function, kind
        what = f"an exception of type {kind}" if kind else "an exception"
        super().__init__(
            f"{function} threw {what} while it initialised a new object, which is not loaded. "
            "What constructors before it did to the program's own state stays."
        )


class MixedConstructorError(RefusedError):
    """New variables want a constructor that would also initialise kept ones again."""

    code = "mixed-constructor"

    def __init__(self, function: str, new: list[str], kept: list[str]) -> None:
        self.function, self.new, self.kept = function, tuple(new), tuple(kept)
        super().__init__(
            f"{', '.join(new)}: new, and initialised by {function}, which would initialise "
            f"{', '.join(kept)} again. {UNTOUCHED} Make it a static variable of a function, "
            "which is initialised at its first use, or put it into a source file of its own."
        )


class ThreadDestructorsError(RefusedError):
    """Threads will call destructors of an object that is to be unloaded."""

    code = "thread-destructors"

    def __init__(self, name: str, count: int) -> None:
        self.name, self.count = name, count
        super().__init__(
            f"{name}: {count} destructors of its thread-local objects run when threads end, "
            f"and those threads still run. {UNTOUCHED} Unload it after they have ended."
        )
