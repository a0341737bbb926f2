"""`reloader run FILE.o LIB.a ...`: a program that is linked in memory, without any executable.

The host waits before its main. The objects are first loads of an ordinary session, so they are
journalled, watched and reloadable like any other, and nothing of them is in an executable that
would have to be redirected: every function lives behind its stub from the start.
"""

import time
from collections.abc import Sequence

import numpy as np

from reloader.errors.base import ReloaderError
from reloader.errors.linker import EntryMissingError
from reloader.ids import NO_ADDR
from reloader.linker.host import begin, complete, load_libraries
from reloader.linker.inputs import read_inputs
from reloader.outcome import Outcome
from reloader.session import Session

ENTRY = b"main"
_FINI = b".fini_array"


def load_program(session: Session, words: Sequence[str]) -> Outcome:
    """Link the objects of a waiting host and let it begin; a refusal ends it with status 1.

    Args:
        session: Beside the host.
        words: Objects, archives and shared libraries by absolute path, `-lNAME`, `-LDIR`.

    Returns:
        What came of the first load.
    """
    began = time.monotonic()
    try:
        outcome = _load(session, words, began)
    except ReloaderError as error:
        names = [word for word in words if not word.startswith("-")]
        outcome = session.decided(error, [], names, began, "load")
    entry = session.program.index.addr_of(ENTRY) if outcome.state == "live" else None
    begin(session.process, entry or 0, fini=destructors(session) if entry else ())
    return outcome


def _load(session: Session, words: Sequence[str], began: float) -> Outcome:
    files, libraries, folders = sorted_words(words)
    inputs = read_inputs(files, libraries, folders)
    load_libraries(session.process, inputs.libraries)
    session.shelf.archives.update({archive.path: archive for archive in inputs.archives})
    objects = complete(inputs.all_objects([ENTRY]), session.program)
    defined = {
        file.symbol_names[row]
        for file in objects
        for row in np.flatnonzero(file.symbol_sections >= 0).tolist()
    }
    if ENTRY not in defined:
        raise EntryMissingError(ENTRY.decode())
    return session.reload_objects(objects, began, "load")


def sorted_words(words: Sequence[str]) -> tuple[list[str], list[str], list[str]]:
    """Return (files, libraries of -l, folders of -L)."""
    files = [word for word in words if not word.startswith(("-l", "-L"))]
    libraries = [word[2:] for word in words if word.startswith("-l")]
    return files, libraries, [word[2:] for word in words if word.startswith("-L")]


def destructors(session: Session) -> list[int]:
    """Return what the loaded objects want to be called at exit; the host calls the last first."""
    found: list[tuple[int, int]] = []
    for live in session.program.objects.values():
        for section, name in enumerate(live.file.section_names):
            addr = int(live.section_addr[section])
            if not name.startswith(_FINI) or addr == NO_ADDR:
                continue
            number = name[len(_FINI) + 1 :]
            priority = int(number) if number.isdigit() else 1 << 16
            size = int(live.file.sections["sh_size"][section])
            words = session.process.read(addr, size).view(np.uint64).tolist()
            found += [(priority, int(word)) for word in words if word not in {0, NO_ADDR}]
    found.sort(key=lambda row: row[0])
    return [word for _, word in found]
