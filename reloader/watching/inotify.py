"""Raw file events: watchdog's inotify reader, where it can be trusted, and its limits.

Facts, then our answer:

* watchdog's observers hold back an unpaired IN_MOVED_FROM for 0.5 s, and everything that comes
  after it, in order to pair moves. We do not care where a file came from. So we sit one level
  below, on `InotifyFD`, watchdog's reader of the raw events, which has no such queue.
* The kernel drops events when 16384 wait (IN_Q_OVERFLOW). watchdog only re-adds its watches
  then; files changed meanwhile would be missed. Our owner rescans.
* A network filesystem tells only what this machine wrote. There our owner polls as well.
"""

import errno
import os
import threading
from collections.abc import Callable
from pathlib import Path

from watchdog.observers.inotify_c import (
    CallbackId,
    InotifyConstants,
    InotifyEvent,
    InotifyFD,
    Mask,
    WatchDescriptor,
)

from reloader.errors.watch import NoInotifyError, WatchLimitError

# an inode of procfs that nobody else watches: see Reader.pass_barrier
_BARRIER_FOLDER = b"/proc/self/ns"
_REMOTE = (
    "nfs",
    "cifs",
    "smb",
    "afs",
    "9p",
    "fuse.sshfs",
    "ceph",
    "glusterfs",
    "lustre",
    "vboxsf",
)


class Reader(InotifyFD):
    """watchdog's inotify reader thread, plus overflow and a barrier."""

    def __init__(
        self, on_overflow: Callable[[], None], on_error: Callable[[Exception], None]
    ) -> None:
        """Open inotify; both are called on the reader's thread."""
        super().__init__()
        self.name = "watch"
        self._on_overflow = on_overflow
        self._on_error = on_error
        self._barrier_lock = threading.Lock()
        self._barriers: dict[int, threading.Event] = {}

    def handle_event(self, event: InotifyEvent) -> None:
        """Take what is ours out of the stream; the rest goes to the folders' callbacks."""
        try:
            if event.is_queue_overflow:
                self._overflowed()
            elif event.is_ignored and event.wd in self._barriers:
                self._barriers.pop(event.wd).set()
            else:
                super().handle_event(event)
        except Exception as error:  # noqa: BLE001 - the thread's end would end all watching
            self._on_error(error)

    def _overflowed(self) -> None:
        before = list(self._barriers)  # their events may be among the lost
        self._on_overflow()  # finds what happened before them; of later ones it may not
        for wd in before:
            self._barriers.pop(wd).set()

    def pass_barrier(self, timeout: float) -> bool:
        """Wait until every event that happened before this call was handled.

        Removing a watch puts an IN_IGNORED at the end of the kernel's one queue: when it comes
        out, all before it did.
        """
        if threading.current_thread() is self:
            return True
        with self._barrier_lock:
            passed = threading.Event()
            own = CallbackId(id(passed))
            wd = self.add_callback(
                _BARRIER_FOLDER, Mask(InotifyConstants.IN_DELETE_SELF), Nobody(), own
            )
            self._barriers[wd] = passed
            self.remove_callbacks([(wd, own)])
            return passed.wait(timeout)


class Nobody:
    """A callback that nothing reaches."""

    def on_event(self, event: InotifyEvent) -> None:
        """Ignore."""

    def on_watch_deleted(self, wd: WatchDescriptor) -> None:
        """Ignore."""

    def on_queue_overflow(self) -> None:
        """Ignore: the reader tells the owner once, not once a folder."""


def raise_limit(error: OSError, wanted: int) -> None:
    """Turn the kernel's refusal of a watch into an error that names the setting.

    A folder that vanished meanwhile is no error.

    Raises:
        WatchLimitError: ENOSPC (watches) or EMFILE (instances).
        NoInotifyError: Anything else that is not about this one folder.
    """
    names = {errno.ENOSPC: "max_user_watches", errno.EMFILE: "max_user_instances"}
    if error.errno in names:
        name = names[error.errno]
        sysctl = f"fs.inotify.{name}"
        try:
            limit = int(Path("/proc/sys/fs/inotify", name).read_text(encoding="ascii"))
        except OSError:
            limit = 0
        raise WatchLimitError(sysctl, limit, wanted) from error
    gone = {errno.ENOENT, errno.ENOTDIR, errno.EACCES, errno.ELOOP}
    if error.errno not in gone:
        raise NoInotifyError(str(error)) from error


def is_remote(path: Path) -> bool:
    """Return whether a path, or what exists of it, lies on a network filesystem."""
    here = path
    while not here.exists() and here != here.parent:
        here = here.parent
    device = here.stat().st_dev
    wanted = f"{os.major(device)}:{os.minor(device)}"
    for line in Path("/proc/self/mountinfo").read_text(encoding="utf-8").splitlines():
        fields = line.split()
        if fields[2] == wanted:
            return fields[fields.index("-") + 1].startswith(_REMOTE)
    return False
