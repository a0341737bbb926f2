"""A program that answers each line of its input with a line: how tests see its behaviour."""

import subprocess


class Talking:
    """At most one process at a time, started with pipes by who inherits.

    Attributes:
        process: The process, until `stop`.
    """

    process: subprocess.Popen[str] | None = None

    def say(self, line: str) -> None:
        """Send a line."""
        assert self.process is not None
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def line(self) -> str:
        """Return the next line of the program."""
        assert self.process is not None
        assert self.process.stdout is not None
        return self.process.stdout.readline().rstrip("\n")

    def stop(self) -> int:
        """End the process by closing its input; return its exit status."""
        if self.process is None:
            return 0
        process, self.process = self.process, None
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.close()
        try:
            return process.wait(20)
        finally:
            process.kill()
            process.wait()
            process.stdout.close()
            if process.stderr is not None:
                process.stderr.close()
