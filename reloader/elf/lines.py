"""Which source line each byte of an object's code comes from.

A line program is a byte code whose instructions have to be read one after the other only to
find where each begins; everything else is cumulative sums. So the length that an instruction
would have is computed for every byte at once, the chain of real ones is followed, and the rows
come out as columns: a fifth of a second for the 260,000 rows of sqlite3.o, twenty times faster
than row by row, and some milliseconds for an ordinary object.
"""

from collections import OrderedDict
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, Final

import numpy as np

from reloader.elf.dwarf import DebugSections, Pointers, debug_sections
from reloader.elf.object import ObjectFile
from reloader.elf.scopes import BROKEN
from reloader.ids import I32, I64, U8, Bool

_KEPT: Final = 16  # objects whose lines stay in memory
_COPY, _ADVANCE_PC, _ADVANCE_LINE, _SET_FILE = 1, 2, 3, 4  # DW_LNS_*
_CONST_ADD_PC, _FIXED_ADVANCE_PC = 8, 9
_END_SEQUENCE, _SET_ADDRESS = 1, 2  # DW_LNE_*
_LONGEST_LEB: Final = 5  # bytes: 35 bits, more than a line or a distance needs
_SECTION: Final = 40  # bits of an offset in the sorting key


@dataclass(frozen=True, slots=True, eq=False)
class LineTable:
    """(r,) columns, sorted by section, then offset: where each line's code starts."""

    key: I64  # section << 40 | offset
    line: I32
    file: I32  # index in `files`
    end: Bool  # no line from here on
    files: list[str]  # paths as the compiler was given them, or absolute

    @staticmethod
    def of(obj: ObjectFile) -> "LineTable":
        """Return the line table of an object; empty if it has none or a damaged one."""
        found = _cache.get(obj.digest)
        if found is None:
            try:
                found = _read(debug_sections(obj))
            except BROKEN:
                found = _join([], [])
            _cache[obj.digest] = found
            while len(_cache) > _KEPT:
                _cache.popitem(last=False)
        return found

    def find(self, section: int, offset: int) -> str:
        """Return `file.c:41` for a byte of a section, "" if no line is known."""
        path, line = self.source(section, offset)
        return f"{PurePosixPath(path).name}:{line}" if path else ""

    def source(self, section: int, offset: int) -> tuple[str, int]:
        """Return (path, line) for a byte of a section, ("", 0) if no line is known."""
        place = (section << _SECTION) | offset
        row = int(np.searchsorted(self.key, place, side="right")) - 1
        if row < 0 or bool(self.end[row]) or int(self.key[row]) >> _SECTION != section:
            return "", 0
        file = int(self.file[row])
        return (self.files[file] if 0 <= file < len(self.files) else "", int(self.line[row]))


_cache: OrderedDict[str, LineTable] = OrderedDict()


@dataclass(frozen=True, slots=True, eq=False)
class _Rows:
    key: I64
    line: I64
    file: I64
    end: Bool


def _read(sections: DebugSections) -> LineTable:
    pointers = sections.pointers.get(".debug_line")
    if pointers is None or ".debug_info" not in sections.data:
        return _join([], [])
    info = sections.info()
    code = np.frombuffer(sections.data[".debug_line"], np.uint8)
    parts: list[_Rows] = []
    files: list[str] = []
    for unit in info.iter_CUs():
        program: Any = info.line_program_for_CU(unit)
        if program is None:
            continue
        rows = _run(code, program, pointers)
        # numbered from 1 before DWARF 5
        first = len(files) - (0 if int(program.header["version"]) >= 5 else 1)
        parts.append(_Rows(rows.key, rows.line, rows.file + first, rows.end))
        files += _paths(program, _folder(unit))
    return _join(parts, files)


