"""Crashes of the program: recognised, placed in a generation, written down, told.

The agent notes where a thread crashed; here it becomes a sentence. The function is the
innermost one of ours that runs or has called what runs: a new function that hands rubbish to
`memcpy` is named, not `memcpy`. The words of the stack that look like return addresses are all
there is to go by, so a function that had returned already can be meant.
"""

import signal
import time
from dataclasses import dataclass
from typing import Any

from reloader.elf.object import ObjectFile
from reloader.elf.sources import source_line
from reloader.errors.base import ReloaderError
from reloader.ids import Addr, Region
from reloader.live import decode
from reloader.session.session import Session
from state.crashes import CrashRow
from state.errors import StateError
from state.rows import Owner
from stubs import layout

_BEFORE = 7  # bytes of the longest call


@dataclass(frozen=True, slots=True)
class Spot:
    """A place in code of ours."""

    generation: int
    owner: Owner | None
    runs: bool  # the crashing instruction itself is there
    key: tuple[str, str] = ("", "")
    file: ObjectFile | None = None  # the version that the code is of


def take_crashes(session: Session) -> list[CrashRow]:
    """Write down the crashes that are not known yet, and return them."""
    header = session.process.channel.header[0]
    count, seen = int(header["crash_count"]), int(header["crash_seen"])
    found: list[CrashRow] = []
    for row in range(seen, min(count, layout.CRASHES)):
        record = header["crashes"][row]
        if not int(record["complete"]):
            break
        crash = placed(session, record)
        session.store.crashes.record(crash)
        header["crash_seen"] = row + 1
        found.append(crash)
    return found


def placed(session: Session, record: Any) -> CrashRow:  # noqa: ANN401 - a row of layout.CRASH
    """Return a crash with the function, generation and line it belongs to."""
    spot = find_spot(session, record)
    name = signal_name(int(record["signal"]))
    line = line_of(spot)
    key, digest = ("", ""), ""
    if spot is not None and spot.file is not None:
        key, digest = spot.key, spot.file.digest
    return CrashRow(
        target=session.target,
        generation=spot.generation if spot else 0,
        time=time.time(),
        pid=int(record["pid"]),
        signal=name,
        function=function_of(spot),
        path=key[0],
        member=key[1],
        digest=digest,
        line=line,
        text=sentence(name, spot, line),
    )


def sentence(name: str, spot: Spot | None, line: str) -> str:
    """Return what people are told."""
    if spot is None:
        return f"the program crashed ({name}), not inside code that was reloaded"
    function = function_of(spot) or "code"
    where = f"{function} ({line})" if line else function
    how = "in" if spot.runs else "in code called by"
    return (
        f"the program crashed ({name}) {how} {where}, generation {spot.generation}; when it is"
        " started again it gets the version of before (--replay-crashed: this one)"
    )


def function_of(spot: Spot | None) -> str:
    """Return the function as the source has it: compilers move parts to `draw.cold`."""
    name = spot.owner.name if spot and spot.owner else ""
    return name.partition(".")[0] or name


def signal_name(number: int) -> str:
    """Return SIGSEGV for 11."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def find_spot(session: Session, record: Any) -> Spot | None:  # noqa: ANN401 - as above
    """Return the innermost place on the stack that is in code of ours."""
    pc = int(record["pc"])
    spot = spot_at(session, pc, runs=True)
    if spot is not None:
        return spot
    for word in record["words"][: int(record["word_count"])].tolist():
        if follows_call(session, word):
            spot = spot_at(session, word - 1, runs=False)
            if spot is not None:
                return spot
    return None


def follows_call(session: Session, word: int) -> bool:
    """Return whether a word may be a return address into held code; the program has ended."""
    arena = session.process.arena
    start, end = arena.span()
    if not start + _BEFORE <= word < end:
        return False
    return decode.follows_call(arena.view(Addr(word - _BEFORE), _BEFORE).tobytes())


def spot_at(session: Session, addr: int, *, runs: bool) -> Spot | None:
    """Return whose code an address is in, None if not ours."""
    held = next(
        (
            row
            for at, row in session.program.ledger.rows.items()
            if at <= addr < at + row.allocation.size and row.allocation.region == Region.CODE
        ),
        None,
    )
    if held is None:
        return None
    owners = session.store.query.owner(session.target, addr)
    owner = next((row for row in owners if row.kind == "function"), None)
    key = held.object
    if owner is not None and owner.path:
        key = owner.path, owner.member or ""
    return Spot(
        int(held.generation), owner, runs, key, version_of(session, key, held.generation)
    )


def version_of(session: Session, key: tuple[str, str], generation: int) -> ObjectFile | None:
    """Return the version of an object that a generation made live."""
    for version in session.store.query.live_set(session.target, generation):
        if (version.path, version.member) == key and version.digest:
            try:
                return session.version(version)
            except (StateError, ReloaderError):
                return None
    return None


def line_of(spot: Spot | None) -> str:
    """Return `hud.c:41` of a spot, "" if unknown."""
    if spot is None or spot.owner is None or spot.file is None or spot.owner.offset is None:
        return ""
    names = [name.decode("utf-8", "replace") for name in spot.file.section_names]
    if spot.owner.section not in names:
        return ""
    section = names.index(spot.owner.section)
    return source_line(spot.file, section, spot.owner.offset + spot.owner.distance)
