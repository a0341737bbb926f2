"""Symbol names in a text for people, as they are written in the source: C++, Rust.

binutils' `c++filt` knows both languages; where it is missing names stay as they are. JSON
always has the symbols' own names.
"""

from __future__ import annotations

import re
from typing import Final

_SYMBOL: Final = re.compile(
    r"(?<![A-Za-z0-9_$.])_(?:Z[A-Z0-9]|R[A-Z])[A-Za-z0-9_$.]*[A-Za-z0-9_$]"
)
_SECONDS: Final = 2.0  # of `c++filt`, which takes milliseconds
_STRING: Final = "std::basic_string<char, std::char_traits<char>, std::allocator<char>>"
# what every container and smart pointer has unless somebody chose otherwise
_DEFAULT: Final = re.compile(r", std::(?:allocator|default_delete)<(?:[^<>]|<[^<>]*>)*>")
_HANDLER: Final = re.compile(r"std::_Function_handler<.+?\), (.+)>::_M_invoke$")
_RUST: Final = re.compile(r"::h[0-9a-f]{16}$|\[[0-9a-f]+\](?=::)")
_known: Final = dict[str, str]()


def readable(text: str) -> str:
    """Return a text with the symbols in it as their source has them."""
    if "_Z" not in text and "_R" not in text:
        return text
    unknown = sorted({name for name in _SYMBOL.findall(text) if name not in _known})
    if unknown:
        _known.update(zip(unknown, _demangled(unknown), strict=True))
    return _SYMBOL.sub(lambda found: _known[found[0]], text)


def _demangled(symbols: list[str]) -> list[str]:
    """Return source names without their parameters, or the symbols themselves."""
    import subprocess  # noqa: PLC0415 - costs more than most commands

    try:
        done = subprocess.run(
            ["c++filt", "-p"],  # noqa: S607 - wherever binutils are
            input="\n".join(symbols),
            capture_output=True,
            text=True,
            check=True,
            timeout=_SECONDS,
        )
    except (OSError, subprocess.SubprocessError):
        return symbols
    names = done.stdout.splitlines()
    return [_short(name) for name in names] if len(names) == len(symbols) else symbols


def _short(name: str) -> str:
    """Return a name without what its author did not write."""
    name = _RUST.sub("", name).replace("[abi:cxx11]", "").replace("std::__cxx11::", "std::")
    name = name.replace("> >", ">>").replace("> >", ">>").replace(_STRING, "std::string")
    while name != (shorter := _DEFAULT.sub("", name)):
        name = shorter
    handler = _HANDLER.match(name)
    return handler[1] if handler else name
