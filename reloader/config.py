"""The configuration: `reloader.toml`, or `[tool.reloader]` of pyproject.toml.

Every key has a default, so a project needs no file. A key that nothing reads is an error: a
misspelt one would silently do nothing.
"""

from __future__ import annotations

import difflib
import tomllib
from dataclasses import dataclass, field, fields
from math import inf
from typing import TYPE_CHECKING, Any, Final, cast

from reloader.errors.daemon import ConfigError, UnknownKeyError, WrongTypeError
from reloader.hosts.caml.settings import OcamlConfig

if TYPE_CHECKING:
    from pathlib import Path


@dataclass(frozen=True, slots=True)
class RetireConfig:
    """[retire]: freeing what was superseded."""

    enabled: bool = True
    max_stop_ms: float = 5.0  # of one stop
    min_interval_s: float = 1.0  # between two stops


@dataclass(frozen=True, slots=True)
class HooksConfig:
    """[hooks]: what is done before and after each reload; see docs/types.md."""

    before_reload: str = ""  # a command; a status other than 0 cancels the reload
    after_reload: str = ""  # a command
    before_function: str = ""  # `int NAME(unsigned generation)` in the program; 0: go on
    after_function: str = ""
    timeout_s: float = 30.0  # how long a command may take


@dataclass(frozen=True, slots=True)
class TypesConfig:
    """[types]: layouts that new code and live data have to agree on."""

    accept: tuple[str, ...] = ()  # types and functions whose changes the user answers for


@dataclass(frozen=True, slots=True)
class Config:
    """What a project may set."""

    watch: tuple[str, ...] = ()  # folders and globs of objects and archives
    build: str = ""  # the command that makes objects of sources
    source: tuple[str, ...] = ()  # globs; a saved one runs `build`
    archives: tuple[str, ...] = ()  # watched too: searched for what is undefined, as by ld
    plugins: tuple[str, ...] = ()  # files of plugins that see every reload; see docs/plugins.md
    program: str = ""  # basename of the process that is meant, under wrappers
    keep: int = 50  # generations whose objects stay loadable
    retain: int = 3  # generations whose memory is kept, for a rollback that only flips slots
    consistent: bool = False  # all functions of a reload switch at one instant
    consistent_limit_s: float = 5.0  # how long to wait for it
    replay: bool = True  # a restarted program gets what was live before
    replay_crashed: bool = False  # also what the program crashed in
    polling: bool = False  # look at files instead of being told, for network file systems
    polling_interval_s: float = 0.5
    allow_shared_files: bool = False  # take objects and folders that other users may write
    retire: RetireConfig = field(default_factory=RetireConfig)
    hooks: HooksConfig = field(default_factory=HooksConfig)
    types: TypesConfig = field(default_factory=TypesConfig)
    ocaml: OcamlConfig = field(default_factory=OcamlConfig)
    # by variable: the C function that converts its old storage into storage of a new layout
    migrate: dict[str, str] = field(default_factory=dict[str, str])


_POSITIVE: Final = frozenset({"keep"})  # other whole numbers may be 0


def load_config(folder: Path) -> Config:
    """Return the configuration of a project folder.

    `reloader.toml` wins over pyproject.toml; without either the defaults hold.

    Raises:
        ConfigError: A file is no TOML, or has an unknown key or a value of another type.
    """
    own = folder / "reloader.toml"
    if own.is_file():
        return _section(own, Config, _parse(own), "")
    shared = folder / "pyproject.toml"
    if shared.is_file():
        return _section(
            shared, Config, _parse(shared).get("tool", {}).get("reloader", {}), "tool.reloader."
        )
    return Config()


def _parse(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        problem = f"no TOML: {error}"
        raise ConfigError(file, problem) from error
    except OSError as error:
        problem = f"cannot be read: {error.strerror}"
        raise ConfigError(file, problem) from error


def _section(file: Path, kind: type[Any], table: Any, prefix: str) -> Any:  # noqa: ANN401 - TOML
    """Build a section's dataclass from its table."""
    if not isinstance(table, dict):
        raise WrongTypeError(file, prefix.rstrip("."), _type_name(table), "a table")
    defaults = kind()
    known = {f.name: getattr(defaults, f.name) for f in fields(kind)}
    given: dict[str, Any] = {}
    for key, value in cast("dict[str, Any]", table).items():
        if key not in known:
            nearest = difflib.get_close_matches(key, known, n=1)
            raise UnknownKeyError(file, f"{prefix}{key}", nearest)
        given[key] = _value(file, f"{prefix}{key}", value, known[key])
    return kind(**given)


def _value(file: Path, key: str, value: Any, default: object) -> Any:  # noqa: ANN401 - TOML
    """Return a value in its default's type."""
    match default:
        case RetireConfig() | HooksConfig() | TypesConfig() | OcamlConfig():
            return _section(file, type(default), value, f"{key}.")
        case tuple():
            return _texts(file, key, value)
        case dict():
            return _named_texts(file, key, value)
        case bool():
            wanted, ok = "true or false", isinstance(value, bool)
        case int():
            wanted, ok = "a whole number", type(value) is int
        case float():
            wanted, ok = "a number", type(value) in {int, float}
        case _:
            wanted, ok = "a string", isinstance(value, str)
    if not ok:
        raise WrongTypeError(file, key, _type_name(value), wanted)
    least = int(key.rpartition(".")[2] in _POSITIVE)
    if type(default) is int and value < least:
        raise WrongTypeError(file, key, str(value), f"at least {least}")
    if type(default) is float and not 0 < value < inf:  # seconds and milliseconds, all of them
        raise WrongTypeError(file, key, str(value), "a number above 0")
    return value


def _texts(file: Path, key: str, value: object) -> tuple[str, ...]:
    items: list[object] = [None]
    if isinstance(value, list):
        items = cast("list[object]", value)
    texts = tuple(item for item in items if isinstance(item, str))
    if len(texts) != len(items):
        found = _type_name(cast("object", value))
        raise WrongTypeError(file, key, found, "a list of strings")
    return texts


def _named_texts(file: Path, key: str, value: object) -> dict[str, str]:
    if not isinstance(value, dict):
        raise WrongTypeError(file, key, _type_name(value), "a table")
    table = cast("dict[str, object]", value)
    for name, text in table.items():
        if not isinstance(text, str):
            raise WrongTypeError(file, f"{key}.{name}", _type_name(text), "a string")
    return cast("dict[str, str]", table)


def _type_name(value: object) -> str:
    match value:
        case list():
            return "a list"
        case dict():
            return "a table"
        case bool():
            return str(value).lower()
        case _:
            return repr(value)
