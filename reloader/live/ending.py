"""A program can end at any moment: whatever failed because of that is told as that.

Between a kill and the moment when the memory is gone there is a little time in which system
calls say ESRCH, procfs says ENOENT and memory reads as nothing. So an error is looked at twice
before it is believed to be of another kind.
"""

import time
from collections.abc import Callable, Generator
from contextlib import contextmanager

from reloader.errors.live import TargetGoneError, TargetMemoryError
from reloader.ids import SlotId
from reloader.live.target import Target

_LOOKS = 25
_PAUSE = 0.02  # seconds between looks, only after an error that an ending process makes


def must_run(target: Target) -> None:
    """Raise TargetGoneError if the process has ended; costs one read of its memory."""
    target.read(target.arena.stub_addr(SlotId(0)), 1)


def has_ended(target: Target, error: Exception) -> bool:
    """Return whether an error came from the end of the process."""
    ending = isinstance(error, (ProcessLookupError, FileNotFoundError, TargetMemoryError))
    for _ in range(_LOOKS if ending else 1):
        try:
            must_run(target)
        except TargetGoneError:
            return True
        except TargetMemoryError:
            pass
        if ending:
            time.sleep(_PAUSE)
    return False


@contextmanager
def noticing_the_end(target: Target, doing: Callable[[], str]) -> Generator[None]:
    """Turn every error that the end of the process makes into TargetGoneError.

    Args:
        target: The process.
        doing: Says what was being done, as a gerund: `linking`.
    """
    try:
        yield
    except Exception as error:
        if has_ended(target, error):
            raise TargetGoneError(target.pid, doing()) from error
        raise
