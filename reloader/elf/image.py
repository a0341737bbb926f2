"""Image: an executable or shared library as the process sees it before its first instruction.

Its bytes are those of the file with RELATIVE relocations applied, at link-time addresses plus the
load bias. The caller reads the file through /proc/PID/exe: the one at its path may be newer.
"""

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from reloader.elf.dtypes import EHDR, PHDR, SHDR, SYM
from reloader.elf.dynamic import (
    DF_1_PIE,
    DT_FINI_ARRAY,
    DT_FINI_ARRAYSZ,
    DT_FLAGS_1,
    DT_INIT_ARRAY,
    DT_INIT_ARRAYSZ,
    DT_PREINIT_ARRAY,
    DT_PREINIT_ARRAYSZ,
    DT_SONAME,
    Dynamic,
    read_dynamic,
    symbol_names,
)
from reloader.errors.baseline import MalformedImageError, WrongImageError
from reloader.ids import U8, U16, U64

PT_LOAD, PT_DYNAMIC, PT_INTERP, PT_NOTE, PT_TLS = 1, 2, 3, 4, 7
PF_X, PF_W = 1, 2
ET_EXEC, ET_DYN, EM_X86_64 = 2, 3, 62
SHT_SYMTAB, STT_TLS = 2, 6
# psABI numbers of the relocations that stay in a linked file
R_64, R_COPY, R_GLOB_DAT, R_JUMP_SLOT, R_RELATIVE = 1, 5, 6, 7, 8
_KINDS: Final = {
    1: "a relocatable object",
    2: "an executable",
    3: "a shared object",
    4: "a core dump",
}
_HOLE: Final = 64 << 20  # bytes that the segments may be apart beyond the file's own size


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


@dataclass(frozen=True, slots=True, eq=False)
class NamedAddrs:
    """(n,) columns: fields that the dynamic loader fills with the address of a name."""

    name: list[bytes]
    addr: U64  # of the field


@dataclass(frozen=True, slots=True, eq=False)
class Image:
    """An executable or shared library; addresses include the load bias."""

    path: str
    load_bias: int
    machine: int  # e_machine
    entry: int
    segments: NDArray[np.void]  # PHDR, of every type, p_vaddr without the bias
    low: int  # address of memory[0]
    memory: U8  # from the first to the last byte that the file has content for
    symtab: ImageSymbols  # empty: stripped
    dynsym: ImageSymbols
    build_id: str  # hex, "" without one
    needed: list[str]  # DT_NEEDED
    interpreter: str
    tls: TlsSegment | None
    is_pie: bool
    is_static: bool  # no dynamic loader is involved
    executable: U64  # (n, 2) start and end of each executable segment in memory
    writable: U64  # (n, 2) of each writable one, RELRO included
    init_arrays: U64  # (n, 2) of DT_INIT_ARRAY, DT_FINI_ARRAY, DT_PREINIT_ARRAY
    got: NamedAddrs  # JUMP_SLOT and GLOB_DAT entries
    copies: NamedAddrs  # library variables that were copied into .bss
    # sorted addresses of words that hold something only the dynamic loader knows
    dynamic_fields: U64

    def bytes_at(self, addr: int, size: int) -> U8:
        """Return what the file has at an address; shorter where its content ends."""
        start = addr - self.low
        if start < 0:
            return self.memory[:0]
        return self.memory[start : start + size]

    @property
    def high(self) -> int:
        """The first address behind the file's content."""
        return self.low + len(self.memory)


def read_image(data: U8, load_bias: int = 0, path: str = "") -> Image:
    """Read an executable or shared library.

    Args:
        data: (size,) the file.
        load_bias: Where the process has it, minus the addresses it was linked for.
        path: For error texts only.

    Raises:
        WrongImageError: Not an x86-64 executable or shared library.
        MalformedImageError: A table or segment lies outside of the file.
    """
    header = _header(data, path)
    segments = _records(data, int(header["e_phoff"]), int(header["e_phnum"]), PHDR, path)
    low, memory = _load(data, segments, path)

    def read(addr: int, size: int) -> U8:
        if addr < low or addr + size > low + len(memory):
            text = f"a dynamic table of {size} bytes at {addr:#x} lies outside of its segments"
            raise MalformedImageError(path, text)
        return memory[addr - low : addr - low + size]

    content = _first(data, segments, PT_DYNAMIC)
    dynamic = read_dynamic(content, read) if len(content) else Dynamic()
    return _build(data, load_bias, path, header, segments, low, memory, dynamic)


