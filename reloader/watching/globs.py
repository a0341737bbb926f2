"""Watch patterns: a folder, a file or a glob, split into a root and what is wanted below it.

`*`, `?` and `[...]` match inside one name, names that start with a dot included (dune keeps its
objects in `.main.eobjs`); `**` matches any number of folders. A bare folder means every file
with a wanted suffix anywhere below it.
"""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import translate
from functools import lru_cache
from pathlib import Path

from reloader.errors.watch import BadPatternError

OBJECT_SUFFIXES = (".o", ".a")
# version control's own stores hold thousands of folders and never an object
SKIPPED_FOLDERS = frozenset({".git", ".hg", ".svn", ".reloader"})
_MAGIC = re.compile(r"[*?\[]")


@dataclass(frozen=True, slots=True)
class Pattern:
    """One `--watch` or `--source` argument."""

    text: str  # as typed
    root: Path  # absolute, links not resolved; the longest prefix without a wildcard
    parts: tuple[str, ...]  # below the root, one glob a path component

    def matches(self, below: Sequence[str]) -> bool:
        """Return whether a file is wanted, by its path's components below the root."""
        return _matches(self.parts, tuple(below))

    def may_hold(self, below: Sequence[str]) -> bool:
        """Return whether something wanted may lie in a folder, or in one of its folders."""
        if SKIPPED_FOLDERS.intersection(below):
            return False
        return _may_hold(self.parts, tuple(below))


def parse_pattern(
    text: str, cwd: Path, suffixes: Sequence[str] = OBJECT_SUFFIXES
) -> list[Pattern]:
    """Return what a pattern asks for; several for a folder, one a suffix.

    Args:
        text: As the user typed it; `~` is expanded.
        cwd: What a relative pattern is relative to.
        suffixes: What is wanted in a bare folder.

    Raises:
        BadPatternError: It is empty or can match no file.
    """
    if not text or "\0" in text:
        raise BadPatternError(text, "it is empty" if not text else "it holds a zero byte")
    path = cwd / Path(text).expanduser()
    names = [part for part in path.parts[1:] if part != "."]
    first = next((i for i, name in enumerate(names) if _MAGIC.search(name)), len(names))
    if first < len(names):
        if ".." in names[first:]:
            raise BadPatternError(text, "`..` stands after a wildcard")
        root, parts = _plain(names[:first]), tuple(names[first:])
        if parts[-1] == "**":
            return [Pattern(text, root, (*parts, f"*{suffix}")) for suffix in suffixes]
        return [Pattern(text, root, parts)]
    whole = _plain(names)
    is_file = not whole.is_dir() and whole.suffix in suffixes and not text.endswith("/")
    if is_file or whole.is_file():
        return [Pattern(text, whole.parent, (_escape(whole.name),))]
    return [Pattern(text, whole, ("**", f"*{suffix}")) for suffix in suffixes]


def _plain(names: Sequence[str]) -> Path:
    """Return the absolute path, `..` taken by name as a shell's `cd` does."""
    kept: list[str] = []
    for name in names:
        if name == "..":
            kept = kept[:-1]
        else:
            kept.append(name)
    return Path("/", *kept)


def _escape(name: str) -> str:
    return re.sub(r"([*?\[])", r"[\1]", name)


@lru_cache(maxsize=512)
def _compiled(part: str) -> re.Pattern[str]:
    return re.compile(translate(part))


@lru_cache(maxsize=65536)
def _matches(parts: tuple[str, ...], below: tuple[str, ...]) -> bool:
    if not parts:
        return not below
    if parts[0] == "**":
        return _matches(parts[1:], below) or (bool(below) and _matches(parts, below[1:]))
    return (
        bool(below)
        and bool(_compiled(parts[0]).match(below[0]))
        and _matches(parts[1:], below[1:])
    )


@lru_cache(maxsize=65536)
def _may_hold(parts: tuple[str, ...], below: tuple[str, ...]) -> bool:
    """Return whether a file below the folder could match: its names are a prefix of one."""
    if not parts:
        return False
    if parts[0] == "**" or not below:
        return True
    return bool(_compiled(parts[0]).match(below[0])) and _may_hold(parts[1:], below[1:])


def read_wanted(patterns: Sequence[Pattern]) -> list[tuple[str, bytes]]:
    """Read every existing file that some patterns want; return (path, content), sorted."""
    found: dict[str, bytes] = {}
    for pattern in patterns:
        for folder, below, names in os.walk(pattern.root):
            parts = Path(folder).relative_to(pattern.root).parts
            below[:] = [name for name in below if pattern.may_hold((*parts, name))]
            for name in names:
                path = Path(folder, name)
                if pattern.matches((*parts, name)) and path.is_file():
                    found[str(path)] = path.read_bytes()
    return sorted(found.items())
