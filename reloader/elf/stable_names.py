"""What a compiler's file is called in every build, where its name changes with each.

An object is known by its path, and by its member's name in an archive. gcc, clang and OCaml
write the same names each time. rustc does not:

* Incremental objects lie in a folder of the session that compiled them or took them over,
  `incremental/CRATE-HASH/s-TIME-RANDOM-HASH/UNIT.o`. While it compiles the folder's last part
  is `working`. The next session has a folder of its own, with links to what did not change;
  older folders are deleted some time later. The linker gets links to them,
  `deps/CRATE-HASH.UNIT.WORD.rcgu.o`, that go away again.
* Members of an `.rlib` carry a word that is drawn anew each time (since rustc 1.87),
  `CRATE-HASH.UNIT.WORD.rcgu.o`; so do objects of `-C save-temps`. `lib.rmeta` is no code.

Here such a file goes by its name without that part. UNIT is a hash of what the unit is for.
"""

import re
from collections.abc import Iterable
from typing import Final

METADATA: Final = ".rmeta"  # ends the name of what an `.rlib` holds besides objects

_SESSION = re.compile(r"(/incremental/[^/]+/)s-([0-9a-z]+)-[0-9a-z]+-([0-9a-z]+)/([^/]+\.o)$")
_MEMBER = re.compile(r"([^.]+\.(?:[0-9a-z]+|.+-cgu\.[0-9]+))\.[0-9a-z]+(\.rcgu\.o)")


def stable_path(path: str) -> str | None:
    """Return what a file is known by, or None for one that is only on its way to its place."""
    found = _SESSION.search(path)
    if found is None:
        folder, slash, name = path.rpartition("/")
        inputs = name.endswith(".rcgu.o") and "-cgu." not in name
        return None if inputs else folder + slash + stable_member(name)
    if found[3] == "working":
        return None
    return f"{path[: found.start()]}{found[1]}{found[4]}"


def of_toolchain(path: str) -> bool:
    """Return whether a file came with a compiler: nobody edits it, nobody asks for it."""
    return "/rustlib/" in path


def stable_member(name: str) -> str:
    """Return what an archive's member is known by."""
    found = _MEMBER.fullmatch(name)
    return f"{found[1]}{found[2]}" if found else name


def newest(paths: Iterable[str]) -> list[tuple[str, str]]:
    """Return (path, what it is known by) of each file, of several versions the newest.

    A unit that the newest session of a crate lacks is gone, though older folders have it.
    """
    sessions: dict[str, str] = {}  # the folder of a crate -> when its newest session began
    rows: list[tuple[str, str, str, str]] = []
    for path in paths:
        name = stable_path(path)
        if name is None:
            continue
        found = _SESSION.search(path)
        crate, began = (name.rpartition("/")[0], found[2]) if found else ("", "")
        sessions[crate] = max(sessions.get(crate, ""), began, key=_age)
        rows.append((path, name, crate, began))
    return [(path, name) for path, name, crate, began in rows if began == sessions[crate]]


def _age(began: str) -> tuple[int, str]:
    """Return what orders session times: microseconds in base 36."""
    return len(began), began
