"""gdb on a running program: commands in, text out."""

import re
import subprocess


def pid_of(process: "subprocess.Popen[str] | None") -> int:
    """Return the number of a program that was started."""
    assert process is not None
    return process.pid


def gdb(pid: int, *commands: str) -> str:
    """Let gdb look at a process, which runs on afterwards; return what it printed.

    Args:
        pid: The process.
        commands: gdb's, or `feed` for a line with 7 on the program's standard input.
    """
    feed = f"shell echo 7 > /proc/{pid}/fd/0"
    words = [word for text in commands for word in ("-ex", feed if text == "feed" else text)]
    options = ["-nx", "-batch", "-iex", "set debuginfod enabled off", "-p", str(pid)]
    command = ["gdb", *options, *words]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def entries(said: str) -> int:
    """Return how many symbol files `maint info jit` lists."""
    return len(re.findall(r"^0x\w+ +0x\w+ +\d+", said, re.MULTILINE))


def frames(said: str) -> list[str]:
    """Return the functions of `bt`, the innermost first."""
    return re.findall(r"^#\d+ .*?([\w.]+) \(", said, re.MULTILINE)
