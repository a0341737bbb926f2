"""The road of one reload, every step in order, each with its undo.

Until `flip` no thread of the target can reach anything that was written, so a failure up to
there only gives back what was taken. `flip` itself is one aligned store a function; where
functions of the executable change for the first time, their entry jumps and the stores are made
in the same stop of all threads, after its checks have passed.
"""

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from types import TracebackType
from typing import Protocol

from reloader.elf.object import ObjectFile
from reloader.errors.base import ReloaderError
from reloader.ids import Generation
from reloader.link.passes.anew import Anew
from reloader.link.passes.resolve import Lines, no_lines
from reloader.live import commit, constructors, switch, thread_local, unwind
from reloader.live.adopt import adopt
from reloader.live.debugger import tell_debuggers
from reloader.live.ending import must_run, noticing_the_end
from reloader.live.linking import IN_PLACE, link_transaction
from reloader.live.plan import Plan
from reloader.live.program import Program
from reloader.live.same_libraries import require_same_libraries
from reloader.session.clock import Clock
from reloader.session.hooks import Hooks, Occasion
from reloader.session.outcome import Outcome
from reloader.session.plugins import Event, Plugins
from reloader.session.report import describe, kept_notes

STEPS = {
    "link": "linking",
    "journal": "writing the journal",
    "write": "writing new code",
    "initialise": "initialising new code",
    "flip": "making new code live",
    "record": "recording what is live",
}


class Journal(Protocol):
    """Where the intent is written down before the process is touched, and the result after."""

    def prepare(self, plan: Plan) -> Generation:
        """Say what is about to be done, with what is needed to undo or finish it."""
        ...

    def live(self, generation: Generation, plan: Plan, outcome: Outcome) -> None:
        """Say that it is done."""
        ...

    def failed(self, generation: Generation, error: BaseException) -> None:
        """Say that it was undone."""
        ...


@dataclass(slots=True)
class Options:
    """What the user asked for."""

    reinit: frozenset[str] = frozenset()  # variables to initialise anew although they exist
    event_time: float = field(default_factory=time.monotonic)  # when the file event arrived
    lines: Lines = no_lines  # finds source lines, for errors
    before_step: Callable[[str], None] = lambda _: None  # tests kill somebody there
    anew: Anew = IN_PLACE  # objects that get another place although they are what is live
    plugins: Plugins | None = None  # who is told of what becomes of it
    together_s: float | None = None  # switch at one instant, and how long to wait for it
    hooks: Hooks | None = None  # what the user wants done before and after


def reload(
    program: Program, objects: Sequence[ObjectFile], journal: Journal, options: Options
) -> Outcome:
    """Make new versions of objects the running code.

    Args:
        program: The live process; changed only if the outcome is `live`.
        objects: Each one a new version of a live object, or new to the process.
        journal: Where the transaction is written down.
        options: What the user asked for.

    Returns:
        An outcome whose state is `live` or `unchanged`.

    Raises:
        ReloaderError: Nothing was changed; the text says why.
    """
    outcome = Outcome("unchanged", objects=[file.name for file in objects])
    clock = Clock(outcome, options.event_time, options.before_step)
    with ExitStack() as undo, noticing_the_end(program.target, lambda: STEPS[clock.current]):
        clock.step("link")
        plan = link_transaction(
            program, objects, options.reinit, options.lines, undo, options.anew
        )
        if plan.is_empty():
            outcome.notes += kept_notes(program, plan.data)
            return clock.finish()
        require_same_libraries(program, plan)

        clock.step("journal")
        generation = journal.prepare(plan)
        undo.push(partial(note_failure, journal, generation))
        if options.plugins:
            options.plugins.loaded(event_of(plan, generation))
        if options.hooks:
            options.hooks.before(Occasion(program, outcome.objects, generation))

        clock.step("write")
        outcome.bytes_loaded = commit.write_blocks(program, plan)
        commit.open_new_slots(program, plan, undo)

        clock.step("initialise")
        plan.directory = unwind.publish(program, plan.held, undo)
        thread_local.initialise(program.target, plan.threads)
        constructors.choose(program, plan)
        constructors.run(program, plan, generation, undo)

        clock.step("flip")
        thread_local.initialise(program.target, plan.threads)
        limit_s = options.together_s or plan.together_s
        stop = switch.flip_and_redirect(program, plan, limit_s)
        undo.callback(switch.take_back, program, plan, generation, constructors.retain)
        undo.callback(constructors.retain_registered, program, plan, generation)
        program.host.switch(plan.host, generation)
        if not (plan.host.done and program.target.follow()):
            must_run(program.target)  # slots of a program that has ended flip as well
        undo.pop_all()  # from here on threads may be running the new code

    clock.step("record")
    adopt(program, plan, generation)
    try:
        describe(outcome, program, plan, stop)
    except (ReloaderError, OSError) as error:  # the program may end just now: it was live
        outcome.notes.append(str(error))
    finally:
        clock.finish()
        journal.live(generation, plan, outcome)
    outcome.notes += tell_debuggers(program, plan)
    if options.plugins:
        outcome.notes += options.plugins.emitted(event_of(plan, generation))
    if options.hooks:
        occasion = Occasion(program, outcome.objects, generation, outcome.functions)
        outcome.notes += options.hooks.after(occasion)
    return outcome


def event_of(plan: Plan, generation: Generation) -> Event:
    """Return a plan as plugins are told of it."""
    names = tuple(file.name for file in plan.graph.objects)
    memory = tuple(item.allocation for item in plan.placed)
    return Event(names, generation, plan.graph, memory)


def note_failure(
    journal: Journal,
    generation: Generation,
    _type: type[BaseException] | None,
    error: BaseException | None,
    _trace: TracebackType | None,
) -> None:
    """Write down that a prepared transaction is undone, if that is why its undo runs."""
    if error is not None:
        journal.failed(generation, error)
