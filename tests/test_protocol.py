"""The wire: what goes through, and what is refused."""

import os
import socket
import struct
import subprocess
import threading
from collections.abc import Generator

import pytest

from reloader.errors.daemon import MessageTooLargeError, PeerError, ProtocolError
from reloader.wire import protocol
from reloader.wire.protocol import Channel, Event, Failure, Reply, Request, check_peer


@pytest.fixture
def ends() -> Generator[tuple[Channel, Channel]]:
    near, far = socket.socketpair()
    channels = Channel(near), Channel(far)
    yield channels
    for channel in channels:
        channel.close()


@pytest.mark.parametrize(
    "message",
    [
        Request("load", {"paths": ["a.o"], "n": 3, "text": "ü"}),
        Reply(ok=True, result=[1, {"a": None}]),
        Reply(ok=False, error=Failure("refused", "no")),
        Event("reload", {"functions": ["draw"], "addr": 2**63}),
    ],
)
def test_a_message_arrives_as_it_was_sent(
    ends: tuple[Channel, Channel], message: protocol.Message
) -> None:
    ends[0].send(message)
    assert ends[1].receive() == message


def test_a_large_message_arrives_whole(ends: tuple[Channel, Channel]) -> None:
    event = Event("warning", {"text": "x" * 3_000_000})
    sender = threading.Thread(target=ends[0].send, args=(event,))
    sender.start()
    assert ends[1].receive() == event
    sender.join()


def test_a_descriptor_travels_with_its_request(ends: tuple[Channel, Channel]) -> None:
    read_end, write_end = os.pipe()
    ends[0].send(Request("spawn"), [write_end])
    os.close(write_end)
    assert ends[1].receive() == Request("spawn")
    (received,) = ends[1].take_fds()
    assert not os.get_inheritable(received)
    os.write(received, b"through")
    os.close(received)
    assert os.read(read_end, 100) == b"through"
    os.close(read_end)


def test_a_descriptor_nobody_takes_is_closed(ends: tuple[Channel, Channel]) -> None:
    read_end, write_end = os.pipe()
    ends[0].send(Request("spawn"), [write_end])
    os.close(write_end)
    ends[1].receive()
    ends[1].close()
    assert os.read(read_end, 1) == b""  # no writer is left
    os.close(read_end)


def test_the_end_between_messages_is_none(ends: tuple[Channel, Channel]) -> None:
    ends[0].close()
    assert ends[1].receive() is None


def test_the_end_inside_a_message_names_both_lengths(ends: tuple[Channel, Channel]) -> None:
    ends[0].sock.sendall(struct.pack(">I", 10) + b"abc")
    ends[0].close()
    with pytest.raises(ProtocolError, match="ended after 3 of 10 bytes"):
        ends[1].receive()


def test_an_overlong_length_is_refused_before_it_is_read(
    ends: tuple[Channel, Channel],
) -> None:
    ends[0].sock.sendall(struct.pack(">I", protocol.MAX_SIZE + 1))
    with pytest.raises(MessageTooLargeError) as caught:
        ends[1].receive()
    assert str(caught.value) == (
        f"unreadable message: it has {protocol.MAX_SIZE + 1} bytes, the limit is "
        f"{protocol.MAX_SIZE}. Nothing was changed."
    )


@pytest.mark.parametrize(
    "payload",
    [b"", b"{", b"\xff\xfe", b"[]", b"{}", b'{"type":"request","verb":1,"params":{}}'],
)
def test_what_is_no_message_is_refused(payload: bytes) -> None:
    with pytest.raises(ProtocolError):
        protocol.decode(payload)


def test_the_same_user_is_let_in(ends: tuple[Channel, Channel]) -> None:
    assert check_peer(ends[0].sock) == os.getpid()


def test_another_user_is_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    name = f"\0reloader-test-{os.getpid()}"  # abstract: no folder's mode stands in the way
    code = f"import socket; s = socket.socket(socket.AF_UNIX); s.connect({name!r}); input()"
    other = 4242 if os.geteuid() == 0 else None
    if not other:  # only root can be another user; anyone can take this process for another
        monkeypatch.setattr(protocol.os, "geteuid", _user_4242)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(name)
        listener.listen()
        command = ["/usr/bin/env", "python3", "-c", code]
        with subprocess.Popen(command, stdin=subprocess.PIPE, cwd="/", user=other) as child:
            accepted, _ = listener.accept()
            with accepted, pytest.raises(PeerError, match=r"user 4242.*Only the same user"):
                check_peer(accepted)
            child.communicate(b"\n")


def _user_4242() -> int:
    return 4242
