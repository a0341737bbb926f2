"""Errors of plugins: one that cannot be loaded, one that fails, one that breaks the graph."""

from collections.abc import Sequence
from pathlib import Path

from reloader.errors.base import UNTOUCHED, RefusedError, ReloaderError


class PluginLoadError(RefusedError):
    """A configured plugin cannot be used."""

    code = "plugin-load"

    def __init__(self, source: str, problem: str) -> None:
        self.source = source
        self.problem = problem
        super().__init__(
            f"plugin {source}: {problem}. {UNTOUCHED} Correct it, take it out of `plugins` in"
            " reloader.toml, or uninstall the package that brings it."
        )


class NoHooksError(PluginLoadError):
    """A plugin has none of the hooks: probably a misspelt name."""

    def __init__(self, source: str, hooks: Sequence[str]) -> None:
        self.hooks = tuple(hooks)
        super().__init__(source, f"has none of the hooks {', '.join(hooks)}")


class PluginFileError(PluginLoadError):
    """A plugin's file is not there."""

    def __init__(self, path: Path) -> None:
        self.path = path
        super().__init__(str(path), "there is no such file")


class PluginError(ReloaderError):
    """A plugin raised: the transaction it was asked about is off."""

    code = "plugin"

    def __init__(self, plugin: str, hook: str, error: BaseException) -> None:
        self.plugin = plugin
        self.hook = hook
        self.error = error
        super().__init__(
            f"plugin {plugin} failed in {hook}: {type(error).__name__}: {error}. {UNTOUCHED} "
            "The plugin has to be corrected, or taken out of reloader.toml."
        )


class PluginGraphError(ReloaderError):
    """A plugin left a graph that the passes after it cannot work on."""

    code = "plugin-graph"

    def __init__(self, plugin: str, hook: str, fact: str, rows: Sequence[int]) -> None:
        self.plugin = plugin
        self.hook = hook
        self.fact = fact
        self.rows = tuple(rows)
        shown = ", ".join(map(str, self.rows[:20]))
        super().__init__(
            f"plugin {plugin} left the link graph wrong in {hook}: {fact} (rows {shown}). "
            f"{UNTOUCHED} docs/graph.md says what has to hold."
        )
