"""The first step of the road: objects -> a plan, placed, every byte final, none in reach.

What is taken here (memory, slots) is registered with the caller's undo, so a refusal by any
pass gives it back.
"""

from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial

from reloader.elf.object import ObjectFile
from reloader.ids import I64, NO_ADDR, NO_ROW, Generation, Region
from reloader.link.graph import LinkGraph
from reloader.link.passes.anew import Anew, anew_roots, place_anew
from reloader.link.passes.bind_data import DataReport, bind_data
from reloader.link.passes.match_old import match_old
from reloader.link.passes.moved import mark_users, moved_names
from reloader.link.passes.resolve import Lines
from reloader.link.passes.startup import plan_startup
from reloader.link.passes.thread_variables import pair_thread_locals
from reloader.link.pipeline import Linked, Setting, link_graph, read_graph
from reloader.live import host
from reloader.live.commit import assign_slots, plan_flips
from reloader.live.next_version import hold, next_versions
from reloader.live.plan import Plan
from reloader.live.program import Program
from reloader.live.switch import plan_entries
from reloader.live.target import Allocation
from reloader.live.thread_local import ThreadValue, ThreadValues, collect

IN_PLACE = Anew()  # what equals the live generation keeps its address


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
    graph, data = compare(program, objects, reinit, anew)
    live = program.live_versions(graph.objects)
    first_slot = len(program.table)
    undo.callback(give_slots_back, program, first_slot)
    arena = program.target.arena
    linked = link_graph(
        graph,
        Setting(
            arch=program.arch,
            live=live,
            source=program.index,
            arena=arena.span(),
            assign_slots=partial(assign_slots, program=program),
            allocate=partial(allocate, program, undo),
            lines=lines,
            take_thread_room=partial(take_thread_room, program, undo),
            roots=[*data.new_global_blocks, *anew_roots(graph, anew)],
            hooks=program.hooks,
        ),
    )
    flips = plan_flips(graph, program)
    redirects, redirected = plan_entries(program, flips)
    return Plan(
        graph=graph,
        data=data,
        placed=linked.placed,
        held=hold(graph, linked.placed, program.ledger, Generation(0), unwind_header(linked)),
        flips=flips,
        redirects=redirects,
        redirected=redirected,
        versions=next_versions(graph, program, Generation(0)),
        first_slot=first_slot,
        choices=linked.choices,
        threads=ThreadValues([ThreadValue(*pair) for pair in linked.thread_values]),
        host=program.host.prepare(host.Linked(graph, first_slot)),
    )


def compare(
    program: Program,
    objects: Sequence[ObjectFile],
    reinit: frozenset[str],
    anew: Anew = IN_PLACE,
) -> tuple[LinkGraph, DataReport]:
    """Return the graph with its change set, and what became of the variables.

    Live objects that use a constant which gets another place are linked again with the rest.
    """
    live = program.live_versions(objects)
    graph = read_graph(objects, live, program.arch, program.cache)
    program.host.isolate(graph)
    data = bind_data(graph, live, program.arch, reinit=reinit)
    pair_thread_locals(graph, live, data, reinit)
    # Variables that exist have their live address.
    match_old(graph, live, program.arch.kinds)
    # What equals the live generation keeps its address; symbols.changed is the change set.
    plan_startup(graph, live, data)
    moved = moved_names(graph, live) | place_anew(graph, anew)
    if not moved:
        return graph, data
    keys = {file.key for file in objects}
    users = [
        other.file
        for key, other in program.objects.items()
        if key not in keys and not moved.isdisjoint(other.file.symbol_names)
    ]
    if users:
        return compare(program, [*objects, *users], reinit, anew)
    mark_users(graph, moved)
    return graph, data


def allocate(program: Program, undo: ExitStack, region: Region, size: int) -> Allocation:
    """Take memory that is given back unless the transaction becomes live."""
    allocation = program.target.arena.allocate(region, size)
    undo.callback(give_back, program, allocation)
    return allocation


def give_back(program: Program, allocation: Allocation) -> None:
    """Free memory, unless the ledger has it meanwhile: then it waits for its proof."""
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
