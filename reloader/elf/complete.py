"""Whether a file that was just written is whole, or its writer is still at it.

Assemblers write the ELF header last or the section header table last, so a half-written
object either begins with zeros or announces bytes that are not there yet. What is finished but
wrong (a text file, an object of another processor) counts as complete: reading it says why.
"""

from typing import Any

import numpy as np

from reloader.elf.ar import is_archive, read_entries
from reloader.elf.constants import SHT_NOBITS, SHT_NULL
from reloader.elf.dtypes import EHDR, SHDR
from reloader.elf.header import ELFCLASS64, ELFDATA2LSB, MAGIC
from reloader.errors.objects import ArchiveError, TruncatedError


def is_complete(data: bytes) -> bool:
    """Return whether everything that a file's headers announce is there.

    Args:
        data: All bytes of the file as it is now: an object, an archive, or anything.
    """
    if len(data) < len(MAGIC) or not any(data[:16]):
        return False
    if is_archive(data):
        return is_whole_archive(data)
    if data[:4] != MAGIC:
        return not b"!<arch>\n".startswith(data[:8])
    if len(data) < EHDR.itemsize:
        return False
    if data[4] != ELFCLASS64 or data[5] != ELFDATA2LSB:
        return True
    return is_whole_object(data)


def is_whole_archive(data: bytes) -> bool:
    """Return whether each member lies in the file; a damaged one is not unfinished."""
    try:
        read_entries(data, "")
    except TruncatedError:
        return False
    except ArchiveError:
        return True
    return True


def is_whole_object(data: bytes) -> bool:
    """Return whether the section header table and each section lie in the file."""
    raw = np.frombuffer(data, np.uint8)
    header: Any = raw[: EHDR.itemsize].view(EHDR)[0]
    start, count = int(header["e_shoff"]), int(header["e_shnum"])
    if start < EHDR.itemsize or start + SHDR.itemsize > len(raw):
        return False
    if count == 0:
        first: Any = raw[start : start + SHDR.itemsize].view(SHDR)[0]
        count = int(first["sh_size"])
    end = start + count * SHDR.itemsize
    if end > len(raw):
        return False
    sections = raw[start:end].view(SHDR)
    stored = (sections["sh_type"] != SHT_NULL) & (sections["sh_type"] != SHT_NOBITS)
    offset, size = sections["sh_offset"][stored], sections["sh_size"][stored]
    total = np.uint64(len(raw))
    return bool(np.all((offset <= total) & (size <= total - np.minimum(offset, total))))
