"""What the original code consists of: owners of addresses, call sites, functions."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from reloader.arch.x86_64 import X86_64
from reloader.elf.object import COMMON
from reloader.ids import I32, U64
from reloader.live.match.evidence import NOWHERE, Evidence
from reloader.live.match.judge import function_rows
from reloader.live.match.place import Placing
from reloader.live.match.tables import SHF_EXECINSTR, STT_FUNC


class Owner(NamedTuple):
    """What an address of the original executable belongs to."""

    object: int  # row of Baseline.placements
    section: int  # index in the file, or elf.object.COMMON
    offset: int  # in the section; in the variable for COMMON


@dataclass(frozen=True, slots=True, eq=False)
class CallSites:
    """(c,) columns: relocated branch fields of the original code, sorted by address."""

    addr: U64  # of the 4-byte displacement
    target: U64
    object: I32  # row of Baseline.placements
    section: I32  # index in that file


@dataclass(frozen=True, slots=True, eq=False)
class Functions:
    """(f,) columns: the functions of all placed objects, sorted by address."""

    addr: U64
    size: U64  # as its symbol says; 0: not said
    next_addr: U64  # where the next function starts, or its section ends
    object: I32  # row of Baseline.placements
    symbol: I32  # index in that file's symbol table


def owned_ranges(placing: Placing, kept: list[int]) -> tuple[U64, U64, list[Owner]]:
    """Return the sorted ranges of sections and COMMON variables, with their owners."""
    tables = placing.tables
    starts, ends = list(placing.starts), [end for end, _ in placing.claims]
    owners = [
        Owner(kept[int(tables.object[section])], tables.index_of(section), 0)
        for _, section in placing.claims
    ]
    taken: set[int] = set()
    for symbol in tables.common_symbols().tolist():
        addr = int(placing.name_addr[tables.name[symbol]])
        if addr != NOWHERE and addr not in taken and placing.section_at(addr) == NOWHERE:
            taken.add(addr)  # the first object that has the name owns it
            starts.append(addr)
            ends.append(addr + int(tables.symbol_size[symbol]))
            owners.append(Owner(kept[int(tables.symbol_object[symbol])], COMMON, 0))
    order = np.argsort(np.array(starts, np.uint64), kind="stable")
    return (
        np.array(starts, np.uint64)[order],
        np.array(ends, np.uint64)[order],
        [owners[row] for row in order.tolist()],
    )


def call_sites(placing: Placing, found: Evidence, rows: I32) -> CallSites:
    """Return every relocated branch of the placed code, as linked."""
    tables, image = placing.tables, placing.image
    section = tables.relocation_section[found.relocation]
    kind = tables.relocation_kind[found.relocation]
    near = (tables.flags[section] & SHF_EXECINSTR) != 0
    near &= (tables.kinds["width"][kind] == 4) & tables.kinds["pc"][kind]
    field = found.field - image.low
    near &= X86_64().is_branch(image.memory, field)
    section, field = section[near], field[near]
    words = image.memory[field[:, None] + np.arange(4)].reshape(-1).view("<i4")
    order = np.argsort(field, kind="stable")
    owner = tables.object[section]
    target = field + image.low + 4 + words
    return CallSites(
        (field + image.low)[order].view(np.uint64),
        target[order].view(np.uint64),
        rows[owner[order]],
        (section - tables.first_section[owner])[order].astype(np.int32),
    )


def original_functions(placing: Placing, rows: I32) -> Functions:
    """Return the functions of all placed objects and where each may extend to."""
    tables = placing.tables
    symbol = function_rows(placing)
    section = tables.symbol_section[symbol]
    addr = placing.base[section] + tables.value[symbol]
    order = np.argsort(addr, kind="stable")
    symbol, section, addr = symbol[order], section[order], addr[order]
    known = placing.image.symtab
    others = known.addr[(known.type == STT_FUNC) & (known.section != 0)].view(np.int64)
    ends = placing.base[section] + tables.size[section]
    starts = np.unique(np.concatenate([addr, others, [np.iinfo(np.int64).max]]))
    following = starts[np.searchsorted(starts, addr, side="right")]
    owner = tables.symbol_object[symbol]
    return Functions(
        addr.view(np.uint64),
        tables.symbol_size[symbol].astype(np.uint64),
        np.minimum(following, ends).view(np.uint64),
        rows[owner],
        (symbol - tables.first_symbol[owner]).astype(np.int32),
    )
