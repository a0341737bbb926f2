"""All members of an archive as objects, read together.

Reading a small object costs some hundred calls of numpy whatever its size. Here the tables of
all members are gathered into one of each kind, and checked as `read` and `tables` check those
of one; what the objects get are slices. Only objects of the plain form are read so: for
anything else, damage first of all, the reader of one object is asked, which knows what to say.
"""

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from reloader.elf.constants import (
    ET_REL,
    SHF_COMPRESSED,
    SHN_ABS,
    SHN_COMMON,
    SHN_LORESERVE,
    SHN_X86_64_LCOMMON,
    SHT_GROUP,
    SHT_NOBITS,
    SHT_NULL,
    SHT_RELA,
    SHT_STRTAB,
    SHT_SYMTAB,
    STT_SECTION,
)
from reloader.elf.dtypes import EHDR, RELA, SHDR, SYM
from reloader.elf.fingerprint import Fingerprint
from reloader.elf.gather import gather, one_of
from reloader.elf.groups import read_groups
from reloader.elf.header import ELFCLASS64, ELFDATA2LSB, MAGIC
from reloader.elf.names import read_names
from reloader.elf.object import ABSOLUTE, COMMON, UNDEFINED, ObjectFile
from reloader.elf.read import read_object
from reloader.elf.tables import FOREIGN_TABLES, LTO_PREFIX
from reloader.errors.base import Place
from reloader.errors.objects import ObjectError
from reloader.ids import I32, I64, U8

_FEWEST: Final = 4  # members that are worth a batch


def read_batch(
    path: str, data: U8, members: list[tuple[str, int, int]], machine: int
) -> list[ObjectFile]:
    """Return members of an archive as objects.

    Where one is not of the plain form the others are still read together: halves are tried.

    Args:
        path: The archive.
        data: All of it.
        members: (name, offset, size) of each.
        machine: The processor that they must be for.

    Raises:
        ObjectError: One cannot be read as an object.
    """
    if len(members) < _FEWEST:
        return [
            read_object(path, data[start : start + size], name, machine=machine)
            for name, start, size in members
        ]
    try:
        batch = _Batch(path, data, members, machine)
        return batch.objects()
    except (_OtherFormError, ObjectError):
        half = len(members) // 2
        halves = members[:half], members[half:]
        return [file for part in halves for file in read_batch(path, data, part, machine)]


class _OtherFormError(Exception):
    """Some member has to be read by itself."""


def _need(*, plain: bool | np.bool_) -> None:
    if not plain:
        raise _OtherFormError


