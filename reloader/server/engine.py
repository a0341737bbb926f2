"""What the daemon hands its work to, and what that work may ask of the daemon.

The daemon knows queues, sockets and lives; the engine knows programs and objects. Both sides of
the border are protocols, so that each is tested without the other.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from reloader.wire.answers import (
        CheckAnswer,
        FindingAnswer,
        HolderAnswer,
        MemoryAnswer,
        ObjectAnswer,
        OwnerAnswer,
        ReloadAnswer,
        SpawnAnswer,
        TargetAnswer,
    )
    from reloader.wire.protocol import Event


@dataclass(frozen=True, slots=True)
class WatchOptions:
    """What to watch and how to build; an empty field leaves the configuration's value."""

    watch: tuple[str, ...] = ()
    build: str | None = None
    source: tuple[str, ...] = ()
    cwd: str = ""  # where the build command runs
    build_env: dict[str, str] | None = None  # its environment; None: the daemon's
    consistent: bool = False  # every reload switches at one instant
    replay: bool | None = None  # give it what was live in its last run; None: as configured
    replay_crashed: bool = False  # also what it crashed in


@dataclass(frozen=True, slots=True)
class SpawnOptions:
    """A program that the client is about to start."""

    argv: tuple[str, ...]
    path: str  # the file that will be executed
    cwd: str
    env: dict[str, str] = field(default_factory=dict[str, str])  # as the program gets it
    program: str | None = None  # basename of the process that is meant, under wrappers
    # what a host without an executable of its own is to link: paths, `-lNAME`, `-LDIR`
    link: tuple[str, ...] = ()
    watch: WatchOptions = field(default_factory=WatchOptions)


class Host(Protocol):
    """The daemon as the engine sees it. Every method may be called from any thread."""

    folder: Path

    def post(self, work: Callable[[], object]) -> None:
        """Queue work behind what is queued already; its errors are logged and emitted."""
        ...

    def files_changed(self, paths: frozenset[str]) -> None:
        """Queue `Engine.files_changed`; sets that wait behind a reload are merged."""
        ...

    def emit(self, event: Event) -> None:
        """Send an event to every subscribed client; never blocks."""
        ...

    def progress(self, text: str) -> None:
        """Tell the client whose request is worked on what is happening."""
        ...

    def targets_changed(self, count: int) -> None:
        """Say how many programs are under the daemon; it ends some time after the last."""
        ...


class Engine(Protocol):
    """Programs and objects.

    Methods of the first group run on the one work thread, in order. Those of the second are
    called from other threads while one of the first runs, and must neither wait for it nor
    change anything. `target` is what `--target` said: a session, pid or name; None: the only
    one. All raise `ReloaderError` or `StateError` with the text for the user.
    """

    def spawn(self, options: SpawnOptions, fd: int) -> SpawnAnswer:
        """Expect the agent of a program on this socket, which is now the engine's.

        Returns at once: the client starts the program only after the answer. The end of the
        socket's stream without a hello means that the program never ran.
        """
        ...

    def attach(self, pid: int, options: WatchOptions) -> TargetAnswer:
        """Go beside a running program."""
        ...

    def detach(self, target: str | None) -> TargetAnswer:
        """Let a program go on without us."""
        ...

    def load(
        self,
        paths: Sequence[str],
        target: str | None,
        reinit: Sequence[str],
        *,
        consistent: bool = False,
    ) -> ReloadAnswer:
        """Reload objects or archives as one transaction."""
        ...

    def unload(self, path: str, target: str | None) -> ReloadAnswer:
        """Take an object that was loaded out again."""
        ...

    def rollback(self, generation: int | None, target: str | None) -> ReloadAnswer:
        """Make the versions live that were live after a generation; None: before the last."""
        ...

    def remap(self, path: str, target: str | None) -> ReloadAnswer:
        """Give the code and constants of a live object another place."""
        ...

    def check(self, paths: Sequence[str], target: str | None) -> list[CheckAnswer]:
        """Say whether objects would load, with every reason why not."""
        ...

    def why(self, name: str, target: str | None) -> list[HolderAnswer]:
        """Name what still holds superseded versions of an object."""
        ...

    def files_changed(self, paths: frozenset[str]) -> object:
        """Reload finished files as one transaction."""
        ...

    def targets(self) -> list[TargetAnswer]:
        """Second group: the programs under the daemon."""
        ...

    def objects(self, target: str | None) -> list[ObjectAnswer]:
        """Second group: what is watched and loaded."""
        ...

    def history(self, target: str | None, limit: int) -> list[ReloadAnswer]:
        """Second group: attempts, newest first."""
        ...

    def generations(self, target: str | None) -> list[ReloadAnswer]:
        """Second group: generations that became live, newest first."""
        ...

    def memory(self, target: str | None) -> MemoryAnswer:
        """Second group: bytes held, per object and generation."""
        ...

    def owner(self, what: str, target: str | None) -> list[OwnerAnswer]:
        """Second group: whom a name or an address belongs to, best first.

        Raises:
            ReloaderError: Unknown; names the nearest existing ones.
        """
        ...

    def doctor(self, subject: str | None) -> list[FindingAnswer]:
        """Second group: what would stand in the way for a pid or a program."""
        ...

    def reached(self, generation: int | None, target: str | None) -> ReloadAnswer | None:
        """Second group: the attempt that `wait` waits for, or None if it is not decided yet.

        Args:
            generation: Its number; None: the newest, once no build or reload is under way.
            target: Whose.
        """
        ...

    def close(self) -> None:
        """Let every program go on and release everything; called once, on the work thread."""
        ...


class OpenEngine(Protocol):
    """`reloader.server.sessions.open_engine`."""

    def __call__(self, folder: Path, host: Host) -> Engine:
        """Return the engine of a project folder.

        Raises:
            ReloaderError: The configuration or the state cannot be used.
        """
        ...
