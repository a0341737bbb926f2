"""The verbs of the protocol: which thread answers, which parameters, which engine method."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, TypeVar, cast

from reloader.errors.daemon import RequestError
from reloader.server.engine import SpawnOptions, WatchOptions

if TYPE_CHECKING:
    from collections.abc import Callable

    from reloader.server.engine import Engine
    from reloader.wire.protocol import Json

T = TypeVar("T")
_MOST_ROWS: Final = 1 << 62


@dataclass(frozen=True, slots=True)
class Params:
    """A request's parameters, taken out by name and type."""

    verb: str
    values: Json
    fds: list[int]

    def take(self, name: str, kind: type[T]) -> T:
        """Return a parameter.

        Raises:
            RequestError: It is missing or of another type.
        """
        value = self.values.get(name)
        # bool is an int to Python, not to us
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            problem = f"`{name}` must be {kind.__name__}, it is {value!r}"
            raise RequestError(self.verb, problem)
        return value

    def maybe(self, name: str, kind: type[T]) -> T | None:
        """Return a parameter, or None if it was not given."""
        return None if self.values.get(name) is None else self.take(name, kind)

    def count(self, name: str) -> int:
        """Return a number of rows, as many as SQLite can count at most.

        Raises:
            RequestError: It is less than one.
        """
        value = self.take(name, int)
        if value < 1:
            problem = f"`{name}` is {value}, it must be at least 1"
            raise RequestError(self.verb, problem)
        return min(value, _MOST_ROWS)

    def texts(self, name: str) -> tuple[str, ...]:
        """Return a list of strings, empty if it was not given."""
        values: list[Any] = cast("list[Any] | None", self.maybe(name, list)) or []
        if not all(isinstance(value, str) for value in values):
            problem = f"`{name}` must be a list of str"
            raise RequestError(self.verb, problem)
        return tuple(values)

    def target(self) -> str | None:
        """Return what `--target` said."""
        return self.maybe("target", str)

    def watch(self) -> WatchOptions:
        """Return the options of `run` and `attach`."""
        build = self.maybe("build", str)
        cwd = self.maybe("cwd", str) or ""
        env = cast("Json | None", self.maybe("build_env", dict))
        return WatchOptions(
            self.texts("watch"), build, self.texts("source"), cwd,
            {name: str(value) for name, value in env.items()} if env else None,
            consistent=self.maybe("consistent", bool) or False,
            replay=self.maybe("replay", bool),
            replay_crashed=self.maybe("replay_crashed", bool) or False,
        )  # fmt: skip

    def take_fd(self) -> int:
        """Return the one descriptor that came with the request; it is the caller's to close."""
        if len(self.fds) != 1:
            problem = f"needs one descriptor beside it, {len(self.fds)} came"
            raise RequestError(self.verb, problem)
        return self.fds.pop()


def _spawn(engine: Engine, p: Params) -> object:
    env = cast("Json", p.take("env", dict))
    options = SpawnOptions(
        argv=p.texts("argv"),
        path=p.take("path", str),
        cwd=p.take("cwd", str),
        env={str(name): str(value) for name, value in env.items()},
        program=p.maybe("program", str),
        link=p.texts("link"),
        watch=p.watch(),
    )
    return engine.spawn(options, p.take_fd())


# answered on the work thread, one after the other
WORK: Final[dict[str, Callable[[Engine, Params], object]]] = {
    "spawn": _spawn,
    "attach": lambda e, p: e.attach(p.take("pid", int), p.watch()),
    "detach": lambda e, p: e.detach(p.target()),
    "load": lambda e, p: e.load(
        p.texts("paths"),
        p.target(),
        p.texts("reinit"),
        consistent=p.maybe("consistent", bool) or False,
    ),
    "unload": lambda e, p: e.unload(p.take("path", str), p.target()),
    "rollback": lambda e, p: e.rollback(p.maybe("generation", int), p.target()),
    "remap": lambda e, p: e.remap(p.take("path", str), p.target()),
    "check": lambda e, p: e.check(p.texts("paths"), p.target()),
    "why": lambda e, p: e.why(p.take("object", str), p.target()),
}
# answered at once on the client's own thread, while a reload may be under way
READ: Final[dict[str, Callable[[Engine, Params], object]]] = {
    "objects": lambda e, p: e.objects(p.target()),
    "history": lambda e, p: e.history(p.target(), p.count("limit")),
    "generations": lambda e, p: e.generations(p.target()),
    "memory": lambda e, p: e.memory(p.target()),
    "owner": lambda e, p: e.owner(p.take("what", str), p.target()),
    "doctor": lambda e, p: e.doctor(p.maybe("subject", str)),
}
EVENTFUL: Final = frozenset({"spawn"})  # these subscribe their connection
