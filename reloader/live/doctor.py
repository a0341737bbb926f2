"""What would stand in the way of entering a process, found beforehand, with its remedy."""

import os
import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from reloader.errors.live import AttachError, FirstThreadEndedError
from reloader.live.maps import other_threads
from reloader.live.seccomp import find_seccomp
from reloader.live.tracing import (
    Finding,
    error,
    find_owner,
    find_ptrace_scope,
    find_tracer,
    status,
    warning,
)

Finder = Callable[[int], "list[Finding]"]

EM_X86_64: Final = 62
MACHINES: Final = {
    3: "i386",
    40: "ARM",
    183: "AArch64",
    243: "RISC-V",
    21: "PowerPC 64",
    22: "s390",
}
PT_INTERP: Final = 3
# libraries whose run time replaces the allocator and checks its own loading order
SANITIZERS: Final = {
    "libasan": "AddressSanitizer", "libtsan": "ThreadSanitizer", "libmsan": "MemorySanitizer",
    "liblsan": "LeakSanitizer", "libhwasan": "HWAddressSanitizer",
}  # fmt: skip
# symbols by which a statically linked sanitizer (clang's default) is known
SANITIZER_SYMBOLS: Final = {
    b"__asan_init": "AddressSanitizer", b"__tsan_init": "ThreadSanitizer",
    b"__msan_init": "MemorySanitizer", b"__hwasan_init": "HWAddressSanitizer",
}  # fmt: skip
NOEXEC: Final = Path("/proc/sys/vm/memfd_noexec")


def find_zombie(pid: int) -> list[Finding]:
    """A process that ended but was not waited for, or a kernel thread.

    Raises:
        FirstThreadEndedError: Only its first thread has ended.
    """
    state = status(pid).get("State", "")
    if state.startswith(("Z", "X")):
        others = other_threads(pid)
        if others:
            raise FirstThreadEndedError(pid, others)
        return error("ended", f"process {pid} has ended", "Start it again")
    if not Path(f"/proc/{pid}/maps").exists() or "VmSize" not in status(pid):
        return error("kernel", f"process {pid} is a kernel thread", "Choose another process")
    return []


def find_memfd_policy(_pid: int) -> list[Finding]:
    """Executing memory files may be forbidden."""
    level = int(NOEXEC.read_text("ascii")) if NOEXEC.exists() else 0
    if level < 2:
        return []
    text = "memory files may not be executed here (vm.memfd_noexec is 2)"
    return error("memfd", text, "`sudo sysctl vm.memfd_noexec=1`")


def find_namespaces(pid: int) -> list[Finding]:
    """Its own view of files: paths mean something else there."""
    found: list[Finding] = []
    try:
        other = os.readlink(f"/proc/{pid}/ns/mnt") != os.readlink("/proc/self/ns/mnt")  # noqa: PTH115 - not a path but an identity
    except OSError:
        return []
    root = Path(f"/proc/{pid}/root")
    # `self` leads nowhere for us if that /proc is of another pid namespace
    if not os.path.lexists(root / "proc" / "self"):
        text = f"process {pid} sees no /proc: it is in a chroot or container without one"
        found += error(
            "proc", text, "Mount /proc there, or start the program with `reloader run`"
        )
    elif other:
        text = f"process {pid} is in another mount namespace; file names in it are read through"
        found += warning("mount-namespace", f"{text} /proc/{pid}/root", "")
    return found


def _elf(path: str) -> tuple[int, int, int, str] | None:
    """Return class, machine, type and interpreter of an ELF file."""
    try:
        with open(path, "rb") as file:  # noqa: PTH123 - /proc paths do not resolve
            head = file.read(64)
            if head[:4] != b"\x7fELF" or len(head) < 64:
                return None
            kind, machine = struct.unpack_from("<HH", head, 16)
            if head[4] != 2:
                return head[4], machine, kind, ""
            offset, size, count = (
                struct.unpack_from("<Q", head, 32)[0],
                *struct.unpack_from("<HH", head, 54),
            )
            interpreter = ""
            for row in range(count):
                file.seek(offset + row * size)
                header = struct.unpack("<IIQQQQQQ", file.read(56))
                if header[0] == PT_INTERP:
                    file.seek(header[2])
                    interpreter = (
                        file.read(header[5]).split(b"\0")[0].decode("utf-8", "replace")
                    )
            return head[4], machine, kind, interpreter
    except (OSError, struct.error):
        return None


