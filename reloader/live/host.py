"""Host: what the language of a program decides about a reload, as the road sees it.

The road links, places and flips; a host says which objects are replaced as a whole, what has to
agree before that, and what else makes new code live. `Plain` is C's: nothing beyond ELF.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from reloader.elf.object import ObjectFile
from reloader.errors.base import ReloaderError
from reloader.errors.linking import UndefinedSymbolsError
from reloader.ids import NO_ROW
from reloader.link.graph import LinkGraph
from reloader.live.objects import LiveObject
from reloader.live.redirect import RedirectPlan
from reloader.live.target import Allocation


@dataclass(slots=True)
class HostPlan:
    """What a host prepared for one transaction; nothing of it has been done to the process."""

    redirects: RedirectPlan | None = None  # jumps to stubs, written once new code is live
    redirected: list[int] = field(default_factory=list[int])  # (names) slot of each, or NO_ROW
    led: set[int] = field(default_factory=set[int])  # slots that the host made lead to new code
    notes: list[str] = field(default_factory=list[str])  # for the report
    functions: list[str] = field(default_factory=list[str])  # that run new code, for the report
    stop_us: float = 0.0  # how long the program stood still for it
    done: bool = False  # its code is live, and nothing can take that back
    left: bool = False  # the language's runtime may know of the new version, whatever fails
    details: object = None  # the host's own

    def writes(self) -> list[tuple[int, tuple[int, bytes, bytes]]]:
        """Return (slot, (address, bytes before, after)) of each write into the program."""
        plan = self.redirects
        if plan is None:
            return []
        functions: list[int] = plan.function.tolist()
        slots = [self.redirected[row] for row in functions]
        return [(slot, plan.write(row)) for row, slot in enumerate(slots) if slot != NO_ROW]


@dataclass(frozen=True, slots=True)
class Hold:
    """What a language's runtime says of memory that it cannot forget."""

    addr: int  # start of the memory
    holder: int  # address of what points into it
    text: str  # in the language's terms


@dataclass(frozen=True, slots=True)
class Library:
    """An archive of a language's own, which is opened once nothing else defines a name."""

    path: Path
    along: frozenset[bytes] = frozenset()  # names that come with whatever is pulled from it
    stateless: bool = False  # a program that has a part of it may get the rest: no variables


@dataclass(frozen=True, slots=True)
class Companions:
    """What has to be changed in a transaction that was refused."""

    files: list[ObjectFile] = field(default_factory=list[ObjectFile])  # that come with it
    without: frozenset[tuple[str, str]] = frozenset()  # (path, member) of what is left out
    notes: list[str] = field(default_factory=list[str])  # for the report


class Host(Protocol):
    """A language's part of one program."""

    name: str

    def whole(self, file: ObjectFile) -> bool:
        """Return whether a new version of an object shares nothing with its live one."""
        ...

    def expect(self, files: Sequence[ObjectFile]) -> None:
        """Begin what takes time and is needed of objects that are about to be linked."""
        ...

    def libraries(self) -> list[Library]:
        """Return the archives from which new code may pull what the program lacks."""
        ...

    def explained(
        self, error: UndefinedSymbolsError, objects: Sequence[ObjectFile]
    ) -> ReloaderError:
        """Return in the language's terms what objects of a transaction miss."""
        ...

    def companions(
        self, error: Exception | None, objects: Sequence[ObjectFile]
    ) -> Companions | None:
        """Return what may be tried with objects that were refused, None for nothing.

        Args:
            error: Why; None: they are just what is live, and were compiled again.
            objects: None of them: whatever was refused earlier.
        """
        ...

    def isolate(self, graph: LinkGraph) -> None:
        """Change a graph before it is compared with what is live.

        Raises:
            ReloaderError: Objects of the graph do not fit the program.
        """
        ...

    def prepare(self, graph: LinkGraph) -> HostPlan:
        """Return what a linked transaction needs besides flipping slots; may take slots.

        Raises:
            ReloaderError: It cannot be done.
        """
        ...

    def version(self, live: LiveObject) -> LiveObject:
        """Return a version with the addresses that other objects have to know it by."""
        ...

    def switch(self, plan: HostPlan, generation: int) -> None:
        """Make new code live, whole or not at all.

        Raises:
            ReloaderError: Nothing was changed.
        """
        ...

    def adopt(self, plan: HostPlan) -> None:
        """Take note that a transaction is live."""
        ...

    def roots(self) -> Sequence[int]:
        """Return addresses by which memory of ours is in use for the host's reasons."""
        ...

    def slots(self) -> set[int]:
        """Return the slots of functions that are live and that no symbol names."""
        ...

    def rows(self, plan: HostPlan | None = None) -> dict[str, str]:
        """Return what a later daemon has to know, by name; of a plan: once it is live."""
        ...

    def swapped(self, generation: int) -> bool:
        """Return whether a transaction that was under way has become live."""
        ...

    def finish(self, rows: Mapping[str, str]) -> None:
        """Do what is left of a transaction that became live under another daemon.

        Args:
            rows: What `rows` told of its plan; its objects and slots are in the program.
        """
        ...

    def suspect(self, rows: Mapping[str, str]) -> None:
        """Take note that the runtime may know of a transaction that is undone.

        Args:
            rows: What `rows` told of its plan.
        """
        ...

    def holds(self, memory: Allocation) -> bool:
        """Return whether the language's runtime still knows superseded memory."""
        ...

    def forgotten(self, memory: Allocation) -> bool:
        """Return whether the runtime has proven that nothing of its own reaches memory."""
        ...

    def meant(self, name: str) -> list[str]:
        """Return the symbols that people mean by a name as the language spells it."""
        ...

    def objects_named(self, name: str) -> list[tuple[str, str]]:
        """Return the (path, member) of objects that people mean by a name of the language."""
        ...

    def hold(self, keys: Sequence[tuple[str, str]]) -> bool:
        """Prepare a program that waits before its main to wait later instead, for a reload.

        Args:
            keys: (path, member) of each object that is to be reloaded.

        Returns:
            Whether it will: they cannot be reloaded before main.
        """
        ...

    def go_on(self) -> None:
        """Let a program run that waits for a reload."""
        ...

    def close(self) -> None:
        """End what was started for it beside the program."""
        ...

    def let_go(self, superseded: Sequence[Allocation]) -> list[Hold]:
        """Let the runtime forget what nothing of the language's own reaches any more.

        Args:
            superseded: All memory that waits for its proof.

        Returns:
            What holds the rest.
        """
        ...


