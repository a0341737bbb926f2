"""The wire: length-prefixed JSON messages over a unix socket, one descriptor beside them.

    4 bytes big-endian length | UTF-8 JSON object

A client sends a `Request` and reads `Event`s until the `Reply`; after `spawn` or `subscribe`
events keep coming on the same connection. A descriptor travels with the first byte of its
message (SCM_RIGHTS). Nothing is read beyond a message's end, so a selector sees what is left.
"""

from __future__ import annotations

import json
import os
import socket
import struct
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Final, cast

from reloader.errors.daemon import MessageTooLargeError, PeerError, ProtocolError

if TYPE_CHECKING:
    from collections.abc import Sequence

VERSION: Final = 1
MAX_SIZE: Final = 64 << 20  # bytes of one message; the objects of a large project are ~10 MB
_LENGTH: Final = struct.Struct(">I")
_CREDENTIALS: Final = struct.Struct("3i")  # struct ucred: pid, uid, gid
_CHUNK: Final = 1 << 18
_MAX_FDS: Final = 4

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Request:
    """What a client wants."""

    verb: str
    params: Json = field(default_factory=dict[str, Any])
    version: int = VERSION


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a request was refused or failed: a stable word for programs, a text for people."""

    code: str
    text: str


@dataclass(frozen=True, slots=True)
class Reply:
    """The end of a request."""

    ok: bool
    result: Any = None  # what JSON can hold; its shape is that of `answers.py`
    error: Failure | None = None


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened, sent without being asked again."""

    kind: str  # a name of `answers.EventKind`
    data: Json = field(default_factory=dict[str, Any])


Message = Request | Reply | Event
_TYPE_WORD: Final[dict[type[Message], str]] = {
    Request: "request",
    Reply: "reply",
    Event: "event",
}


def encode(message: Message) -> bytes:
    """Return the bytes of a message, its length first.

    Raises:
        MessageTooLargeError: It is longer than the other side will read.
    """
    body = {"type": _TYPE_WORD[type(message)], **asdict(message)}
    payload = json.dumps(body, separators=(",", ":"), default=_plain).encode()
    if len(payload) > MAX_SIZE:
        raise MessageTooLargeError(len(payload), MAX_SIZE)
    return _LENGTH.pack(len(payload)) + payload


def decode(payload: bytes) -> Message:
    """Build the message of a payload.

    Raises:
        ProtocolError: It is none.
    """
    try:
        body: Any = json.loads(payload)
    except ValueError as error:
        problem = f"no JSON ({error})"
        raise ProtocolError(problem) from None
    match body:
        case {"type": "request", "verb": str(verb), "params": dict(), "version": int(version)}:
            return Request(verb, body["params"], version)
        case {"type": "event", "kind": str(kind), "data": dict()}:
            return Event(kind, body["data"])
        case {"type": "reply", "ok": True, "result": result}:
            return Reply(ok=True, result=result)
        case {"type": "reply", "ok": False, "error": {"code": str(code), "text": str(text)}}:
            return Reply(ok=False, error=Failure(code, text))
        case _:
            problem = f"neither request, reply nor event: {payload[:60]!r}"
            raise ProtocolError(problem)


class Channel:
    """One end of a connection. One thread sends and one receives at a time."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self._fds: list[int] = []

    def fileno(self) -> int:
        """Return the socket's descriptor, for a selector."""
        return self.sock.fileno()

    def send(self, message: Message, fds: Sequence[int] = ()) -> None:
        """Send a message, and copies of descriptors with it."""
        self.send_bytes(encode(message), fds)

    def send_bytes(self, data: bytes, fds: Sequence[int] = ()) -> None:
        """Send an encoded message."""
        if fds:
            sent = socket.send_fds(self.sock, [data], list(fds))
            data = data[sent:]
        self.sock.sendall(data)

    def receive(self) -> Message | None:
        """Wait for the next message; None once the other side has closed.

        Raises:
            ProtocolError: What came is no message, or stops in its middle.
        """
        header = self._read(_LENGTH.size)
        if not header:
            return None
        (size,) = _LENGTH.unpack(header)
        if size > MAX_SIZE:
            raise MessageTooLargeError(size, MAX_SIZE)
        payload = self._read(size)
        if size and not payload:
            problem = f"the connection ended before its {size} bytes"
            raise ProtocolError(problem)
        return decode(payload)

    def take_fds(self) -> list[int]:
        """Return the descriptors that came so far; they are the caller's to close."""
        fds, self._fds = self._fds, []
        return fds

    def close(self) -> None:
        """Close the connection and every descriptor nobody took."""
        for fd in self.take_fds():
            os.close(fd)
        self.sock.close()

    def _read(self, size: int) -> bytes:
        """Return exactly `size` bytes, or none at all if the stream ended before the first."""
        parts = bytearray()
        while len(parts) < size:
            want = min(_CHUNK, size - len(parts))
            # CLOEXEC at once: another thread may be starting a build (Python 3.11's `recv_fds`
            # takes flags and drops them)
            data, beside, *_ = self.sock.recvmsg(
                want, socket.CMSG_SPACE(_MAX_FDS * 4), socket.MSG_CMSG_CLOEXEC
            )
            for level, kind, content in beside:
                if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                    self._fds += memoryview(content[: len(content) & ~3]).cast("i")
            if not data and parts:
                problem = f"the connection ended after {len(parts)} of {size} bytes"
                raise ProtocolError(problem)
            if not data:
                break
            parts += data
        return bytes(parts)


def check_peer(sock: socket.socket) -> int:
    """Return the other end's pid if it is this user's or root's.

    Raises:
        PeerError: It is another user's.
    """
    size = _CREDENTIALS.size
    credentials = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size)
    pid, uid, _ = _CREDENTIALS.unpack(credentials)
    own = os.geteuid()
    if uid not in {own, 0}:
        raise PeerError(uid, own)
    return pid


def _plain(value: Any) -> Any:  # noqa: ANN401 - whatever JSON does not know
    """Return what JSON can hold for an array's number, a path or a set."""
    if hasattr(value, "item"):
        return value.item()
    if isinstance(value, os.PathLike):
        return os.fsdecode(cast("os.PathLike[str]", value))
    if isinstance(value, set | frozenset):
        return sorted(cast("set[str]", value))
    problem = f"JSON cannot hold {type(value).__name__}"
    raise TypeError(problem)
