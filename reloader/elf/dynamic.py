"""What the dynamic section of an executable or shared library says.

Everything here is found through PT_DYNAMIC, as the dynamic loader finds it, so it works on
files without section headers. Addresses in this module are the file's own, without a load
bias.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray

from reloader.elf.dtypes import RELA, SYM
from reloader.ids import U8, U32, U64

DYN: Final = np.dtype([("d_tag", "<i8"), ("d_val", "<u8")])

RELR: Final = np.dtype([("r_word", "<u8")])

DT_NEEDED, DT_PLTRELSZ, DT_HASH, DT_STRTAB, DT_SYMTAB = 1, 2, 4, 5, 6
DT_RELA, DT_RELASZ, DT_STRSZ, DT_SONAME, DT_JMPREL = 7, 8, 10, 14, 23
DT_INIT_ARRAY, DT_FINI_ARRAY, DT_INIT_ARRAYSZ, DT_FINI_ARRAYSZ = 25, 26, 27, 28
DT_PREINIT_ARRAY, DT_PREINIT_ARRAYSZ = 32, 33
DT_RELRSZ, DT_RELR = 35, 36
DT_GNU_HASH, DT_FLAGS_1 = 0x6FFFFEF5, 0x6FFFFFFB
DF_1_PIE: Final = 0x08000000

# (address, size) -> the bytes there; raises MalformedImageError outside of the file's segments
ReadAt = Callable[[int, int], U8]


@dataclass(slots=True)
class Dynamic:
    """The dynamic section, read."""

    tags: dict[int, int] = field(default_factory=dict[int, int])  # the first of each tag
    needed: list[bytes] = field(default_factory=list[bytes])  # in link order
    # SYM, the null symbol included
    symbols: NDArray[np.void] = field(default_factory=lambda: np.zeros(0, SYM))
    strings: bytes = b""
    # every RELA entry of DT_RELA and DT_JMPREL
    relocations: NDArray[np.void] = field(default_factory=lambda: np.zeros(0, RELA))
    # addresses of words that get the load bias added in place
    relr: U64 = field(default_factory=lambda: np.zeros(0, np.uint64))

    def range_of(self, start_tag: int, size_tag: int) -> tuple[int, int]:
        """Return the address range that two tags name, (0, 0) without them."""
        start, size = self.tags.get(start_tag, 0), self.tags.get(size_tag, 0)
        return (start, start + size) if start and size else (0, 0)


def read_dynamic(content: U8, read: ReadAt) -> Dynamic:
    """Read what PT_DYNAMIC's bytes lead to."""
    entries = content[: len(content) // DYN.itemsize * DYN.itemsize].view(DYN)
    tags, values = entries["d_tag"].astype(np.int64), entries["d_val"].astype(np.uint64)
    last = np.flatnonzero(tags == 0)
    if len(last):
        tags, values = tags[: last[0]], values[: last[0]]
    found = Dynamic(dict(zip(tags[::-1].tolist(), values[::-1].tolist(), strict=True)))
    size = found.tags.get(DT_STRSZ, 0)
    if size:
        found.strings = read(found.tags.get(DT_STRTAB, 0), size).tobytes()
    found.needed = [name_at(found.strings, int(offset)) for offset in values[tags == DT_NEEDED]]
    found.relocations = np.concatenate(
        [
            _table(found, read, DT_RELA, DT_RELASZ, RELA),
            _table(found, read, DT_JMPREL, DT_PLTRELSZ, RELA),
        ]
    )
    found.symbols = _symbols(found, read)
    found.relr = _relr(_table(found, read, DT_RELR, DT_RELRSZ, RELR))
    return found


def name_at(strings: bytes, offset: int) -> bytes:
    """Return the NUL-terminated name at an offset of a string table, b"" outside of it."""
    end = strings.find(b"\0", offset)
    return strings[offset:end] if end >= 0 else b""


def _table(
    found: Dynamic, read: ReadAt, start: int, size: int, dtype: np.dtype[np.void]
) -> NDArray[np.void]:
    """Return the records of a table that two tags describe."""
    first, last = found.range_of(start, size)
    whole = (last - first) // dtype.itemsize * dtype.itemsize
    return read(first, whole).view(dtype) if whole else np.zeros(0, dtype)


def _symbols(found: Dynamic, read: ReadAt) -> NDArray[np.void]:
    """Return .dynsym, whose length only its hash table knows."""
    start = found.tags.get(DT_SYMTAB, 0)
    count = _hashed_count(found, read)
    if len(found.relocations):  # undefined symbols are not in a GNU hash table
        count = max(count, int(found.relocations["r_sym"].max()) + 1)
    return read(start, count * SYM.itemsize).view(SYM) if start and count else np.zeros(0, SYM)


def _hashed_count(found: Dynamic, read: ReadAt) -> int:
    if DT_HASH in found.tags:
        return int(read(found.tags[DT_HASH], 8).view("<u4")[1])
    if DT_GNU_HASH not in found.tags:
        return 0
    start = found.tags[DT_GNU_HASH]
    bucket_count, first, bloom_count, _ = (int(n) for n in read(start, 16).view("<u4"))
    buckets_addr = start + 16 + 8 * bloom_count
    buckets = read(buckets_addr, 4 * bucket_count).view("<u4")
    row = int(buckets.max()) if len(buckets) else 0
    if row < first:
        return first
    chain = buckets_addr + 4 * bucket_count
    # the last chain ends at the first entry with its lowest bit set
    while not int(read(chain + 4 * (row - first), 4).view("<u4")[0]) & 1:
        row += 1
    return row + 1


def _relr(words: NDArray[np.void]) -> U64:
    """Return the addresses that DT_RELR's bitmaps stand for (gABI, "RELR").

    An even word is an address; an odd one has a bit for each of the 63 words after the last.
    """
    entries = words["r_word"].astype(np.uint64)
    if not len(entries):
        return np.zeros(0, np.uint64)
    is_map = (entries & np.uint64(1)) == 1
    rows = np.arange(len(entries))
    owner = np.maximum.accumulate(np.where(is_map, 0, rows))
    # how far a bitmap's first word lies behind the address it belongs to
    base = entries[owner] + np.uint64(8) * (
        np.uint64(1) + np.uint64(63) * (rows - owner - 1).clip(0).astype(np.uint64)
    )
    bits = np.arange(1, 64, dtype=np.uint64)
    is_set = ((entries[is_map][:, None] >> bits) & np.uint64(1)) == 1
    addrs = base[is_map][:, None] + (bits - np.uint64(1)) * np.uint64(8)
    return np.sort(np.concatenate([entries[~is_map], addrs[is_set]]))


def symbol_names(strings: bytes, offsets: U32) -> list[bytes]:
    """Return the names at the offsets of a string table."""
    find = strings.find
    return [strings[i : find(b"\0", i)] for i in offsets.tolist()]
