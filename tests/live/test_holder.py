"""The process that holds an arena: it ends with its program and leaves nothing behind."""

import os
import subprocess
from pathlib import Path

from reloader.live.holder import reap_holders, start_holder
from tests.support.live import until


def state_of(pid: int) -> str:
    """Return a process's state letter, nothing where it is gone."""
    stat = Path(f"/proc/{pid}/stat")
    return stat.read_text("utf-8").rpartition(")")[2].split()[0] if stat.exists() else ""


def test_the_holders_of_programs_that_ended_are_no_zombies_of_ours() -> None:
    memfd = os.memfd_create("reloader")
    holders: list[int] = []
    for _ in range(3):
        with subprocess.Popen(["/bin/cat"], stdin=subprocess.PIPE) as program:
            holders.append(start_holder(memfd, program.pid))
            assert program.stdin is not None
            program.stdin.close()
        until(lambda: state_of(holders[-1]) == "Z", "the holder ends with its program")
    assert [state_of(holder) for holder in holders] == ["", "", "Z"]
    reap_holders()
    assert state_of(holders[-1]) == ""
    os.close(memfd)
