"""The client's half of `run FILE.o ...`: telling objects from a program; loads no numpy."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from reloader.wire.spawn import AGENT

if TYPE_CHECKING:
    from collections.abc import Sequence

HOST: Final = AGENT.with_name("reloader-host")
_ARCHIVES: Final = (b"!<arch>\n", b"!<thin>\n")
_ELF: Final = b"\x7fELF"
_ET_REL: Final = 1


@dataclass(frozen=True, slots=True)
class HostCommand:
    """A program without an executable."""

    words: tuple[str, ...]  # absolute paths, `-lNAME`, `-LDIR`
    watch: tuple[str, ...]  # the objects and archives among them
    argv: tuple[str, ...]  # what main gets


def host_command(argv: Sequence[str]) -> HostCommand | None:
    """Return how to run `FILE.o LIB.a -lNAME ... [-- ARG...]`, None for a program's command."""
    if not argv or not is_linkable(argv[0]):
        return None
    words = list(argv)
    end = words.index("--") if "--" in words else len(words)
    inputs, arguments = words[:end], words[end + 1 :]
    full = [_absolute(word) for word in inputs]
    watch = [path for path in full if is_linkable(path)]
    return HostCommand(tuple(full), tuple(watch), (argv[0], *arguments))


def is_linkable(path: str) -> bool:
    """Return whether a file is a relocatable object or an archive."""
    try:
        with Path(path).open("rb") as file:
            head = file.read(18)
    except OSError:
        return False
    if head[:8] in _ARCHIVES:
        return True
    return head[:4] == _ELF and int.from_bytes(head[16:18], "little") == _ET_REL


def _absolute(word: str) -> str:
    if word.startswith("-l"):
        return word
    if word.startswith("-L"):
        return "-L" + os.path.abspath(word[2:])  # noqa: PTH100 - links must stay as they are
    return os.path.abspath(word)  # noqa: PTH100 - as above
