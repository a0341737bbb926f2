"""Replay: a program that is started again gets the code that was live when its last run ended.

With the same build-id the last run's objects are linked again at this process's addresses, all
as one transaction; under `reloader run` that is done before its main, or where the program's
language takes new code for the first time, and then the program waits there. A version that the
program crashed in is left out, with what became live together with it. A rebuilt program has
another build-id: then it is only said what is in it already and what is not. An object whose
file is again what the program was linked from is left alone: its source was taken back.
"""

import sys
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from reloader.elf.object import ObjectFile
from reloader.errors.base import ReloaderError
from reloader.errors.live import TargetGoneError
from reloader.live.opening import running_image
from reloader.live.process import Process
from reloader.session.outcome import Outcome, short
from reloader.session.report import enumerate_names
from reloader.session.resuming import load_version
from state.errors import StateError
from state.rows import ObjectVersion, TargetRow
from state.store import Store

if TYPE_CHECKING:
    from reloader.session.session import Session

Key = tuple[str, str]


@dataclass(slots=True)
class Replayed:
    """What came of it."""

    notes: list[str] = field(default_factory=list[str])
    outcome: Outcome | None = None  # None: nothing was replayed


def linked_before(process: Process, store: Store) -> list[ObjectFile]:
    """Return what the same executable was linked from, as an earlier run knew it.

    The files there may have been edited since; what was never reloaded is the same.
    """
    exe = str(Path(f"/proc/{process.pid}/exe").readlink())
    before = store.targets.previous(exe, sys.maxsize)
    if before is None or not before.build_id:
        return []
    if running_image(process.pid, process.maps()).build_id != before.build_id:
        return []
    found: list[ObjectFile] = []
    for version in store.query.live_set(before.id, 0):
        with suppress(StateError, ReloaderError):  # pruned: the file there is all we have
            found.append(load_version(store, version))
    return found


def rows_before(exe: str, store: Store) -> dict[str, str]:
    """Return what the language's host wrote down of the last run of an executable."""
    before = last_run(store, exe, sys.maxsize)
    return store.resume.host(before.id) if before else {}


def last_run(store: Store, exe: str, target: int) -> TargetRow | None:
    """Return the last run of an executable, before a target, that came as far as to tell.

    One that ended in the midst of its replay tells nothing of what was live.
    """
    before = store.targets.previous(exe, target)
    while before is not None:
        first = store.query.generation(before.id, 1)
        if first is None or (first.kind, first.error_code) != ("replay", TargetGoneError.code):
            break
        before = store.targets.previous(exe, before.id)
    return before


def replay(session: "Session", *, wanted: bool = True, crashed: bool = False) -> Replayed:
    """Make live what was live when the program's last run ended.

    Args:
        session: The program, as it was linked.
        wanted: Whether to do it, or only to say what could be.
        crashed: Also versions that the program crashed in.
    """
    store, image = session.store, session.program.image
    before = last_run(store, image.path, session.target)
    if before is None or before.ended is None:
        return Replayed()
    versions = changed_versions(store, before.id)
    if not versions:
        return Replayed()
    if before.build_id != image.build_id or not image.build_id:
        return Replayed(compared(session, versions))
    left: list[ObjectVersion] = []
    if not crashed:
        versions, left = without_crashed(store, before, versions)
    notes = left_notes(left)
    others = [version for version in versions if session.is_other(version)]
    todo = [version for version in others if not taken_back(session, version)]
    if len(todo) < len(others):
        names = enumerate_names(sorted(short(shown(v)) for v in others if v not in todo))
        notes.append(f"not replayed, since the edit was taken back on disk: {names}")
    if not todo:
        return Replayed(notes)
    names = enumerate_names(sorted(short(shown(version)) for version in todo))
    if not wanted:
        text = f"what was live in the last run is not replayed, as you wish: {names}"
        return Replayed([*notes, text])
    return Replayed(notes, reload_versions(session, todo))


