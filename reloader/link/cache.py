"""Versions of objects that were worked on already, by the digest of their bytes.

Who undoes an edit saves a version that was loaded a moment ago. Its columns and its graph as
built, functions marked, are still here, so reading and decoding are left out; what the diff
remembers of a version (`versions.version_of`, `object_data.side_of`) is found as well, since it
is kept by the very same object. Everything that depends on the live process is done again: a
reload with the cache does what it would do without.

The memory is bounded by bytes, and by versions an object, so that a thousand reloads of one
file take no more than a few.
"""

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from hashlib import blake2b
from typing import Any, Final, TypeVar, cast

import numpy as np

from reloader.arch.base import Architecture
from reloader.elf.object import ObjectFile
from reloader.elf.read import read_object, snapshot
from reloader.ids import U8
from reloader.link.graph import LinkGraph
from reloader.live.objects import LiveObject

T = TypeVar("T")
Key = tuple[str, str]  # (path, member)
Build = Callable[[Sequence[ObjectFile]], LinkGraph]

MOST_BYTES: Final = 32 << 20
MOST_VERSIONS: Final = 4  # of one object: the live one, and some undos
_NAME_BYTES: Final = 64  # what a symbol's name takes, about


@dataclass(slots=True)
class Kept:
    """One version, and its graph where a transaction of it alone was built."""

    file: ObjectFile
    size: int
    graph: LinkGraph | None = None
    arch: Architecture | None = None  # the graph's


@dataclass(slots=True)
class Cache:
    """The versions of one program's objects; used by one thread."""

    most_bytes: int = MOST_BYTES
    most_versions: int = MOST_VERSIONS
    size: int = 0
    kept: OrderedDict[tuple[Key, str], Kept] = field(
        default_factory=OrderedDict[tuple[Key, str], Kept]
    )

    def read(
        self,
        path: str,
        data: bytes | U8,
        member: str = "",
        live: Mapping[Key, LiveObject] | None = None,
    ) -> ObjectFile:
        """Return an object, read only if no version with these bytes is at hand.

        Args:
            path: As for `read_object`.
            data: As for `read_object`.
            member: As for `read_object`.
            live: What runs: versions that are at hand anyway.

        Raises:
            ObjectError: As `read_object`.
        """
        raw = snapshot(data)
        digest = blake2b(raw.data, digest_size=16).hexdigest()
        running = live.get((path, member)) if live else None
        if running is not None and running.file.digest == digest:
            return running.file
        found = self.find((path, member), digest)
        return found or read_object(path, raw, member)

    def find(self, key: Key, digest: str) -> ObjectFile | None:
        """Return a version of an object, or None."""
        kept = self.kept.get((key, digest))
        return kept.file if kept else None

    def keep(self, file: ObjectFile) -> None:
        """Keep a version; it is the youngest now."""
        self._entry(file)
        self._shrink(file.key)

    def graph(
        self, objects: Sequence[ObjectFile], arch: Architecture, build: Build
    ) -> LinkGraph:
        """Return a graph that the caller may change, built only if it is not at hand.

        Args:
            objects: One transaction's. Graphs of several are not kept: which of them come
                together rarely comes again.
            arch: What the graph is built for.
            build: Builds one, of the objects alone.
        """
        if len(objects) != 1 or not self.most_bytes:
            return build(objects)
        kept = self._entry(objects[0])
        if kept.graph is None or kept.arch is not arch:
            graph = build(objects)
            kept.graph, kept.arch = copied(graph), arch
            added = bytes_of(graph)
            kept.size += added
            self.size += added
            self._shrink(objects[0].key)
            return graph
        return copied(kept.graph)

    def _entry(self, file: ObjectFile) -> Kept:
        """Return a version's entry, made if it is new, as the youngest."""
        name = file.key, file.digest
        kept = self.kept.get(name)
        if kept is None or kept.file is not file:
            self._forget(name)
            kept = self.kept[name] = Kept(file, bytes_of(file))
            self.size += kept.size
        self.kept.move_to_end(name)
        return kept

    def _shrink(self, key: Key) -> None:
        """Forget the oldest versions until both bounds hold."""
        versions = [name for name in self.kept if name[0] == key]
        for name in versions[: -self.most_versions]:
            self._forget(name)
        while self.size > self.most_bytes and self.kept:
            self._forget(next(iter(self.kept)))

    def _forget(self, name: tuple[Key, str]) -> None:
        kept = self.kept.pop(name, None)
        self.size -= kept.size if kept else 0


def copied(table: T) -> T:
    """Return a table with columns of its own; objects are shared, nobody changes them."""
    if isinstance(table, np.ndarray):
        return cast("T", table.copy())
    if isinstance(table, list):
        items = cast("list[Any]", table)
        arrays = any(isinstance(item, np.ndarray) for item in items[:1])
        return cast("T", [copied(item) for item in items] if arrays else items.copy())
    if isinstance(table, dict):  # LinkGraph.named: what is asked later is each copy's own
        return cast("T", cast("dict[Any, Any]", table).copy())
    if not is_dataclass(table):
        return table
    columns = {f.name: copied(getattr(table, f.name)) for f in fields(table)}
    return cast("Any", type(table))(**columns)


def bytes_of(table: object) -> int:
    """Return about how many bytes a table's columns take."""
    if isinstance(table, np.ndarray):
        return table.nbytes if table.base is None else 0
    if isinstance(table, list):
        items = cast("list[Any]", table)
        arrays = items if isinstance(items[0] if items else None, np.ndarray) else []
        return _NAME_BYTES * len(items) + sum(array.nbytes for array in arrays)
    if isinstance(table, ObjectFile):
        columns = [getattr(table, f.name) for f in fields(table)]
        return len(table.data) + sum(bytes_of(column) for column in columns)
    if is_dataclass(table):
        return sum(bytes_of(getattr(table, f.name)) for f in fields(table))
    return 0
