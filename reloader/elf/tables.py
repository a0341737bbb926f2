"""An object's symbol table and relocation tables, gathered and checked."""

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from reloader.elf.constants import (
    SHF_ALLOC,
    SHF_COMPRESSED,
    SHN_ABS,
    SHN_COMMON,
    SHN_LORESERVE,
    SHN_X86_64_LCOMMON,
    SHN_XINDEX,
    SHT_CREL,
    SHT_LLVM_CREL,
    SHT_REL,
    SHT_RELA,
    SHT_STRTAB,
    SHT_SYMTAB,
    SHT_SYMTAB_SHNDX,
    STT_SECTION,
)
from reloader.elf.dtypes import RELA, SYM
from reloader.elf.gather import gather, one_of
from reloader.elf.names import read_names, same_names
from reloader.elf.object import ABSOLUTE, COMMON, UNDEFINED, ObjectFile
from reloader.errors.base import Place
from reloader.errors.objects import (
    EntrySizeError,
    IndexRangeError,
    OverlapError,
    RelocationFormatError,
    RelocationOffsetError,
    SlimLtoError,
    StringTableError,
    SymbolRangeError,
    SymbolTableError,
)
from reloader.ids import I32, U8, U64

WORD: Final = np.dtype("<u4")
CHDR_SIZE: Final = 24  # Elf64_Chdr: ch_type, ch_reserved, ch_size at 8, ch_addralign
FOREIGN_TABLES: Final = {SHT_REL: "SHT_REL", SHT_CREL: "SHT_CREL", SHT_LLVM_CREL: "SHT_CREL"}
LTO_PREFIX: Final = b".gnu.lto_"
LTO_HEADER: Final = b".gnu.lto_.lto."
MOST_SIZE: Final = 1 << 62  # bytes of a symbol that is in no section
SLIM_SYMBOL: Final = b"__gnu_lto_slim"


@dataclass(frozen=True, slots=True)
class SymbolTable:
    """The symbol table with its names, section indices beyond 16 bits resolved."""

    section: int  # the table's own section index, 0 if the object has none
    table: NDArray[np.void]  # (n,) SYM
    names: list[bytes]
    sections: I32  # (n,) as in ObjectFile.symbol_sections


def bytes_of(data: U8, sections: NDArray[np.void], row: int) -> U8:
    """Return the bytes of a section that is stored in the file."""
    start = int(sections["sh_offset"][row])
    return data[start : start + int(sections["sh_size"][row])]


def read_symbols(
    data: U8,
    sections: NDArray[np.void],
    section_names: list[bytes],
    name: str,
    like: ObjectFile | None = None,
) -> SymbolTable:
    """Return the symbol table; one null entry if the object has none.

    With the names of `like`, another version of the object, if they are the same.

    Raises:
        ObjectError: Its size, string table, a name or a section index is wrong.
    """
    tables = (sections["sh_type"] == SHT_SYMTAB).nonzero()[0]
    if not len(tables):
        undefined = np.full(1, UNDEFINED, np.int32)
        return SymbolTable(0, np.zeros(1, SYM), [b""], undefined)
    if len(tables) > 1:
        text = f"sections {tables[0]} and {tables[1]} are both symbol tables"
        raise SymbolTableError(Place(name), text)
    row = int(tables[0])
    size, entry = int(sections["sh_size"][row]), int(sections["sh_entsize"][row])
    if entry != SYM.itemsize or size % SYM.itemsize or not size:
        found = entry if entry != SYM.itemsize else size
        raise EntrySizeError(Place(name), "the symbol table", found, SYM.itemsize)
    table = bytes_of(data, sections, row).view(SYM)
    strings = int(sections["sh_link"][row])
    if strings >= len(sections) or int(sections["sh_type"][strings]) != SHT_STRTAB:
        raise StringTableError(Place(name), "the symbols' string table", "is missing")
    text = bytes_of(data, sections, strings)
    homes = symbol_sections(data, sections, row, table, name)
    if like is not None and section_names is like.section_names:
        known = like.symbols, like.symbol_sections, like.section_bytes(strings)
        if same_names(known, (table, homes, text)):
            return SymbolTable(row, table, like.symbol_names, homes)
    offsets = table["st_name"].astype(np.int64)
    names = read_names(text, offsets, Place(name), "symbol", len(data))
    name_section_symbols(table, homes, section_names, names)
    return SymbolTable(row, table, names, homes)


