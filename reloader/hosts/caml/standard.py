"""The compiler's own libraries: new code may need units that the program was linked without.

ocamlopt links those units of stdlib.a that somebody uses, and those functions of the runtime
that they call. What is missing is pulled from the same archives, as a linker would have. Not
so systhreads: it changes the runtime when it is initialised.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Final

from reloader.hosts.caml.compiler import Compiler
from reloader.live.host import Library

# units, then what they call; the folders are those of 4.x and 5.x
NAMES: Final = (
    "stdlib.a",
    "str.a", "str/str.a", "libcamlstr.a", "libcamlstrnat.a",
    "unix.a", "unix/unix.a", "libunix.a", "libunixnat.a",
    "libasmrun_pic.a",
)  # fmt: skip
# its functions raise an exception that the unit makes known to the runtime
ALONG: Final[Mapping[str, frozenset[bytes]]] = {
    name: frozenset({b"camlUnix"}) for name in ("libunix.a", "libunixnat.a")
}


def standard_libraries(compiler: Compiler) -> list[Library]:
    """Return the archives that are there."""
    libraries = [
        Library(Path(compiler.where) / name, ALONG.get(name, frozenset())) for name in NAMES
    ]
    return [library for library in libraries if library.path.is_file()]
