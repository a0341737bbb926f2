"""Tables: all watched objects' sections, symbols and relocations, one table of each.

The baseline works on many objects at once; columns over all of them keep Python out of the
loops. Only what a linker places has relocations and content here: sections that are loaded,
have one place, and are not rewritten. `.eh_frame` is rewritten, notes are merged, SHF_MERGE
sections are mapped piece by piece.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from reloader.elf.object import COMMON, ObjectFile
from reloader.ids import I64, NO_ROW, U8, U64, Bool

SHT_PROGBITS, SHT_NOBITS, SHT_INIT_ARRAY, SHT_FINI_ARRAY, SHT_PREINIT_ARRAY = 1, 8, 14, 15, 16
SHF_WRITE, SHF_ALLOC, SHF_EXECINSTR, SHF_MERGE, SHF_STRINGS, SHF_TLS = 1, 2, 4, 16, 32, 1024
STB_LOCAL, STB_WEAK = 0, 2
STT_OBJECT, STT_FUNC, STT_TLS = 1, 2, 6
_PLACED: Final = (
    SHT_PROGBITS, SHT_NOBITS, SHT_INIT_ARRAY, SHT_FINI_ARRAY, SHT_PREINIT_ARRAY,
)  # fmt: skip
REWRITTEN: Final = (b".eh_frame", b".eh_frame_hdr")


@dataclass(slots=True)
class Tables:
    """Columns over all objects: a "row" is one of the common table, an "index" the file's."""

    objects: Sequence[ObjectFile]
    kinds: NDArray[np.void]  # KIND
    # (o + 1,) rows of an object: first_section[i] : first_section[i + 1]
    first_section: I64
    first_symbol: I64

    object: I64  # (s,) of each section
    type: I64
    flags: I64
    size: I64
    align: I64
    wanted: Bool  # has one place that the baseline looks for
    merge: Bool
    comdat: Bool  # in a group: several objects have it, one copy was linked
    start: I64  # of its bytes in content, or NO_ROW
    content: U8  # bytes of wanted and merged sections
    masked: Bool  # (len(content),) a linker writes or may rewrite this byte
    telling: I64  # (s,) bytes of a section that are neither masked nor zero

    symbol_object: I64  # (n,)
    symbol_section: I64  # section row, or elf.object's UNDEFINED, ABSOLUTE, COMMON
    value: I64
    symbol_size: I64
    binding: U8
    symbol_type: U8
    name: I64  # row of `names` of a global or weak symbol, else NO_ROW
    names: list[bytes]
    name_row: dict[bytes, int]

    relocation_section: I64  # (r,) section row, ascending; only of wanted sections
    relocation_offset: I64
    relocation_kind: I64  # row of kinds
    relocation_symbol: I64  # symbol row
    relocation_addend: I64
    first_relocation: I64  # (s + 1,)

    def relocations_of(self, sections: I64) -> I64:
        """Return the relocation rows of some sections."""
        return spans(self.first_relocation[sections], self.first_relocation[sections + 1])

    def index_of(self, section: int) -> int:
        """Return the section index in its file."""
        return section - int(self.first_section[int(self.object[section])])

    def section_name(self, section: int) -> str:
        """Return a section's name for people."""
        file = self.objects[int(self.object[section])]
        return file.section_names[self.index_of(section)].decode("utf-8", "replace")

    def common_symbols(self) -> I64:
        """Return the rows of COMMON symbols."""
        return np.flatnonzero(self.symbol_section == COMMON)


def spans(starts: I64, ends: I64) -> I64:
    """Return all integers of several ranges, one range after the other."""
    sizes = np.maximum(ends - starts, 0)
    skipped = np.cumsum(sizes) - sizes
    return np.arange(int(sizes.sum())) + np.repeat(starts - skipped, sizes)


def build_tables(objects: Sequence[ObjectFile], kinds: NDArray[np.void]) -> Tables:
    """Concatenate the tables of all objects."""
    section_counts = [len(file.sections) for file in objects]
    first_section = _firsts(section_counts)
    first_symbol = _firsts([len(file.symbols) for file in objects])
    headers = np.concatenate([file.sections for file in objects])
    owner = np.repeat(np.arange(len(objects)), section_counts)
    flags, types = headers["sh_flags"].astype(np.int64), headers["sh_type"].astype(np.int64)
    loaded = ((flags & SHF_ALLOC) != 0) & (headers["sh_size"] > 0) & np.isin(types, _PLACED)
    names = np.array([name in REWRITTEN for file in objects for name in file.section_names])
    # linkers leave a SHF_MERGE section with relocations in one piece
    patched = np.zeros(len(headers), np.bool_)
    for first, file in zip(first_section, objects, strict=False):
        patched[file.relocation_sections + first] = True
    merge = loaded & ((flags & SHF_MERGE) != 0) & ~patched
    wanted = loaded & ~merge & ~names
    start, content = _content(objects, headers, owner, wanted | merge)
    relocations = _relocations(objects, kinds, first_section, first_symbol, wanted)
    symbols = _symbols(objects, first_section)
    tables = Tables(
        objects, kinds, first_section, first_symbol,
        owner, types, flags, headers["sh_size"].astype(np.int64),
        np.maximum(headers["sh_addralign"].astype(np.int64), 1), wanted, merge,
        np.concatenate([file.group_sections for file in objects]) != 0,
        start, content, np.zeros(len(content), np.bool_), np.zeros(len(owner), np.int64),
        *symbols, *relocations,
    )  # fmt: skip
    tables.masked = _masks(tables)
    tables.telling = _telling_counts(tables)
    return tables


