"""The passes of one transaction, in order, with the fact that holds after each.

Nothing here touches the target: `assign_slots` and `allocate` reserve room that no thread can
reach yet, and whoever gave them takes it back when a pass refuses.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from reloader.arch.base import Architecture
from reloader.elf.object import ObjectFile
from reloader.link.build import build_graph
from reloader.link.cache import Cache
from reloader.link.fixup import apply_fixups
from reloader.link.graph import LinkGraph
from reloader.link.hooks import Border, Hooks
from reloader.link.layout import Allocate, Placed, place
from reloader.link.passes.build_tables import build_tables
from reloader.link.passes.eh_frame import Unwind, cut_eh_frame, read_unwind, write_eh_frame_hdr
from reloader.link.passes.far_data import reach_far_data
from reloader.link.passes.far_functions import reach_far_functions
from reloader.link.passes.functions import bind_functions, mark_functions
from reloader.link.passes.ifunc import choices, split_ifuncs
from reloader.link.passes.libc_symbols import add_handles, add_shims
from reloader.link.passes.mark_live import mark_live
from reloader.link.passes.relax import relax_got
from reloader.link.passes.resolve import (
    Lines,
    SymbolSource,
    no_lines,
    prefer_existing,
    resolve,
    unify,
)
from reloader.link.passes.thread_local import refuse_new_thread_locals, relax_thread_locals
from reloader.link.passes.thread_variables import (
    TakeThreadRoom,
    initial_values,
    place_thread_locals,
)
from reloader.link.renew import renewed
from reloader.live.objects import LiveObject


@dataclass(slots=True)
class Setting:
    """What the linker has to know of the process and of the wish."""

    arch: Architecture
    live: Sequence[LiveObject | None]  # per object its live version, None: a first load
    source: SymbolSource  # names that the process has
    arena: tuple[int, int]  # first address and the one past the last of the arena
    assign_slots: Callable[
        [LinkGraph], None
    ]  # gives slots, stubs and entries to who wants them
    allocate: Allocate
    lines: Lines = no_lines
    roots: Sequence[int] = ()  # more blocks to place, whatever changed
    prune: bool = False  # of first loads, keep only what global symbols reach
    relax: bool = True  # turn GOT accesses into direct ones where the symbol is near
    take_thread_room: TakeThreadRoom | None = None  # None: new thread-locals are refused
    hooks: Hooks | None = None  # who is called at the borders between passes


@dataclass(slots=True)
class Linked:
    """A finished graph: `graph.content` holds the bytes as the target will see them."""

    graph: LinkGraph
    placed: list[Placed]
    unwind: Unwind  # `header` is the block of the transaction's .eh_frame_hdr, or NO_ROW
    # (offset from the thread pointer, initial bytes) of each new thread-local variable
    thread_values: list[tuple[int, bytes]]
    choices: list[tuple[int, int]]  # (slot, address of the resolver) of each IFUNC


def read_graph(
    objects: Sequence[ObjectFile],
    live: Sequence[LiveObject | None],
    arch: Architecture,
    cache: Cache | None = None,
) -> LinkGraph:
    """Return the graph that data is bound in and that is compared with the live generation."""
    build, renew = partial(built, arch=arch), partial(renewed, arch=arch)
    graph = cache.graph(objects, arch, build, renew) if cache else build(objects)
    bind_functions(graph, live)
    # Functions and thread-local variables that exist have their canonical address.
    return graph


def built(objects: Sequence[ObjectFile], arch: Architecture) -> LinkGraph:
    """Return what a graph is before anything is known of the process."""
    graph = build_graph(objects, arch)
    # Nothing below this line knows ELF.
    mark_functions(graph, arch)
    # Every way to take a function's address is an edge to its symbol.
    return graph


def mark_first_load(graph: LinkGraph) -> None:
    """Say that everything is new: what a comparison would find without a live version."""
    graph.symbols.changed = graph.symbols.reloadable.copy()


def link_graph(graph: LinkGraph, setting: Setting) -> Linked:
    """Link a graph whose data is bound and whose blocks and functions are compared.

    Raises:
        ReloaderError: Nothing was changed but what `assign_slots` and `allocate` took.
    """
    arch, lines, hooks = setting.arch, setting.lines, setting.hooks
    if hooks:
        hooks.at(Border.PRE_PRUNE, graph, arch)
    unify(graph)
    prefer_existing(graph, setting.source)
    # Each name of the transaction has one definition.
    unwind = read_unwind(graph)
    mark_live(graph, setting.live, arch, unwind, roots=setting.roots, prune=setting.prune)
    cut_eh_frame(graph, unwind)
    # blocks.live is what will be placed, no pass changes it after; only its edges
    # count from here.
    if hooks:
        hooks.at(Border.POST_PRUNE, graph, arch)
    relax_thread_locals(graph, arch, lines)
    add_shims(graph, arch)
    add_handles(graph, setting.live)
    resolve(graph, setting.source, lines)
    # No undefined symbol is used.
    pieces = place_thread_locals(graph, setting.take_thread_room)
    refuse_new_thread_locals(graph, arch, lines)
    # Every thread-local variable that is used has its offset from the thread pointer.
    reach_far_functions(graph, arch, setting.arena)
    reach_far_data(graph, arch, setting.arena)
    resolvers = split_ifuncs(graph)
    build_tables(graph, arch, setting.arena)
    # Sizes are final from here.
    setting.assign_slots(graph)
    placed = place(graph, setting.allocate)
    # Every symbol that a live edge uses has an address from here.
    if hooks:
        hooks.at(Border.POST_ALLOCATION, graph, arch)
    if setting.relax:
        relax_got(graph, arch)
    if hooks:
        hooks.at(Border.PRE_FIXUP, graph, arch)
    apply_fixups(graph, arch, lines)
    write_eh_frame_hdr(graph, unwind)
    if hooks:
        hooks.at(Border.POST_FIXUP, graph, arch)
    return Linked(
        graph, placed, unwind, initial_values(graph, pieces), choices(graph, resolvers)
    )
