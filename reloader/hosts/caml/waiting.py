"""Units that were refused for what they lack of each other: tried together once more is there.

A build that we do not know of compiles one unit after the other. The first, whose interface
changed, is refused because of its users; each user then, because it was compiled against what
is not live. With the last of them all fit. A user that was compiled again may also be the same
object as before, so that no save of it is ever told: such a one is linked anew with the others.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from reloader.elf.object import ObjectFile
from reloader.errors.base import ReloaderError
from reloader.hosts.caml.changed_types import continues
from reloader.hosts.caml.compatible import implementations_of
from reloader.hosts.caml.transaction import Unit
from reloader.hosts.caml.units import Slot, UnitInfo
from reloader.hosts.caml.world import World
from reloader.live.host import Companions
from reloader.live.objects import LiveObject
from reloader.live.program import Key

Live = Mapping[Key, LiveObject]


@dataclass(slots=True)
class Attempt:
    """Units of one transaction, as far as it is known."""

    infos: dict[Key, UnitInfo]
    added: list[ObjectFile] = field(default_factory=list[ObjectFile])
    again: dict[str, UnitInfo] = field(default_factory=dict[str, UnitInfo])  # by digest
    stay: list[UnitInfo] = field(default_factory=list[UnitInfo])  # run on, and fit all the same


class Waiting:
    """Objects of units that fitted neither the program nor each other so far."""

    def __init__(
        self, world: World, units: Mapping[Key, Unit], is_running: Callable[[UnitInfo], bool]
    ) -> None:
        """Begin with none.

        Args:
            world: What the compiler wrote down.
            units: Those of the program.
            is_running: Whether the program is inside of a unit's initialiser.
        """
        self.world = world
        self.units = units
        self.is_running = is_running
        self.files: dict[Key, ObjectFile] = {}

    def companions(self, files: Sequence[ObjectFile], live: Live) -> Companions | None:
        """Return what has to come with refused units, None if that does not fit either.

        Args:
            files: The refused.
            live: The program's objects.

        Raises:
            ReloaderError: A unit's compiled files cannot be read.
        """
        attempt = Attempt({file.key: self.world.info(file) for file in files})
        self.files = {key: file for key, file in self.files.items() if is_on_disk(file)}
        self.add_related(attempt)
        self.add_equal(attempt, live)
        changes = attempt.added or attempt.stay
        if changes and self.world.fits(list(attempt.infos.values()), attempt.stay):
            self.world.take_versions(attempt.again)
            self.world.note_compiled(attempt.stay)
            left = self.files.keys() - attempt.infos.keys()
            self.files = {key: self.files[key] for key in left}
            return Companions(attempt.added, notes=self.notes(attempt))
        self.files |= {file.key: file for file in files if not file.member}
        return None

    def ready(self, live: Live) -> Companions | None:
        """Return what was refused and fits now, with all that has to come with it.

        Raises:
            ReloaderError: A unit's compiled files cannot be read.
        """
        for file in list(self.files.values()):
            more = self.companions([file], live)
            if more is not None:
                return Companions([file, *more.files], notes=more.notes)
        return None

    def without_running(self, files: Sequence[ObjectFile], live: Live) -> Companions | None:
        """Return what is left of refused units without those that the program runs.

        They are often compiled again only because places in another unit's block moved; the
        block that they know keeps its own.

        Args:
            files: The refused.
            live: The program's objects.

        Raises:
            ReloaderError: A unit's compiled files cannot be read.
        """
        infos = {file.key: self.world.info(file) for file in files}
        running = {key: info for key, info in infos.items() if self.is_running(info)}
        attempt = Attempt({key: info for key, info in infos.items() if key not in running})
        self.add_equal(attempt, live)
        coming = {info.name: info for info in attempt.infos.values()}
        for info in running.values():
            known = self.world.live[info.name]
            if not coming or not looks_no_deeper(known, coming):
                return None
            attempt.stay.append(replace(known, imports=info.imports))
        if not self.world.fits(list(attempt.infos.values()), attempt.stay):
            return None
        self.world.take_versions(attempt.again)
        self.world.note_compiled(attempt.stay)
        notes = [
            f"{info.shown}: the program is inside its toplevel; it is new after a restart"
            for info in running.values()
        ]
        return Companions(attempt.added, frozenset(running), notes + self.notes(attempt))

    def notes(self, attempt: Attempt) -> list[str]:
        """Return what the user should know of units that stay."""
        before = {unit.info.name: unit.info for unit in self.units.values()}
        changed = [
            f"{info.shown}.{slot.path}"
            for info in attempt.infos.values()
            if info.name in before
            for slot in not_continued(before[info.name], info)
        ]
        return [
            f"{info.shown} runs on: if it uses {', '.join(changed)}, whose type changed, it "
            "goes on with the old"
            for info in attempt.stay
            if changed
        ]

    def add_related(self, attempt: Attempt) -> None:
        """Add those that wait and use a unit of the attempt, or are used by one."""
        left = {key: self.world.info(file) for key, file in self.files.items()}
        while near := [
            key
            for key, info in left.items()
            if key not in attempt.infos and is_near(info, attempt.infos.values())
        ]:
            attempt.infos |= {key: left[key] for key in near}
            attempt.added += [self.files[key] for key in near]

    def add_equal(self, attempt: Attempt, live: Live) -> None:
        """Add live units that were compiled against what comes, and are the same objects.

        Without -opaque their users follow in turn, since each .cmx has the sums of others.
        """
        count = -1
        while count != len(attempt.infos):
            count = len(attempt.infos)
            coming = {info.name: info for info in attempt.infos.values()}
            for key, unit in self.units.items():
                if key not in attempt.infos and key in live:
                    self.add_if_equal(attempt, unit, live[key].file, coming)

    def add_if_equal(
        self, attempt: Attempt, unit: Unit, file: ObjectFile, coming: Mapping[str, UnitInfo]
    ) -> None:
        """Add one, or take note that it stays: what the program runs cannot come again.

        What it finds in the block that it knows is replaced wherever that has the same type.
        """
        known = self.world.live.get(unit.info.name, unit.info)
        if agrees(known, coming) or file.member or not is_on_disk(file):
            return
        info = self.read(file)
        if info is None or not agrees(info, coming):
            return
        if not self.is_running(info) or not looks_no_deeper(known, coming):
            attempt.infos[unit.key] = attempt.again[file.digest] = info
            attempt.added.append(file)
        elif info not in attempt.stay:
            attempt.stay.append(info)

    def read(self, file: ObjectFile) -> UnitInfo | None:
        """Return what a unit's compiled files say now, None if they are not whole."""
        try:
            return self.world.read(file)
        except ReloaderError:  # it is being compiled
            return None


