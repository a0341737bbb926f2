"""Whether a 4.x program that was entered late has let go of its runtime.

Nothing in its memory tells: what lets go is a hook that did nothing before ours was there. The
stack tells, if the main thread is in a system call of a function that makes it with the runtime
let go of, and no other one itself (otherlibs/unix, runtime/unix.c, runtime/sys.c).
"""

from collections.abc import Callable, Sequence
from typing import Final

from reloader.ids import U64
from reloader.live import ptrace, sigframes
from reloader.live.cfi import Unwinder
from reloader.live.maps import read_maps
from reloader.live.process import Process

WAITING: Final = (
    b"caml_read_fd", b"caml_write_fd", b"caml_sys_system_command", b"unix_accept",
    b"unix_connect", b"unix_read", b"unix_recv", b"unix_recvfrom", b"unix_select", b"unix_send",
    b"unix_sendto", b"unix_single_write", b"unix_sleep", b"unix_wait", b"unix_waitpid",
    b"unix_write",
)  # fmt: skip
_SIGN: Final = 1 << 63


def has_let_go(process: Process, find: Callable[[Sequence[bytes]], U64]) -> bool:
    """Return whether the main thread waits outside of the runtime; False also if unknown.

    Args:
        process: The hooks are there already; what happens after this look they see.
        find: Gives the addresses of functions of the executable.
    """
    places = {int(addr) for addr in find(WAITING)} - {0}
    maps = read_maps(process.pid)
    unwinder = Unwinder(
        maps, process.read, sigframes.find_restorers(maps, process.read).tolist()
    )
    program = {
        (row.inode, row.name) for row in maps if any(row.start <= a < row.end for a in places)
    }
    code = [row for row in maps if (row.inode, row.name) in program]
    with process.leader.stop() as stop:
        registers = stop.registers[stop.tids.index(process.pid)]
        if int(registers[ptrace.R_ORIG_RAX]) & _SIGN:
            return False  # in no system call
        counters, _ = unwinder.walk(registers.tolist())
    inside = [at for at in counters if any(row.start <= at < row.end for row in code)]
    return bool(inside) and unwinder.function_start(inside[0] - 1) in places