def taken_back(session: "Session", version: ObjectVersion) -> bool:
    """Return whether an object's file is again what the program was linked from."""
    live = session.program.objects.get((version.path, version.member))
    if live is None or version.member:
        return False
    try:
        return Path(version.path).read_bytes() == live.file.data.tobytes()
    except OSError:
        return False


def reload_versions(session: "Session", versions: list[ObjectVersion]) -> Outcome:
    """Make versions live, all of them or none."""
    began = time.monotonic()
    session.journal.begin("replay")
    try:
        objects = [session.version(version) for version in versions]
        held = session.begin is not None and hold(session, versions)
    except (StateError, ReloaderError) as error:
        names = [shown(version) for version in versions]
        return session.decided(error, [], names, began, "replay")
    try:
        return session.reload_objects(objects, began, "replay")
    finally:
        if held:
            with suppress(TargetGoneError):
                session.program.host.go_on()


def hold(session: "Session", versions: list[ObjectVersion]) -> bool:
    """Let a program that is before its main come to where its language takes new code."""
    keys = [(version.path, version.member) for version in versions]
    held = session.program.host.hold(keys)
    if held and session.begin:
        session.begin()
    return held


def changed_versions(store: Store, target: int) -> list[ObjectVersion]:
    """Return what was live at the end of a run and was not what the program was linked from."""
    first = {(v.path, v.member): v.digest for v in store.query.live_set(target, 0)}
    return [
        version
        for version in store.query.live_set(target)
        if version.digest and first.get((version.path, version.member)) != version.digest
    ]


def compared(session: "Session", versions: list[ObjectVersion]) -> list[str]:
    """Say what a rebuilt program has in it, and what no longer applies."""
    inside = sorted(short(shown(v)) for v in versions if not session.is_other(v))
    gone = sorted(short(shown(v)) for v in versions if session.is_other(v))
    notes: list[str] = []
    if inside:
        notes.append(f"rebuilt since its last run: it has {enumerate_names(inside)} in it")
    if gone:
        notes.append(
            f"rebuilt since its last run: what was live of {enumerate_names(gone)} no longer"
            " applies, since the program was not built from it; save the source again to"
            " reload it"
        )
    return notes


def without_crashed(
    store: Store, run: TargetRow, versions: list[ObjectVersion]
) -> tuple[list[ObjectVersion], list[ObjectVersion]]:
    """Return what to replay in place of versions, and which of them are left out."""
    bad = crashed_versions(store, run.exe)
    kept: list[ObjectVersion] = []
    left: list[ObjectVersion] = []
    for version in versions:
        if (version.path, version.member, version.digest) not in bad:
            kept.append(version)
            continue
        left.append(version)
        good = good_before(store, run.id, version, bad)
        if good is not None:
            kept.append(good)
    return kept, left


def crashed_versions(store: Store, exe: str) -> set[tuple[str, str, str | None]]:
    """Return the versions that any run crashed in, and those that were reloaded with them."""
    found: set[tuple[str, str, str | None]] = set()
    for crash in store.crashes.of_program(exe):
        if not crash.digest:
            continue
        found.add((crash.path, crash.member, crash.digest))
        row = store.query.generation(crash.target, crash.generation)
        if row is not None and row.kind == "load":
            found |= {(v.path, v.member, v.digest) for v in row.versions()}
    return found


def good_before(
    store: Store, target: int, version: ObjectVersion, bad: set[tuple[str, str, str | None]]
) -> ObjectVersion | None:
    """Return the newest version of an object that no run crashed in; None: the linked one."""
    for row in store.query.generations(target):
        for other in row.versions():
            same = (other.path, other.member) == (version.path, version.member)
            if same and other.digest and (other.path, other.member, other.digest) not in bad:
                return other
    return None


def left_notes(left: list[ObjectVersion]) -> list[str]:
    """Say which versions are not replayed."""
    if not left:
        return []
    names = enumerate_names(sorted(short(shown(version)) for version in left))
    text = f"{names}: the version that the program crashed in is not replayed"
    return [f"{text} (--replay-crashed would)"]


def shown(version: ObjectVersion) -> str:
    """Return an object as shown to people."""
    return f"{version.path}({version.member})" if version.member else version.path
