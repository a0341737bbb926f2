"""Image: an executable or shared library as the process sees it before its first instruction.

Its bytes are those of the file with RELATIVE relocations applied, at link-time addresses plus
the load bias. The caller reads the file through /proc/PID/exe: the one at its path may be
newer.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

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
)
from reloader.elf.image_file import ET_DYN, ET_EXEC, PT_LOAD, ImageFile, build_id, open_image
from reloader.elf.image_relocs import NamedAddrs, apply_relative
from reloader.elf.image_symbols import (
    ImageSymbols,
    TlsSegment,
    read_symtab,
    symbol_columns,
)
from reloader.ids import U8, U64

__all__ = ["Image", "ImageSymbols", "NamedAddrs", "TlsSegment", "read_image"]

PT_DYNAMIC, PT_INTERP, PT_TLS = 2, 3, 7
PF_X, PF_W = 1, 2


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
    file = open_image(data, path)
    content = file.first(PT_DYNAMIC)
    dynamic = read_dynamic(content, file.read) if len(content) else Dynamic()
    tls = _tls(file, load_bias)
    got, copies, fields = apply_relative(file, dynamic, load_bias)
    interpreter = _text(file.first(PT_INTERP))
    is_pie = _is_pie(file, dynamic, interpreter)
    return Image(
        path=path,
        load_bias=load_bias,
        machine=int(file.header["e_machine"]),
        entry=int(file.header["e_entry"]) + load_bias,
        segments=file.segments,
        low=file.low + load_bias,
        memory=file.memory,
        symtab=read_symtab(file, load_bias, tls),
        dynsym=symbol_columns(dynamic.symbols, dynamic.strings, load_bias, tls),
        build_id=build_id(file),
        needed=[name.decode("utf-8", "replace") for name in dynamic.needed],
        interpreter=interpreter,
        tls=tls,
        is_pie=is_pie,
        is_static=not interpreter and (is_pie or int(file.header["e_type"]) == ET_EXEC),
        executable=_ranges(file, PF_X, load_bias),
        writable=_ranges(file, PF_W, load_bias),
        init_arrays=_init_arrays(dynamic, load_bias),
        got=got,
        copies=copies,
        dynamic_fields=fields,
    )


def _is_pie(file: ImageFile, dynamic: Dynamic, interpreter: str) -> bool:
    """Return whether the file is a position-independent executable, not a library.

    Linkers before DF_1_PIE leave only hints: a library may have an interpreter too, but then it
    has a name.
    """
    flagged = bool(dynamic.tags.get(DT_FLAGS_1, 0) & DF_1_PIE)
    unnamed = bool(interpreter) and DT_SONAME not in dynamic.tags
    return int(file.header["e_type"]) == ET_DYN and (flagged or unnamed)


def _init_arrays(dynamic: Dynamic, bias: int) -> U64:
    arrays = [
        dynamic.range_of(DT_INIT_ARRAY, DT_INIT_ARRAYSZ),
        dynamic.range_of(DT_FINI_ARRAY, DT_FINI_ARRAYSZ),
        dynamic.range_of(DT_PREINIT_ARRAY, DT_PREINIT_ARRAYSZ),
    ]
    return np.array(arrays, np.uint64) + np.uint64(bias)


def _text(content: U8) -> str:
    return content.tobytes().split(b"\0")[0].decode("utf-8", "replace")


def _ranges(file: ImageFile, flag: int, bias: int) -> U64:
    segments = file.segments
    chosen = segments[(segments["p_type"] == PT_LOAD) & ((segments["p_flags"] & flag) != 0)]
    starts = chosen["p_vaddr"].astype(np.uint64) + np.uint64(bias)
    return np.stack([starts, starts + chosen["p_memsz"].astype(np.uint64)], axis=1)


def _tls(file: ImageFile, bias: int) -> TlsSegment | None:
    for segment in file.segments[file.segments["p_type"] == PT_TLS]:
        align = max(1, int(segment["p_align"]))
        return TlsSegment(int(segment["p_vaddr"]) + bias, int(segment["p_memsz"]), align)
    return None
