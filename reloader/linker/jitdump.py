"""A jitdump file, by which `perf inject --jit` names linked functions in a profile.

The format is perf's (tools/perf/Documentation/jitdump-specification.txt): a header, then one
record a function with its name and bytes. perf finds the file by an executable mapping of its
first page that the profiled process makes.
"""

import os
import struct
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple

MAGIC: Final = 0x4A695444
VERSION: Final = 1
_HEADER: Final = struct.Struct("<IIIIIIQQ")
_LOAD: Final = struct.Struct("<IIQIIQQQQ")
_CODE_LOAD: Final = 0
_EM_X86_64: Final = 62


class Function(NamedTuple):
    """One function as linked."""

    name: str
    addr: int
    code: bytes


def dump_folder() -> Path:
    """Make and return a new folder below $JITDUMPDIR, or below the home folder."""
    root = Path(os.environ.get("JITDUMPDIR") or Path.home()) / ".debug" / "jit"
    root.mkdir(parents=True, exist_ok=True)
    day = time.strftime("%Y%m%d")
    return Path(tempfile.mkdtemp(prefix=f"reloader-jit-{day}-", dir=root))


def write_dump(folder: Path, pid: int, functions: Sequence[Function]) -> Path:
    """Write `jit-PID.dump` and return its path."""
    path = folder / f"jit-{pid}.dump"
    now = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
    parts = [_HEADER.pack(MAGIC, VERSION, _HEADER.size, _EM_X86_64, 0, pid, now, 0)]
    for index, function in enumerate(functions):
        name = function.name.encode() + b"\0"
        size = _LOAD.size + len(name) + len(function.code)
        at, length = function.addr, len(function.code)
        parts.append(_LOAD.pack(_CODE_LOAD, size, now, pid, pid, at, at, length, index))
        parts += [name, function.code]
    path.write_bytes(b"".join(parts))
    return path
