"""Which watched objects a build left older than their sources.

Such an object still runs old code though the build succeeded: its rule is missing, or another
folder's object is the one that is built. The pairing is by name: `name.c` makes `name.o`,
`name.c.o` (CMake) or `program-name.o` (automake). Where several pairs fit, the one that shares
the most folders is taken, and none if that is not one.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

SOURCE_SUFFIXES = (
    ".c", ".h", ".cc", ".cpp", ".cxx", ".hpp", ".hh", ".hxx", ".s", ".S", ".rs", ".ml", ".mli",
)  # fmt: skip
_HEADERS = frozenset({".h", ".hpp", ".hh", ".hxx", ".mli"})


@dataclass(frozen=True, slots=True)
class Stale:
    """An object that is older than the source it is made from."""

    object: Path
    source: Path
    seconds: float  # by how much

    def __str__(self) -> str:
        """Return the sentence for people."""
        return (
            f"{self.object} is {self.seconds:.1f} s older than {self.source}: "
            "the build did not make it again"
        )


def stale_objects(sources: Iterable[Path], objects: Sequence[Path]) -> list[Stale]:
    """Return the objects that are older than the source each is made from.

    Args:
        sources: Saved by people; headers are passed over.
        objects: What the build makes; others than `.o` are passed over.
    """
    by_name: defaultdict[str, list[Path]] = defaultdict(list)
    for path in objects:
        if path.suffix == ".o":
            for name in _names(path):
                by_name[name].append(path)
    found: list[Stale] = []
    for source in sources:
        if source.suffix in _HEADERS:
            continue
        candidates = by_name.get(source.name) or by_name.get(source.stem) or []
        candidates = candidates or by_name.get(f"-{source.stem}", [])
        made = _nearest(source, candidates)
        late = _seconds_older(made, source) if made else 0.0
        if made and late > 0:
            found.append(Stale(made, source, late))
    return found


def _names(path: Path) -> list[str]:
    """Return under which names an object's source may look for it."""
    names = [path.stem]
    parts = path.stem.split("-")
    names += ["-" + "-".join(parts[i:]) for i in range(1, len(parts))]
    return names


def _nearest(source: Path, candidates: Sequence[Path]) -> Path | None:
    """Return the one candidate that shares the most folder names, or None."""
    if len(candidates) <= 1:
        return candidates[0] if candidates else None
    ranked = sorted(candidates, key=lambda path: _shared(source, path), reverse=True)
    first, second = _shared(source, ranked[0]), _shared(source, ranked[1])
    return ranked[0] if first > second else None


def _shared(source: Path, path: Path) -> tuple[int, int]:
    """Return how many folder names agree, at the end first (`x/util.c`, `build/x/util.o`)."""
    ours, theirs = source.parent.parts, path.parent.parts
    return _common(ours[::-1], theirs[::-1]), _common(ours, theirs)


def _common(ours: Sequence[str], theirs: Sequence[str]) -> int:
    pairs = enumerate(zip(ours, theirs, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(ours), len(theirs)))


def _seconds_older(made: Path, source: Path) -> float:
    try:
        return (source.stat().st_mtime_ns - made.stat().st_mtime_ns) / 1e9
    except OSError:
        return 0.0
