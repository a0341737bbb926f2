"""Constructors: what an object new to the process runs before its code is reached.

They run on the agent's thread, in the order a linker would give them: by the priority in the
section's name, lowest first, then in the order of the objects. An object that has a live
version runs none: its variables are initialised already. One that throws undoes the load.

Destructors (`.fini_array`) are registered with the C library before: it calls them at exit, or
when the object is unloaded, after everything that the constructors have registered.

All of this happens in each process of a family.
"""

from contextlib import ExitStack, suppress
from dataclasses import replace
from functools import partial

import numpy as np

from reloader.errors.live import TargetGoneError
from reloader.errors.thread_local import ConstructorError, ThreadDestructorsError
from reloader.ids import NO_ROW, Addr, Generation, Region, SlotId
from reloader.link.graph import LinkGraph
from reloader.link.passes.libc_symbols import handle_rows
from reloader.link.passes.resolve import DSO_NAME
from reloader.live.agreement import conversions_of, convert
from reloader.live.in_each import Stage, in_each
from reloader.live.plan import Flips, Plan
from reloader.live.program import Key, Program
from reloader.live.target import Target
from stubs.table import SlotKey

_INIT, _FINI = b".init_array", b".fini_array"
_OLD_NAMES = {_INIT: b".ctors", _FINI: b".dtors"}
_LAST = 65536  # a section without a priority comes after all that have one
_NOBODY = (0, 2**64 - 1)  # what crtbegin puts into these tables


def run(program: Program, plan: Plan, generation: Generation, undo: ExitStack) -> None:
    """Call the constructors of every object of a written plan that the process does not know.

    Args:
        program: The process.
        plan: Its bytes are in the arena and its new stubs lead to them.
        generation: The one that is being made.
        undo: From the first call on, memory and slots are not simply given back.

    Raises:
        ConstructorError: One threw an exception.
    """
    last = sorted(pending(program, plan.graph, _FINI), key=lambda item: item[0], reverse=True)
    functions = sorted(pending(program, plan.graph, _INIT), key=lambda item: item[0])
    if not (functions or last or plan.data.startup or plan.migrations):
        return
    undo.callback(retain, program, plan, generation)
    handles = handle_rows(plan.graph)
    for handle in set(handles.values()) if functions or last else ():
        undo.callback(finalise, program, handle)
    # the C library calls the last registered first
    register = [(function, handles[owner]) for _, function, owner in reversed(last)]
    names = [(function, function_name(program, function)) for _, function, _ in functions]
    symbols = plan.graph.symbols
    names += [
        (int(symbols.addr[row]), symbols.name[row].decode("utf-8", "replace"))
        for row in plan.data.startup
    ]
    conversions = conversions_of(program, plan.graph, plan.migrations)
    at_exit = Addr(int(program.target.resolve([b"__cxa_atexit"])[0]))

    def initialise(process: Target) -> None:
        for function, handle in register:
            process.call(at_exit, function, 0, handle)
        for function, name in names:
            call_constructor(process, function, name)
        convert(process, conversions)

    afresh = partial(clear_data, plan)
    in_each(program.target, generation, Stage.INITIALISE, initialise, afresh)


def clear_data(plan: Plan, process: Target) -> None:
    """Let new variables of a process have their initial values again."""
    new = [item.allocation for item in plan.placed]
    process.discard([allocation for allocation in new if allocation.region == Region.DATA])


def choose(program: Program, plan: Plan) -> None:
    """Call the resolver of each IFUNC, and let its slot lead to the answer.

    A slot that leads somewhere already flips with the others.

    Raises:
        ConstructorError: One threw an exception.
    """
    flips, slots = plan.flips, program.target.arena.slots
    late: list[tuple[int, int, int]] = []
    for slot, resolver in plan.choices:
        chosen, thrown = program.target.call_catching(Addr(resolver))
        if thrown is not None:
            raise ConstructorError(program.slot_owners()[slot], thrown)
        if slots[slot]:
            late.append((slot, int(slots[slot]), chosen))
        else:
            slots[slot] = np.uint64(chosen)
    if late:
        slot, old, new = np.array(late, np.uint64).T
        rows = np.flatnonzero(np.isin(plan.graph.symbols.slot, slot))[: len(late)]
        plan.flips = Flips(
            np.concatenate([flips.slot, slot.astype(np.int32)]),
            np.concatenate([flips.old, old]),
            np.concatenate([flips.new, new]),
            np.concatenate([flips.symbol, rows.astype(np.int32)]),
        )


