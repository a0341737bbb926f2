"""`reloader run FILE.o LIB.a ...`: a program that is linked in memory, without any executable.

The host waits before its main. The objects are first loads of an ordinary session, so they are
journalled, watched and reloadable like any other, and nothing of them is in an executable that
would have to be redirected: every function lives behind its stub from the start.
"""

import time
from collections.abc import Sequence

from reloader.errors.base import ReloaderError
from reloader.errors.linker import EntryMissingError
from reloader.linker.host import begin, load_libraries
from reloader.linker.inputs import read_inputs
from reloader.live.inputs import defined_names
from reloader.session.outcome import Outcome
from reloader.session.session import Session

ENTRY = b"main"


def load_program(session: Session, words: Sequence[str]) -> Outcome:
    """Link the objects of a waiting host; `begin_program` lets it go on.

    Args:
        session: Beside the host.
        words: Objects, archives and shared libraries by absolute path, `-lNAME`, `-LDIR`.

    Returns:
        What came of the first load.
    """
    began = time.monotonic()
    try:
        return _load(session, words, began)
    except ReloaderError as error:
        names = [word for word in words if not word.startswith("-")]
        return session.decided(error, [], names, began, "load")


def begin_program(session: Session, outcome: Outcome) -> None:
    """Let the host call main; one whose objects were refused ends with status 1."""
    entry = session.program.index.addr_of(ENTRY) if outcome.state == "live" else None
    begin(session.process, entry or 0)  # constructors have run, destructors are registered


def _load(session: Session, words: Sequence[str], began: float) -> Outcome:
    files, libraries, folders = sorted_words(words)
    inputs = read_inputs(files, libraries, folders)
    load_libraries(session.process, inputs.libraries)
    session.shelf.archives.update({archive.path: archive for archive in inputs.archives})
    objects = inputs.all_objects([ENTRY])
    if not any(ENTRY in defined_names(file) for file in objects):
        raise EntryMissingError(ENTRY.decode())
    return session.reload_objects(objects, began, "load")


def sorted_words(words: Sequence[str]) -> tuple[list[str], list[str], list[str]]:
    """Return (files, libraries of -l, folders of -L)."""
    files = [word for word in words if not word.startswith(("-l", "-L"))]
    libraries = [word[2:] for word in words if word.startswith("-l")]
    return files, libraries, [word[2:] for word in words if word.startswith("-L")]
