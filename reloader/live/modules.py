"""The shared libraries of a running process, read from its memory.

So it works when files are deleted or in another mount namespace.

Two questions are asked: where is `dlopen`, and which code must a thread not be in when we
borrow it.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from reloader.elf.dtypes import EHDR, PHDR, SYM
from reloader.errors.live import TargetMemoryError
from reloader.ids import U8, U32, U64
from reloader.live.target import Mapping

Read = Callable[[int, int], U8]

PT_LOAD, PT_DYNAMIC = 1, 2
DT_STRTAB, DT_SYMTAB, DT_HASH, DT_STRSZ, DT_GNU_HASH = 5, 6, 4, 10, 0x6FFFFEF5
AT_BASE: Final = 7

# functions of the C library that hold a lock which dlopen or pthread_create wants, too
LOCKING: Final = (
    b"pthread_create", b"pthread_join", b"pthread_exit", b"fork", b"vfork", b"_Fork", b"exit",
    b"quick_exit", b"__cxa_atexit", b"__cxa_finalize", b"__cxa_at_quick_exit", b"dlopen",
    b"dlclose", b"dlsym", b"dlvsym", b"dladdr", b"dlerror", b"dl_iterate_phdr", b"dlinfo",
    b"dlmopen", b"__register_atfork", b"setuid", b"setgid",
)  # fmt: skip
ALLOCATOR: Final = (
    b"malloc", b"free", b"calloc", b"realloc", b"memalign", b"aligned_alloc", b"valloc",
    b"pvalloc", b"posix_memalign", b"malloc_trim", b"malloc_usable_size", b"mallinfo",
    b"malloc_stats", b"mallopt", b"malloc_info", b"mallinfo2",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Module:
    """One loaded ELF file."""

    name: str
    start: int
    end: int
    bias: int
    symbols: dict[bytes, tuple[int, int]]  # defined dynamic symbols: address, size

    def address(self, name: bytes) -> int:
        """Return a symbol's address, or 0."""
        return self.symbols.get(name, (0, 0))[0]


def _dynamic(read: Read, base: int) -> tuple[int, dict[int, int]]:
    """Return load bias and dynamic table of the ELF file mapped at `base`."""
    header = read(base, EHDR.itemsize).view(EHDR)[0]
    count = int(header["e_phnum"])
    phdrs = read(base + int(header["e_phoff"]), count * PHDR.itemsize).view(PHDR)
    loads = phdrs[phdrs["p_type"] == PT_LOAD]
    bias = base - (int(loads["p_vaddr"][0]) - int(loads["p_offset"][0])) if loads.size else base
    table: dict[int, int] = {}
    for row in phdrs[phdrs["p_type"] == PT_DYNAMIC]:
        words = read(bias + int(row["p_vaddr"]), int(row["p_memsz"]) & ~15).view(np.uint64)
        table = {int(tag): int(value) for tag, value in words.reshape(-1, 2)[::-1] if tag}
    return bias, table


def _symbol_count(read: Read, at: Callable[[int], int], table: dict[int, int]) -> int:
    """Return the size of the dynamic symbol table: no field says it, the hash tables do."""
    if DT_HASH in table:
        return int(read(at(DT_HASH), 8).view(np.uint32)[1])
    if DT_GNU_HASH not in table:
        return 0
    buckets, first, bloom, _ = (int(w) for w in read(at(DT_GNU_HASH), 16).view(np.uint32))
    start = at(DT_GNU_HASH) + 16 + bloom * 8
    last = int(read(start, buckets * 4).view(np.uint32).max(initial=0))
    if last < first:
        return first
    chain = start + buckets * 4 - first * 4
    while not int(read(chain + last * 4, 4).view(np.uint32)[0]) & 1:
        last += 1
    return last + 1


def read_module(read: Read, name: str, start: int, end: int) -> Module:
    """Return a module with its dynamic symbols."""
    bias, table = _dynamic(read, start)

    def at(tag: int) -> int:  # the loader relocates these fields in place, except in the vdso
        return table[tag] + (bias if table[tag] < bias else 0)

    symbols: dict[bytes, tuple[int, int]] = {}
    if {DT_STRTAB, DT_SYMTAB, DT_STRSZ} <= table.keys():
        count = _symbol_count(read, at, table)
        rows = read(at(DT_SYMTAB), count * SYM.itemsize).view(SYM)
        strings = read(at(DT_STRTAB), table[DT_STRSZ]).tobytes()
        rows = rows[rows["st_shndx"] != 0]
        columns = (
            rows["st_name"].tolist(),
            rows["st_value"].tolist(),
            rows["st_size"].tolist(),
        )
        for offset, value, size in zip(*columns, strict=True):
            text = strings[offset : strings.index(b"\0", offset)]
            symbols.setdefault(text, (bias + value, size))
    return Module(name, start, end, bias, symbols)