def _build(  # noqa: PLR0913  one call, all parts of one record
    data: U8, bias: int, path: str, header: Any, segments: NDArray[np.void], low: int,
    memory: U8, dynamic: Dynamic,
) -> Image:  # fmt: skip
    tls = _tls(segments, bias)
    got, copies, fields = _apply(dynamic, low, memory, bias, path)
    interpreter = _text(_first(data, segments, PT_INTERP))
    # a linker before DF_1_PIE: a library may have an interpreter too, but it has a name
    flagged = bool(dynamic.tags.get(DT_FLAGS_1, 0) & DF_1_PIE)
    unnamed = bool(interpreter) and DT_SONAME not in dynamic.tags
    is_pie = int(header["e_type"]) == ET_DYN and (flagged or unnamed)
    is_static = not interpreter and (is_pie or int(header["e_type"]) == ET_EXEC)
    arrays = [
        dynamic.range_of(DT_INIT_ARRAY, DT_INIT_ARRAYSZ),
        dynamic.range_of(DT_FINI_ARRAY, DT_FINI_ARRAYSZ),
        dynamic.range_of(DT_PREINIT_ARRAY, DT_PREINIT_ARRAYSZ),
    ]
    return Image(
        path=path,
        load_bias=bias,
        machine=int(header["e_machine"]),
        entry=int(header["e_entry"]) + bias,
        segments=segments,
        low=low + bias,
        memory=memory,
        symtab=_symtab(data, header, bias, tls, path),
        dynsym=_columns(dynamic.symbols, dynamic.strings, bias, tls),
        build_id=_build_id(data, segments),
        needed=[name.decode("utf-8", "replace") for name in dynamic.needed],
        interpreter=interpreter,
        tls=tls,
        is_pie=is_pie,
        is_static=is_static,
        executable=_ranges(segments, PF_X, bias),
        writable=_ranges(segments, PF_W, bias),
        init_arrays=np.array(arrays, np.uint64) + np.uint64(bias),
        got=got,
        copies=copies,
        dynamic_fields=fields,
    )


def _header(data: U8, path: str) -> Any:  # noqa: ANN401  a numpy record
    if len(data) < EHDR.itemsize:
        text = f"it has {len(data)} bytes, an ELF header has {EHDR.itemsize}"
        raise MalformedImageError(path, text)
    header: Any = data[: EHDR.itemsize].view(EHDR)[0]
    identification = bytes(header["e_ident"])
    if identification[:4] != b"\x7fELF":
        raise WrongImageError(path, "not an ELF file", "an executable or shared library")
    if identification[4:6] != b"\x02\x01":
        raise WrongImageError(path, "a 32-bit or big-endian ELF file", "64-bit little-endian")
    if int(header["e_type"]) not in (ET_EXEC, ET_DYN):
        found = _KINDS.get(int(header["e_type"]), f"an ELF file of type {header['e_type']}")
        raise WrongImageError(path, found, "an executable or shared library")
    if int(header["e_machine"]) != EM_X86_64:
        found = f"for machine {int(header['e_machine'])}"
        raise WrongImageError(path, found, f"x86-64 (machine {EM_X86_64})")
    if int(header["e_phentsize"]) != PHDR.itemsize:
        text = f"program headers of {int(header['e_phentsize'])} bytes, not {PHDR.itemsize}"
        raise MalformedImageError(path, text)
    return header


def _records(
    data: U8, offset: int, count: int, dtype: np.dtype[np.void], path: str
) -> NDArray[np.void]:
    """Return a table of the file as a view."""
    end = offset + count * dtype.itemsize
    if end > len(data):
        text = f"a table ends at byte {end}, the file at {len(data)}"
        raise MalformedImageError(path, text, offset)
    return data[offset:end].view(dtype)


def _load(data: U8, segments: NDArray[np.void], path: str) -> tuple[int, U8]:
    """Return the lowest address and the file's content from there on, holes as zeros."""
    loads = segments[(segments["p_type"] == PT_LOAD) & (segments["p_filesz"] > 0)]
    if not len(loads):
        raise MalformedImageError(path, "it has no segment to load")
    starts, sizes = loads["p_vaddr"].astype(object), loads["p_filesz"].astype(object)
    low, high = int(starts.min()), int((starts + sizes).max())
    if high - low > len(data) + _HOLE:
        text = f"its segments span {high - low} bytes, the file has {len(data)}"
        raise MalformedImageError(path, text)
    memory = np.zeros(high - low, np.uint8)
    for offset, start, size in zip(loads["p_offset"], starts, sizes, strict=True):
        content = data[int(offset) : int(offset) + size]
        if len(content) != size:
            text = f"a segment ends at byte {int(offset) + size}, the file at {len(data)}"
            raise MalformedImageError(path, text, int(offset))
        memory[start - low : start - low + size] = content
    return low, memory


def _apply(
    dynamic: Dynamic, low: int, memory: U8, bias: int, path: str
) -> tuple[NamedAddrs, NamedAddrs, U64]:
    """Write what RELATIVE relocations write; return GOT entries, copies, unknown fields."""
    rows = dynamic.relocations
    kinds = rows["r_type"]
    fields = rows["r_offset"].astype(np.uint64)
    relative = kinds == R_RELATIVE
    _store(memory, fields[relative], low, rows["r_addend"][relative] + np.int64(bias), path)
    if len(dynamic.relr):
        words = _words(memory, dynamic.relr, low, path)
        _store(memory, dynamic.relr, low, words.view(np.int64) + np.int64(bias), path)
    by_name = (kinds == R_GLOB_DAT) | (kinds == R_JUMP_SLOT)
    unknown = np.sort(fields[~relative & (kinds != R_COPY)] + np.uint64(bias))
    got = _named(dynamic, np.flatnonzero(by_name), bias)
    return got, _named(dynamic, np.flatnonzero(kinds == R_COPY), bias), unknown


