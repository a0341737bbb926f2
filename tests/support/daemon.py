"""A daemon with a small engine that needs no ELF: real sockets, real processes, real files."""

import argparse
import contextlib
import os
import select
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import cast

from reloader.client import Client
from reloader.errors.base import RefusedError
from reloader.server.engine import Host, SpawnOptions, WatchOptions
from reloader.server.serve import serve
from reloader.wire.answers import (
    CheckAnswer,
    FindingAnswer,
    HolderAnswer,
    MemoryAnswer,
    ObjectAnswer,
    OwnerAnswer,
    ReloadAnswer,
    SpawnAnswer,
    TargetAnswer,
)
from reloader.wire.project import Project
from reloader.wire.protocol import Channel, Event
from reloader.wire.start import connect

ROOT = Path(__file__).resolve().parent.parent.parent
_HELLO_PID = struct.Struct("=I")  # in reloader_hello, after magic and version
_PATH = f"import sys; sys.path.insert(0, {str(ROOT)!r}); "
DAEMON = [sys.executable, "-P", "-c", _PATH + "import tests.support.daemon as d; d.main()"]
CLI = [sys.executable, "-P", "-c", _PATH + "import reloader.cli as c; c.main()"]


class NotLoadableError(RefusedError):
    code = "not-loadable"

    def __init__(self, path: str) -> None:
        super().__init__(f"{path}: not an object. Nothing was changed.")