def symbol_sections(
    data: U8, sections: NDArray[np.void], table_row: int, table: NDArray[np.void], name: str
) -> I32:
    """Return each symbol's section index, or UNDEFINED, ABSOLUTE, COMMON.

    Raises:
        IndexRangeError: A symbol is in a section that does not exist.
        EntrySizeError: The table of extended indices is shorter than the symbol table.
    """
    index = table["st_shndx"].astype(np.int64)
    home = index.copy()
    home[index == 0] = UNDEFINED
    home[index == SHN_ABS] = ABSOLUTE
    home[(index == SHN_COMMON) | (index == SHN_X86_64_LCOMMON)] = COMMON
    extended = (index == SHN_XINDEX).nonzero()[0]
    if len(extended):
        wide = wide_indices(data, sections, table_row, len(table), name)
        home[extended] = wide[extended]
    known = (home < 0) | ((home < SHN_LORESERVE) & (index < SHN_LORESERVE))
    known[extended] = True
    bad = (~known | (home >= len(sections))).nonzero()[0]
    for row in bad[:1].tolist():
        found = int(home[row])
        raise IndexRangeError(Place(name), f"symbol {row}", "section", found, len(sections))
    require_inside(sections, table, home, name)
    return home.astype(np.int32)


def require_inside(
    sections: NDArray[np.void], table: NDArray[np.void], home: NDArray[np.int64], name: str
) -> None:
    """Check that symbols lie in their sections: where they do not, code would be entered there.

    In an empty section a size means nothing: there is nothing to enter.

    Raises:
        SymbolRangeError: One does not.
    """
    room = np.append(sections["sh_size"], np.uint64(MOST_SIZE))[np.maximum(home, -1)]
    start, size = np.where(home < 0, np.uint64(0), table["st_value"]), table["st_size"]
    longer = (size > room - start) & (room > 0)
    for row in ((start > room) | longer).nonzero()[0][:1].tolist():
        end = int(start[row]) + int(size[row])
        raise SymbolRangeError(Place(name), row, end, int(room[row]))


def wide_indices(
    data: U8, sections: NDArray[np.void], table_row: int, count: int, name: str
) -> NDArray[np.uint32]:
    """Return the extended section indices (SHT_SYMTAB_SHNDX) of the symbol table.

    Raises:
        EntrySizeError: The table is missing or shorter than the symbol table.
    """
    mine = (sections["sh_type"] == SHT_SYMTAB_SHNDX) & (sections["sh_link"] == table_row)
    rows = mine.nonzero()[0]
    found = int(sections["sh_size"][int(rows[0])]) if len(rows) else 0
    if found < 4 * count:
        raise EntrySizeError(Place(name), "the extended section index table", found, 4 * count)
    return bytes_of(data, sections, int(rows[0]))[: 4 * count].view(WORD)


def name_section_symbols(
    table: NDArray[np.void], homes: I32, section_names: list[bytes], names: list[bytes]
) -> None:
    """Give each section symbol, which has no name of its own, its section's name."""
    rows = (((table["st_info"] & 15) == STT_SECTION) & (homes >= 0)).nonzero()[0]
    found = map(section_names.__getitem__, homes[rows].tolist())
    if len(rows) and int(rows[-1] - rows[0]) == len(rows) - 1:  # assemblers put them together
        names[int(rows[0]) : int(rows[-1]) + 1] = found
        return
    for row, section in zip(rows.tolist(), found, strict=True):
        names[row] = section


