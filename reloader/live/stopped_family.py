"""All processes of a family standing still: one stop, or none.

Between our list of the processes and the moment when all of them stand still, one may have
forked: so the list is made again under the stop, until nobody is new. A process that ends
meanwhile is forgotten, wherever that happens.
"""

from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack, contextmanager, suppress

import numpy as np
from numpy.typing import NDArray

from reloader.errors.live import TargetGoneError, TargetMemoryError
from reloader.ids import U64, Addr
from reloader.live.member import Member, StoppedProcess
from reloader.live.target import Stopped


class StoppedFamily:
    """Several processes; implements `live.target.Stopped` for their threads together."""

    def __init__(self, parts: list[StoppedProcess]) -> None:
        """Take stopped processes, the family's first one first."""
        self._parts = parts

    @property
    def parts(self) -> Sequence[Stopped]:
        """One stop for each process."""
        return self._parts

    @property
    def tids(self) -> list[int]:
        """Return the threads of all."""
        return [tid for part in self._parts for tid in part.tids]

    @property
    def registers(self) -> NDArray[np.uint64]:
        """Return the registers of all, a row a thread."""
        return np.concatenate([part.registers for part in self._parts])

    def read(self, addr: Addr, size: int) -> bytes:
        """Return memory of the first process."""
        return self._parts[0].read(addr, size)

    def write(self, addr: Addr, data: bytes) -> None:
        """Write private memory of every process, whatever its protection."""
        for part in self._parts:
            try:
                part.write(addr, data)
            except TargetGoneError:
                continue
            except TargetMemoryError:
                if not has_ended(part):
                    raise

    def program_counters(self) -> U64:
        """Return every program counter, those of signal frames included."""
        return np.concatenate([part.program_counters() for part in self._parts])


def has_ended(part: StoppedProcess) -> bool:
    """Return whether a stopped process was killed."""
    return all(tracee.poll() == 0 for tracee in part.tracees)


@contextmanager
def stopped_family(members: Callable[[], list[Member]]) -> Generator[Stopped]:
    """Stop every thread of every process.

    Args:
        members: Lists the processes as they are now, the one that stands for all first.

    Raises:
        TargetGoneError: None is left.
    """
    parts: list[StoppedProcess] = []
    done: set[int] = set()
    with ExitStack() as stops:
        while fresh := [member for member in members() if member.pid not in done]:
            for member in fresh:
                done.add(member.pid)
                with suppress(TargetGoneError):
                    member.prepare_stop()
            for member in fresh:
                try:
                    parts.append(stops.enter_context(member.stop_prepared()))
                except TargetGoneError:
                    if len(fresh) == 1 and not parts:
                        raise
        if not parts:
            raise TargetGoneError(0, "stopping its threads")
        yield parts[0] if len(parts) == 1 else StoppedFamily(parts)
