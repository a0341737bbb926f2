"""Reading a unit once its compilation is over: ocamlopt writes the .cmx after the .o.

A reload begins with the finished object. At that moment the .cmx can be absent, the one of
before, or half of the new one.
"""

import time
from contextlib import suppress
from pathlib import Path
from typing import Final

from reloader.errors.base import ReloaderError
from reloader.errors.ocaml import UnitUnreadableError
from reloader.hosts.caml.inspector import Inspector, UnitFiles, find_unit_files
from reloader.hosts.caml.units import UnitInfo

PATIENCE_S: Final = 1.0  # after the object was written; what is older is taken as it is
PAUSE_S: Final = 0.001


def read_when_written(inspector: Inspector, path: Path, member: str) -> UnitInfo:
    """Return what a unit is.

    Args:
        inspector: Who reads it.
        path: Its object, or the archive.
        member: The archive's member, else "".

    Raises:
        ReloaderError: Files are missing or damaged, and not because they are being written.
    """
    while True:
        young = time.time_ns() < written_ns(path) + PATIENCE_S * 1e9
        files = find_unit_files(path, member)
        if not (young and is_behind(files)):
            try:
                return inspector.unit(files)
            except UnitUnreadableError as error:
                if not young or error.kind != "unreadable":
                    raise
        time.sleep(PAUSE_S)


def begin_reading(inspector: Inspector, path: Path, member: str) -> None:
    """Let the inspector begin with what `read_when_written` will ask, if it is written."""
    with suppress(ReloaderError, OSError):  # told when it is asked
        files = find_unit_files(path, member)
        if not is_behind(files):
            inspector.ask_ahead(files)


def is_behind(files: UnitFiles) -> bool:
    """Tell whether a unit was typed again and its .cmx is not there yet.

    Not told by the object's own age: objects are also copied into place, without the rest.
    """
    if files.typed is None:
        return False
    if files.optimised is None:
        return True
    return written_ns(files.optimised) < written_ns(files.typed)


def written_ns(path: Path) -> int:
    """Return when a file was written, 0 if it is gone: then nobody is writing it."""
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0
