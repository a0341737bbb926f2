"""Compiles what lives inside the target into this package's folder: `python -m stubs.build`.

Used by make and by the wheel build. Only gcc (or $CC) and libc headers are needed.
"""

import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Final

FOLDER: Final = Path(__file__).resolve().parent / "agent"
FLAGS: Final = (
    "-std=gnu11", "-O2", "-g", "-fPIC", "-fvisibility=hidden", "-fno-strict-aliasing",
    "-Wall", "-Wextra", "-Werror",
)  # fmt: skip
AGENT_SOURCES: Final = (
    "space.c", "start.c", "commands.c", "unwind.c", "preload.c", "dirty.c", "tls.c",
    "libc_symbols.c", "catch.c", "crash.c", "ocaml.c", "ocaml_point.c", "ocaml_units.c",
    "ocaml_load.c", "ocaml_forward.c", "ocaml_error.c", "ocaml_mark.c", "ocaml_map.c",
    "ocaml_stacks.c", "ocaml_hold.c", "jit.c",
)  # fmt: skip
# Bytes of thread-local room. A library that is opened later gets it from a surplus of some
# 1.7 KiB that the program's own plugins need, too; where that is used up, the bare one goes in.
THREAD_RESERVES: Final = {"agent.so": 4096, "agent-late.so": 1024, "agent-bare.so": 0}
# libgcc_s is linked although nothing here calls it: the agent routes its imports of the unwind
# look-ups to itself, and a libgcc_s that is loaded later would not be routed
# the host of objects without an executable: at a low address, and with one name for the daemon
HOST_FLAGS: Final = (
    "-fno-pic", "-fno-pie", "-no-pie", "-s", "-Wl,--export-dynamic-symbol=reloader_host_go",
)  # fmt: skip
AGENT_LIBRARIES: Final = ("-Wl,--no-as-needed", "-lgcc_s", "-Wl,-z,now", "-Wl,-z,relro")


def _compile(target: Path, sources: list[Path], flags: tuple[str, ...]) -> None:
    """Compile beside the target and rename, so that a running build never sees half a file."""
    compiler = shlex.split(os.environ.get("CC", "gcc"))
    unfinished = target.with_name(f".{target.name}.{os.getpid()}")
    command = [*compiler, *FLAGS, "-o", str(unfinished), *map(str, sources), *flags]
    try:
        # the command is the user's own compiler with our own files
        subprocess.run(command, check=True)  # noqa: S603
        unfinished.replace(target)
    finally:
        unfinished.unlink(missing_ok=True)


def is_fresh(target: Path) -> bool:
    """Return whether a built file is newer than all sources and headers."""
    if not target.exists():
        return False
    sources = [*FOLDER.glob("*.c"), *FOLDER.glob("*.h"), Path(__file__)]
    return all(source.stat().st_mtime_ns < target.stat().st_mtime_ns for source in sources)


def build(*, force: bool = False) -> list[Path]:
    """Compile agent, holder and host where a source changed; return what was built."""
    holder = FOLDER / "reloader-holder"
    built: list[Path] = []
    sources = [FOLDER / name for name in AGENT_SOURCES]
    for name, size in THREAD_RESERVES.items():
        agent = FOLDER / name
        if force or not is_fresh(agent):
            reserve = f"-DRELOADER_THREAD_RESERVE={size}"
            _compile(agent, sources, ("-shared", reserve, *AGENT_LIBRARIES))
            built.append(agent)
    if force or not is_fresh(holder):
        _compile(holder, [FOLDER / "holder.c"], ())
        built.append(holder)
    host = FOLDER / "reloader-host"
    if force or not is_fresh(host):
        _compile(host, [FOLDER / "host.c"], HOST_FLAGS)
        built.append(host)
    return built


def main() -> int:
    """Build all, and say what was done."""
    for path in build(force="--force" in sys.argv[1:]):
        sys.stdout.write(f"built {path.name}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