class FakeEngine:
    """Answers by rule: `bad.o` is refused, `crash.o` is a defect, `wait.o` waits for a pipe."""

    def __init__(self, folder: Path, host: Host) -> None:
        self.folder = folder
        self.host = host
        self.rows: list[ReloadAnswer] = []
        self.programs: dict[int, TargetAnswer] = {}
        self.sessions = 0
        if (folder / "refuse-to-open").exists():
            raise NotLoadableError(str(folder))

    def spawn(self, options: SpawnOptions, fd: int) -> SpawnAnswer:
        self.sessions += 1
        program = self._program(self.sessions, 0, options.path)
        args = (socket.socket(fileno=fd), program)
        threading.Thread(target=self._greet, args=args).start()
        return {"session": self.sessions}

    def _greet(self, sock: socket.socket, program: TargetAnswer) -> None:
        """Let the program go and watch it to its end."""
        with sock:
            hello, fds, *_ = socket.recv_fds(sock, 4096, 4)
            for fd in fds:
                os.close(fd)
            if not hello:
                return
            program["pid"] = int(_HELLO_PID.unpack_from(hello, 12)[0])
            ended = os.pidfd_open(program["pid"])
            self._add(program)
            sock.sendall(b"g")
        select.select([ended], [], [])
        os.close(ended)
        self._remove(program)

    def attach(self, pid: int, options: WatchOptions) -> TargetAnswer:
        assert isinstance(options.watch, tuple)
        self.sessions += 1
        self.host.progress(f"examining {pid}")
        program = self._program(self.sessions, pid, "/bin/prog")
        self._add(program)
        return program

    def detach(self, target: str | None) -> TargetAnswer:
        program = next(p for p in self.programs.values() if target in {None, str(p["pid"])})
        self._remove(program)
        return program

    def load(
        self,
        paths: Sequence[str],
        target: str | None,
        reinit: Sequence[str],
        *,
        consistent: bool = False,
    ) -> ReloadAnswer:
        del target, reinit, consistent
        names = {Path(path).name for path in paths}
        if "bad.o" in names:
            raise NotLoadableError(paths[0])
        if "crash.o" in names:
            message = "wheel fell off"
            raise ZeroDivisionError(message)
        if "wait.o" in names:
            (self.folder / "wait.o").read_bytes()  # a pipe: until the test writes
        return self._reload(list(paths))

    def unload(self, path: str, target: str | None) -> ReloadAnswer:
        del target
        return self._reload([path], kind="unload")

    def remap(self, path: str, target: str | None) -> ReloadAnswer:
        del target
        return self._reload([path], kind="remap")

    def rollback(self, generation: int | None, target: str | None) -> ReloadAnswer:
        del target, generation
        return self._reload([], kind="rollback")

    def check(self, paths: Sequence[str], target: str | None) -> list[CheckAnswer]:
        del target
        return [
            {
                "object": path,
                "ok": not path.endswith("bad.o"),
                "reasons": ["undefined: pow"] if path.endswith("bad.o") else [],
                "functions": ["draw"],
                "notes": [],
            }
            for path in paths
        ]

    def why(self, name: str, target: str | None) -> list[HolderAnswer]:
        del target
        return [
            {"object": name, "generation": 1, "size": 4096, "kind": "stack", "where": "main"}
        ]

    def files_changed(self, paths: frozenset[str]) -> object:
        return self.load(sorted(paths), None, ())

    def targets(self) -> list[TargetAnswer]:
        return list(self.programs.values())

    def objects(self, target: str | None) -> list[ObjectAnswer]:
        del target
        return [
            {
                "name": "/p/hud.o",
                "path": "/p/hud.o",
                "member": "",
                "digest": "ab" * 16,
                "source": "hud.c",
                "generation": 0,
                "baseline": "matched",
                "note": None,
            }
        ]

    def history(self, target: str | None, limit: int) -> list[ReloadAnswer]:
        del target
        return self.rows[::-1][:limit]

    def generations(self, target: str | None) -> list[ReloadAnswer]:
        return self.history(target, 100)

    def memory(self, target: str | None) -> MemoryAnswer:
        del target
        sizes = {"live_size": 4096, "superseded_size": 0, "retained_size": 0}
        sizes["freed_size"] = 8192
        return cast("MemoryAnswer", {"rows": [], **sizes})

    def owner(self, what: str, target: str | None) -> list[OwnerAnswer]:
        del target
        if what == "huge":
            return [self._owner("x" * (65 << 20))]
        if what != "draw":
            raise NotLoadableError(what)
        return [self._owner(what)]

    def doctor(self, subject: str | None) -> list[FindingAnswer]:
        level = "error" if subject and subject.endswith("static") else "ok"
        return [{"level": level, "subject": "kernel", "text": "fine", "remedy": ""}]

    def reached(self, generation: int | None, target: str | None) -> ReloadAnswer | None:
        del target
        if generation is None:
            return self.rows[-1] if self.rows else None
        return self.rows[generation - 1] if generation <= len(self.rows) else None

    def close(self) -> None:
        (self.folder / "closed").touch()

    def _reload(self, objects: list[str], kind: str = "load") -> ReloadAnswer:
        row: ReloadAnswer = {
            "session": 1,
            "generation": len(self.rows) + 1,
            "kind": kind,
            "outcome": "live",
            "began": 0.0,
            "objects": objects,
            "functions": ["draw", "score"],
            "ms_total": 3.14,
            "stop_us": None,
            "timings": {},
            "error_code": None,
            "error": None,
            "notes": [],
        }
        self.rows.append(row)
        self.host.emit(Event("reload", {**row}))
        return row

    @staticmethod
    def _owner(name: str) -> OwnerAnswer:
        return {
            "name": name,
            "kind": "function",
            "object": "/p/hud.o",
            "path": "/p/hud.o",
            "member": "",
            "source": "hud.c",
            "line": "hud.c:41",
            "section": ".text",
            "offset": 0x40,
            "addr": 0x401140,
            "size": 64,
            "generation": 2,
            "slot": 16,
            "stub_addr": 0x7F00_0000_0100,
            "live": True,
            "distance": 0,
        }

    def _program(self, session: int, pid: int, exe: str) -> TargetAnswer:
        return {
            "session": session,
            "pid": pid,
            "processes": [pid],
            "name": Path(exe).name,
            "exe": exe,
            "build_id": "00",
            "generation": 0,
            "objects": 1,
            "held_size": 0,
            "began": 0.0,
            "notes": [],
        }

    def _add(self, program: TargetAnswer) -> None:
        self.programs[program["session"]] = program
        self.host.targets_changed(len(self.programs))
        self.host.emit(Event("attached", {**program}))

    def _remove(self, program: TargetAnswer) -> None:
        del self.programs[program["session"]]
        self.host.emit(Event("ended", {"session": program["session"], "reason": "exited"}))
        self.host.targets_changed(len(self.programs))


def main() -> None:
    """Be the daemon; the same arguments as the real one."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--ready-fd", type=int)
    given = parser.parse_args()
    sys.exit(serve(Project(given.folder), FakeEngine, given.ready_fd))


def start_fake(project: Project) -> Channel:
    return Channel(connect(project, command=DAEMON))


@contextlib.contextmanager
def fake_project(folder: Path) -> Generator[Project]:
    """A project whose daemon, if one is started, is ended with it."""
    project = Project(folder)
    try:
        yield project
    finally:
        if project.daemon():
            with Client.open(project, start=False) as client:
                client.stop()


def cli(project: Project, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command line in a project."""
    return subprocess.run(
        [*CLI, *arguments],
        cwd=project.folder,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