class _Batch:
    """The tables of all members, one after the other."""

    def __init__(
        self, path: str, data: U8, members: list[tuple[str, int, int]], machine: int
    ) -> None:
        self.path, self.data, self.members, self.machine = path, data, members, machine
        self.start = np.array([start for _, start, _ in members], np.int64)
        self.size = np.array([size for _, _, size in members], np.int64)
        self.read_sections()
        self.read_section_names()
        self.read_symbols()
        self.read_relocations()

    def read_sections(self) -> None:
        """Gather the section tables."""
        _need(plain=(self.size >= EHDR.itemsize).all())
        at = self.start[:, None] + np.arange(EHDR.itemsize)
        raw = self.data[at]
        ident = [*MAGIC, ELFCLASS64, ELFDATA2LSB]
        _need(plain=(raw[:, : len(ident)] == ident).all())
        header: Any = raw.view(EHDR).reshape(-1)
        _need(plain=(header["e_machine"] == self.machine).all())
        _need(plain=(header["e_type"] == ET_REL).all())
        _need(plain=(header["e_shentsize"] == SHDR.itemsize).all())
        self.count = header["e_shnum"].astype(np.int64)
        self.names_index = header["e_shstrndx"].astype(np.int64)
        _need(plain=((self.count > 0) & (self.names_index < self.count)).all())
        _need(plain=(header["e_shoff"] <= self.size.view(np.uint64)).all())
        table = header["e_shoff"].astype(np.int64)
        length = self.count * SHDR.itemsize
        _need(plain=((table >= EHDR.itemsize) & (table + length <= self.size)).all())
        self.sections: Any = self.gathered(self.start + table, length, SHDR)
        self.first = np.cumsum(self.count) - self.count
        self.owner = np.repeat(np.arange(len(self.count)), self.count)
        self.check_sections()

    def gathered(self, start: I64, length: I64, dtype: np.dtype[Any]) -> NDArray[Any]:
        """Return the records of some ranges of the archive."""
        return gather(self.data, start.view(np.uint64), length.view(np.uint64), dtype)

    def check_sections(self) -> None:
        """Prove what `read.check_sections` does."""
        sections = self.sections
        kind, start, size = (sections[name] for name in ("sh_type", "sh_offset", "sh_size"))
        stored = ~one_of(kind, (SHT_NULL, SHT_NOBITS))
        total = self.size.view(np.uint64)[self.owner]
        past = stored & ((start > total) | (size > total - np.minimum(start, total)))
        align = sections["sh_addralign"]
        odd = (align & (align - np.minimum(align, np.uint64(1)))) != 0
        odd[self.first] = False
        compressed = (sections["sh_flags"] & SHF_COMPRESSED) != 0
        _need(plain=not bool((past | odd | compressed).any()))
        _need(plain=not bool(one_of(kind, list(FOREIGN_TABLES)).any()))

    def strings(self, rows: I64, offsets: I64, owner: I64, what: str) -> list[bytes]:
        """Return names in the string tables of all members.

        Args:
            rows: (m,) the string table of each member, a row of all sections.
            offsets: (n,) of each name in its member's table.
            owner: (n,) that member.
            what: What the names are of.
        """
        headers = self.sections[rows]
        _need(plain=(headers["sh_type"] == SHT_STRTAB).all())
        size = headers["sh_size"].astype(np.int64)
        _need(plain=(offsets < size[owner]).all())
        start = self.start + headers["sh_offset"].astype(np.int64)
        _need(plain=not bool(self.data[start + size - 1].any()))
        ranges = zip(start.tolist(), (start + size).tolist(), strict=True)
        text = np.concatenate([self.data[first:last] for first, last in ranges])
        before = np.cumsum(size) - size
        place = Place(self.path)
        return read_names(text, before[owner] + offsets, place, what, len(self.data))

    def read_section_names(self) -> None:
        """Read the names of all sections."""
        offsets = self.sections["sh_name"].astype(np.int64)
        rows = self.first + self.names_index
        self.section_names = self.strings(rows, offsets, self.owner, "section")
        _need(plain=LTO_PREFIX not in b"\n".join(self.section_names))

    def read_symbols(self) -> None:
        """Gather the symbol tables; every member has one."""
        rows = np.flatnonzero(self.sections["sh_type"] == SHT_SYMTAB)
        _need(plain=np.array_equal(self.owner[rows], np.arange(len(self.count))))
        headers = self.sections[rows]
        size, link = headers["sh_size"].astype(np.int64), headers["sh_link"].astype(np.int64)
        _need(plain=(headers["sh_entsize"] == SYM.itemsize).all())
        _need(plain=((size > 0) & (size % SYM.itemsize == 0) & (link < self.count)).all())
        self.symtab = rows - self.first
        start = self.start + headers["sh_offset"].astype(np.int64)
        self.symbols: Any = self.gathered(start, size, SYM)
        self.symbol_count = size // SYM.itemsize
        owner = np.repeat(np.arange(len(rows)), self.symbol_count)
        offsets = self.symbols["st_name"].astype(np.int64)
        self.symbol_names = self.strings(self.first + link, offsets, owner, "symbol")
        self.homes = self.homes_of(owner)
        self.name_section_symbols(owner)

    def homes_of(self, owner: I64) -> I32:
        """Return each symbol's section index in its member, or a sentinel."""
        index = self.symbols["st_shndx"].astype(np.int64)
        home = index.copy()
        home[index == 0] = UNDEFINED
        home[index == SHN_ABS] = ABSOLUTE
        home[one_of(index, (SHN_COMMON, SHN_X86_64_LCOMMON))] = COMMON
        known = (home < 0) | ((home < SHN_LORESERVE) & (home < self.count[owner]))
        _need(plain=known.all())
        inside = home >= 0
        rows = self.first[owner[inside]] + home[inside]
        room, start = self.sections["sh_size"][rows], self.symbols["st_value"][inside]
        _need(plain=(start <= room).all())
        _need(plain=(self.symbols["st_size"][inside] <= room - start).all())
        return home.astype(np.int32)

    def name_section_symbols(self, owner: I64) -> None:
        """Give each section symbol its section's name."""
        rows = np.flatnonzero(
            ((self.symbols["st_info"] & 15) == STT_SECTION) & (self.homes >= 0)
        )
        sections = (self.first[owner[rows]] + self.homes[rows]).tolist()
        names, called = self.symbol_names, self.section_names
        for row, section in zip(rows.tolist(), sections, strict=True):
            names[row] = called[section]

    def read_relocations(self) -> None:
        """Gather the relocation tables."""
        rows = np.flatnonzero(self.sections["sh_type"] == SHT_RELA)
        headers, owner = self.sections[rows], self.owner[rows]
        size, info = headers["sh_size"].astype(np.int64), headers["sh_info"].astype(np.int64)
        _need(plain=(headers["sh_entsize"] == RELA.itemsize).all())
        _need(plain=((size % RELA.itemsize == 0) & (info < self.count[owner])).all())
        own = headers["sh_link"] == self.symtab[owner]
        _need(plain=(own | (size == 0)).all())
        total = np.bincount(owner, size, len(self.count))
        _need(plain=(total <= self.size).all())
        start = self.start[owner] + headers["sh_offset"].astype(np.int64)
        self.relocations: Any = self.gathered(start, size, RELA)
        count = size // RELA.itemsize
        self.patched = np.repeat(info, count).astype(np.int32)
        held = np.bincount(owner, count, len(self.count)).astype(np.int64)
        home = np.repeat(owner, count)
        _need(plain=(self.relocations["r_sym"] < self.symbol_count[home]).all())
        ends = self.sections["sh_size"][self.first[home] + self.patched]
        offset = self.relocations["r_offset"]
        marker = (offset == ends) & (self.relocations["r_type"] == 0)
        _need(plain=((offset < ends) | marker).all())
        self.relocation_count = held
        self.no_groups = np.zeros(len(self.sections), np.int32)
        self.grouped = np.zeros(len(self.count), np.bool_)
        self.grouped[self.owner[self.sections["sh_type"] == SHT_GROUP]] = True

    def objects(self) -> list[ObjectFile]:
        """Return the members."""
        columns = zip(
            self.members,
            _slices(self.count),
            _slices(self.symbol_count),
            _slices(self.relocation_count),
            self.grouped.tolist(),
            strict=True,
        )
        return [self.object(*column) for column in columns]

    def object(
        self, member: tuple[str, int, int], own: slice, named: slice, tables: slice,
        grouped: bool,  # noqa: FBT001  a column
    ) -> ObjectFile:  # fmt: skip
        """Return one member, given where its sections, symbols and relocations are."""
        name, start, size = member
        data = self.data[start : start + size]
        sections, names = self.sections[own], self.symbol_names[named]
        groups, signatures = self.no_groups[own], dict[int, bytes]()
        if grouped:
            groups, signatures = read_groups(data, sections, names, f"{self.path}({name})")
        return ObjectFile(
            path=self.path,
            member=name,
            fingerprint=Fingerprint(data),
            data=data,
            machine=self.machine,
            sections=sections,
            section_names=self.section_names[own],
            symbols=self.symbols[named],
            symbol_names=names,
            symbol_sections=self.homes[named],
            relocations=self.relocations[tables],
            relocation_sections=self.patched[tables],
            group_sections=groups,
            group_signatures=signatures,
        )


def _slices(counts: I64) -> list[slice]:
    """Return where the rows of each member are among those of all."""
    ends: list[int] = np.cumsum(counts).tolist()
    return [slice(first, last) for first, last in zip([0, *ends], ends, strict=False)]
