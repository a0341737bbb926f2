"""What the redirector has to know around functions: neighbours, callers, who holds addresses.

Entry jumps need only the code near by. Calls are collected for the few functions whose entry
cannot take a jump: those with a relocation come from the baseline, those that the assembler
resolved itself from decoding the object's own code, those of objects that are not watched from
the executable's bytes.
"""

from collections.abc import Sequence

import capstone
import numpy as np

from reloader.ids import NO_ADDR, NO_ROW, U64, Bool
from reloader.link.graph import LinkGraph
from reloader.link.names import UNWIND_NAME, named_blocks
from reloader.link.passes.functions import branch_edges
from reloader.link.pipeline import read_graph
from reloader.live.baseline import Functions
from reloader.live.program import Program
from reloader.live.redirect import OriginalFunctions, Places
from reloader.live.unseen import Unseen

_NEAR = 1024  # bytes around a function that can hold its padding, or a branch into its entry
SHF_EXECINSTR = 4
FIELD = 4  # bytes of a branch's displacement that can reach a stub


def surroundings(program: Program, wanted: U64, stubs: U64) -> OriginalFunctions:
    """Return functions to be redirected, with the functions around them as context.

    Args:
        program: Its baseline knows the functions of all watched objects.
        wanted: (w,) entry addresses in the executable.
        stubs: (w,) where each is to lead.
    """
    known = program.baseline.functions()
    addr, first = np.unique(known.addr, return_index=True)
    near = nearby(addr, wanted)
    rows = first[near]
    starts = addr[near]
    stub_of = dict(zip(wanted.tolist(), stubs.tolist(), strict=True))
    ends = known.next_addr[rows]
    sizes = np.where(known.size[rows] == 0, ends - starts, known.size[rows])
    return OriginalFunctions(
        addr=starts,
        size=sizes.astype(np.uint64),
        name=[function_name(program, known, row) for row in rows.tolist()],
        stub_addr=np.array(
            [stub_of.get(start, NO_ADDR) for start in starts.tolist()], np.uint64
        ),
        next_addr=following(program, starts, ends),
        address_taken=np.ones(len(rows), np.bool_),
    )


def nearby(addr: U64, wanted: U64) -> Bool:
    """Return (f,) which sorted addresses are near one that is wanted."""
    spots = np.sort(wanted)
    at = np.searchsorted(spots, addr)
    after = spots[np.minimum(at, len(spots) - 1)].astype(np.int64)
    before = spots[np.maximum(at - 1, 0)].astype(np.int64)
    here = addr.astype(np.int64)
    return np.minimum(np.abs(after - here), np.abs(here - before)) <= _NEAR


def following(program: Program, starts: U64, ends: U64) -> U64:
    """Return where the next thing begins: padding behind a section's end belongs to nobody."""
    known = program.baseline.functions().addr
    others = program.image.symtab.addr[program.image.symtab.section != 0]
    every = np.unique(np.concatenate([known, others]))
    at = np.searchsorted(every, starts, side="right")
    after = every[np.minimum(at, len(every) - 1)]
    beyond = (at < len(every)) & (after >= ends)
    return np.where(beyond, np.minimum(after, ends + np.uint64(_NEAR)), ends).astype(np.uint64)


def function_name(program: Program, known: Functions, row: int) -> bytes:
    """Return a baseline function's name."""
    file = program.baseline.placements[int(known.object[row])].file
    return file.symbol_names[int(known.symbol[row])]


def with_callers(
    program: Program, functions: OriginalFunctions, names: Sequence[str]
) -> tuple[OriginalFunctions, Places]:
    """Return the functions with the calls of some, and whether their address may be held.

    Args:
        program: The process.
        functions: What `surroundings` returned.
        names: Those whose entry cannot be changed.
    """
    rows = [
        row
        for row, name in enumerate(functions.name)
        if name.decode("utf-8", "replace") in names
    ]
    taken = np.ones(len(functions.name), np.bool_)
    fields: list[int] = []
    owners: list[int] = []
    unseen = Unseen(program)
    for row in rows:
        calls, held = callers(program, int(functions.addr[row]), functions.name[row])
        others, elsewhere = unseen.references(int(functions.addr[row]))
        calls += others
        taken[row] = held or elsewhere
        fields += calls
        owners += [row] * len(calls)
    places = Places(np.array(fields, np.uint64), np.array(owners, np.int32))
    return (
        OriginalFunctions(
            functions.addr, functions.size, functions.name, functions.stub_addr,
            functions.next_addr, taken,
        ),
        places,
    )  # fmt: skip


def callers(program: Program, addr: int, name: bytes) -> tuple[list[int], bool]:
    """Return the fields of all direct calls of a function, and whether others refer to it."""
    sites = program.baseline.call_sites(np.array([addr], np.uint64)).addr.tolist()
    held = name in program.image.dynsym.name
    for row, placement in enumerate(program.baseline.placements):
        if (
            placement.symbol_addr == np.uint64(addr)
        ).any() or name in placement.file.symbol_names:
            live = program.baseline.live_object(row)
            graph = read_graph([live.file], [live], program.arch)
            held |= takes_address(program, graph, addr, name)
            for field, width in resolved_branches(program, row, addr):
                sites.append(field)
                held |= width != FIELD
    return sorted(set(sites)), held


def takes_address(program: Program, graph: LinkGraph, addr: int, name: bytes) -> bool:
    """Return whether an object refers to a function other than by a branch."""
    symbols, edges = graph.symbols, graph.edges
    meant = (symbols.addr == np.uint64(addr)) | np.array(
        [
            known == name and int(block) == NO_ROW
            for known, block in zip(symbols.name, symbols.block, strict=True)
        ],
        np.bool_,
    )
    unwind = named_blocks(graph, UNWIND_NAME)[edges.block]
    return bool((meant[edges.symbol] & ~branch_edges(graph, program.arch) & ~unwind).any())


def resolved_branches(program: Program, row: int, addr: int) -> list[tuple[int, int]]:
    """Return (address, bytes) of the branch fields to a function that have no relocation.

    The assembler resolved them itself. A short one, of a byte, cannot be sent anywhere else.
    """
    placement = program.baseline.placements[row]
    flags = placement.file.sections["sh_flags"]
    code = (flags & SHF_EXECINSTR) != 0
    decoder = capstone.Cs(*program.arch.capstone)
    found: list[tuple[int, int]] = []
    for section in np.flatnonzero(
        code & (placement.section_addr != np.uint64(NO_ADDR))
    ).tolist():
        start = int(placement.section_addr[section])
        size = int(placement.file.sections["sh_size"][section])
        data = program.image.bytes_at(start, size).tobytes()
        for at, length, mnemonic, operand in decoder.disasm_lite(data, start):
            if operand == f"{addr:#x}" and mnemonic.startswith(("j", "call")):
                width = FIELD if length > FIELD else 1
                found.append((at + length - width, width))
    return found