def loaded_image(content: U8) -> U8:
    """Return an ELF file's bytes as they stand in memory when it is loaded at 0."""
    header = content[: EHDR.itemsize].view(EHDR)[0]
    start = int(header["e_phoff"])
    phdrs = content[start : start + int(header["e_phnum"]) * PHDR.itemsize].view(PHDR)
    loads = phdrs[phdrs["p_type"] == PT_LOAD]
    image = np.zeros(int((loads["p_vaddr"] + loads["p_memsz"]).max()), np.uint8)
    for row in loads:
        at, offset, size = int(row["p_vaddr"]), int(row["p_offset"]), int(row["p_filesz"])
        image[at : at + size] = content[offset : offset + size]
    return image


def read_modules(maps: Sequence[Mapping], read: Read) -> list[Module]:
    """Return every ELF file that is mapped from its first byte with code behind it."""
    found: list[Module] = []
    for i, row in enumerate(maps):
        if row.file_offset or not row.inode or not row.protection.startswith("r"):
            continue
        same = [m for m in maps[i:] if m.inode == row.inode and m.name == row.name]
        if not any("x" in m.protection for m in same):
            continue
        try:
            if read(row.start, 4).tobytes() == b"\x7fELF":
                found.append(read_module(read, row.name, row.start, same[-1].end))
        except (TargetMemoryError, ValueError, IndexError):
            continue  # a file that is mapped but not loaded: somebody's data
    return found


def loader_base(pid: int) -> int:
    """Return where the dynamic loader is mapped; 0 for a static program."""
    words = np.frombuffer(Path(f"/proc/{pid}/auxv").read_bytes(), np.uint64).reshape(-1, 2)
    rows = words[words[:, 0] == AT_BASE]
    return int(rows[0, 1]) if rows.size else 0


def find_libc(modules: Iterable[Module]) -> Module | None:
    """Return the C library: what exports both of these, whatever the file is called."""
    for module in modules:
        if b"__libc_start_main" in module.symbols and b"gnu_get_libc_version" in module.symbols:
            return module
    return None


def _allocator_range(module: Module) -> tuple[int, int]:
    """Return the code around malloc and its relatives, up to the next exported neighbours.

    Its static functions (_int_malloc, sysmalloc) stand between and before the exported ones.
    """
    inside = sorted(module.symbols[n][0] for n in ALLOCATOR if n in module.symbols)
    names = set(ALLOCATOR)
    others = sorted(
        (a, a + s)
        for n, (a, s) in module.symbols.items()
        if n not in names and s and b"alloc" not in n
    )
    below = max((end for addr, end in others if addr < inside[0]), default=module.start)
    above = min((addr for addr, _ in others if addr > inside[-1]), default=module.end)
    return below, above


def unsafe_ranges(modules: Sequence[Module], loader: int) -> U64:
    """Return (r, 2) code ranges in which a thread may hold a lock that dlopen wants."""
    ranges: list[tuple[int, int]] = []
    libc = find_libc(modules)
    for module in modules:
        if module.start == loader:
            ranges.append((module.start, module.end))
        elif b"malloc" in module.symbols:
            library = module is not modules[0] and module is not libc
            ranges.append((module.start, module.end) if library else _allocator_range(module))
    if libc:
        rows = [libc.symbols[n] for n in LOCKING if n in libc.symbols]
        ranges += [(addr, addr + max(size, 1)) for addr, size in rows]
    return np.array(sorted(ranges), np.uint64).reshape(-1, 2)


def in_ranges(ranges: U64, words: U64) -> U32:
    """Return the positions of the words that lie in one of the ranges."""
    hit = np.zeros(len(words), np.bool_)
    for start, end in ranges.tolist():
        hit |= (words - np.uint64(start)) < np.uint64(end - start)
    return np.flatnonzero(hit).astype(np.uint32)
