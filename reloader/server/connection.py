"""Connection: one client as the daemon sees it.

What is sent goes through a bounded box and a thread of its own, so a client that does not read
can never hold up a reload: when its box is full it is let go.
"""

from __future__ import annotations

import contextlib
import queue
import socket
import threading
from typing import TYPE_CHECKING, Final

from reloader.errors.base import ReloaderError
from reloader.wire.protocol import Channel, Failure, Message, Reply, Request, encode

if TYPE_CHECKING:
    from collections.abc import Callable

_BOX_SIZE: Final = 2000  # messages; a reload sends one or two


class Connection:
    """A client, its reader thread and its writer thread.

    Attributes:
        subscribed: Whether it gets events.
    """

    def __init__(
        self,
        sock: socket.socket,
        answer: Callable[[Connection, Request], Reply],
        on_closed: Callable[[Connection], None],
    ) -> None:
        self.channel = Channel(sock)
        self.subscribed = False
        self._answer = answer
        self._on_closed = on_closed
        self._box: queue.Queue[bytes | None] = queue.Queue(_BOX_SIZE)
        self._reader = threading.Thread(target=self._read, name="client-read")
        self._writer = threading.Thread(target=self._write, name="client-write")

    def start(self) -> None:
        """Begin to serve it."""
        self._writer.start()
        self._reader.start()

    def send(self, message: Message) -> None:
        """Queue a message; never blocks."""
        self.send_encoded(encode(message))

    def send_encoded(self, data: bytes) -> None:
        """Queue a message that goes to several clients and was encoded once."""
        try:
            self._box.put_nowait(data)
        except queue.Full:
            self.hang_up()

    def hang_up(self) -> None:
        """End the connection; its threads end by themselves."""
        with contextlib.suppress(OSError):  # the client was quicker
            self.channel.sock.shutdown(socket.SHUT_RDWR)

    def finish(self) -> None:
        """Stop reading, send what is queued, and wait until both threads have ended."""
        with contextlib.suppress(OSError):  # the client was quicker
            self.channel.sock.shutdown(socket.SHUT_RD)
        self._reader.join()
        self._writer.join()

    def _read(self) -> None:
        try:
            # a broken or vanished client concerns nobody else
            with contextlib.suppress(OSError, ReloaderError):
                while message := self.channel.receive():
                    if isinstance(message, Request):
                        self._reply(self._answer(self, message))
        finally:
            self._end_writer()
            self._writer.join()
            self.channel.close()
            self._on_closed(self)

    def _reply(self, reply: Reply) -> None:
        try:
            self.send(reply)
        except ReloaderError as error:  # too large for the wire
            self.send(Reply(ok=False, error=Failure(error.code, str(error))))

    def _end_writer(self) -> None:
        try:
            self._box.put_nowait(None)
        except queue.Full:
            self.hang_up()  # fails the writer's send, if it stands in one
            with contextlib.suppress(queue.Empty):
                while True:
                    self._box.get_nowait()
            self._box.put(None)

    def _write(self) -> None:
        with contextlib.suppress(OSError):  # the reader sees the same end
            while (data := self._box.get()) is not None:
                self.channel.send_bytes(data)