def call_constructor(process: Target, function: int, name: str) -> None:
    """Call one in one process.

    Raises:
        ConstructorError: It threw an exception.
    """
    _, thrown = process.call_catching(Addr(function))
    if thrown is not None:
        raise ConstructorError(name, thrown)


def retain(program: Program, plan: Plan, generation: Generation) -> None:
    """Keep what a failed attempt took: its constructors may have told somebody of it."""
    plan.retained = True
    program.ledger.add([replace(row, generation=generation) for row in plan.held])
    program.retained.update(range(plan.first_slot, len(program.table)))


def retain_registered(program: Program, plan: Plan, generation: Generation) -> None:
    """Keep what a failed attempt took if a language's runtime may still know of it."""
    if plan.host.left:
        retain(program, plan, generation)
        program.ledger.supersede(program.roots())


def pending(program: Program, graph: LinkGraph, name: bytes) -> list[tuple[int, int, int]]:
    """Return (priority, address, object) of each function to run, in block order."""
    blocks = graph.blocks
    found: list[tuple[int, int, int]] = []
    for block in np.flatnonzero(blocks.live & (blocks.section != NO_ROW)).tolist():
        owner = int(blocks.object[block])
        file = graph.objects[owner]
        section = file.section_names[int(blocks.section[block])]
        priority = priority_of(section, name)
        if priority is None or file.key in program.objects:
            continue
        data = graph.block_bytes(block)
        pointers: list[int] = data[: len(data) & ~7].view("<u8").tolist()
        if not section.startswith(name):  # `.ctors` is called from its end
            pointers.reverse()
        found += [(priority, pointer, owner) for pointer in pointers if pointer not in _NOBODY]
    return found


def priority_of(section: bytes, name: bytes) -> int | None:
    """Return the priority that a section's name says, None if it is no such table.

    As in ld's own script: what is no number comes after all numbers, before what has no
    priority. In tables of the old kind the highest number is called first.
    """
    known, _, rest = section[1:].partition(b".")
    if known not in {name[1:], _OLD_NAMES[name][1:]}:
        return None
    if not rest:
        return _LAST
    if not rest.isdigit():
        return _LAST - 1
    return int(rest) if section.startswith(name) else _LAST - 1 - int(rest)


def function_name(program: Program, addr: int) -> str:
    """Return the name of a function that has a stub."""
    names = program.slot_owners()
    arena = program.target.arena
    slot = (addr - arena.stub_addr(SlotId(0))) // program.arch.stub_size
    return names.get(slot, f"the constructor at {addr:#x}")


def finalise(program: Program, handle: int) -> None:
    """Have everything called, in each process, that was registered for an object's handle."""
    addr = int(program.target.resolve([b"__cxa_finalize"])[0])
    for process in program.target.members():
        with suppress(TargetGoneError):
            process.call_catching(Addr(addr), handle)


def handle_of(program: Program, key: Key) -> int | None:
    """Return the handle that the C library knows an object by, None if it has none."""
    slot = program.table.slot_of(SlotKey(*key, DSO_NAME))
    return None if slot is None else int(program.target.arena.stub_addr(SlotId(slot)))


def may_go(program: Program, key: Key, name: str) -> None:
    """Make sure that no thread will call into an object when it ends.

    Raises:
        ThreadDestructorsError: Some will.
    """
    handle = handle_of(program, key)
    waiting = program.target.thread_destructors(handle) if handle is not None else 0
    if waiting:
        raise ThreadDestructorsError(name, waiting)


def destroy(program: Program, key: Key) -> None:
    """Run the destructors of an object that is being unloaded."""
    handle = handle_of(program, key)
    if handle is not None:
        finalise(program, handle)
