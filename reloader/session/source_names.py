"""Symbols by the names that C++ and Rust sources have for them."""

import re
from collections.abc import Iterable
from typing import Final

from reloader.live.program import Program

_PARAMETERS: Final = re.compile(r"\([^()]*\)|<[^<>]*>|\[[^\[\]]*\]| const$")
_WORD: Final = re.compile(r"~?[A-Za-z_]\w*")
# after a symbol's last name: the end, its hash in Rust, or what says its type in C++
_TAIL: Final = r"(?:17h[0-9a-f]{16}E|(?![0-9]).*)$"
_MOST: Final = 16


def meant(program: Program, name: str) -> list[str]:
    """Return the symbols of watched objects that a source calls `Circle::area`.

    Scopes may be left out. Parameters and what stands in `<>` do not count.
    """
    parts = _WORD.findall(name) if " as " in name else _WORD.findall(_bare(name))
    if not parts:
        return []
    *scopes, last = parts
    ending = f"{len(last)}{last}"
    if scopes and last.lstrip("~") == scopes[-1]:  # a constructor or destructor
        ending = "D[012]" if last.startswith("~") else "C[123]"
    inside = "".join(f"{re.escape(scope)}.*?" for scope in scopes)
    pattern = re.compile(f"_[ZR].*?{inside}{ending}{_TAIL}")
    found = {symbol for symbol in _symbols(program) if pattern.match(symbol)}
    return sorted(found, key=lambda symbol: (len(symbol), symbol))[:_MOST]


def symbols_for(program: Program, names: Iterable[str]) -> frozenset[str]:
    """Return names with those that are no symbols replaced by the symbols that they mean."""
    known = frozenset(_symbols(program))
    found: set[str] = set()
    for name in names:
        found.update([name] if name in known else meant(program, name) or [name])
    return frozenset(found)


def _bare(name: str) -> str:
    """Return a name without parameters, template arguments and qualifiers."""
    while name != (shorter := _PARAMETERS.sub("", name)):
        name = shorter
    return name


def _symbols(program: Program) -> Iterable[str]:
    for live in program.objects.values():
        for name in live.file.symbol_names:
            yield name.decode("utf-8", "replace")
