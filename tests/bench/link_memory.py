"""`python -m tests.bench.link_memory OBJECT`: the bytes that linking takes above idle, at most.

A process of its own, since the peak of a process never falls. What is written into the program
is not the daemon's and does not count.
"""

import gc
import sys
from pathlib import Path

from reloader.elf.read import read_object
from tests.bench import link_inputs
from tests.bench.link_world import keep, load, new_program


def status(field: str) -> int:
    """Return a number of bytes from this process's status."""
    lines = Path("/proc/self/status").read_text("utf-8").splitlines()
    line = next(line for line in lines if line.startswith(field))
    return int(line.split()[1]) << 10


def main() -> None:
    """Load a small object, so that all is warm, then the large one."""
    path = Path(sys.argv[1])
    program = new_program()
    small = link_inputs.many_functions(100)
    keep(program, load(program, [read_object(str(small), small.read_bytes())]))
    gc.collect()
    idle = status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5", "utf-8")  # the peak begins anew
    plan = load(program, [read_object(str(path), path.read_bytes())])
    written = sum(item.allocation.size for item in plan.placed)
    sys.stdout.write(f"{status('VmHWM') - idle - written}\n")


if __name__ == "__main__":
    main()
