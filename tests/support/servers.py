"""nginx and memcached under the real daemon and under load, with an object that changes.

A version of the object is its edited source compiled once by the server's own makefile; its
number is then written over a marker in the code, so a thousand versions need one compilation.
The server tells the number from outside.
"""

import os
import shutil
import socket
import struct
import subprocess
import sys
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from reloader.client import Client
from reloader.wire.answers import ReloadAnswer, TargetAnswer
from reloader.wire.project import Project
from tests.support.live import PROGRAMS, compile_program, hear, until
from tests.support.programs import BuiltProgram, build_memcached, build_nginx, run

ROOT: Final = PROGRAMS.parents[2]
MARKER: Final = 0x5EED0000
RUN: Final = (sys.executable, "-m", "reloader", "run")
WAIT_SECONDS: Final = 20.0


@dataclass(frozen=True, slots=True)
class Recipe:
    """How to build a server, what to edit, and how to start it."""

    folder: str
    source: str
    object: str
    executable: str
    targets: tuple[str, ...]  # of make, for the object
    edits: tuple[tuple[str, str], ...]
    arguments: tuple[str, ...]
    watch: str = "*.o"


NGINX: Final = Recipe(
    "nginx",
    "src/http/ngx_http_header_filter_module.c",
    "objs/src/http/ngx_http_header_filter_module.o",
    "objs/nginx",
    ("-f", "objs/Makefile", "objs/src/http/ngx_http_header_filter_module.o"),
    (
        (
            "    b = ngx_create_temp_buf(r->pool, len);",
            (
                '    len += sizeof("X-Version: 4294967295 4294967295" CRLF) - 1;\n'
                "    b = ngx_create_temp_buf(r->pool, len);"
            ),
        ),
        (
            "    /* the end of HTTP header */\n",
            (
                '    b->last = ngx_sprintf(b->last, "X-Version: %uD %P" CRLF,\n'
                f"                          (uint32_t) {MARKER:#x}u, ngx_pid);\n"
            ),
        ),
    ),
    ("-p", "{run}", "-c", "nginx.conf", "-e", "error.log"),
)
MEMCACHED: Final = Recipe(
    "memcached",
    "proto_text.c",
    "memcached-proto_text.o",
    "memcached",
    ("memcached-proto_text.o",),
    (
        (
            '    out_string(c, "VERSION " VERSION);',
            (
                "    char text[40];\n"
                f'    snprintf(text, sizeof text, "VERSION %u", {MARKER:#x}u);\n'
                "    out_string(c, text);"
            ),
        ),
        (  # on the path of every request
            "void process_command_ascii(conn *c, char *command) {\n",
            (
                "void process_command_ascii(conn *c, char *command) {\n"
                f'    __asm__ volatile("" : : "r"({MARKER:#x}u));\n'
            ),
        ),
    ),
    ("-s", "{run}/server", "-t", "4", "-u", "root", "-m", "64"),
)
NGINX_CONF: Final = """
daemon off;
worker_processes 4;
pid nginx.pid;
events { worker_connections 256; }
http {
  access_log off;
  keepalive_requests 1000000000;
  keepalive_timeout 1000s;
  server { listen unix:server; location / { default_type text/plain; return 200 "hello\\n"; } }
}
"""


