"""Real child processes: compiled once, waited for by what they say, ended by handle."""

import functools
import hashlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from reloader.live.threads import list_threads, thread_state
from reloader.wire.spawn import agent_environment, socket_pair

PROGRAMS = Path(__file__).resolve().parent.parent / "live" / "programs"


@functools.cache
def _folder() -> Path:
    path = Path(tempfile.gettempdir()) / f"reloader-tests-{os.getuid()}"
    path.mkdir(mode=0o700, exist_ok=True)
    return path


def compile_program(name: str, *flags: str) -> Path:
    """Return the executable of tests/live/programs/NAME.c, compiled once."""
    return compile_text((PROGRAMS / f"{name}.c").read_text(), name, *flags)


def compile_text(text: str, name: str = "program", *flags: str, cc: str = "gcc") -> Path:
    """Return the executable of a C text."""
    every = ("-O2", "-Wall", "-Wextra", "-Werror", "-pthread", *flags)
    key = hashlib.blake2b(repr((cc, text, every)).encode(), digest_size=8).hexdigest()
    target = _folder() / f"{name}-{key}"
    if not target.exists():
        suffix = "cc" if "-lstdc++" in flags else "c"
        source = target.with_suffix(f".{os.getpid()}.{suffix}")
        source.write_text(text)
        unfinished = target.with_suffix(f".{os.getpid()}")
        # libraries stand behind the source that wants them
        command = [f"/usr/bin/{cc}", *every[:5], "-o", str(unfinished), *flags, str(source)]
        command += [flag for flag in flags if flag.startswith("-l")]
        subprocess.run(command, check=True)
        unfinished.rename(target)
        source.unlink()
    return target


@contextmanager
def running(
    argv: Sequence[str | Path],
    *,
    pass_fds: Sequence[int] = (),
    env: dict[str, str] | None = None,
) -> Generator[subprocess.Popen[str]]:
    """Run a child with pipes; end it by its handle."""
    child = subprocess.Popen(
        [str(word) for word in argv],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        pass_fds=pass_fds,
        env=env,
    )
    assert child.stdin is not None
    assert child.stdout is not None
    try:
        yield child
    finally:
        child.kill()
        child.wait()
        with suppress(BrokenPipeError):
            child.stdin.close()
        child.stdout.close()


def prepare_spawn(
    argv: Sequence[str], env: Mapping[str, str], program: str = ""
) -> tuple[list[str], dict[str, str], int, int]:
    """Return argv, environment, the program's descriptor (to be inherited) and the daemon's."""
    theirs, ours = socket_pair()
    full = agent_environment(env, theirs, os.getpid(), program or None)
    return list(argv), full, theirs, ours


def say(child: subprocess.Popen[str], text: str = "") -> None:
    """Write a line to the child."""
    assert child.stdin is not None
    child.stdin.write(text + "\n")
    child.stdin.flush()


def hear(child: subprocess.Popen[str]) -> str:
    """Read a line from the child."""
    assert child.stdout is not None
    return child.stdout.readline().rstrip("\n")


def until(fact: Callable[[], bool], what: str, seconds: float = 20.0) -> None:
    """Look until something is a fact."""
    end = time.monotonic() + seconds
    while not fact():
        assert time.monotonic() < end, f"still not so after {seconds} s: {what}"
        time.sleep(0.001)


def until_blocked(pid: int, count: int) -> None:
    """Wait until a process has `count` threads and all of them sleep in the kernel."""

    def all_sleep() -> bool:
        states = [thread_state(pid, tid) for tid in list_threads(pid)]
        return len(states) >= count and set(states) == {"S"}

    until(all_sleep, f"{count} threads of {pid} are blocked")


@contextmanager
def traced(tid: int) -> Generator[str]:
    """Let another process trace a thread meanwhile, without stopping it; yields who does."""
    code = (
        "import sys; from reloader.live.ptrace import PTRACE_SEIZE, ptrace;"
        "ptrace(PTRACE_SEIZE, int(sys.argv[1])); print('seized', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tid)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=PROGRAMS.parents[2],
    ) as tracer:
        assert tracer.stdout is not None
        assert tracer.stdout.readline() == "seized\n"
        name = Path(f"/proc/{tracer.pid}/comm").read_text().strip()
        yield f"{name} (process {tracer.pid})"
        assert tracer.stdin is not None
        tracer.stdin.close()
