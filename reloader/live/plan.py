"""Plan: one transaction, linked and placed, with all that making it live takes."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from reloader.ids import I32, U64
from reloader.link.graph import LinkGraph
from reloader.link.layout import Placed
from reloader.link.passes.bind_data import DataReport
from reloader.link.passes.undecided import Undecided
from reloader.live.agreement import Migration
from reloader.live.host import HostPlan
from reloader.live.ledger import Held
from reloader.live.objects import LiveObject
from reloader.live.parts import WHOLE, Parts
from reloader.live.redirect import RedirectPlan
from reloader.live.target import Allocation
from reloader.live.thread_local import ThreadValues


@dataclass(frozen=True, slots=True)
class Flips:
    """(f,) columns: the slots that a reload changes."""

    slot: I32
    old: U64  # 0: the slot is new
    new: U64
    symbol: I32  # row of the graph


@dataclass(slots=True)
class Plan:
    """What the steps after `link` need; nothing of it has been done to the process."""

    graph: LinkGraph
    data: DataReport
    placed: list[Placed]
    held: list[Held]  # the same memory, as the ledger will have it
    flips: Flips
    redirects: RedirectPlan | None  # jumps to write into the executable's own code; mostly none
    redirected: list[int]  # (names of `redirects`) the slot of each, NO_ROW for context
    versions: list[LiveObject]  # what each object will be once this is live
    first_slot: int  # slots from here on are new
    # (slot, address of what chooses) of each IFUNC
    choices: list[tuple[int, int]] = field(default_factory=list[tuple[int, int]])
    threads: ThreadValues = field(default_factory=ThreadValues)  # of new thread-locals
    directory: Allocation | None = None  # the unwind directory that this transaction publishes
    host: HostPlan = field(default_factory=HostPlan)  # what the language adds
    parts: Parts = WHOLE  # what of the objects is in the graph
    migrations: Sequence[Migration] = ()  # variables that the program converts
    # old code and new must not run side by side: how long to wait for such an instant
    together_s: float | None = None
    # functions that count as changed until the report asks
    undecided: list[Undecided] = field(default_factory=list[Undecided])
    retained: bool = False  # undone, but what it took stays: constructors have run in it

    def writes(self) -> list[tuple[int, tuple[int, bytes, bytes]]]:
        """Return (slot, (address, bytes before, after)) of each write into the program."""
        plan = self.redirects
        if plan is None:
            return self.host.writes()
        functions: list[int] = plan.function.tolist()
        slots = [self.redirected[row] for row in functions]
        own = [(slot, plan.write(row)) for row, slot in enumerate(slots)]
        return own + self.host.writes()

    def is_empty(self) -> bool:
        """Return whether nothing would change: no function, no new variable."""
        return not (len(self.flips.slot) or self.placed or self.threads.values)
