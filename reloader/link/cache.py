"""Versions of objects that were worked on already, found by their bytes.

Who undoes an edit saves a version that was loaded a moment ago. Its columns and its graph as
built, functions marked, are still here, so reading and decoding are left out; what the diff
remembers of a version (`versions.version_of`, `object_data.side_of`) is found as well, since it
is kept by the very same object. Everything that depends on the live process is done again: a
reload with the cache does what it would do without.

Bytes are compared and not hashed: a version that differs is told at the first difference, and
hashing a large object takes longer than linking what an edit changed in it.

The memory is bounded by bytes, and by versions an object, so that a thousand reloads of one
file take no more than a few.
"""

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar, cast

import numpy as np

from reloader.arch.base import Architecture
from reloader.elf.alike import alike
from reloader.elf.object import ObjectFile
from reloader.elf.read import read_object, snapshot
from reloader.ids import U8
from reloader.link.graph import LinkGraph
from reloader.live.objects import LiveObject

T = TypeVar("T")
Key = tuple[str, str]  # (path, member)
Build = Callable[[Sequence[ObjectFile]], LinkGraph]
# makes a graph that of an alike version, None where it cannot
Renew = Callable[[LinkGraph, ObjectFile], LinkGraph | None]

MOST_BYTES: Final = 32 << 20
MOST_VERSIONS: Final = 4  # of one object: the live one, and some undos
_NAME_BYTES: Final = 64  # what a symbol's name takes, about


@dataclass(slots=True)
class Kept:
    """One version, and its graph where a transaction of it alone was built."""

    file: ObjectFile
    size: int
    graph: LinkGraph | None = None  # its own, or an alike version's
    graph_size: int = 0  # of `size`
    arch: Architecture | None = None  # the graph's


@dataclass(slots=True)
class Cache:
    """The versions of one program's objects; used by one thread."""

    most_bytes: int = MOST_BYTES
    most_versions: int = MOST_VERSIONS
    size: int = 0
    kept: OrderedDict[ObjectFile, Kept] = field(default_factory=OrderedDict[ObjectFile, Kept])

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
        running = live.get((path, member)) if live else None
        like = running.file if running else None
        if like is not None and same_bytes(like.data, raw):
            return like
        found = self.find((path, member), raw)
        if found is None and like is not None:
            found = alike(like, raw)
        return found or read_object(path, raw, member, like=like)

    def find(self, key: Key, data: U8) -> ObjectFile | None:
        """Return a version of an object, or None."""
        own = (file for file in self.kept if file.key == key)
        return next((file for file in own if same_bytes(file.data, data)), None)

    def keep(self, file: ObjectFile) -> None:
        """Keep a version; it is the youngest now."""
        self._entry(file)
        self._shrink(file.key)

    def graph(
        self,
        objects: Sequence[ObjectFile],
        arch: Architecture,
        build: Build,
        renew: Renew | None = None,
    ) -> LinkGraph:
        """Return a graph that the caller may change, built only if it is not at hand.

        Args:
            objects: One transaction's. Graphs of several are not kept: which of them come
                together rarely comes again.
            arch: What the graph is built for.
            build: Builds one, of the objects alone.
            renew: Makes one of that of an alike version, which is quicker.
        """
        if len(objects) != 1 or not self.most_bytes:
            return build(objects)
        kept = self._entry(objects[0])
        base = self._base(kept, arch)
        if base is not None:
            if base.objects[0] is kept.file:
                return copied(base)
            graph = renew(copied(base), kept.file) if renew else None
            if graph is not None:
                return graph
        graph = build(objects)
        self._put(kept, graph, arch)
        return graph

    def _base(self, kept: Kept, arch: Architecture) -> LinkGraph | None:
        """Return the graph of a version, or else that of an alike one, which it shares then."""
        tables = kept.file.tables
        for other in (kept, *reversed(self.kept.values())):
            if other.graph and other.arch is arch and other.file.tables is tables:
                if other is not kept:
                    kept.graph, kept.arch = other.graph, arch
                    self._grow(kept, other.graph_size)
                return other.graph
        return None

    def _put(self, kept: Kept, graph: LinkGraph, arch: Architecture) -> None:
        """Keep a version's own graph, and none that it shares, if it is not too large."""
        size = bytes_of(graph)
        if kept.file in self.kept and kept.size - kept.graph_size + size <= self.most_bytes:
            kept.graph, kept.arch = copied(graph), arch
            self._grow(kept, size)

    def _grow(self, kept: Kept, graph_size: int) -> None:
        """Take the size of a graph into account; each version that shares one counts it."""
        added = graph_size - kept.graph_size
        kept.graph_size = graph_size
        kept.size += added
        self.size += added
        self._shrink(kept.file.key)

    def _entry(self, file: ObjectFile) -> Kept:
        """Return a version's entry, made if it is new, as the youngest."""
        kept = self.kept.get(file)
        if kept is None:
            twin = self.find(file.key, file.data)
            if twin is not None:
                self._forget(twin)
            shared = any(other.tables is file.tables for other in self.kept)
            size = len(file.data) if shared else bytes_of(file)
            kept = self.kept[file] = Kept(file, size)
            self.size += kept.size
        self.kept.move_to_end(file)
        return kept

    def _shrink(self, key: Key) -> None:
        """Forget the oldest versions until both bounds hold."""
        versions = [file for file in self.kept if file.key == key]
        for file in versions[: -self.most_versions]:
            self._forget(file)
        while self.size > self.most_bytes and self.kept:
            self._forget(next(iter(self.kept)))

    def _forget(self, file: ObjectFile) -> None:
        self.size -= self.kept.pop(file).size


def same_bytes(one: U8, other: U8) -> bool:
    """Return whether two files hold the same; most differ in their size."""
    if len(one) != len(other):
        return False
    first, second = one.base, other.base
    if isinstance(first, bytes) and isinstance(second, bytes) and len(first) == len(one):
        return first == second  # ends at the first difference
    return bool(np.array_equal(one, other))


def copied(table: T) -> T:
    """Return a table with columns of its own; objects are shared, nobody changes them."""
    if isinstance(table, np.ndarray):
        return cast("T", table.copy())
    if isinstance(table, list):
        items = cast("list[Any]", table)
        arrays = any(isinstance(item, np.ndarray) for item in items[:1])
        return cast("T", [item.copy() for item in items] if arrays else items.copy())
    if isinstance(table, dict):  # LinkGraph.named: what is asked later is each copy's own
        return cast("T", cast("dict[Any, Any]", table).copy())
    names = getattr(table, "__dataclass_fields__", None)
    if names is None:
        return table
    columns = [getattr(table, name) for name in names]
    own = [c.copy() if type(c) is np.ndarray else copied(c) for c in columns]
    return cast("Any", type(table))(*own)


def bytes_of(table: object) -> int:
    """Return about how many bytes a table's columns take."""
    if isinstance(table, np.ndarray):
        return table.nbytes if table.base is None else 0
    if isinstance(table, list):
        items = cast("list[Any]", table)
        arrays = items if isinstance(items[0] if items else None, np.ndarray) else []
        return _NAME_BYTES * len(items) + sum(array.nbytes for array in arrays)
    columns = [getattr(table, name) for name in getattr(table, "__dataclass_fields__", ())]
    arrays = [column for column in columns if type(column) is np.ndarray]
    total = len(table.data) if isinstance(table, ObjectFile) else 0
    total += sum(array.nbytes for array in arrays if array.base is None)
    return total + sum(bytes_of(c) for c in columns if type(c) is not np.ndarray)
