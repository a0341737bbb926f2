"""Errors of the daemon, its protocol, its client and its configuration."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from reloader.errors.base import UNTOUCHED, RefusedError, ReloaderError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

_LOG_LINES: Final = 12  # of a failed start that are worth showing


def _did_you_mean(nearest: Sequence[str]) -> str:
    return f" Did you mean {', '.join(nearest)}?" if nearest else ""


class RemoteError(ReloaderError):
    """The daemon refused or failed; its own text, under its own code."""

    def __init__(self, code: str, text: str) -> None:
        self.code = code
        self.text = text
        super().__init__(text)


class ProtocolError(ReloaderError):
    """The other side sent something that is not a message of this protocol."""

    code = "protocol"

    def __init__(self, problem: str) -> None:
        self.problem = problem
        super().__init__(f"unreadable message: {problem}. {UNTOUCHED}")


class MessageTooLargeError(ProtocolError):
    """A message is longer than the protocol allows."""

    def __init__(self, size: int, limit: int) -> None:
        self.size = size
        self.limit = limit
        super().__init__(f"it has {size} bytes, the limit is {limit}")


class VersionError(RefusedError):
    """Client and daemon are of different versions."""

    code = "version"

    def __init__(self, client: int, daemon: int) -> None:
        self.client = client
        self.daemon = daemon
        super().__init__(
            f"the command speaks protocol {client}, the running daemon {daemon}. {UNTOUCHED} "
            "Run `reloader stop`, then try again: a new daemon is started."
        )


class RequestError(RefusedError):
    """A request names an unknown verb, or a parameter is missing or of another type."""

    code = "request"

    def __init__(self, verb: str, problem: str) -> None:
        self.verb = verb
        self.problem = problem
        super().__init__(f"{verb}: {problem}. {UNTOUCHED}")


class NoDaemonError(RefusedError):
    """No daemon runs for this project."""

    code = "no-daemon"

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        super().__init__(
            f"no daemon is running for {folder}. Start a program with `reloader run -- PROGRAM`"
            " or go beside one with `reloader attach PID`."
        )


class DaemonStartError(ReloaderError):
    """The daemon could not be started."""

    code = "start"

    def __init__(self, folder: Path, reason: str, output: str = "") -> None:
        self.folder = folder
        self.reason = reason
        self.output = output
        lines = output.strip().splitlines()[-_LOG_LINES:]
        shown = "".join(f"\n    {line}" for line in lines)
        super().__init__(f"the daemon for {folder} did not start: {reason}. {UNTOUCHED}{shown}")


class DaemonGoneError(ReloaderError):
    """The daemon ended before it answered."""

    code = "daemon-gone"

    def __init__(self, verb: str) -> None:
        self.verb = verb
        super().__init__(
            f"the daemon ended before it answered `{verb}`. The program runs on with the code"
            " it has; `reloader history` tells what was done. See .reloader/log.jsonl for why."
        )


class StoppingError(RefusedError):
    """The daemon is ending and takes no more work."""

    code = "stopping"

    def __init__(self, verb: str) -> None:
        self.verb = verb
        super().__init__(f"{verb}: the daemon is stopping. {UNTOUCHED}")


class UntrustedPlaceError(RefusedError):
    """A file or folder could have been planted or changed by another user."""

    code = "untrusted"

    def __init__(self, path: Path, reason: str, remedy: str) -> None:
        self.path = path
        self.reason = reason
        self.remedy = remedy
        super().__init__(f"{path}: {reason}. {UNTOUCHED} {remedy}.")


class UnusablePlaceError(RefusedError):
    """The project's folder is gone, or nothing can be written there."""

    code = "unusable-folder"

    def __init__(self, path: Path, reason: str) -> None:
        self.path = path
        self.reason = reason
        super().__init__(f"{path}: {reason}. {UNTOUCHED} Start it in a folder that is yours.")


class PeerError(RefusedError):
    """Another user connected to the socket, or listens on it."""

    code = "peer"

    def __init__(self, peer_uid: int, own_uid: int) -> None:
        self.peer_uid = peer_uid
        self.own_uid = own_uid
        super().__init__(
            f"the other end of the socket belongs to user {peer_uid}, this one to user "
            f"{own_uid}. {UNTOUCHED} Only the same user or root may talk to a daemon."
        )


class NotAnsweredInTimeError(ReloaderError):
    """`wait` reached its timeout."""

    code = "timeout"

    def __init__(self, waited_for: str, seconds: float, newest: int) -> None:
        self.waited_for = waited_for
        self.seconds = seconds
        self.newest = newest
        super().__init__(
            f"waited {seconds:g} s for {waited_for}; the newest attempt is generation {newest}."
            " Give more time with --timeout."
        )


class ProgramError(ReloaderError):
    """The program to run cannot be executed."""

    code = "program"

    def __init__(self, program: str, reason: str) -> None:
        self.program = program
        self.reason = reason
        super().__init__(f"cannot run {program}: {reason}. Nothing was started.")


class AgentMissingError(ReloaderError):
    """The library that goes into programs was not compiled."""

    code = "agent-missing"

    def __init__(self, path: Path) -> None:
        self.path = path
        super().__init__(
            f"{path} does not exist, so nothing can go into the program. Nothing was started. "
            "Compile it with `python -m stubs.build`."
        )


class ConfigError(RefusedError):
    """The configuration cannot be used."""

    code = "config"

    def __init__(self, file: Path, problem: str, hint: str = "") -> None:
        self.file = file
        self.problem = problem
        super().__init__(f"{file}: {problem}. {UNTOUCHED}{hint}")


class UnknownKeyError(ConfigError):
    """A key that nothing reads: probably misspelt."""

    def __init__(self, file: Path, key: str, nearest: Sequence[str]) -> None:
        self.key = key
        self.nearest = list(nearest)
        super().__init__(file, f"unknown key `{key}`", _did_you_mean(self.nearest))


class WrongTypeError(ConfigError):
    """A key's value has another type than its meaning asks for."""

    def __init__(self, file: Path, key: str, found: str, wanted: str) -> None:
        self.key = key
        self.found = found
        self.wanted = wanted
        super().__init__(file, f"`{key}` is {found}, it must be {wanted}")
