"""What a finished transaction has to tell: which functions, which variables, what to know."""

from contextlib import suppress

from reloader.elf.stable_names import of_toolchain
from reloader.errors.live import TargetGoneError
from reloader.ids import Addr
from reloader.link.passes.bind_data import DataReport
from reloader.link.passes.initialisers import InitialiserChange
from reloader.live.family import outsiders
from reloader.live.frames import CodeRanges, active_functions
from reloader.live.patching import RedirectResult
from reloader.live.plan import Plan
from reloader.live.program import Program
from reloader.live.switch import in_code
from reloader.live.target import Target
from reloader.live.threads import list_threads
from reloader.session.outcome import Outcome

_SHOWN = 8  # names in one note; the rest is counted
# what compilers add: constructors of a whole object, references to the unwinder's function
_OF_COMPILERS = ("_GLOBAL__sub_", "DW.ref.")


def describe(
    outcome: Outcome, program: Program, plan: Plan, stop: RedirectResult | None
) -> None:
    """Fill an outcome with what became live."""
    outcome.state = "live"
    outcome.functions = changed_names(plan) + plan.host.functions
    outcome.new_variables = written(plan.data.new)
    if stop is not None:
        outcome.stop_us = stop.stop_us + stop.lost_us
        outcome.active = active(program, plan, stop)
    outcome.notes += data_notes(program, plan.data) + plan.host.notes
    outcome.stop_us += plan.host.stop_us
    outcome.notes += family_notes(program.target)
    if outcome.active:
        outcome.notes.append(
            f"{enumerate_names(outcome.active)} is running right now: that call finishes in "
            "the old code, the next one runs the new"
        )


def changed_names(plan: Plan) -> list[str]:
    """Return the functions that are new or not what they were; others may have moved along."""
    symbols = plan.graph.symbols
    while plan.undecided:
        plan.undecided.pop().decide(plan.graph)
    objects = plan.graph.objects
    foreign = {row for row, file in enumerate(objects) if of_toolchain(file.path)}
    flipped: list[int] = plan.flips.symbol[symbols.changed[plan.flips.symbol]].tolist()
    flipped = [row for row in flipped if int(symbols.object[row]) not in foreign]
    return written([symbols.name[row].decode("utf-8", "replace") for row in flipped])


def written(names: list[str]) -> list[str]:
    """Return the names that stand in somebody's source."""
    return [name for name in names if not name.startswith(_OF_COMPILERS)]


def active(program: Program, plan: Plan, stop: RedirectResult) -> list[str]:
    """Return the changed functions of the executable that were on a stack at the stop."""
    symbols = plan.graph.symbols
    rows = plan.flips.symbol
    original = program.table.originals(plan.flips.slot)
    inside = in_code(program.image, original)
    ranges = CodeRanges(
        original[inside],
        symbols.size[rows[inside]],
        [symbols.name[row] for row in rows[inside].tolist()],
    )
    found: set[str] = set()
    for member in program.target.members():
        own = set(list_threads(member.pid))
        rows = [row for row, tid in enumerate(stop.tids) if tid in own]
        tids = [stop.tids[row] for row in rows]
        with suppress(TargetGoneError):  # one of several; the first one's end is told elsewhere
            running = active_functions(member, tids, stop.registers[rows], ranges)
            found |= {item.name for item in running}
    return sorted(found)


def family_notes(target: Target) -> list[str]:
    """Return what processes mean for this reload that were forked before we came."""
    others = outsiders(target.pid, [member.pid for member in target.members()])
    if not others:
        return []
    one = len(others) == 1
    who = "1 child process keeps" if one else f"{len(others)} child processes keep"
    pids = enumerate_names([str(other) for other in others])
    remedy = "start the program with `reloader run`, and every process is reloaded"
    return [f"{who} the code of before ({pids}): forked before reloader came; {remedy}"]


def data_notes(program: Program, data: DataReport) -> list[str]:
    """Return a sentence for everything about variables that is not plain continuation."""
    notes = [initialiser_note(program, change) for change in data.initialiser_changes()]
    notes += data.notes
    if new := written(data.new):
        notes.append(f"new: {enumerate_names(new)}")
    if data.thread_initialiser_changed:
        names = data.thread_initialiser_changed
        notes.append(
            f"{enumerate_names(names)}: every thread keeps its value, new threads begin with"
            f" the old initial value (--reinit {names[0]} would apply the new one)"
        )
    if data.reinitialised:
        notes.append(f"initialised anew: {enumerate_names(data.reinitialised)}")
    if constant := written(data.became_constant):
        notes.append(f"now constant, with the new value: {enumerate_names(constant)}")
    if data.reinit_unused:
        notes.append(unused_note(data))
    return notes


def kept_notes(program: Program, data: DataReport) -> list[str]:
    """Return what a reload that changes nothing may have been meant to change."""
    notes = [initialiser_note(program, change) for change in data.initialiser_changes()]
    return [*notes, unused_note(data)] if data.reinit_unused else notes


def unused_note(data: DataReport) -> str:
    """Return which names of variables meant none."""
    return f"--reinit had nothing to do for: {enumerate_names(data.reinit_unused)}"


def initialiser_note(program: Program, change: InitialiserChange) -> str:
    """Return what a kept variable holds and what its new initialiser says."""
    live = program.target.read(Addr(change.addr), change.size).tobytes()
    return (
        f"{change.name} keeps its value {shown(live)}; its initialiser changed from "
        f"{shown(change.old)} to {shown(change.new)} (--reinit {change.name} would apply it)"
    )


def shown(data: bytes) -> str:
    """Return bytes as a person reads them: a number up to 8 bytes, text, or hex."""
    if len(data) in {1, 2, 4, 8}:
        return str(int.from_bytes(data, "little", signed=True))
    head = data.split(b"\0", 1)[0]
    if len(head) > 1 and head.isascii() and head.decode("ascii").isprintable():
        return repr(head.decode("ascii"))
    return data[:16].hex(" ") + (" ..." if len(data) > 16 else "")


def enumerate_names(names: list[str]) -> str:
    """Return `a, b and c`, or the first few and how many more."""
    if len(names) > _SHOWN:
        return f"{', '.join(names[:_SHOWN])} and {len(names) - _SHOWN} more"
    if len(names) < 2:
        return "".join(names)
    return f"{', '.join(names[:-1])} and {names[-1]}"
