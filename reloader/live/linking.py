"""The first step of the road: objects -> a plan, placed, every byte final, none in reach.

What is taken here (memory, slots) is registered with the caller's undo, so a refusal by any
pass gives it back.
"""

from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial

from reloader.elf.object import ObjectFile
from reloader.errors.base import ReloaderError
from reloader.errors.data import DataLayoutError
from reloader.errors.linking import UndefinedSymbolsError
from reloader.errors.types import TypeChangedError
from reloader.ids import I64, NO_ADDR, NO_ROW, Generation
from reloader.link.graph import LinkGraph
from reloader.link.passes.anew import Anew, anew_roots, place_anew
from reloader.link.passes.bind_data import DataReport, bind_data
from reloader.link.passes.match_old import match_old
from reloader.link.passes.moved import mark_users, moved_names
from reloader.link.passes.resolve import Lines
from reloader.link.passes.startup import has_startup, plan_startup
from reloader.link.passes.thread_variables import pair_thread_locals
from reloader.link.passes.undecided import Undecided
from reloader.link.pipeline import Linked, Setting, link_graph, read_graph
from reloader.link.types.agree import Agreement
from reloader.link.types.taken import taken_names
from reloader.live.agreement import (
    agreement_of,
    migration_notes,
    migration_roots,
    plan_migrations,
    to_migrate,
    untold,
)
from reloader.live.commit import assign_slots, plan_flips, runs_code_of_ours
from reloader.live.folded import refuse_folded
from reloader.live.next_version import hold, next_versions
from reloader.live.one_name import settle_names
from reloader.live.parts import WHOLE, Parts
from reloader.live.plan import Plan
from reloader.live.program import Program
from reloader.live.switch import plan_entries
from reloader.live.target import Allocation
from reloader.live.thread_local import ThreadValue, ThreadValues, collect

IN_PLACE = Anew()  # what equals the live generation keeps its address
INSTANT_SECONDS = 2.0  # how long new types wait until nobody runs code of the old ones


def link_transaction(  # noqa: PLR0913, PLR0917  one argument a fact
    program: Program,
    objects: Sequence[ObjectFile],
    reinit: frozenset[str],
    lines: Lines,
    undo: ExitStack,
    anew: Anew = IN_PLACE,
) -> Plan:
    """Link objects against the live process.

    Args:
        program: Read; its slot table and its arena give what is taken.
        objects: New versions, or objects that are new to the process.
        reinit: Variables to start anew although they exist.
        lines: Finds source lines, for errors.
        undo: Gets what gives everything back.
        anew: Which of the objects get another place although they are what is live.

    Raises:
        ReloaderError: One pass refused; carries all that this pass found.
    """
    program.host.expect(objects)
    agreement = agreement_of(program, objects)
    whole = reinit or anew.objects or agreement.differs
    parts = WHOLE if whole else Parts.of(program, objects)
    if parts.cuts:
        try:
            with ExitStack() as trial:
                plan = link_parts(
                    program, objects, reinit, lines, trial, anew, parts, agreement
                )
                undo.push(trial.pop_all())
                return plan
        except ReloaderError:
            pass  # of the whole, every reason is told
    try:
        return link_parts(program, objects, reinit, lines, undo, anew, WHOLE, agreement)
    except (DataLayoutError, TypeChangedError) as error:
        converted = to_migrate(error, program.wishes.migrate)
        if not converted:
            raise
    restarted = reinit | converted
    return link_parts(
        program, objects, restarted, lines, undo, anew, WHOLE, agreement, converted
    )


