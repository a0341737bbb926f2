"""The ELF header and where the section header table lies, checked against the file's size."""

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from reloader.elf.constants import ET_CORE, ET_DYN, ET_EXEC, ET_REL, SHN_XINDEX
from reloader.elf.dtypes import EHDR, SHDR
from reloader.errors.base import Place
from reloader.errors.objects import (
    EmptyFileError,
    EntrySizeError,
    ForeignObjectError,
    NotElfError,
    NotRelocatableError,
    SlimLtoError,
    TruncatedError,
)
from reloader.ids import U8

MAGIC: Final = b"\x7fELF"
# LLVM bitcode, bare and in its wrapper: what `clang -flto` writes as .o
BITCODE: Final = (b"BC\xc0\xde", b"\xde\xc0\x17\x0b")
ELFCLASS64: Final = 2
ELFDATA2LSB: Final = 1
BITS: Final = {1: "32", 2: "64"}
BYTE_ORDERS: Final = {1: "little-endian", 2: "big-endian"}
LINKED: Final = {ET_EXEC: "an executable", ET_DYN: "a shared object", ET_CORE: "a core dump"}


@dataclass(frozen=True, slots=True)
class Header:
    """What the rest of the reader needs of the ELF header, extensions of section 0 resolved."""

    machine: int
    section_offset: int
    section_count: int
    names_index: int  # of the section name string table


def check_format(data: U8, name: str) -> None:
    """Refuse what is not the start of an ELF file at all.

    Raises:
        EmptyFileError: No bytes.
        SlimLtoError: LLVM bitcode.
        NotElfError: Another magic number.
    """
    if not len(data):
        raise EmptyFileError(Place(name))
    start = data[:4].tobytes()
    if start in BITCODE:
        raise SlimLtoError(Place(name), "LLVM bitcode")
    if start != MAGIC[: len(start)]:
        raise NotElfError(Place(name), start)


def check_kind(data: U8, name: str, machine: int) -> None:
    """Refuse ELF files that are not relocatable objects of the wanted processor.

    Raises:
        TruncatedError: The file ends inside its ELF header.
        ForeignObjectError: Another byte order, word size or processor.
        NotRelocatableError: An executable, shared object or core dump.
    """
    if len(data) < EHDR.itemsize:
        raise TruncatedError(Place(name), "the ELF header", EHDR.itemsize, len(data))
    bits, order = int(data[4]), int(data[5])
    if order != ELFDATA2LSB:
        found = BYTE_ORDERS.get(order, f"unknown ({order})")
        raise ForeignObjectError(Place(name), "byte order", found, "little-endian")
    if bits != ELFCLASS64:
        found = BITS.get(bits, f"unknown ({bits})")
        raise ForeignObjectError(Place(name), "word size in bits", found, "64")
    header: Any = data[: EHDR.itemsize].view(EHDR)[0]
    if int(header["e_machine"]) != machine:
        found = str(int(header["e_machine"]))
        raise ForeignObjectError(Place(name), "processor (e_machine)", found, str(machine))
    if int(header["e_type"]) != ET_REL:
        kind = int(header["e_type"])
        raise NotRelocatableError(Place(name), LINKED.get(kind, f"a file of e_type {kind}"))


def read_header(data: U8, name: str, machine: int) -> Header:
    """Return the checked header of a relocatable object.

    Args:
        data: The whole file.
        name: The object as shown to people.
        machine: The e_machine that is wanted.

    Raises:
        ObjectError: See check_format and check_kind; or the section header table is not whole.
    """
    check_format(data, name)
    check_kind(data, name, machine)
    header: Any = data[: EHDR.itemsize].view(EHDR)[0]
    if int(header["e_shentsize"]) != SHDR.itemsize:
        found = int(header["e_shentsize"])
        raise EntrySizeError(Place(name), "a section header", found, SHDR.itemsize)
    start, count = int(header["e_shoff"]), int(header["e_shnum"])
    first = section_table(data, name, start, 1)
    # gABI chapter 4: counts and indices too large for the header stand in section 0
    if count == 0:
        count = int(first["sh_size"][0])
    names = int(header["e_shstrndx"])
    if names == SHN_XINDEX:
        names = int(first["sh_link"][0])
    section_table(data, name, start, count)
    return Header(machine, start, count, names)


def section_table(data: U8, name: str, start: int, count: int) -> NDArray[np.void]:
    """Return the (count,) section headers as a view of the file.

    Raises:
        TruncatedError: The table does not lie in the file.
    """
    end = start + count * SHDR.itemsize
    if start < EHDR.itemsize or count < 1 or end > len(data):
        raise TruncatedError(Place(name), "the section header table", end, len(data))
    return data[start:end].view(SHDR)