def _firsts(counts: list[int]) -> I64:
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(counts, dtype=np.int64)])


def _content(
    objects: Sequence[ObjectFile], headers: NDArray[np.void], owner: I64, chosen: Bool
) -> tuple[I64, U8]:
    """Return where each section's bytes start, and the bytes."""
    start = np.full(len(headers), NO_ROW, np.int64)
    rows = np.flatnonzero(chosen & (headers["sh_type"] != SHT_NOBITS))
    offsets = headers["sh_offset"][rows].astype(np.int64)
    sizes = headers["sh_size"][rows].astype(np.int64)
    start[rows] = np.cumsum(sizes) - sizes
    parts: list[U8] = [
        objects[int(which)].data[int(first) : int(first + size)]
        for which, first, size in zip(
            owner[rows].tolist(), offsets.tolist(), sizes.tolist(), strict=True
        )
    ]
    return start, np.concatenate(parts) if parts else np.zeros(0, np.uint8)


def _symbols(
    objects: Sequence[ObjectFile], first_section: I64
) -> tuple[I64, I64, I64, I64, U8, U8, I64, list[bytes], dict[bytes, int]]:
    """Return the symbol columns in Tables' order."""
    counts = [len(file.symbols) for file in objects]
    owner = np.repeat(np.arange(len(objects)), counts)
    symbols = np.concatenate([file.symbols for file in objects])
    sections = np.concatenate([file.symbol_sections for file in objects]).astype(np.int64)
    sections = np.where(sections >= 0, sections + first_section[owner], sections)
    info = symbols["st_info"].astype(np.uint8)
    binding, kind = info >> np.uint8(4), info & np.uint8(15)
    all_names = [name for file in objects for name in file.symbol_names]
    name = np.full(len(symbols), NO_ROW, np.int64)
    rows: dict[bytes, int] = {}
    shared = np.flatnonzero(binding != STB_LOCAL)
    name[shared] = [rows.setdefault(all_names[i], len(rows)) for i in shared.tolist()]
    value, size = symbols["st_value"].astype(np.int64), symbols["st_size"].astype(np.int64)
    return owner, sections, value, size, binding, kind, name, list(rows), rows


def _relocations(
    objects: Sequence[ObjectFile], kinds: NDArray[np.void], first_section: I64,
    first_symbol: I64, wanted: Bool,
) -> tuple[I64, I64, I64, I64, I64, I64]:  # fmt: skip
    """Return the relocation columns in Tables' order, debug sections left out."""
    parts: list[NDArray[np.void]] = []
    sections: list[I64] = []
    symbols: list[I64] = []
    for row, file in enumerate(objects):
        first = int(first_section[row])
        local = file.relocation_sections
        keep = np.flatnonzero(wanted[first + local])
        parts.append(file.relocations[keep])
        sections.append(local[keep].astype(np.int64) + first)
        symbols.append(parts[-1]["r_sym"].astype(np.int64) + int(first_symbol[row]))
    table, section = np.concatenate(parts), np.concatenate(sections)
    order = np.argsort(section, kind="stable")
    table, section = table[order], section[order]
    rows = np.full(int(kinds["number"].max()) + 2, NO_ROW, np.int64)
    rows[kinds["number"]] = np.arange(len(kinds))
    kind = rows[np.minimum(table["r_type"].astype(np.int64), len(rows) - 1)]
    return (
        section, table["r_offset"].astype(np.int64), kind, np.concatenate(symbols)[order],
        table["r_addend"].astype(np.int64),
        np.searchsorted(section, np.arange(len(wanted) + 1)).astype(np.int64),
    )  # fmt: skip


def _telling_counts(tables: Tables) -> I64:
    telling = (tables.content != 0) & ~tables.masked
    total = np.concatenate([np.zeros(1, np.int64), np.cumsum(telling, dtype=np.int64)])
    start = np.maximum(tables.start, 0)
    end = np.where(tables.start >= 0, start + tables.size, start)
    return total[end] - total[start]


def _masks(tables: Tables) -> Bool:
    """Mark every byte that linking may have changed."""
    masked = np.zeros(len(tables.content), np.bool_)
    section, kind = tables.relocation_section, tables.relocation_kind
    start = tables.start[section]
    known = np.flatnonzero((start >= 0) & (kind >= 0))
    section, kind, start = section[known], kind[known], start[known]
    field = tables.relocation_offset[known]
    first = np.maximum(field + tables.kinds["mask_before"][kind].astype(np.int64), 0)
    last = field + tables.kinds["mask_after"][kind].astype(np.int64)
    last = np.minimum(last, tables.size[section])
    masked[spans(start + first, start + last)] = True
    return masked


def addresses(values: I64) -> U64:
    """Return signed bookkeeping addresses as the target's."""
    return values.astype(np.uint64)
