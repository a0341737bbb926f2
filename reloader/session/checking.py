"""Checking: files are read, and linked as if they were to be loaded; nothing changes."""

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from reloader.elf.sources import source_line
from reloader.elf.stable_names import newest
from reloader.errors.base import ReloaderError
from reloader.errors.session import UnreadableFileError
from reloader.live.ending import noticing_the_end
from reloader.live.linking import link_transaction
from reloader.session.outcome import Outcome
from reloader.session.report import changed_names, data_notes, written
from reloader.watching.trust import Trust, read_trusted
from state.errors import StateError
from stubs.table import SlotTableFullError

if TYPE_CHECKING:
    from reloader.session.session import Session


def read_files(paths: Sequence[str], trust: Trust | None = None) -> list[tuple[str, bytes]]:
    """Return files by what they are known by, with their content.

    Raises:
        UnreadableFileError: One cannot be read.
        UntrustedPathError: Somebody else could have written it.
    """
    return [(name, read_file(path, trust)) for path, name in newest(paths)]


def known_as(contents: Sequence[tuple[str, bytes]]) -> list[tuple[str, bytes]]:
    """Return files by what they are known by, of several versions the newest."""
    found = dict(contents)
    return [(name, found[path]) for path, name in newest(found)]


def read_file(path: str, trust: Trust | None = None) -> bytes:
    """Return the content of a file that nobody else could have written.

    Raises:
        UnreadableFileError: Says why not; `UntrustedPathError` names who could have.
    """
    try:
        return read_trusted(Path(path).absolute(), [Path("/")], trust)[0]
    except OSError as error:
        raise UnreadableFileError(path, error.strerror or str(error)) from error


def check(session: "Session", path: str) -> Outcome:
    """Say whether a file would load, and what would change."""
    outcome, program = Outcome("unchanged", objects=[path]), session.program
    try:
        objects, equal = session.chosen(read_files([path], session.trust), named=True)
        outcome.notes += [f"{name} is what is live" for name in equal]
        if not objects:
            return outcome
        with ExitStack() as undo, noticing_the_end(session.process, lambda: "checking"):
            plan = link_transaction(program, objects, frozenset(), source_line, undo)
            outcome.functions = changed_names(plan)
            outcome.new_variables = written(plan.data.new)
            outcome.notes += data_notes(program, plan.data)
    except (ReloaderError, StateError, SlotTableFullError) as error:
        outcome.error = str(error)
    return outcome
