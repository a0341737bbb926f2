"""Judgement: was the running program built from this object?

A placed section agrees byte for byte outside its relocated fields. The fields are judged too:
each must lead to where its symbol is, and each string or constant in a merged section must be
what stands at the address that the code uses. Otherwise an object whose edit only swapped two
callees, or changed a message, would pass for what runs.
"""

from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from reloader.ids import I64, Bool
from reloader.live.match.evidence import NOWHERE, Evidence
from reloader.live.match.merged import check_merged
from reloader.live.match.place import MISFIT, STT_GNU_IFUNC, Fault, Placing
from reloader.live.match.tables import (
    SHF_ALLOC,
    SHF_EXECINSTR,
    SHT_NOBITS,
    STB_LOCAL,
    STB_WEAK,
    STT_FUNC,
    STT_OBJECT,
)

SIZED = (STT_OBJECT, STT_FUNC)
_LTO = "link-time optimisation (LTO) rewrote its code: build the program without -flto"


class State(StrEnum):
    """How an object stands to the running program."""

    MATCHED = "matched"  # all of it that was linked is known
    PARTIAL = "partial"  # linked in, but some section that is used was not found
    ABSENT = "absent"  # not linked into the program
    DIFFERENT = "different"  # the program was not built from this file


@dataclass(frozen=True, slots=True)
class Verdict:
    """The state of one object, with the reason for every state but MATCHED."""

    state: State
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Problem:
    """One place where an object and the running program disagree."""

    section: int
    offset: int
    text: str


def judge(placing: Placing, found: Evidence) -> list[Verdict]:
    """Return the verdict on each object, given the fields of all placed sections."""
    problems: dict[int, list[Problem]] = {}
    for problem in [
        *_faults(placing),
        *_wrong_targets(placing, found),
        *_wrong_sizes(placing),
        *(Problem(*row) for row in check_merged(placing, found)),
    ]:
        problems.setdefault(int(placing.tables.object[problem.section]), []).append(problem)
    used = _used_sections(placing)
    return [
        _verdict(placing, row, problems.get(row, []), used)
        for row in range(len(placing.tables.objects))
    ]


def _verdict(placing: Placing, row: int, problems: list[Problem], used: Bool) -> Verdict:
    tables = placing.tables
    sections = np.arange(int(tables.first_section[row]), int(tables.first_section[row + 1]))
    if problems:
        first = min(problems, key=lambda problem: (problem.section, problem.offset))
        is_lto = any(
            name.startswith(b".gnu.lto_") for name in tables.objects[row].section_names
        )
        return Verdict(State.DIFFERENT, first.text + (f"; {_LTO}" if is_lto else ""))
    if not placing.placed_count[row]:
        return _unplaced(placing, row, sections)
    open_rows = sections[tables.wanted[sections] & (placing.base[sections] == NOWHERE)]
    whole = [section for section in open_rows.tolist() if _never_dropped(placing, section)]
    if whole:
        return Verdict(State.DIFFERENT, f"{tables.section_name(whole[0])} is not in it")
    missing = open_rows[used[open_rows]]
    if len(missing):
        names = ", ".join(tables.section_name(section) for section in missing[:4].tolist())
        return Verdict(State.PARTIAL, f"not found in the running program: {names}")
    return Verdict(State.MATCHED)


def _unplaced(placing: Placing, row: int, sections: I64) -> Verdict:
    """Return why nothing of an object has a place."""
    tables = placing.tables
    commons = tables.common_symbols()
    commons = commons[tables.symbol_object[commons] == row]
    if (placing.name_addr[tables.name[commons]] != NOWHERE).any():
        return Verdict(State.MATCHED)
    if not tables.wanted[sections].any():
        return Verdict(State.ABSENT, "it has nothing that is loaded")
    names = [name for name in tables.objects[row].section_names if b".gnu.lto_" in name]
    if names:
        return Verdict(State.DIFFERENT, f"not found: {_LTO}")
    holders = [
        placing.rivals[section] for section in sections.tolist() if section in placing.rivals
    ]
    if holders:
        other = tables.objects[int(tables.object[holders[0]])].name
        return Verdict(State.ABSENT, f"not linked in: the program has it from {other}")
    return Verdict(State.ABSENT, "nothing of it is in the running program")


def _never_dropped(placing: Placing, section: int) -> bool:
    """Return whether a missing section proves that the object is another.

    A linker drops what nothing refers to, which hits sections of single functions and
    variables. All of an object's code in one section goes only with the whole object.
    """
    tables = placing.tables
    return (
        bool(tables.flags[section] & SHF_EXECINSTR)
        and tables.section_name(section) == ".text"
        and section not in placing.rivals
    )


def _faults(placing: Placing) -> list[Problem]:
    """Return sections whose bytes are not where their symbols are.

    Where another object's code stands, that object defines the symbol: this one was not linked,
    or its definition lost.
    """
    tables = placing.tables
    problems: list[Problem] = []
    for fault in placing.faults.values():
        holder = placing.section_at(fault.base + int(tables.value[fault.symbol]))
        if holder == NOWHERE or tables.object[holder] == tables.object[fault.section]:
            text = _fault_text(placing, fault)
            problems.append(Problem(fault.section, max(fault.offset, 0), text))
        else:
            placing.rivals.setdefault(fault.section, holder)
    return problems