def unit_files(obj: ObjectFile) -> list[list[str]]:
    """Return for each unit of an object the paths that its records' file numbers mean."""
    sections = debug_sections(obj)
    if ".debug_line" not in sections.data or ".debug_info" not in sections.data:
        return []
    info = sections.info()
    units: list[list[str]] = []
    for unit in info.iter_CUs():
        program: Any = info.line_program_for_CU(unit)
        paths = _paths(program, _folder(unit)) if program is not None else []
        modern = program is not None and int(program.header["version"]) >= 5
        units.append(paths if modern else ["", *paths])
    return units


def _join(parts: list[_Rows], files: list[str]) -> LineTable:
    def column(name: str, kind: Any) -> Any:  # noqa: ANN401  any column
        arrays: list[Any] = [getattr(part, name) for part in parts]
        empty: Any = np.zeros(0, kind)
        return np.concatenate([empty, *arrays])

    key, end = column("key", np.int64), column("end", np.bool_)
    # where one sequence ends another may begin: the end comes first
    order = np.lexsort((np.arange(len(key)), ~end, key))
    return LineTable(
        key=key[order],
        line=column("line", np.int64)[order].astype(np.int32),
        file=column("file", np.int64)[order].astype(np.int32),
        end=end[order],
        files=files,
    )


def _folder(unit: Any) -> str:  # noqa: ANN401  a CompileUnit
    """Return the folder a unit was compiled in."""
    attribute = unit.get_top_DIE().attributes.get("DW_AT_comp_dir")
    return attribute.value.decode("utf-8", "replace") if attribute is not None else ""


def _paths(program: Any, folder: str) -> list[str]:  # noqa: ANN401  a LineProgram
    """Return the paths of a unit's source files."""
    header = program.header
    modern = int(header["version"]) >= 5
    folders = [item.decode("utf-8", "replace") for item in _folders(header)]
    paths: list[str] = []
    for entry in header["file_entry"]:
        index = int(entry["dir_index"]) - (0 if modern else 1)
        inside = folders[index] if 0 <= index < len(folders) else folder
        path = PurePosixPath(folder) / inside / entry["name"].decode("utf-8", "replace")
        paths.append(str(path))
    return paths


def _folders(header: Any) -> list[bytes]:  # noqa: ANN401  a Container
    return list(header["include_directory"])