def is_near(info: UnitInfo, others: Iterable[UnitInfo]) -> bool:
    """Return whether a unit uses one of others, or is used by one."""
    return any(other.name in info.imports or info.name in other.imports for other in others)


def agrees(info: UnitInfo, coming: Mapping[str, UnitInfo]) -> bool:
    """Return whether a unit was compiled against units that come, wherever it uses them."""
    return looks_no_deeper(info, coming) and all(
        info.imports.get(name) in {None, other.interface_crc} for name, other in coming.items()
    )


def looks_no_deeper(info: UnitInfo, coming: Mapping[str, UnitInfo]) -> bool:
    """Return whether a unit has no code of other versions of units that come."""
    known = implementations_of(info)
    now = {
        name: other.implementation.crc if other.implementation else None
        for name, other in coming.items()
    }
    return all(known.get(name) in {None, crc} for name, crc in now.items())


def not_continued(before: UnitInfo, after: UnitInfo) -> list[Slot]:
    """Return what a unit exports in two versions that are no substitute for each other."""
    now = {slot.path: slot for slot in after.exported()}
    return [
        slot
        for slot in before.exported()
        if slot.path in now and not continues(slot, now[slot.path], frozenset())
    ]


def is_on_disk(file: ObjectFile) -> bool:
    """Return whether an object is what its file holds now."""
    try:
        return Path(file.path).read_bytes() == bytes(file.data)
    except OSError:
        return False