def link_parts(  # noqa: PLR0913, PLR0917  one argument a fact
    program: Program,
    objects: Sequence[ObjectFile],
    reinit: frozenset[str],
    lines: Lines,
    undo: ExitStack,
    anew: Anew,
    parts: Parts,
    agreement: Agreement,
    converted: frozenset[str] = frozenset(),
) -> Plan:
    """Link objects, or what stands for them; otherwise as `link_transaction`.

    Of the variables that start anew, `converted` get the value of before by a function of the
    user's.
    """
    collect(program)  # a name whose room is given back means nothing to new code
    graph, data, undecided = compare(program, parts.files(objects), reinit, anew, parts)
    settle_names(program, graph, data)
    if agreement.differs:
        agreement.refuse(data.pairs, taken_names(graph, program.arch))
    migrations = plan_migrations(program, graph, data, converted)
    data.notes += [*untold(program, agreement), *migration_notes(migrations)]
    live = parts.live(program, graph.objects)
    first_slot = len(program.table)
    undo.callback(give_slots_back, program, first_slot)
    arena = program.target.arena
    setting = Setting(
        arch=program.arch,
        live=live,
        source=program.index,
        arena=arena.span(),
        assign_slots=partial(assign_slots, program=program),
        allocate=partial(allocate, program, undo),
        lines=lines,
        take_thread_room=partial(take_thread_room, program, undo),
        roots=[
            *data.new_global_blocks,
            *anew_roots(graph, anew),
            *migration_roots(graph, migrations),
        ],
        hooks=program.hooks,
    )
    try:
        linked = link_graph(graph, setting)
    except UndefinedSymbolsError as error:
        raise program.host.explained(error, graph.objects) from error
    flips = plan_flips(graph, program)
    refuse_folded(program, objects, flips)
    redirects, redirected = plan_entries(program, flips)
    return Plan(
        graph=graph,
        data=data,
        placed=linked.placed,
        held=hold(graph, linked.placed, program.ledger, Generation(0), unwind_header(linked)),
        flips=flips,
        redirects=redirects,
        redirected=redirected,
        versions=parts.whole(next_versions(graph, program, Generation(0))),
        first_slot=first_slot,
        choices=linked.choices,
        threads=ThreadValues([ThreadValue(*pair) for pair in linked.thread_values]),
        host=program.host.prepare(graph),
        parts=parts,
        migrations=migrations,
        together_s=INSTANT_SECONDS if agreement.unsettled else None,
        undecided=undecided,
    )


def compare(
    program: Program,
    objects: Sequence[ObjectFile],
    reinit: frozenset[str],
    anew: Anew = IN_PLACE,
    parts: Parts = WHOLE,
) -> tuple[LinkGraph, DataReport, list[Undecided]]:
    """Return the graph with its change set, what became of the variables, and what is open.

    Live objects that use a constant which gets another place are linked again with the rest.
    """
    live = parts.live(program, objects)
    graph = read_graph(objects, live, program.arch, None if parts.cuts else program.cache)
    program.host.isolate(graph)
    data = bind_data(graph, live, program.arch, reinit=reinit)
    pair_thread_locals(graph, live, data, reinit)
    # Variables that exist have their live address.
    # Plugins see a change set in which nothing is open, and constructors are not mixed up.
    exact = program.hooks or anew.objects or has_startup(graph)
    moves = None if exact else partial(runs_code_of_ours, graph, program)
    undecided = match_old(graph, live, program.arch.kinds, moves)
    # What equals the live generation keeps its address; symbols.changed is the change set.
    plan_startup(graph, live, data)
    moved = moved_names(graph, live) | place_anew(graph, anew)
    if not moved:
        return graph, data, undecided
    keys = {file.key for file in objects}
    users = [
        other.file
        for key, other in program.objects.items()
        if key not in keys and not moved.isdisjoint(other.file.symbol_names)
    ]
    if users:
        return compare(program, [*objects, *users], reinit, anew, parts)
    for item in undecided:
        item.decide(graph)
    mark_users(graph, moved)
    return graph, data, []


def allocate(
    program: Program, undo: ExitStack, wanted: Sequence[tuple[int, int]]
) -> list[Allocation]:
    """Take memory that is given back unless the transaction becomes live."""
    taken = program.target.arena.allocate_all(wanted)
    undo.callback(give_back, program, taken)
    return taken


def give_back(program: Program, taken: Sequence[Allocation]) -> None:
    """Free memory, but not what the ledger has meanwhile: that waits for its proof."""
    for allocation in taken:
        if allocation.addr not in program.ledger.rows:
            program.target.arena.free(allocation)


def take_thread_room(
    program: Program, undo: ExitStack, sizes: Sequence[int], aligns: Sequence[int]
) -> I64:
    """Take thread-local room that is given back unless the transaction becomes live."""
    collect(program)
    undo.callback(collect, program)
    return program.target.thread_room.take(sizes, aligns)


def give_slots_back(program: Program, first: int) -> None:
    """Forget the slots from `first` on, but for those a constructor may have handed out."""
    end = max((slot + 1 for slot in program.retained if slot >= first), default=first)
    program.target.arena.slots[end : len(program.table)] = 0
    program.table.truncate(end)


def unwind_header(linked: Linked) -> int:
    """Return the address of the transaction's `.eh_frame_hdr`, 0 if it has none."""
    block = linked.unwind.header
    if block == NO_ROW or int(linked.graph.blocks.addr[block]) == NO_ADDR:
        return 0
    return int(linked.graph.blocks.addr[block])
