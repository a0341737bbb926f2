"""Where every thread's thread-local block is.

The C library keeps a list of its threads, and tells debuggers where (the `_thread_db_*` words
that libthread_db reads). Reading it from outside stops nobody. It may change while we read: the
answer counts only if it has every thread that the kernel has. Otherwise all threads are stopped
once and their registers tell; a thread pointer counts only if the C library's own block is
there, since a program may run threads that this library did not make.
"""

from collections.abc import Callable
from typing import Final

from reloader.errors.live import TargetMemoryError
from reloader.ids import U64, Addr
from reloader.live.target import Target
from reloader.live.threads import list_threads

_NAMES: Final = (
    b"_rtld_global", b"_thread_db_rtld_global__dl_stack_used",
    b"_thread_db_rtld_global__dl_stack_user", b"_thread_db_pthread_list",
    b"_thread_db_pthread_tid",
)  # fmt: skip
_LONGEST: Final = 1 << 16  # threads; more is a list that changes while it is read
_TRIES: Final = 3
_FS_BASE: Final = 21  # column of user_regs_struct
_SELF: Final = 16  # of tcbhead_t: the block's own address, also at 0


def thread_pointers(target: Target) -> dict[int, int]:
    """Return the thread pointer of each thread that has the C library's block."""
    walk = _walker(target)
    for _ in range(_TRIES if walk else 0):
        found = walk() if walk else {}
        if set(list_threads(target.pid)) <= found.keys():
            return found
    with target.stop() as stop:
        bases = stop.registers[:, _FS_BASE].tolist()
        pairs = dict(zip(stop.tids, map(int, bases), strict=True))
        return {tid: base for tid, base in pairs.items() if _is_block(target, base)}


def _word(target: Target, addr: int) -> int:
    return int.from_bytes(target.read(Addr(addr), 8).tobytes(), "little")


def _is_block(target: Target, base: int) -> bool:
    """Return whether the C library's thread block is at an address."""
    try:
        return base != 0 and _word(target, base) == base == _word(target, base + _SELF)
    except TargetMemoryError:
        return False


def _walker(target: Target) -> Callable[[], dict[int, int]] | None:
    """Return what walks the library's lists, None if it does not tell where they are."""
    addrs: U64 = target.resolve(_NAMES)
    if not addrs.all():
        return None
    # each describes a field: its bits, how many, its offset
    used, user, links, tid = (
        int(target.read(Addr(int(addr)), 12).view("<u4")[2]) for addr in addrs[1:]
    )
    heads = [int(addrs[0]) + used, int(addrs[0]) + user]

    def walk() -> dict[int, int]:
        found: dict[int, int] = {}
        try:
            for head in heads:
                at = _word(target, head)
                while at != head and len(found) < _LONGEST:
                    block = at - links
                    number = int(target.read(Addr(block + tid), 4).view("<i4")[0])
                    if _is_block(target, block):
                        found[number] = block
                    at = _word(target, at)
        except TargetMemoryError:
            return {}
        return found

    return walk
