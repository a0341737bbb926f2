"""Plugins: other people's code at the linker's borders, and told of what becomes of a reload.

A plugin is any object with some of the hooks as attributes: five borders that get the graph and
the architecture, four events that get an `Event`. It comes by path from the configuration (the
object named `plugin` in that file, else the file's module itself), or from an installed package
as an entry point of the group `reloader.plugins`. Only hooks that a plugin has are ever called.
"""

import inspect
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from importlib.machinery import SourceFileLoader
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType
from typing import Any, Final

from reloader.arch.base import Architecture
from reloader.errors.linking import BrokenFactError
from reloader.errors.plugins import (
    NoHooksError,
    PluginError,
    PluginFileError,
    PluginGraphError,
    PluginLoadError,
)
from reloader.link.check import check_built
from reloader.link.graph import LinkGraph
from reloader.link.hooks import Border
from reloader.live.target import Allocation
from reloader.watching.trust import Trust, check_trusted

GROUP: Final = "reloader.plugins"
EVENTS: Final = ("loaded", "emitted", "removed", "failed")
HOOKS: Final = (*(border.value for border in Border), *EVENTS)


@dataclass(frozen=True, slots=True)
class Event:
    """What a plugin is told of.

    `loaded`: linked and written down, no byte of the process is changed; an error stops it.
    `emitted`: it is what runs. `removed`: memory that nothing reaches is about to be reused.
    `failed`: refused or undone.
    """

    objects: tuple[str, ...]  # as shown to people
    generation: int = 0  # 0: none was made
    graph: LinkGraph | None = None  # of `loaded` and `emitted`
    memory: tuple[Allocation, ...] = ()  # taken (`loaded`, `emitted`) or given back (`removed`)
    error: str = ""  # of `failed`: the text for people


@dataclass(slots=True)
class Plugins:
    """All plugins of a project; implements `link.hooks.Hooks`."""

    # by hook: the plugin's name and what to call
    hooks: dict[str, list[tuple[str, Callable[..., object]]]] = field(
        default_factory=dict[str, list[tuple[str, Callable[..., object]]]]
    )
    names: list[str] = field(default_factory=list[str])

    def add(self, name: str, plugin: object) -> None:
        """Take a plugin.

        Raises:
            NoHooksError: It has none of the hooks.
        """
        found = [(hook, getattr(plugin, hook, None)) for hook in HOOKS]
        callables = [(hook, call) for hook, call in found if callable(call)]
        if not callables:
            raise NoHooksError(name, HOOKS)
        self.names.append(name)
        for hook, call in callables:
            self.hooks.setdefault(hook, []).append((name, call))

    def at(self, border: Border, graph: LinkGraph, arch: Architecture) -> None:
        """Show a graph to whoever asked for this border.

        Raises:
            PluginError: A plugin raised.
            PluginGraphError: A plugin left the graph in a state that no pass can work on.
        """
        for name, call in self.hooks.get(border, ()):
            _guarded(name, border, call, graph, arch)
            try:
                check_built(graph, arch)
            except (BrokenFactError, IndexError, TypeError) as error:
                fact, rows = getattr(error, "fact", str(error)), getattr(error, "rows", ())
                raise PluginGraphError(name, border, fact, rows) from error

    def loaded(self, event: Event) -> None:
        """Tell of a transaction that is about to change the process.

        Raises:
            PluginError: A plugin raised, so it does not.
        """
        for name, call in self.hooks.get("loaded", ()):
            _guarded(name, "loaded", call, event)

    def emitted(self, event: Event) -> list[str]:
        """Tell of a transaction that is live; return what plugins failed at."""
        return self._tell("emitted", event)

    def removed(self, event: Event) -> list[str]:
        """Tell of memory that is about to be reused; return what plugins failed at."""
        return self._tell("removed", event)

    def failed(self, event: Event) -> list[str]:
        """Tell of a transaction that did not become live; return what plugins failed at."""
        return self._tell("failed", event)

    def _tell(self, hook: str, event: Event) -> list[str]:
        """Tell of what cannot be stopped any more: an error is only reported."""
        problems: list[str] = []
        for name, call in self.hooks.get(hook, ()):
            try:
                call(event)
            except Exception as error:  # noqa: BLE001 - other people's code raises anything
                what = f"{type(error).__name__}: {error}"
                problems.append(f"plugin {name} failed in {hook}: {what}")
        return problems


def _guarded(name: str, hook: str, call: Callable[..., object], *arguments: object) -> None:
    """Call a hook; whatever it raises names the plugin."""
    try:
        call(*arguments)
    except Exception as error:
        raise PluginError(name, hook, error) from error


def load_plugins(
    folder: Path,
    paths: Sequence[str],
    installed: Iterable[EntryPoint] | None = None,
    trust: Trust | None = None,
) -> Plugins | None:
    """Return a project's plugins, None if it has none: then no hook costs anything.

    Args:
        folder: The project's, which relative paths start from.
        paths: `plugins` of the configuration.
        installed: Entry points; those of the installed packages if None.
        trust: Whose files are run.

    Raises:
        PluginLoadError: One of them cannot be used; says which and why.
    """
    plugins = Plugins()
    for text in paths:
        path = folder / text
        plugins.add(text, _from_file(path, trust))
    points = entry_points(group=GROUP) if installed is None else installed
    for point in sorted(points, key=lambda point: point.name):
        try:
            plugin = point.load()
        except Exception as error:
            problem = f"cannot be imported: {type(error).__name__}: {error}"
            raise PluginLoadError(point.name, problem) from error
        plugins.add(point.name, _instance(point.name, plugin))
    return plugins if plugins.names else None


def _from_file(path: Path, trust: Trust | None) -> object:
    """Run a plugin's file and return the plugin in it."""
    if not path.is_file():
        raise PluginFileError(path)
    # dataclasses look their module up, so it has to be where modules are
    name = f"reloader_plugin_{blake2b(bytes(path), digest_size=4).hexdigest()}_{path.stem}"
    module = sys.modules[name] = ModuleType(name)
    module.__file__ = str(path)
    try:
        check_trusted(path, [path.parent], trust)
        SourceFileLoader(name, str(path)).exec_module(module)
    except Exception as error:
        del sys.modules[name]
        problem = f"cannot be imported: {type(error).__name__}: {error}"
        raise PluginLoadError(str(path), problem) from error
    return _instance(str(path), getattr(module, "plugin", module))


def _instance(name: str, plugin: Any) -> object:  # noqa: ANN401 - other people's object
    """Return a plugin; of a class, an object of it."""
    if not inspect.isclass(plugin):
        return plugin
    try:
        return plugin()
    except Exception as error:
        problem = f"cannot be made: {type(error).__name__}: {error}"
        raise PluginLoadError(name, problem) from error