class Plain:
    """C and whatever else is nothing but ELF."""

    name = "C"

    def whole(self, file: ObjectFile) -> bool:  # noqa: ARG002  the protocol's
        """Every new version is compared with its live one."""
        return False

    def expect(self, files: Sequence[ObjectFile]) -> None:
        """Nothing takes time."""

    def libraries(self) -> list[Library]:
        """Only what the user names."""
        return []

    def explained(
        self,
        error: UndefinedSymbolsError,
        objects: Sequence[ObjectFile],  # noqa: ARG002  the protocol's
    ) -> ReloaderError:
        """The symbols say it all."""
        return error

    def companions(
        self,
        error: Exception | None,  # noqa: ARG002  the protocol's
        objects: Sequence[ObjectFile],  # noqa: ARG002  the same
    ) -> Companions | None:
        """An object is refused for its own sake."""
        return None

    def isolate(self, graph: LinkGraph) -> None:
        """Nothing to change."""

    def prepare(self, graph: LinkGraph) -> HostPlan:  # noqa: ARG002  the protocol's
        """Nothing to do."""
        return HostPlan()

    def version(self, live: LiveObject) -> LiveObject:
        """Others know it by the addresses that the linker gave."""
        return live

    def switch(self, plan: HostPlan, generation: int) -> None:
        """The slots do it all."""

    def adopt(self, plan: HostPlan) -> None:
        """Nothing to note."""

    def roots(self) -> Sequence[int]:
        """No reasons but the linker's."""
        return ()

    def slots(self) -> set[int]:
        """Return the slots of functions that are live and that no symbol names."""
        return set()

    def rows(self, plan: HostPlan | None = None) -> dict[str, str]:  # noqa: ARG002  the protocol's
        """Nothing."""
        return {}

    def swapped(self, generation: int) -> bool:  # noqa: ARG002  the protocol's
        """The slots tell."""
        return False

    def finish(self, rows: Mapping[str, str]) -> None:
        """The slots did it all."""

    def suspect(self, rows: Mapping[str, str]) -> None:
        """There is no runtime."""

    def holds(self, memory: Allocation) -> bool:  # noqa: ARG002  the protocol's
        """There is no runtime."""
        return False

    def forgotten(self, memory: Allocation) -> bool:  # noqa: ARG002  the protocol's
        """There is no runtime."""
        return False

    def meant(self, name: str) -> list[str]:  # noqa: ARG002  the protocol's
        """A symbol is its own name."""
        return []

    def objects_named(self, name: str) -> list[tuple[str, str]]:  # noqa: ARG002  the same
        """An object is its file's name."""
        return []

    def hold(self, keys: Sequence[tuple[str, str]]) -> bool:  # noqa: ARG002  the protocol's
        """C is reloaded before main."""
        return False

    def go_on(self) -> None:
        """It does not wait."""

    def close(self) -> None:
        """Nothing was started."""

    def let_go(self, superseded: Sequence[Allocation]) -> list[Hold]:  # noqa: ARG002  the same
        """There is no runtime."""
        return []
