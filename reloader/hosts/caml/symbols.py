"""Names of functions as symbols and as people write them: `camlFoo__f_461` and `Foo.f`.

4.x joins unit, function and a number by `__` and `_`, 5.x by `.` and `_`
(Compilenv.make_symbol); characters that assemblers do not take are `$xx`. Modules inside of a
unit leave no trace. A unit of dune is `Dune__exe__Handlers` or `Hlib__Greet`, so `__` alone
does not tell where it ends.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from reloader.elf.object import ObjectFile
from reloader.hosts.caml.units import shown_unit

PREFIX: Final = "caml"
ANONYMOUS: Final = "fun"
ESCAPE: Final = re.compile(r"\$([0-9a-f]{2})")
NUMBERED: Final = re.compile(r"(.+)_\d+")
OPERATOR: Final = re.compile(r"[^\w'.]+")
LAST: Final = re.compile(r"(.*?)\.?(?:\(\s*(\S+)\s*\)|([\w']+)|([^\w'.]\S*))$")


class UnitNames:
    """The names of a program's units, and with them those of its functions."""

    def __init__(self, units: Iterable[str]) -> None:
        """Take names as the compiler has them: `Foo`, `Dune__exe__Handlers`."""
        self.units = sorted(units, key=len, reverse=True)
        self._known = set(self.units)

    def split(self, symbol: bytes) -> tuple[str, str] | None:
        """Return unit and function of a symbol; None: it is no function of a unit.

        The function of a module block is "".
        """
        text = symbol.decode("ascii", "replace")
        if not text.startswith(PREFIX):
            return None
        text = text.removeprefix(PREFIX)
        if text in self._known:
            return text, ""
        unit, dot, rest = text.partition(".")
        if not dot:
            unit = next((name for name in self.units if text.startswith(f"{name}__")), "")
            rest = text.removeprefix(f"{unit}__")
        match = NUMBERED.fullmatch(rest)
        if unit not in self._known or match is None:
            return None
        return unit, ESCAPE.sub(lambda found: chr(int(found[1], 16)), match[1])

    def shown(self, symbol: bytes) -> str | None:
        """Return a symbol as people write it: `Foo.f`, `Foo.( ++ )`; None: not OCaml's."""
        found = self.split(symbol)
        if found is None:
            return None
        unit, function = shown_unit(found[0]), found[1]
        if not function:
            return unit
        if function == ANONYMOUS:
            return f"{unit}.(fun)"
        if OPERATOR.fullmatch(function):
            return f"{unit}.( {function} )"
        return f"{unit}.{function}"

    def find(self, query: str, symbols: Iterable[bytes]) -> Iterator[bytes]:
        """Yield the symbols that somebody means by `Foo.f`, `Foo.M.f` or `Foo`.

        Functions of one name in several modules of a unit are all meant.
        """
        for unit, function in self._meant(query):
            for symbol in symbols:
                if self.split(symbol) == (unit, function):
                    yield symbol

    def _meant(self, query: str) -> Sequence[tuple[str, str]]:
        """Return the (unit, function) pairs that a query may mean."""
        known = {name: name for name in self.units} | {shown_unit(n): n for n in self.units}
        if query in known:
            return [(known[query], "")]
        match = LAST.fullmatch(query)
        if match is None:
            return []
        path = match[1].split(".")
        function = match[2] or match[3] or match[4]
        for size in range(len(path), 0, -1):  # the rest are modules inside of the unit
            unit = known.get(".".join(path[:size]))
            if unit is not None:
                return [(unit, function)]
        return []


def symbols_meant(query: str, units: Iterable[str], files: Iterable[ObjectFile]) -> list[str]:
    """Return the symbols of some objects that somebody means by `Foo.f`."""
    every = (symbol for file in files for symbol in file.symbol_names)
    return [symbol.decode() for symbol in UnitNames(units).find(query, every)]
