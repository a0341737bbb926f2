"""World: what the user's compiler wrote down about the units of one program."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

from reloader.elf.image import Image
from reloader.elf.object import ObjectFile
from reloader.errors.ocaml import FlambdaError, UnfitUnitError
from reloader.errors.ocaml_units import IncompatibleUnitsError
from reloader.hosts.caml.changed_types import Meanings
from reloader.hosts.caml.compatible import (
    is_original,
    refuse_incompatible,
    refuse_other_compiler,
)
from reloader.hosts.caml.compiler import Compiler, find_compiler
from reloader.hosts.caml.generics import generic_archive, generic_unit, is_generic
from reloader.hosts.caml.globals_map import ProgramUnit, read_program_units
from reloader.hosts.caml.inspector import Inspector
from reloader.hosts.caml.settings import OcamlConfig
from reloader.hosts.caml.standard import standard_libraries
from reloader.hosts.caml.state import Policy, Sizes, StatePlan, plan_state
from reloader.hosts.caml.units import UnitInfo, shown_unit
from reloader.hosts.caml.written import begin_reading, read_when_written
from reloader.live.host import Library


class World:
    """Every unit's description, asked for once a version."""

    def __init__(
        self, compiler: Compiler, linked: dict[str, ProgramUnit], config: OcamlConfig
    ) -> None:
        """Begin knowing only what the executable was linked from."""
        self.compiler = compiler
        self.config = config
        self.inspector = Inspector(compiler)
        self.linked = linked
        self.policy = Policy(frozenset(config.keep), frozenset(config.reset))
        self.live: dict[str, UnitInfo] = {}  # by the unit's name
        self._infos: dict[str, UnitInfo] = {}  # by the object's digest
        self.changed: frozenset[str] = frozenset()  # types, by the transaction at hand
        self._coming: dict[str, UnitInfo] = {}  # its units

    def info(self, file: ObjectFile) -> UnitInfo:
        """Return what a unit's compiled files say; they belong to this version of its object.

        Raises:
            ReloaderError: They are missing or cannot be read.
        """
        if is_generic(file):
            return generic_unit(file)
        if file.digest not in self._infos:
            self._infos[file.digest] = self.read(file)
        return self._infos[file.digest]

    def read(self, file: ObjectFile) -> UnitInfo:
        """Return what a unit's compiled files say now.

        Raises:
            ReloaderError: They are missing or cannot be read.
        """
        return read_when_written(self.inspector, Path(file.path), file.member)

    def expect(self, file: ObjectFile) -> None:
        """Begin to find out what a new version is."""
        if not is_generic(file) and file.digest not in self._infos:
            begin_reading(self.inspector, Path(file.path), file.member)

    def take_versions(self, known: Mapping[str, UnitInfo]) -> None:
        """Take what is known of versions, by digest: their files may be another's by now."""
        self._infos |= known

    def original(self, file: ObjectFile) -> UnitInfo:
        """Return the description of a unit that the executable was linked with.

        Raises:
            ReloaderError: Its compiled files are missing, or those of another version.
        """
        info = self.info(file)
        if not is_original(info, self.linked):
            del self._infos[file.digest]
            raise UnfitUnitError(file.name, info.shown)
        self.live[info.name] = info
        return info

    def restore(self, file: ObjectFile, info: UnitInfo) -> None:
        """Take note of a live unit as an earlier daemon knew it."""
        self._infos[file.digest] = info
        self.live[info.name] = info

    def adopt(self, file: ObjectFile) -> None:
        """Take note that a version is live."""
        info = self.info(file)
        self.live[info.name] = info

    def examine(self, files: Sequence[ObjectFile]) -> list[UnitInfo]:
        """Return the description of new versions.

        Raises:
            ReloaderError: They do not fit what is live.
        """
        infos = [self.info(file) for file in files]
        self.changed = refuse_incompatible(infos, self.live, self.linked)
        self._coming = {info.name: info for info in infos}
        return infos

    def fits(self, infos: Sequence[UnitInfo], compiled: Sequence[UnitInfo]) -> bool:
        """Return whether new versions fit what is live.

        Args:
            infos: The new versions.
            compiled: Live units as they were compiled again, which changed nothing of them.
        """
        try:
            live = self.live | {info.name: info for info in compiled}
            refuse_incompatible(infos, live, self.linked)
        except IncompatibleUnitsError:
            return False
        return True

    def note_compiled(self, infos: Sequence[UnitInfo]) -> None:
        """Take note that live units were compiled again, which changed nothing of them."""
        self.live |= {info.name: info for info in infos}

    def missing(self, infos: Sequence[UnitInfo]) -> list[tuple[str, list[str]]]:
        """Return units, each with what it uses that is neither in the program nor coming."""
        here = {*self.linked, *self.live, *(info.name for info in infos)}
        used = {
            info.shown: sorted(
                shown_unit(name)
                for name, crc in info.imports.items()
                if crc is not None and name not in here
            )
            for info in infos
        }
        return [(user, names) for user, names in used.items() if names]

    def meanings(self, *, coming: bool = False) -> Meanings:
        """Return what types mean now, or once the transaction at hand is live."""
        units = {**self.live, **self._coming} if coming else self.live
        return Meanings(units.values())

    def libraries(self) -> list[Library]:
        """Return the archives of what the compiler makes or brings along.

        Raises:
            ReloaderError: That of generic functions could not be made.
        """
        return [Library(generic_archive(self.compiler)), *standard_libraries(self.compiler)]

    def position(self, info: UnitInfo) -> int:
        """Return how many units the program initialises up to this one, 0: not its own."""
        order = [unit.name for unit in self.linked.values() if unit.is_linked]
        return order.index(info.name) + 1 if info.name in order else 0

    def are_neighbours(self, infos: Sequence[UnitInfo]) -> bool:
        """Return whether no other unit is initialised between units."""
        rows = sorted(self.position(info) for info in infos)
        return bool(rows) and rows == list(range(rows[0], rows[0] + len(rows)))

    def entry_after(self, infos: Sequence[UnitInfo]) -> list[bytes]:
        """Return the symbols that the initialiser of the unit behind all others may have.

        Returns:
            None of them if the program's last unit is among the others.
        """
        order = [unit.name for unit in self.linked.values() if unit.is_linked]
        behind = order[max((self.position(info) for info in infos), default=0) :]
        marks = ("__", ".") if behind else ()
        return [f"caml{behind[0]}{mark}entry".encode() for mark in marks]

    def state(self, before: UnitInfo, info: UnitInfo, sizes: Sizes) -> StatePlan:
        """Return which fields keep their value.

        Raises:
            ReloaderError: A value that must be kept changed its type.
        """
        return plan_state(before, info, self.policy, self.changed, sizes)


def open_world(image: Image, config: OcamlConfig) -> World:
    """Return what is known of a program's units before any is looked at.

    Raises:
        ReloaderError: The compiler is not there, or not one that this works with.
    """
    linked = read_program_units(image)
    compiler = find_compiler(config.compiler)
    if compiler.flambda:
        raise FlambdaError(compiler.version, compiler.where)
    world = World(compiler, linked, config)
    with ExitStack() as undo:
        undo.callback(world.inspector.close)
        refuse_other_compiler(world.inspector, linked, image.path)
        undo.pop_all()
    return world
