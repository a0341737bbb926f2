"""Errors of choosing what to reload: which program, which object, which generation."""

from collections.abc import Sequence
from typing import Final

from reloader.errors.base import UNTOUCHED, RefusedError

_SHOWN: Final = 4  # names in one text; the rest is counted


class UnknownObjectError(RefusedError):
    """A watched object that changed and that the running program has no place for."""

    code = "unknown-object"

    def __init__(self, names: Sequence[str]) -> None:
        self.names = tuple(names)
        more = len(names) - _SHOWN
        what = ", ".join(names[:_SHOWN]) + (f" and {more} more" if more > 0 else "")
        super().__init__(
            f"{what}: no part of the running program, and nothing that is reloaded refers to "
            f"it. {UNTOUCHED} `reloader load {names[0]}` loads it all the same."
        )


class NoSuchGenerationError(RefusedError):
    """A rollback to a generation that never was live, or is not kept."""

    code = "no-such-generation"

    def __init__(self, wanted: int | None, kept: Sequence[int]) -> None:
        self.wanted = wanted
        have = ", ".join(str(number) for number in kept) or "none"
        what = (
            "nothing was reloaded yet" if wanted is None else f"generation {wanted} is not kept"
        )
        super().__init__(f"{what}; generations that can be returned to: {have}. {UNTOUCHED}")


class NotLoadedError(RefusedError):
    """An object is to be unloaded, or asked about, that is not loaded."""

    code = "not-loaded"

    def __init__(self, name: str, nearest: Sequence[str]) -> None:
        self.name = name
        hint = f" Did you mean {', '.join(nearest)}?" if nearest else ""
        super().__init__(f"{name}: not loaded in this program. {UNTOUCHED}{hint}")


class StillReferredToError(RefusedError):
    """An object cannot be unloaded: live code refers to what it defines."""

    code = "still-referred-to"

    def __init__(self, name: str, users: Sequence[str]) -> None:
        self.name = name
        self.users = tuple(users)
        super().__init__(
            f"{name}: cannot be unloaded, {', '.join(users)} refer to it. {UNTOUCHED} "
            "Reload them without these references first."
        )


class UnknownTargetError(RefusedError):
    """`--target` names no program under the daemon, or it is needed and missing."""

    code = "unknown-target"

    def __init__(self, wanted: str | None, known: Sequence[str]) -> None:
        have = ", ".join(known) or "none"
        if wanted is None and known:
            text = f"several programs are under the daemon ({have}): say which with --target"
        elif wanted is None:
            text = "no program is under the daemon: use `reloader run` or `reloader attach`"
        else:
            text = f"no program {wanted!r} is under the daemon; there is: {have}"
        super().__init__(text)


class UnknownNameError(RefusedError):
    """`owner` knows neither a symbol nor an address like this."""

    code = "unknown-name"

    def __init__(self, what: str, nearest: Sequence[str]) -> None:
        hint = f" Did you mean {', '.join(nearest)}?" if nearest else ""
        super().__init__(
            f"{what}: no object, executable or library of this program owns it.{hint}"
        )


class StateLostError(RefusedError):
    """A process holds code of an earlier daemon whose state is not here."""

    code = "state-lost"

    def __init__(self, pid: int, folder: str) -> None:
        self.pid = pid
        super().__init__(
            f"process {pid} runs code that an earlier daemon loaded, and {folder} does not "
            f"know it. {UNTOUCHED} Start the daemon in the project folder that was used "
            "before, or restart the program."
        )


class UnreadableFileError(RefusedError):
    """A file that is to be loaded cannot be read."""

    code = "unreadable"

    def __init__(self, path: str, why: str) -> None:
        self.path, self.why = path, why
        super().__init__(
            f"{path}: cannot be read: {why}. {UNTOUCHED} Build it first, or check the path."
        )
