"""The file of an executable or shared library: header, tables, segments, all bounds checked."""

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from reloader.elf.dtypes import EHDR, PHDR
from reloader.errors.baseline import MalformedImageError, WrongImageError
from reloader.ids import U8

PT_LOAD, PT_NOTE = 1, 4
ET_EXEC, ET_DYN, EM_X86_64 = 2, 3, 62
NT_GNU_BUILD_ID = 3
_KINDS: Final = {1: "a relocatable object", 4: "a core dump"}
_HOLE: Final = 64 << 20  # bytes that the segments may be apart beyond the file's own size


@dataclass(frozen=True, slots=True, eq=False)
class ImageFile:
    """The parts of the file that everything else is found through; no load bias yet."""

    data: U8
    path: str  # for error texts
    header: np.void  # EHDR
    segments: NDArray[np.void]  # PHDR
    low: int  # the lowest address
    memory: U8  # the segments' content from there on, holes as zeros

    def read(self, addr: int, size: int) -> U8:
        """Return bytes of a segment.

        Raises:
            MalformedImageError: No segment has them.
        """
        start = addr - self.low
        if start < 0 or size < 0 or start + size > len(self.memory):
            text = f"a dynamic table of {size} bytes at {addr:#x} lies outside of its segments"
            raise MalformedImageError(self.path, text)
        return self.memory[start : start + size]

    def first(self, kind: int) -> U8:
        """Return the content of the first segment of a type, empty without one."""
        for segment in self.segments[self.segments["p_type"] == kind]:
            offset, size = int(segment["p_offset"]), int(segment["p_filesz"])
            return self.data[offset : offset + size]
        return self.data[:0]


def open_image(data: U8, path: str) -> ImageFile:
    """Check the header and take in the segments.

    Raises:
        WrongImageError: Not an x86-64 executable or shared library.
        MalformedImageError: A table or segment lies outside of the file.
    """
    header = _header(data, path)
    segments = records(data, int(header["e_phoff"]), int(header["e_phnum"]), PHDR, path)
    low, memory = _load(data, segments, path)
    return ImageFile(data, path, header, segments, low, memory)


def _header(data: U8, path: str) -> np.void:
    if len(data) < EHDR.itemsize:
        text = f"it has {len(data)} bytes, an ELF header has {EHDR.itemsize}"
        raise MalformedImageError(path, text)
    header: np.void = data[: EHDR.itemsize].view(EHDR)[0]
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


def records(
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


def build_id(file: ImageFile) -> str:
    """Return the descriptor of the NT_GNU_BUILD_ID note in hex."""
    for segment in file.segments[file.segments["p_type"] == PT_NOTE]:
        offset, length = int(segment["p_offset"]), int(segment["p_filesz"])
        content = file.data[offset : offset + length].tobytes()
        at = 0
        while at + 12 <= len(content):
            name_size, size, kind = np.frombuffer(content, "<u4", 3, at).tolist()
            start = at + 12 + (name_size + 3 & ~3)
            if kind == NT_GNU_BUILD_ID and content[at + 12 : at + 16] == b"GNU\0":
                return content[start : start + size].hex()
            at = start + (size + 3 & ~3)
    return ""
