"""Errors of watching files and of running the user's build."""

from pathlib import Path

from reloader.errors.base import UNTOUCHED, RefusedError, ReloaderError


class UntrustedPathError(RefusedError):
    """A file that another user could have written or planted, or a link out of the watch."""

    code = "untrusted-path"

    def __init__(self, path: Path, culprit: Path, reason: str, remedy: str) -> None:
        """Keep what was asked for, which part of its path is at fault, and the way out."""
        super().__init__(path, culprit, reason, remedy)
        self.path = path
        self.culprit = culprit
        self.reason = reason
        self.remedy = remedy

    def __str__(self) -> str:
        """Return the text for people."""
        where = "it" if self.culprit == self.path else str(self.culprit)
        return f"{self.path} is not loaded: {where} {self.reason}. {UNTOUCHED} {self.remedy}"


class BadPatternError(RefusedError):
    """A watch pattern that can match nothing."""

    code = "bad-pattern"

    def __init__(self, pattern: str, reason: str) -> None:
        """Keep the pattern as the user typed it."""
        super().__init__(pattern, reason)
        self.pattern = pattern
        self.reason = reason

    def __str__(self) -> str:
        """Return the text for people."""
        return (
            f"cannot watch `{self.pattern}`: {self.reason}. {UNTOUCHED} Name a folder "
            "(`build`), a file (`build/hud.o`) or a glob (`build/**/*.o`)."
        )


class WatchLimitError(ReloaderError):
    """The kernel gives this user no more inotify watches or instances."""

    code = "watch-limit"

    def __init__(self, sysctl: str, limit: int, wanted: int) -> None:
        """Keep the setting's name, its value, and how many we came to."""
        super().__init__(sysctl, limit, wanted)
        self.sysctl = sysctl
        self.limit = limit
        self.wanted = wanted

    def __str__(self) -> str:
        """Return the text for people."""
        return (
            f"watching {self.wanted} folders needs more than {self.sysctl} = {self.limit}, "
            "which all programs of this user share. Files are polled instead, which is slower. "
            f"For events run: sudo sysctl {self.sysctl}={max(self.limit, self.wanted) * 4}"
        )


class NoInotifyError(ReloaderError):
    """File events cannot be had here at all."""

    code = "no-inotify"

    def __init__(self, reason: str) -> None:
        """Keep what the system said."""
        super().__init__(reason)
        self.reason = reason

    def __str__(self) -> str:
        """Return the text for people."""
        return (
            f"inotify does not work here ({self.reason}). Files are polled instead, "
            "which is slower."
        )


class BuildStartError(ReloaderError):
    """The user's build command could not be started."""

    code = "build-start"

    def __init__(self, command: str, cwd: Path, reason: str) -> None:
        """Keep the command, its folder, and what the system said."""
        super().__init__(command, cwd, reason)
        self.command = command
        self.cwd = cwd
        self.reason = reason

    def __str__(self) -> str:
        """Return the text for people."""
        return (
            f"the build `{self.command}` could not be started in {self.cwd}: "
            f"{self.reason}. {UNTOUCHED}"
        )


class BuildFailedError(ReloaderError):
    """The user's build ended with an error; the program is as before."""

    code = "build-failed"

    def __init__(self, command: str, status: int, seconds: float, output: str) -> None:
        """Keep what ran, how it ended (negative: by that signal), and what it printed."""
        super().__init__(command, status, seconds, output)
        self.command = command
        self.status = status
        self.seconds = seconds
        self.output = output

    def __str__(self) -> str:
        """Return the text for people, the build's output last."""
        how = f"exit status {self.status}" if self.status >= 0 else f"signal {-self.status}"
        text = f"the build `{self.command}` failed ({how}, {self.seconds:.1f} s). {UNTOUCHED}"
        output = self.output.rstrip()
        return f"{text}\n{output}" if output else f"{text} It printed nothing."
