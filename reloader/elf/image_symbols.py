"""Symbol tables of an executable or shared library as columns."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from reloader.elf.dtypes import SHDR, SYM
from reloader.elf.dynamic import symbol_names
from reloader.elf.image_file import ImageFile, records
from reloader.errors.baseline import MalformedImageError
from reloader.ids import U8, U16, U64

SHT_SYMTAB, STT_TLS = 2, 6
SHN_LORESERVE = 0xFF00


@dataclass(frozen=True, slots=True, eq=False)
class ImageSymbols:
    """(n,) columns of a symbol table of the image."""

    name: list[bytes]  # of .symtab: without `@VERSION`
    addr: U64  # where it is; of a thread-local variable its offset from the thread pointer
    size: U64
    type: U8  # STT_*
    binding: U8  # STB_*
    section: U16  # st_shndx; 0: defined elsewhere

    def __len__(self) -> int:
        """Return how many symbols there are."""
        return len(self.name)


@dataclass(frozen=True, slots=True)
class TlsSegment:
    """PT_TLS."""

    addr: int  # of the initial bytes in the image
    size: int  # p_memsz
    align: int

    def tpoff(self, offset: int) -> int:
        """Return the offset from the thread pointer of an offset in the segment.

        The executable's block ends at the thread pointer (TLS variant II).
        """
        return offset - -(-self.size // self.align) * self.align


def read_symtab(file: ImageFile, bias: int, tls: TlsSegment | None) -> ImageSymbols:
    """Read .symtab; without one, or without section headers, the image is stripped."""
    data, path = file.data, file.path
    count = int(file.header["e_shnum"])
    if not count or int(file.header["e_shentsize"]) != SHDR.itemsize:
        return symbol_columns(np.zeros(0, SYM), b"", bias, tls)
    sections = records(data, int(file.header["e_shoff"]), count, SHDR, path)
    for section in sections[sections["sh_type"] == SHT_SYMTAB]:
        link = int(section["sh_link"])
        if link >= count:
            text = f"the symbol table names section {link}, the file has {count}"
            raise MalformedImageError(path, text)
        rows = int(section["sh_size"]) // SYM.itemsize
        symbols = records(data, int(section["sh_offset"]), rows, SYM, path)
        start, size = int(sections[link]["sh_offset"]), int(sections[link]["sh_size"])
        return symbol_columns(symbols, data[start : start + size].tobytes(), bias, tls)
    return symbol_columns(np.zeros(0, SYM), b"", bias, tls)


def symbol_columns(
    symbols: NDArray[np.void], strings: bytes, bias: int, tls: TlsSegment | None
) -> ImageSymbols:
    """Return a table's symbols, addresses with the bias, thread-local ones as offsets."""
    info = symbols["st_info"].astype(np.uint8)
    kinds = info & np.uint8(15)
    section = symbols["st_shndx"].astype(np.uint16)
    placed = (section != 0) & (section < SHN_LORESERVE)  # SHN_ABS values do not move
    addr = symbols["st_value"].astype(np.uint64)
    addr = np.where(placed & (kinds != STT_TLS), addr + np.uint64(bias), addr)
    if tls is not None:
        start = np.uint64(tls.tpoff(0) & 0xFFFF_FFFF_FFFF_FFFF)
        addr = np.where(placed & (kinds == STT_TLS), addr + start, addr)
    return ImageSymbols(
        name=_bare(symbol_names(strings, symbols["st_name"])) if strings else [],
        addr=addr,
        size=symbols["st_size"].astype(np.uint64),
        type=kinds,
        binding=info >> np.uint8(4),
        section=section,
    )


def _bare(names: list[bytes]) -> list[bytes]:
    """Cut the version that GNU ld appends to the names of library symbols."""
    return [name.split(b"@", 1)[0] if b"@" in name else name for name in names]
