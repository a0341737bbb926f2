"""A relocatable object's bytes -> ObjectFile; every index and offset is checked here once.

Nothing above this step checks an index of the file again. All checks are whole-column
comparisons, and nothing allocates more than a small multiple of the file: tables that overlap
to claim more are refused.
"""

from mmap import mmap

import numpy as np
from numpy.typing import NDArray

from reloader.elf.complete import is_complete
from reloader.elf.constants import EM_X86_64, SHT_NOBITS, SHT_NULL, SHT_STRTAB
from reloader.elf.fingerprint import Fingerprint
from reloader.elf.groups import read_groups
from reloader.elf.header import Header, read_header, section_table
from reloader.elf.names import read_names
from reloader.elf.object import ObjectFile
from reloader.elf.tables import (
    check_machine_code,
    read_relocations,
    read_symbols,
)
from reloader.errors.base import Place
from reloader.errors.objects import (
    AlignmentError,
    IndexRangeError,
    StringTableError,
    TruncatedError,
)
from reloader.ids import U8

__all__ = ["is_complete", "read_object", "snapshot"]


def snapshot(data: bytes | mmap | U8) -> U8:
    """Return the bytes as a read-only array that nobody changes behind us.

    A mapping of a file and a writable array are copied: the file may be written again while
    the reload goes on, and a truncated mapping would be a SIGBUS.
    """
    if isinstance(data, bytes):
        return np.frombuffer(data, np.uint8)
    if isinstance(data, np.ndarray) and not data.flags.writeable:
        return data
    return np.frombuffer(bytes(data), np.uint8)


def read_object(
    path: str,
    data: bytes | mmap | U8,
    member: str = "",
    *,
    machine: int = EM_X86_64,
    like: ObjectFile | None = None,
) -> ObjectFile:
    """Return an object as checked columns.

    Args:
        path: Absolute path of the file, for errors and as the object's identity.
        data: The whole object; copied if someone else could change it.
        member: The archive member's name, if it is one.
        machine: The processor it must be for.
        like: Another version of it. Names that it has already are shared with it, which is
            also what makes comparing them quick.

    Raises:
        ObjectError: One of its subclasses: what is wrong, and the numbers that disagree.
    """
    raw = snapshot(data)
    name = f"{path}({member})" if member else path
    header = read_header(raw, name, machine)
    fingerprint = Fingerprint(raw)
    sections = section_table(raw, name, header.section_offset, header.section_count)
    check_sections(raw, sections, name)
    section_names = read_section_names(raw, sections, header, name, like)
    symbols = read_symbols(raw, sections, section_names, name, like)
    check_machine_code(raw, sections, section_names, symbols.names, name)
    relocations, patched = read_relocations(raw, sections, section_names, symbols, name)
    groups, signatures = read_groups(raw, sections, symbols.names, name)
    return ObjectFile(
        path=path,
        member=member,
        fingerprint=fingerprint,
        data=raw,
        machine=header.machine,
        sections=sections,
        section_names=section_names,
        symbols=symbols.table,
        symbol_names=symbols.names,
        symbol_sections=symbols.sections,
        relocations=relocations,
        relocation_sections=patched,
        group_sections=groups,
        group_signatures=signatures,
    )


def check_sections(data: U8, sections: NDArray[np.void], name: str) -> None:
    """Prove that every section lies in the file and is aligned to a power of two.

    Raises:
        TruncatedError: A section lies past the end of the file.
        AlignmentError: An alignment is not a power of two.
    """
    start, size = sections["sh_offset"], sections["sh_size"]
    stored = (sections["sh_type"] != SHT_NULL) & (sections["sh_type"] != SHT_NOBITS)
    total = np.uint64(len(data))
    # written so that start + size cannot wrap
    past = stored & ((start > total) | (size > total - np.minimum(start, total)))
    for row in past.nonzero()[0][:1].tolist():
        end = int(start[row]) + int(size[row])
        raise TruncatedError(Place(name), f"section {row}", end, len(data))
    align = sections["sh_addralign"]
    odd = (align & (align - np.minimum(align, np.uint64(1)))) != 0
    odd[0] = False
    for row in odd.nonzero()[0][:1].tolist():
        raise AlignmentError(Place(f"{name} section {row}"), int(align[row]))


def read_section_names(
    data: U8,
    sections: NDArray[np.void],
    header: Header,
    name: str,
    like: ObjectFile | None = None,
) -> list[bytes]:
    """Return the name of every section, those of `like` if they are the same.

    Raises:
        IndexRangeError: The header names a section that is not there.
        StringTableError: That section is not a string table.
    """
    table = header.names_index
    if table >= len(sections):
        raise IndexRangeError(Place(name), "the ELF header", "section", table, len(sections))
    if int(sections["sh_type"][table]) != SHT_STRTAB:
        raise StringTableError(Place(name), "the section name table", "is missing")
    start, size = int(sections["sh_offset"][table]), int(sections["sh_size"][table])
    text = data[start : start + size]
    if like is not None and len(like.sections) == len(sections):
        same = np.array_equal(like.sections["sh_name"], sections["sh_name"])
        same = same and table == read_header(like.data, name, like.machine).names_index
        if same and np.array_equal(like.section_bytes(table), text):
            return like.section_names
    offsets = sections["sh_name"].astype(np.int64)
    return read_names(text, offsets, Place(name), "section", len(data))