def read_relocations(
    data: U8,
    sections: NDArray[np.void],
    section_names: list[bytes],
    symbols: SymbolTable,
    name: str,
) -> tuple[NDArray[np.void], I32]:
    """Return (r,) RELA of every table, and the (r,) section each one patches.

    Raises:
        ObjectError: A table's form or size, or a relocation's offset or symbol, is wrong.
    """
    refuse_foreign_tables(sections, section_names, name)
    tables = (sections["sh_type"] == SHT_RELA).nonzero()[0]
    check_tables(data, sections, tables, symbols.section, name)
    sizes = sections["sh_size"][tables]
    rows = gather(data, sections["sh_offset"][tables], sizes, RELA)
    targets = sections["sh_info"][tables].astype(np.int32)
    counts = (sizes // np.uint64(RELA.itemsize)).astype(np.int64)
    patched = np.repeat(targets, counts)
    if not len(rows):
        return rows, patched
    bad = np.zeros(0, np.int64)
    if int(rows["r_sym"].max()) >= len(symbols.table):
        bad = (rows["r_sym"] >= len(symbols.table)).nonzero()[0]
    for row in bad[:1].tolist():
        place = place_of(rows, patched, row, section_names, name)
        found = int(rows["r_sym"][row])
        raise IndexRangeError(place, "a relocation", "symbol", found, len(symbols.table))
    size = patched_sizes(data, sections)
    full = counts > 0
    last = np.maximum.reduceat(rows["r_offset"], (np.cumsum(counts) - counts)[full])
    if bool((last < size[targets[full]]).all()):
        return rows, patched
    ends = size[patched]
    # only a marker (type 0 of every ABI) may stand at the very end
    past = (rows["r_offset"] > ends) | ((rows["r_offset"] == ends) & (rows["r_type"] != 0))
    for row in past.nonzero()[0][:1].tolist():
        place = place_of(rows, patched, row, section_names, name)
        raise RelocationOffsetError(place, int(ends[row]))
    return rows, patched


def patched_sizes(data: U8, sections: NDArray[np.void]) -> U64:
    """Return the (s,) bytes relocations may lie in: of a compressed section, uncompressed."""
    sizes = sections["sh_size"].astype(np.uint64)
    for row in (sections["sh_flags"] & SHF_COMPRESSED).nonzero()[0].tolist():
        header = bytes_of(data, sections, row)[:CHDR_SIZE]
        sizes[row] = int(header[8:16].view("<u8")[0]) if len(header) == CHDR_SIZE else 0
    return sizes


def place_of(
    rows: NDArray[np.void], patched: I32, row: int, section_names: list[bytes], name: str
) -> Place:
    """Return where a relocation stands."""
    section = section_names[int(patched[row])].decode(errors="backslashreplace")
    return Place(name, section, int(rows["r_offset"][row]))


def refuse_foreign_tables(
    sections: NDArray[np.void], section_names: list[bytes], name: str
) -> None:
    """Refuse other relocation forms, where they patch loaded bytes.

    clang writes `.rel.llvm.call-graph-profile` as SHT_REL on every processor: a hint for
    linkers about a section that is not loaded, and no reason to refuse.

    Raises:
        RelocationFormatError: SHT_REL or compact relocations of a loaded section.
    """
    foreign = one_of(sections["sh_type"], list(FOREIGN_TABLES))
    for row in foreign.nonzero()[0].tolist():
        target = int(sections["sh_info"][row])
        if target < len(sections) and not int(sections["sh_flags"][target]) & SHF_ALLOC:
            continue
        section = section_names[row].decode(errors="backslashreplace")
        found = FOREIGN_TABLES[int(sections["sh_type"][row])]
        raise RelocationFormatError(Place(name, section), found)


def check_tables(
    data: U8, sections: NDArray[np.void], tables: NDArray[np.intp], symtab: int, name: str
) -> None:
    """Prove that relocation tables have whole entries, a section to patch and one symbol table.

    Raises:
        ObjectError: The first table for which one of these does not hold.
    """
    # a column at a time: picking whole records costs ten times more
    size, entry = sections["sh_size"][tables], sections["sh_entsize"][tables]
    info, link = sections["sh_info"][tables], sections["sh_link"][tables]
    odd = ((entry != RELA.itemsize) | (size % np.uint64(RELA.itemsize) != 0)).nonzero()[0]
    for row in odd[:1].tolist():
        found = int(entry[row]) if int(entry[row]) != RELA.itemsize else int(size[row])
        table = f"relocation table {int(tables[row])}"
        raise EntrySizeError(Place(name), table, found, RELA.itemsize)
    lost = (info >= len(sections)).nonzero()[0]
    for row in lost[:1].tolist():
        found = int(info[row])
        owner = f"relocation table {int(tables[row])}"
        raise IndexRangeError(Place(name), owner, "section", found, len(sections))
    other = ((link != symtab) & (size > 0)).nonzero()[0]
    for row in other[:1].tolist():
        found = int(link[row])
        text = f"relocation table {int(tables[row])} uses section {found} as its symbol table"
        raise SymbolTableError(Place(name), f"{text}, the object's is section {symtab}")
    total = sum(size.tolist())
    if total > len(data):
        raise OverlapError(Place(name), "the relocation tables", total, len(data))


def check_machine_code(
    data: U8,
    sections: NDArray[np.void],
    section_names: list[bytes],
    symbol_names: list[bytes],
    name: str,
) -> None:
    """Refuse an object that holds only a compiler's intermediate code.

    gcc 10 and later mark it in the fifth byte of `.gnu.lto_.lto.*` (struct lto_section in
    lto-streamer.h), earlier ones by a COMMON symbol.

    Raises:
        SlimLtoError: There is nothing to load in it.
    """
    if LTO_PREFIX not in b"\n".join(section_names):
        return
    rows = [row for row, text in enumerate(section_names) if text.startswith(LTO_PREFIX)]
    slim = SLIM_SYMBOL in symbol_names
    for row in rows:
        if section_names[row].startswith(LTO_HEADER):
            body = bytes_of(data, sections, row)
            slim = slim or (len(body) > 4 and bool(body[4]))
    if slim:
        raise SlimLtoError(Place(name), "gcc's intermediate code (.gnu.lto_*)")
