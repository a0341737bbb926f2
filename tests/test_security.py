"""Who else is on the machine: their files, their hands on ours, their words on our socket."""

import os
import random
import socket
import struct
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from reloader.client import Client
from reloader.watching.trust import read_trusted
from reloader.wire.project import Project
from tests.soak.chaos import mutate
from tests.support.checker import check
from tests.support.road import MAIN, Program

STRANGER = 65534
PART = """
static int count;
static const char *const words[] = {"one", "two"};
int answer(int n) { count++; return n * %d + count + (words[n & 1][0] == 'x'); }
"""
GUEST = """
extern int printf(const char *, ...);
static int much[64]; int (*kept)(int);
static int inner(int n) { return much[n & 63]++ + n; }
int guest(int n) { kept = inner; return printf("guest %%d %%d\\n", n, inner(n)) + %d; }
"""


@pytest.fixture
def program(tmp_path: Path) -> Iterator[Program]:
    made = Program(tmp_path)
    made.compile(main=MAIN, part=PART % 10)
    made.link()
    made.start()
    yield made
    assert made.stop() == 0


@pytest.fixture
def client(program: Program) -> Iterator[Client]:
    """A real daemon beside the program."""
    assert program.process is not None
    with Client.open(Project(program.folder)) as found:
        found.attach(program.process.pid, watch=[str(program.folder / "*.o")])
        yield found
        found.stop()


def pid_of(program: Program) -> int:
    assert program.process is not None
    return program.process.pid


def refused(client: Client, path: Path) -> str:
    """Load a file that is refused; return why."""
    answer = client.load([str(path)])
    assert answer["outcome"] == "refused", answer
    return answer["error"] or ""


def as_root() -> None:
    if os.geteuid():
        pytest.fail("this test needs to be root: it gives files away")


def test_a_strangers_object_is_refused_though_it_was_named(
    client: Client, program: Program
) -> None:
    as_root()
    other = program.folder / "other.bin"
    other.write_bytes((program.folder / "part.o").read_bytes())
    os.chown(other, STRANGER, STRANGER)
    assert "belongs to nobody" in refused(client, other)
    assert program.ask(3) == 31


def test_an_object_in_a_folder_that_all_may_write_is_refused_though_it_was_named(
    client: Client, program: Program
) -> None:
    shared = program.folder / "shared"
    shared.mkdir()
    shared.chmod(0o777)
    (shared / "part.o").write_bytes((program.folder / "part.o").read_bytes())
    said = refused(client, shared / "part.o")
    assert f"{shared}" in said
    assert "may be written by every user (mode 0777)" in said
    assert program.ask(3) == 31


def test_a_link_that_a_stranger_swaps_between_check_and_read_is_not_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good, evil = tmp_path / "good.o", tmp_path / "evil.o"
    good.write_bytes(b"good")
    evil.write_bytes(b"evil")
    really_open = os.open

    def swap_first(path: Path, flags: int) -> int:
        good.unlink()
        good.symlink_to(evil)
        return really_open(path, flags)

    monkeypatch.setattr(os, "open", swap_first)
    with pytest.raises(OSError, match="symbolic links"):
        read_trusted(good, [tmp_path])


def test_another_user_is_not_let_to_the_socket(client: Client, program: Program) -> None:
    as_root()
    info = Project(program.folder).daemon()
    assert info is not None
    code = f"import socket; socket.socket(socket.AF_UNIX).connect({info.socket!r})"
    done = subprocess.run(
        ["/usr/bin/python3", "-c", code],
        user=STRANGER, group=STRANGER, extra_groups=[], cwd="/",
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode
    assert "PermissionError" in done.stderr
    Path(info.socket).parent.chmod(0o711)  # somebody opens the folder: the daemon asks itself
    try:
        Path(info.socket).chmod(0o666)
        said = done_as_stranger(info.socket)
    finally:
        Path(info.socket).chmod(0o600)
        Path(info.socket).parent.chmod(0o700)
    assert "history" not in said
    assert client.status()["daemon"]


def done_as_stranger(path: str) -> str:
    """Return what the daemon tells another user who asks."""
    body = b'{"verb": "history", "params": {"limit": 1}}'
    code = (
        "import socket, sys; s = socket.socket(socket.AF_UNIX); s.settimeout(10)\n"
        f"try:\n s.connect({path!r}); s.sendall({struct.pack('<I', len(body)) + body!r})\n"
        " sys.stdout.write(repr(s.recv(4096)))\n"
        "except OSError as error: sys.stdout.write(type(error).__name__)"
    )
    done = subprocess.run(
        ["/usr/bin/python3", "-c", code],
        user=STRANGER, group=STRANGER, extra_groups=[], cwd="/",
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return done.stdout


def test_garbage_on_the_socket_ends_only_its_own_connection(
    client: Client, program: Program
) -> None:
    info = Project(program.folder).daemon()
    assert info is not None
    chance = random.Random(11)  # noqa: S311 - to be repeatable
    for number in range(100):
        with socket.socket(socket.AF_UNIX) as rude:
            rude.connect(info.socket)
            data = chance.randbytes(chance.randint(1, 300))
            if number % 3 == 0:
                data = struct.pack("<I", len(data)) + data
            elif number % 3 == 1:
                data = struct.pack("<I", 0xFFFF_FF00) + data
            rude.sendall(data)
    assert client.status()["daemon"]
    program.compile(part=PART % 20)
    assert client.load([str(program.folder / "part.o")])["outcome"] in {"live", "unchanged"}
    assert program.ask(3) == 61


def test_hostile_objects_harm_neither_daemon_nor_program(
    client: Client, program: Program
) -> None:
    chance = random.Random(23)  # noqa: S311 - to be repeatable
    (guest,) = program.compile(guest=GUEST % 1)
    good = guest.read_bytes()
    guest.unlink()
    end, count = time.monotonic() + 12, 0
    while time.monotonic() < end and count < 400:
        data = bytearray(good)
        mutate(data, chance)
        place = program.folder / f"guest{count % 3}.bin"
        place.write_bytes(data)
        answer = client.load([str(place)])
        assert answer["outcome"] in {"live", "refused", "unchanged"}, (count, answer)
        if answer["outcome"] == "live":
            client.unload(str(place))
        count += 1
        assert program.ask(3) == 30 + count
    assert check(pid_of(program), program.folder) == []