class Server:
    """One server in a folder of its own."""

    def __init__(self, folder: Path, recipe: Recipe, built: BuiltProgram) -> None:
        """Copy the built tree, and compile the edited object beside the original."""
        self.recipe = recipe
        self.tree = folder / recipe.folder
        shutil.copytree(built.folder, self.tree, symlinks=True)
        self.run = folder / "run"
        self.run.mkdir()
        (self.run / "nginx.conf").write_text(NGINX_CONF)
        self.socket = self.run / "server"
        self.object = self.tree / recipe.object
        self.executable = self.tree / recipe.executable
        self.pattern = self._edited()
        self.generation = 0
        self.process: subprocess.Popen[str] | None = None

    def _edited(self) -> bytes:
        """Return the edited object; the tree's is as it was built."""
        source, original = self.tree / self.recipe.source, self.object.read_bytes()
        text = source.read_text()
        for old, new in self.recipe.edits:
            assert text.count(old) == 1, old
            text = text.replace(old, new)
        source.write_text(text)
        run(self.tree, "make", *self.recipe.targets)
        edited = self.object.read_bytes()
        assert struct.pack("<I", MARKER) in edited
        self.object.write_bytes(original)
        return edited

    def start(self) -> None:
        """Start the server under `reloader run`; return when it answers."""
        arguments = [word.format(run=self.run) for word in self.recipe.arguments]
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        command = [*RUN, "--watch", str(self.object), "--", str(self.executable), *arguments]
        log = (self.run / "output").open("w")
        with log:
            self.process = subprocess.Popen(
                command, cwd=self.run, env=environment, stdout=log, stderr=log,
                stdin=subprocess.DEVNULL, text=True,
            )  # fmt: skip
        until(self.socket.exists, f"{self.recipe.folder} listens", WAIT_SECONDS)

    def client(self) -> Client:
        """Return a connection to the daemon."""
        return Client.open(Project(self.run), start=False)

    def reload(self, client: Client, number: int) -> ReloadAnswer:
        """Save a version; return what came of it."""
        content = self.pattern.replace(
            struct.pack("<I", MARKER), struct.pack("<I", MARKER + number)
        )
        part = self.object.with_suffix(".part")
        part.write_bytes(content)
        part.rename(self.object)
        self.generation += 1
        return client.wait(generation=self.generation, timeout=WAIT_SECONDS)

    def target(self, client: Client) -> TargetAnswer:
        """Return the server as the daemon knows it."""
        return client.status()["targets"][0]

    def stop(self) -> int:
        """End the server by its own signal, and the daemon; return the server's status."""
        assert self.process is not None
        self.process.terminate()
        status = self.process.wait(WAIT_SECONDS)
        with self.client() as client:
            client.stop()
        return status


@dataclass(frozen=True, slots=True)
class Load:
    """What a load program counted; times in microseconds."""

    requests: int
    errors: int
    lost: int
    p50: int
    p99: int
    p999: int
    longest: int


class Loader:
    """The load program at work."""

    def __init__(
        self, server: Server, threads: int = 4, pause_us: int = 200, keys: int = 200
    ) -> None:
        """Start it; return once every connection has had an answer."""
        kind = "http" if server.recipe is NGINX else "memcached"
        words = [kind, server.socket, threads, pause_us, keys]
        self.process = subprocess.Popen(
            [compile_program("load"), *map(str, words)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert hear(self.process) == "ready"

    def end(self) -> Load:
        """Let it finish, and return what it counted."""
        text, _ = self.process.communicate(timeout=60)
        return Load(*map(int, text.split()))

    def kill(self) -> None:
        """End it, if it was not asked for its counts."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.communicate()


class Probe:
    """A connection that stays, to one worker of a server."""

    def __init__(self, server: Server) -> None:
        """Connect."""
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(str(server.socket))
        self.stream = self.sock.makefile("rb")

    def version_of_nginx(self) -> tuple[int, int]:
        """Return the version that answers, and the worker's number."""
        self.sock.sendall(b"GET / HTTP/1.1\r\nHost: probe\r\n\r\n")
        lines = iter(lambda: self.stream.readline().rstrip(), b"")
        found = next(line for line in list(lines) if line.startswith(b"X-Version: "))
        assert self.stream.readline() == b"hello\n"
        _, version, pid = found.split()
        return int(version) - MARKER, int(pid)

    def version_of_memcached(self) -> int:
        """Return the version that answers."""
        self.sock.sendall(b"version\r\n")
        return int(self.stream.readline().split()[1]) - MARKER

    def close(self) -> None:
        """Close the connection."""
        self.stream.close()
        self.sock.close()


@contextmanager
def nginx(folder: Path) -> Generator[Server]:
    """nginx with four workers, started."""
    yield from _started(Server(folder, NGINX, build_nginx()))


@contextmanager
def memcached(folder: Path) -> Generator[Server]:
    """Memcached with four threads, started."""
    yield from _started(Server(folder, MEMCACHED, build_memcached()))


def _started(server: Server) -> Generator[Server]:
    server.start()
    try:
        yield server
    finally:
        server.stop()


@contextmanager
def probes_of_all_workers(server: Server, workers: int) -> Generator[list[Probe]]:
    """Connections to nginx, one to each of its workers; some version was loaded before."""
    with ExitStack() as stack:
        found: dict[int, Probe] = {}
        for _ in range(2000):
            probe = Probe(server)
            stack.callback(probe.close)
            found.setdefault(probe.version_of_nginx()[1], probe)
            if len(found) == workers:
                break
        assert len(found) == workers
        yield list(found.values())