def _fault_text(placing: Placing, fault: Fault) -> str:
    tables = placing.tables
    name = tables.section_name(fault.section)
    if fault.offset == MISFIT:
        size = int(tables.size[fault.section])
        return (
            f"{name} of {size} bytes does not fit at {fault.base:#x}, where the program has it"
        )
    inside = symbol_around(placing, fault.section, fault.offset)
    where = f" ({inside})" if inside else ""
    what = "zeros" if tables.type[fault.section] == SHT_NOBITS else "bytes"
    addr = fault.base + fault.offset
    return f"{name}+{fault.offset:#x}{where} has other {what} than the program at {addr:#x}"


def symbol_around(placing: Placing, section: int, offset: int) -> str:
    """Return the name of the function or variable at an offset of a section."""
    tables = placing.tables
    rows = np.flatnonzero(
        (tables.symbol_section == section)
        & (tables.value <= offset)
        & (offset < tables.value + tables.symbol_size)
    )
    return placing.symbol_name(int(rows[0])) if len(rows) else ""


def _wrong_targets(placing: Placing, found: Evidence) -> list[Problem]:
    """Return fields that lead elsewhere than to where their symbol is."""
    tables = placing.tables
    symbol = tables.relocation_symbol[found.relocation]
    section, name = tables.symbol_section[symbol], tables.name[symbol]
    own = (tables.binding[symbol] == STB_LOCAL) & (section >= 0)
    base = np.where(own, placing.base[np.maximum(section, 0)], NOWHERE)
    expected = np.where(base != NOWHERE, base + tables.value[symbol], NOWHERE)
    named = name >= 0
    expected[named] = _true_addresses(placing)[name[named]]
    rows = np.flatnonzero((expected != NOWHERE) & (expected != found.target))
    first = {
        int(tables.object[tables.relocation_section[found.relocation[i]]]): i
        for i in rows[::-1]
    }
    problems: list[Problem] = []
    for row in first.values():
        relocation = int(found.relocation[row])
        where = int(tables.relocation_section[relocation])
        offset = int(tables.relocation_offset[relocation])
        label = placing.symbol_name(int(symbol[row]))
        text = (
            f"{tables.section_name(where)}+{offset:#x} refers to {label} at "
            f"{int(expected[row]):#x}, the program there to {int(found.target[row]):#x}"
        )
        problems.append(Problem(where, offset, text))
    return problems


def _wrong_sizes(placing: Placing) -> list[Problem]:
    """Return variables and functions that have another size in the executable's symbol table.

    A grown zero-filled array leaves no trace in any byte.
    """
    tables, known = placing.tables, placing.image.symtab
    named = np.flatnonzero((known.section != 0) & (known.size > 0))
    section = tables.symbol_section
    own = (section >= 0) & (tables.symbol_size > 0) & np.isin(tables.symbol_type, SIZED)
    rows = np.flatnonzero(own)
    rows = rows[placing.base[section[rows]] != NOWHERE]
    addr = placing.base[section[rows]] + tables.value[rows]
    spots = known.addr[named].view(np.int64)
    sizes = known.size[named].view(np.int64)
    present = np.isin(addr, spots)
    pairs = set(zip(spots.tolist(), sizes.tolist(), strict=True))
    problems: list[Problem] = []
    for row, place in zip(rows[present].tolist(), addr[present].tolist(), strict=True):
        size = int(tables.symbol_size[row])
        if (place, size) not in pairs:
            there = int(sizes[spots == place].max())
            name, where = placing.symbol_name(row), int(tables.value[row])
            text = f"{name} has {size} bytes, in the program {there} at {place:#x}"
            problems.append(Problem(int(section[row]), where, text))
    return problems


def _true_addresses(placing: Placing) -> I64:
    """Return (names,) the address of each name that is certain, else NOWHERE.

    Certain are the executable's symbols and strong definitions in placed sections. A
    `--wrap`ped name stands for another one; a name that only one object refers to may be one.
    """
    tables = placing.tables
    addr = np.where(placing.in_image, placing.name_addr, NOWHERE)
    section = tables.symbol_section
    strong = (section >= 0) & (tables.name >= 0) & (tables.binding != STB_WEAK)
    strong &= tables.symbol_type != STT_GNU_IFUNC
    rows = np.flatnonzero(strong)
    rows = rows[placing.base[section[rows]] != NOWHERE]
    rows = rows[~placing.in_image[tables.name[rows]]]
    addr[tables.name[rows]] = placing.base[section[rows]] + tables.value[rows]
    for name, row in tables.name_row.items():
        if name.startswith(b"__wrap_"):
            addr[tables.name_row.get(name[7:], row)] = NOWHERE
    return addr


def _used_sections(placing: Placing) -> Bool:
    """Return (s,) sections that a placed section refers to."""
    tables = placing.tables
    placed = placing.base[tables.relocation_section] != NOWHERE
    symbol = tables.relocation_symbol[placed]
    section = tables.symbol_section[symbol]
    local = section[(section >= 0) & (tables.binding[symbol] == STB_LOCAL)]
    used = np.zeros(len(tables.size), np.bool_)
    used[local] = True
    is_used_name = np.zeros(len(tables.names) + 1, np.bool_)
    is_used_name[tables.name[symbol]] = True  # row -1, the locals, is the spare last one
    is_used_name[-1] = False
    definers = np.flatnonzero((tables.symbol_section >= 0) & (tables.binding != STB_WEAK))
    used[tables.symbol_section[definers[is_used_name[tables.name[definers]]]]] = True
    return used & ((tables.flags & SHF_ALLOC) != 0) & ~tables.comdat


def function_rows(placing: Placing) -> I64:
    """Return the symbol rows of functions in placed sections."""
    tables = placing.tables
    is_function = (tables.symbol_type == STT_FUNC) & (tables.symbol_section >= 0)
    rows = np.flatnonzero(is_function)
    return rows[placing.base[tables.symbol_section[rows]] != NOWHERE]
