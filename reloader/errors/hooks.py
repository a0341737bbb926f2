"""A hook of the user's that stands in the way of a reload, or could not be run."""

from reloader.errors.base import UNTOUCHED, RefusedError

_MOST_LINES = 20  # of a command's output


class HookFailedError(RefusedError):
    """What was to run before a reload did not succeed: the reload is off."""

    code = "hook-failed"

    def __init__(self, hook: str, what: str, problem: str, output: str = "") -> None:
        self.hook, self.what, self.problem, self.output = hook, what, problem, output
        lines = output.strip().splitlines()
        if len(lines) > _MOST_LINES:
            lines = [f"... {len(lines) - _MOST_LINES} lines before", *lines[-_MOST_LINES:]]
        said = "".join(f"\n    {line}" for line in lines)
        super().__init__(
            f"{hook} ({what}) {problem}.{said}\n{UNTOUCHED} Correct what it complains about, "
            "or take it out of [hooks] in reloader.toml."
        )
