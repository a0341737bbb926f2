"""Hooks: what the user wants done before and after a reload, in the shell and in the program.

Before: once the new code is linked and written down, while nothing of it is in the process. A
command that fails, or a function that does not return 0, cancels. After: once the new code
runs; a failure there is told and changes nothing.
"""

import os
import signal
import subprocess
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from reloader.config import HooksConfig
from reloader.errors.base import ReloaderError
from reloader.errors.hooks import HookFailedError
from reloader.ids import Addr
from reloader.live.in_each import Stage, in_each
from reloader.live.program import Program
from reloader.live.target import Target

_MOST_BYTES = 16 * 1024  # of a command's output that are kept


@dataclass(frozen=True, slots=True)
class Occasion:
    """One reload, as hooks are told of it."""

    program: Program
    objects: Sequence[str]  # as shown to people
    generation: int
    functions: Sequence[str] = ()  # after: what changed


@dataclass(frozen=True, slots=True)
class Hooks:
    """The hooks of a project."""

    config: HooksConfig
    folder: Path  # where commands run

    def before(self, occasion: Occasion) -> None:
        """Run what comes before a reload.

        Raises:
            HookFailedError: It says no.
        """
        self.command("before_reload", self.config.before_reload, occasion)
        self.function("before_function", self.config.before_function, occasion)

    def after(self, occasion: Occasion) -> list[str]:
        """Run what comes after a reload; return what went wrong."""
        problems: list[str] = []
        for run, hook in ((self.function, "after_function"), (self.command, "after_reload")):
            try:
                run(hook, getattr(self.config, hook), occasion)
            except HookFailedError as error:
                problems.append(f"{hook} ({error.what}) {error.problem}; the new code is live")
            except ReloaderError as error:  # the program has ended: the reload was live
                problems.append(f"{hook}: {error}")
        return problems

    def command(self, hook: str, command: str, occasion: Occasion) -> None:
        """Run a command of the shell and wait for its end."""
        if not command:
            return
        with tempfile.TemporaryFile() as output:
            try:
                child = subprocess.Popen(  # noqa: S603 - the user's own command, by design
                    ["/bin/sh", "-c", command],
                    cwd=self.folder,
                    env=os.environ | environment(hook, occasion),
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
            except OSError as error:
                raise HookFailedError(hook, command, f"did not start: {error}") from error
            problem = self.ended(child)
            if problem:
                raise HookFailedError(hook, command, problem, tail(output))

    def ended(self, child: subprocess.Popen[bytes]) -> str:
        """Wait for a command; return what is wrong with its end, "" for nothing."""
        seconds = self.config.timeout_s
        try:
            status = child.wait(seconds)
        except subprocess.TimeoutExpired:
            with suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            child.wait()
            return f"was still running after {seconds:g} s (timeout_s) and was ended"
        if status < 0:
            return f"was ended by signal {-status}"
        return f"ended with status {status}" if status else ""

    @staticmethod
    def function(hook: str, name: str, occasion: Occasion) -> None:
        """Call a function in each process with the generation; 0 is success."""
        if not name:
            return
        found = occasion.program.index.find([name.encode()])
        if not found.found[0]:
            raise HookFailedError(hook, name, "is no function of the program")
        addr, target = Addr(int(found.addr[0])), occasion.program.target

        def call(process: Target) -> None:
            result, thrown = process.call_catching(addr, occasion.generation)
            where = "" if process.pid == target.pid else f" in process {process.pid}"
            if thrown is not None:
                problem = f"threw an exception ({thrown or 'unknown'}){where}"
                raise HookFailedError(hook, name, problem)
            word = result & 0xFFFFFFFF
            if word:
                status = word - (word >> 31 << 32)
                raise HookFailedError(hook, name, f"returned {status}, not 0{where}")

        stage = Stage.BEFORE if hook == "before_function" else Stage.AFTER
        in_each(target, occasion.generation, stage, call)


def environment(hook: str, occasion: Occasion) -> dict[str, str]:
    """Return what a command is told."""
    return {
        "RELOADER_HOOK": hook,
        "RELOADER_PID": str(occasion.program.target.pid),
        "RELOADER_GENERATION": str(occasion.generation),
        "RELOADER_OBJECTS": "\n".join(occasion.objects),
        "RELOADER_FUNCTIONS": "\n".join(occasion.functions),
    }


def tail(output: IO[bytes]) -> str:
    """Return the last part of what a command printed."""
    size = output.seek(0, os.SEEK_END)
    output.seek(max(size - _MOST_BYTES, 0))
    return output.read().decode("utf-8", "replace")
