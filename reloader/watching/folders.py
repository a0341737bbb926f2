"""The watched folders: which exist, which appear, and what happens to the files in them.

Facts, then our answer:

* A watch sees a folder's inode, not its name. Renaming or deleting a parent folder tells
  nothing to the watches below it, so the folders above each root are watched too, for that.
* inotify watches folders, and one per file would be 10,000: files are not watched, folders are.
"""

import contextlib
import os
import stat
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from watchdog.observers.inotify_c import (
    CallbackId,
    InotifyConstants,
    InotifyEvent,
    Mask,
    WatchDescriptor,
)

from reloader.watching.globs import Pattern
from reloader.watching.inotify import Nobody, Reader, raise_limit

_C = InotifyConstants
# IN_MASK_ADD: a folder above one root may lie inside another, and one inode has one mask
_ALWAYS = (
    _C.IN_ONLYDIR | _C.IN_EXCL_UNLINK | _C.IN_MASK_ADD | _C.IN_DELETE_SELF | _C.IN_MOVE_SELF
)
_INSIDE = Mask(
    _ALWAYS
    | _C.IN_CREATE
    | _C.IN_CLOSE_WRITE
    | _C.IN_MOVED_TO
    | _C.IN_MOVED_FROM
    | _C.IN_DELETE
    | _C.IN_ATTRIB
)
_ABOVE = Mask(_ALWAYS)
_NO_WATCH = WatchDescriptor(-1)
_REBUILDS = 20  # looks at folders that change while they are looked at
_ABOVE_NAMES = Mask(_ALWAYS | _C.IN_CREATE | _C.IN_MOVED_TO | _C.IN_DELETE | _C.IN_MOVED_FROM)


class Cause(Enum):
    """Why a file is looked at."""

    WRITTEN = "closed after writing, or renamed into place"
    LINKED = "its name appeared: a hard link, or the start of a write"
    ALLOWED = "its owner or mode changed"
    FOUND = "seen by a scan"
    GONE = "deleted, or moved away"


@dataclass(eq=False, slots=True)
class _Folder(Nobody):
    """One watched folder; hands its events to the tree."""

    path: str
    above: bool  # it is above a root: only names on the way down matter
    mask: Mask
    tree: "FolderTree"
    wd: WatchDescriptor = _NO_WATCH

    def on_event(self, event: InotifyEvent) -> None:
        """Hand on."""
        self.tree.handle(self, event)

    def on_watch_deleted(self, wd: WatchDescriptor) -> None:
        """Forget it: the folder is gone, and its parent tells of a new one."""
        if wd == self.wd:
            self.tree.forget(self)