def _run(code: U8, program: Any, pointers: Pointers) -> _Rows:  # noqa: ANN401  a LineProgram
    """Return the rows of one line program."""
    header = program.header
    base = int(program.program_start_offset)
    # zeros behind the end: a cut-off instruction reads them instead of failing
    body = np.append(code[base : int(program.program_end_offset)], np.zeros(16, np.uint8))
    size = len(body) - 16
    starts = _instructions(body, size, header)
    opcode = body[starts].astype(np.int64)
    first_special = int(header["opcode_base"])
    special = opcode >= first_special
    adjusted = opcode - first_special
    span, unit = int(header["line_range"]), int(header["minimum_instruction_length"])
    unsigned, signed = _lebs(body, starts + 1)
    fixed = body[starts + 1].astype(np.int64) | body[starts + 2].astype(np.int64) << 8
    advance = np.where(special, adjusted // span, 0)
    advance = np.where(opcode == _ADVANCE_PC, unsigned, advance)
    advance = np.where(opcode == _CONST_ADD_PC, (255 - first_special) // span, advance) * unit
    advance = np.where(opcode == _FIXED_ADVANCE_PC, fixed, advance)
    step = np.where(special, int(header["line_base"]) + adjusted % span, 0)
    step = np.where(opcode == _ADVANCE_LINE, signed, step)

    extended = opcode == 0
    kind = np.where(extended, body[_after_leb(body)[starts + 1]], 0)
    end = extended & (kind == _END_SEQUENCE)
    index = np.arange(len(starts))
    # the last instruction of the sequence before this one
    before = np.append(0, np.maximum.accumulate(np.where(end, index + 1, 0))[:-1])
    lines = np.append(0, np.cumsum(step))
    line = 1 + lines[1:] - lines[before]
    file = _last(opcode == _SET_FILE, unsigned, before, default=1)
    section, addr = _addresses(
        extended & (kind == _SET_ADDRESS), starts, advance, body, base, pointers
    )

    emit = (special | (opcode == _COPY) | end) & (section >= 0)
    key = (section << _SECTION) | (addr & ((1 << _SECTION) - 1))
    return _Rows(key[emit], line[emit], file[emit], end[emit])


def _addresses(  # noqa: PLR0913, PLR0917  the state of a line program
    sets: Bool,
    starts: I64,
    advance: I64,
    body: U8,
    base: int,
    pointers: Pointers,
) -> tuple[I64, I64]:
    """Return the section and offset at each instruction; section -1: no address was set."""
    rows = np.flatnonzero(sets)
    at = _after_leb(body)[starts[rows] + 1] + 1 + base
    found = np.searchsorted(pointers.at, at)
    inside = np.minimum(found, max(len(pointers.at) - 1, 0))
    known = (pointers.at[inside] == at) if len(pointers.at) else np.zeros(len(at), np.bool_)
    section = np.full(len(starts), -1, np.int64)
    offset = np.zeros(len(starts), np.int64)
    section[rows[known]] = pointers.section[inside[known]]
    offset[rows[known]] = pointers.offset[inside[known]]
    last = np.maximum.accumulate(np.where(sets, np.arange(len(starts)), -1))
    moved = np.cumsum(advance)
    here = np.maximum(last, 0)
    return np.where(last >= 0, section[here], -1), offset[here] + moved - moved[here]


def _last(sets: Bool, value: I64, before: I64, *, default: int) -> I64:
    """Return what a register of the line program holds at each instruction."""
    last = np.maximum.accumulate(np.where(sets, np.arange(len(sets)), -1))
    return np.where(last >= before, value[np.maximum(last, 0)], default)


def _after_leb(body: U8) -> I64:
    """Return for every byte the offset after the LEB128 that starts there."""
    index = np.where(body < 0x80, np.arange(len(body)), len(body) - 1)
    return np.minimum.accumulate(index[::-1])[::-1] + 1


def _lebs(body: U8, at: I64) -> tuple[I64, I64]:
    """Return the LEB128 numbers at some offsets, read as unsigned and as signed."""
    value = np.zeros(len(at), np.int64)
    going = np.ones(len(at), np.bool_)
    bits = np.zeros(len(at), np.int64)
    for place in range(_LONGEST_LEB):
        byte = body[np.minimum(at + place, len(body) - 1)].astype(np.int64)
        value |= np.where(going, (byte & 0x7F) << (7 * place), 0)
        bits += np.where(going, 7, 0)
        going &= byte >= 0x80
    sign = np.int64(1) << (bits - 1)
    return value, (value ^ sign) - sign


def _instructions(body: U8, size: int, header: Any) -> I64:  # noqa: ANN401  a Container
    """Return the offsets at which instructions start."""
    first_special = int(header["opcode_base"])
    place = np.arange(len(body))
    after = _after_leb(body)
    following = place + 1
    counts = [0, *(int(count) for count in header["standard_opcode_lengths"])]
    for opcode in range(1, first_special):
        rows = np.flatnonzero(body == opcode)
        if opcode == _FIXED_ADVANCE_PC:
            following[rows] += 2
            continue
        for _ in range(counts[opcode] if opcode < len(counts) else 0):
            following[rows] = after[np.minimum(following[rows], len(body) - 1)]
    rows = np.flatnonzero(body == 0)
    length, _ = _lebs(body, rows + 1)
    following[rows] = after[np.minimum(rows + 1, len(body) - 1)] + np.minimum(length, size)
    chain = following.tolist()
    starts: list[int] = []
    at = 0
    while at < size:
        starts.append(at)
        at = chain[at]
    return np.array(starts, np.int64)