def find_in_file(path: str, shown: str) -> list[Finding]:
    """What the executable file itself tells: architecture, static or musl linking."""
    elf = _elf(path)
    if elf is None and not os.path.lexists(path):
        return error("file", f"{shown} does not exist", "Build it first, or check the path")
    if elf is None:
        text = f"{shown} is not an ELF executable that can be read"
        return error("format", text, "For a script, name its interpreter")
    word, machine, _, interpreter = elf
    if machine != EM_X86_64 or word != 2:
        name = MACHINES.get(
            machine, "32-bit x86-64" if machine == EM_X86_64 else f"machine {machine}"
        )
        return error(
            "architecture", f"{shown} is a program for {name}", "x86-64 is what reloader knows"
        )
    if not interpreter:
        text = f"{shown} is statically linked: it has no dynamic loader to bring the agent in"
        return error("static", text, "Link it without -static")
    if "musl" in interpreter:
        return error(
            "musl", f"{shown} uses the musl C library ({interpreter})", "Link it with glibc"
        )
    return []


def sanitizer_in(path: str) -> str:
    """Return the sanitizer that an executable is built with, "" if none."""
    with open(path, "rb") as file:  # noqa: PTH123 - /proc paths do not resolve
        content = file.read()
    return next(
        (name for mark, name in SANITIZER_SYMBOLS.items() if mark + b"\0" in content), ""
    )


def _sanitizer_finding(shown: str, name: str) -> list[Finding]:
    text = f"{shown} is built with {name}, which refuses preloaded libraries"
    return error("sanitizer", text, "Build it without -fsanitize")


def find_sanitizer(pid: int) -> list[Finding]:
    """A sanitizer's run time is loaded or linked in."""
    maps = Path(f"/proc/{pid}/maps").read_text("utf-8", "replace")
    for library, name in SANITIZERS.items():
        if f"/{library}." in maps or f"/{library}-" in maps:
            return _sanitizer_finding(f"process {pid}", name)
    name = sanitizer_in(f"/proc/{pid}/exe")
    return _sanitizer_finding(f"process {pid}", name) if name else []


def find_executable(pid: int) -> list[Finding]:
    """What the running executable tells."""
    return find_in_file(f"/proc/{pid}/exe", f"process {pid}")


def find_limits(pid: int) -> list[Finding]:
    """Limits that the arena would hit."""
    found: list[Finding] = []
    for line in Path(f"/proc/{pid}/limits").read_text("ascii").splitlines():
        limit = line[26:47].strip()
        if line.startswith("Max address space") and limit != "unlimited":
            text = f"address space of process {pid} is limited to {int(limit) >> 20} MiB"
            found += warning(
                "address-space", text, "The arena wants up to 515 MiB; raise ulimit -v"
            )
        hard = line[47:68].strip()
        if line.startswith("Max file size") and hard != "unlimited":
            text = f"files of process {pid} are limited to {int(hard) >> 20} MiB"
            found += warning(
                "file-size", text, "The arena's file is up to 515 MiB; raise ulimit -f"
            )
    return found


# in order: a later question makes sense only if the earlier ones did not end it
FIRST: Final[Sequence[Finder]] = (find_zombie, find_owner, find_executable)
LATER: Final[Sequence[Finder]] = (
    find_tracer, find_ptrace_scope, find_memfd_policy, find_seccomp, find_namespaces,
    find_sanitizer, find_limits,
)  # fmt: skip


def examine_process(pid: int) -> list[Finding]:
    """Return everything worth knowing before entering a process, errors first.

    Raises:
        TargetGoneError: There is no such process.
    """
    for finder in FIRST:
        found = finder(pid)
        if found:
            return found
    found = [finding for finder in LATER for finding in finder(pid)]
    return sorted(found, key=lambda finding: finding.level != "error")


def examine_program(path: str) -> list[Finding]:
    """Return everything worth knowing before starting a program with `reloader run`."""
    found = find_in_file(path, path) + find_memfd_policy(0)
    if any(finding.level == "error" for finding in found):
        return found
    name = sanitizer_in(path)
    if name:
        found += _sanitizer_finding(path, name)
    if Path(path).stat().st_mode & 0o6000:
        text = (
            f"{path} is setuid or setgid: the dynamic loader ignores preloaded libraries for it"
        )
        found += error("setuid", text, "Run a copy without these bits")
    return found


def examine(what: int | str) -> list[Finding]:
    """Return the findings for a process id or a program's path."""
    return examine_process(what) if isinstance(what, int) else examine_program(what)


def raise_obstacles(pid: int) -> None:
    """Raise AttachError with every finding that stands in the way."""
    reasons = [str(finding) for finding in examine_process(pid) if finding.level == "error"]
    if reasons:
        raise AttachError(pid, reasons)