class FolderTree:
    """Keeps the right folders watched while they come, go and move."""

    def __init__(
        self,
        patterns: Sequence[Pattern],
        on_file: Callable[[str, Cause, int], None],
        on_moved: Callable[[], None],
        follows: Callable[[str], bool],
    ) -> None:
        """Prepare; nothing is watched before `rebuild`.

        Args:
            patterns: What is wanted.
            on_file: Called with path, cause and time (monotonic ns) on the reader's thread.
            on_moved: Called when a root or a folder above one came, went or moved.
            follows: Whether a link to a folder, given by its path, may be followed.
        """
        self._patterns = tuple(patterns)
        self._on_file = on_file
        self._on_moved = on_moved
        self._follows = follows
        self._lock = threading.RLock()
        self._folders: dict[tuple[str, bool], _Folder] = {}
        self._reader: Reader | None = None

    def attach(self, reader: Reader) -> None:
        """Use a reader from now on."""
        self._reader = reader

    @property
    def folder_count(self) -> int:
        """How many folders are watched."""
        return len(self._folders)

    def rebuild(self) -> None:
        """Watch what is there now, from scratch.

        Raises:
            WatchLimitError: The kernel gives no more watches.
        """
        roots = sorted({str(pattern.root) for pattern in self._patterns})
        for _ in range(_REBUILDS):
            before = _states_above(roots)
            with self._lock:
                self.clear()
                for root in roots:
                    self._watch_above(root)
                    for folder in self.folders_below(root):
                        self._add(folder, above=False, mask=_INSIDE)
            if _states_above(roots) == before:
                return  # what changes from now on is told by an event

    def clear(self) -> None:
        """Watch nothing."""
        with self._lock:
            old = list(self._folders.values())
            self._folders.clear()
            self._drop(old)

    def files(self, top: str | None = None) -> Iterator[str]:
        """Yield every wanted file that exists, below one folder or everywhere."""
        roots = {str(pattern.root) for pattern in self._patterns} if top is None else {top}
        seen: set[str] = set()
        for root in sorted(roots):
            for folder in self.folders_below(root):
                if folder not in seen:
                    seen.add(folder)
                    yield from self._files_in(folder)

    def folders_below(self, top: str) -> Iterator[str]:
        """Yield a folder and those below it in which something wanted may lie."""
        stack = [(top, _inodes_above(top))]
        while stack:
            folder, chain = stack.pop()
            inode = _inode(folder)
            if inode is None or inode in chain or not self._may_hold(folder):
                continue  # a link back to a folder above would never end
            yield folder
            below = chain | {inode}
            with contextlib.suppress(OSError), os.scandir(folder) as entries:
                stack.extend((entry.path, below) for entry in entries if self._is_folder(entry))

    def handle(self, folder: _Folder, event: InotifyEvent) -> None:
        """React to one event; on the reader's thread."""
        now = time.monotonic_ns()
        if event.is_delete_self or event.is_move_self:
            if folder.above or self._is_root(folder.path):
                self._on_moved()
            return
        if not event.name:
            return
        path = f"{folder.path.rstrip('/')}/{os.fsdecode(event.name)}"
        if folder.above:
            if self._leads_to_root(path):
                self._on_moved()
        elif event.mask & _C.IN_ISDIR:
            self._folder_changed(path, event, now)
        else:
            self._file_changed(path, event, now)

    def forget(self, folder: _Folder) -> None:
        """Drop the record of a folder whose watch the kernel removed."""
        with self._lock:
            if self._folders.get((folder.path, folder.above)) is folder:
                del self._folders[folder.path, folder.above]

    def _folder_changed(self, path: str, event: InotifyEvent, now: int) -> None:
        if event.is_create or event.is_moved_to:
            self._adopt(path, now)
        elif event.is_moved_from or event.is_delete:
            self._abandon(path)

    def _file_changed(self, path: str, event: InotifyEvent, now: int) -> None:
        if event.is_moved_from or event.is_delete:
            self._abandon(path)  # it may have been a link to a folder
            if self._wanted(path):
                self._on_file(path, Cause.GONE, now)
            return
        if self._wanted(path):
            written = event.is_close_write or event.is_moved_to
            cause = Cause.WRITTEN if written else Cause.LINKED
            self._on_file(path, Cause.ALLOWED if event.is_attrib else cause, now)
        elif (event.is_create or event.is_moved_to) and os.path.isdir(path):  # noqa: PTH112 - strings on the event road
            self._adopt(path, now)

    def _adopt(self, top: str, now: int) -> None:
        """Watch a folder that appeared, then look at what was in it already."""
        if not self._follows(top):
            return
        with self._lock:
            self._abandon(top)
            for folder in self.folders_below(top):
                self._add(folder, above=False, mask=_INSIDE)
        for path in self.files(top):
            self._on_file(path, Cause.FOUND, now)

    def _abandon(self, top: str) -> None:
        """Stop watching a folder that went away under its name; its inode may live on."""
        below = top + "/"
        with self._lock:
            gone = [
                folder
                for (path, above), folder in self._folders.items()
                if not above and (path == top or path.startswith(below))
            ]
            for folder in gone:
                del self._folders[folder.path, False]
            self._drop(gone)

    def _watch_above(self, root: str) -> None:
        """Watch the folders above a root.

        For being moved away or deleted; for the names in them only where the next name is
        missing, a link, or the root itself: `/tmp` is a noisy place.
        """
        steps = root.strip("/").split("/") if root != "/" else []
        for depth, _ in enumerate(steps):
            parent = "/" + "/".join(steps[:depth])
            child = f"{parent.rstrip('/')}/{steps[depth]}"
            names = depth == len(steps) - 1 or not _is_plain_folder(child)
            self._add(parent, above=True, mask=_ABOVE_NAMES if names else _ABOVE)
            if not names and not _is_plain_folder(
                child
            ):  # it went between the look and the watch
                self._add(parent, above=True, mask=_ABOVE_NAMES)
            if not os.path.isdir(child):  # noqa: PTH112 - strings on the event road
                return

    def _add(self, path: str, *, above: bool, mask: Mask) -> None:
        known = self._folders.get((path, above))
        if known is not None and known.mask == mask:
            return
        if known is not None:
            self._drop([known])
        folder = _Folder(path, above, mask, self)
        self._folders[path, above] = folder
        try:
            # without read permission watchdog keeps a watch numbered -1: ask first
            if self._reader is not None and os.access(path, os.R_OK):
                folder.wd = self._reader.add_callback(
                    os.fsencode(path), mask, folder, CallbackId(id(folder))
                )
        except OSError as error:
            del self._folders[path, above]
            raise_limit(error, len(self._folders) + 1)

    def _drop(self, folders: Sequence[_Folder]) -> None:
        if self._reader is not None:
            self._reader.remove_callbacks(
                [
                    (folder.wd, CallbackId(id(folder)))
                    for folder in folders
                    if folder.wd != _NO_WATCH
                ]
            )

    def _below(self, path: str) -> Iterator[tuple[Pattern, list[str]]]:
        """Yield each pattern whose root holds the path, with the names below that root."""
        for pattern in self._patterns:
            root = str(pattern.root).rstrip("/")
            if path == root:
                yield pattern, []
            elif path.startswith(root + "/"):
                yield pattern, path[len(root) + 1 :].split("/")

    def _wanted(self, path: str) -> bool:
        return any(
            pattern.matches(names) and pattern.may_hold(names[:-1])
            for pattern, names in self._below(path)
        )

    def _may_hold(self, folder: str) -> bool:
        return any(pattern.may_hold(names) for pattern, names in self._below(folder))

    def _is_root(self, path: str) -> bool:
        return any(str(pattern.root) == path for pattern in self._patterns)

    def _leads_to_root(self, path: str) -> bool:
        below = path + "/"
        return any((str(pattern.root) + "/").startswith(below) for pattern in self._patterns)

    def _is_folder(self, entry: os.DirEntry[str]) -> bool:
        return _is_dir(entry) and (not entry.is_symlink() or self._follows(entry.path))

    def _files_in(self, folder: str) -> Iterator[str]:
        with contextlib.suppress(OSError), os.scandir(folder) as entries:
            for entry in entries:
                if self._wanted(entry.path) and not _is_dir(entry):
                    yield entry.path


def _is_dir(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _is_plain_folder(path: str) -> bool:
    try:
        return stat.S_ISDIR(os.lstat(path).st_mode)
    except OSError:
        return False


def _inode(path: str) -> tuple[int, int] | None:
    try:
        state = os.stat(path)  # noqa: PTH116 - strings on the event road
    except OSError:
        return None
    return (state.st_dev, state.st_ino) if stat.S_ISDIR(state.st_mode) else None


def _states_above(roots: Sequence[str]) -> list[tuple[int, int, int] | None]:
    """Return what tells the folders on the way to some roots from others of their names."""
    found: list[tuple[int, int, int] | None] = []
    for root in roots:
        for path in (Path(root), *Path(root).parents):
            try:
                state = path.stat()
            except OSError:
                found.append(None)
            else:  # a number is given again at once, its time of change is not
                found.append((state.st_dev, state.st_ino, state.st_ctime_ns))
    return found


def _inodes_above(path: str) -> frozenset[tuple[int, int]]:
    """Return the folders a path passes through, itself not included."""
    found = (_inode(str(parent)) for parent in Path(path).parents)
    return frozenset(inode for inode in found if inode is not None)