def _named(dynamic: Dynamic, rows: NDArray[np.intp], bias: int) -> NamedAddrs:
    chosen = dynamic.relocations[rows]
    offsets = dynamic.symbols["st_name"][chosen["r_sym"]]
    addrs = chosen["r_offset"].astype(np.uint64) + np.uint64(bias)
    return NamedAddrs(symbol_names(dynamic.strings, offsets), addrs)


def _indices(memory: U8, fields: U64, low: int, path: str) -> NDArray[np.int64]:
    starts = fields.astype(np.int64) - low
    if len(starts) and (int(starts.min()) < 0 or int(starts.max()) + 8 > len(memory)):
        raise MalformedImageError(path, "a dynamic relocation lies outside of its segments")
    return starts[:, None] + np.arange(8)


def _store(memory: U8, fields: U64, low: int, values: NDArray[np.int64], path: str) -> None:
    memory[_indices(memory, fields, low, path)] = (
        values.astype("<i8").view(np.uint8).reshape(-1, 8)
    )


def _words(memory: U8, fields: U64, low: int, path: str) -> U64:
    return memory[_indices(memory, fields, low, path)].reshape(-1).view(np.uint64)


def _first(data: U8, segments: NDArray[np.void], kind: int) -> U8:
    """Return the content of the first segment of a type, empty without one."""
    for segment in segments[segments["p_type"] == kind]:
        offset, size = int(segment["p_offset"]), int(segment["p_filesz"])
        return data[offset : offset + size]
    return data[:0]


def _text(content: U8) -> str:
    return content.tobytes().split(b"\0")[0].decode("utf-8", "replace")


def _ranges(segments: NDArray[np.void], flag: int, bias: int) -> U64:
    chosen = segments[(segments["p_type"] == PT_LOAD) & ((segments["p_flags"] & flag) != 0)]
    starts = chosen["p_vaddr"].astype(np.uint64) + np.uint64(bias)
    return np.stack([starts, starts + chosen["p_memsz"].astype(np.uint64)], axis=1)


def _tls(segments: NDArray[np.void], bias: int) -> TlsSegment | None:
    for segment in segments[segments["p_type"] == PT_TLS]:
        align = max(1, int(segment["p_align"]))
        return TlsSegment(int(segment["p_vaddr"]) + bias, int(segment["p_memsz"]), align)
    return None


def _symtab(
    data: U8, header: Any, bias: int, tls: TlsSegment | None, path: str
) -> ImageSymbols:  # noqa: ANN401  a numpy record
    """Read .symtab; without one, or without section headers, the image is stripped."""
    count = int(header["e_shnum"])
    if not count or int(header["e_shentsize"]) != SHDR.itemsize:
        return _columns(np.zeros(0, SYM), b"", bias, tls)
    sections = _records(data, int(header["e_shoff"]), count, SHDR, path)
    for section in sections[sections["sh_type"] == SHT_SYMTAB]:
        link = int(section["sh_link"])
        if link >= count:
            text = f"the symbol table names section {link}, the file has {count}"
            raise MalformedImageError(path, text)
        rows = int(section["sh_size"]) // SYM.itemsize
        symbols = _records(data, int(section["sh_offset"]), rows, SYM, path)
        start, size = int(sections[link]["sh_offset"]), int(sections[link]["sh_size"])
        return _columns(symbols, data[start : start + size].tobytes(), bias, tls)
    return _columns(np.zeros(0, SYM), b"", bias, tls)


def _columns(
    symbols: NDArray[np.void], strings: bytes, bias: int, tls: TlsSegment | None
) -> ImageSymbols:
    info = symbols["st_info"].astype(np.uint8)
    kinds = info & np.uint8(15)
    section = symbols["st_shndx"].astype(np.uint16)
    placed = (section != 0) & (section < 0xFF00)  # SHN_ABS values do not move
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


def _build_id(data: U8, segments: NDArray[np.void]) -> str:
    """Return the descriptor of the NT_GNU_BUILD_ID note in hex."""
    for segment in segments[segments["p_type"] == PT_NOTE]:
        offset, size = int(segment["p_offset"]), int(segment["p_filesz"])
        content = data[offset : offset + size].tobytes()
        at = 0
        while at + 12 <= len(content):
            name_size, size, kind = np.frombuffer(content, "<u4", 3, at).tolist()
            start = at + 12 + (name_size + 3 & ~3)
            if kind == 3 and content[at + 12 : at + 16] == b"GNU\0":
                return content[start : start + size].hex()
            at = start + (size + 3 & ~3)
    return ""
