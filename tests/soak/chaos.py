"""Chaos: the real daemon beside a program under load, for a given time.

Valid edits, objects that are refused, rollbacks, and kills of daemon and program come in an
order that a seed decides. After each kill, and now and then, process and books are compared.
"""

import os
import random
import select
import signal
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from reloader.client import Client
from reloader.errors.daemon import DaemonGoneError, RemoteError
from reloader.wire.project import Project
from reloader.wire.protocol import Request
from tests.soak.program import PARTS, Loaded, part
from tests.support.checker import check
from tests.support.live import until

_LOOKS: Final = 5  # a daemon may be giving memory back just now: what stays is wrong
_PATIENCE_S: Final = 120.0
_HARMLESS: Final = """
static int much[64]; int guest_%d(int n) { return much[n & 63]++ + n; }
extern int printf(const char *, ...);
int guest_says_%d(int n) { return printf("guest %%d\\n", n); }
"""


@dataclass(slots=True)
class Report:
    """What was done and what was found."""

    done: Counter[str] = field(default_factory=Counter[str])
    problems: list[str] = field(default_factory=list[str])


class Chaos:
    """One project, its daemons and programs."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.random = random.Random(seed)  # noqa: S311 - to be repeatable
        self.program = Loaded(folder, self.random)
        self.project = Project(folder)
        self.report = Report()
        self.version = 0
        self.client: Client | None = None
        self.actions: list[tuple[int, Callable[[], None]]] = [
            (30, self.edit), (10, self.bad_object), (12, self.mutated_object),
            (6, self.roll_back), (8, self.kill_daemon), (3, self.kill_program),
            (3, self.ask), (6, self.look),
        ]  # fmt: skip

    def run(self, goes_on: Callable[[], bool]) -> Report:
        """Do one thing after the other while that is wished and all is well."""
        self.program.start()
        self.attach()
        once = [act for _, act in self.actions]  # each comes in a short run, too
        self.random.shuffle(once)
        try:
            while goes_on() and not self.report.problems:
                act = once.pop() if once else self.any_action()
                self.report.done[act.__name__] += 1
                try:
                    act()
                except (RemoteError, DaemonGoneError, AssertionError, OSError) as error:
                    self.no(f"{act.__name__}: {type(error).__name__}: {error}")
                if not self.program.is_well():
                    self.no(f"{act.__name__}: the program has ended")
            if not self.report.problems:
                self.look()
        finally:
            self.end()
        return self.report

    def any_action(self) -> Callable[[], None]:
        """Return what is done next."""
        acts, shares = [act for _, act in self.actions], [share for share, _ in self.actions]
        return self.random.choices(acts, shares)[0]

    def no(self, text: str) -> None:
        """Note a problem and where it came."""
        step = self.report.done.total()
        self.report.problems.append(f"step {step} in {self.project.folder}: {text}")

    def attach(self) -> None:
        """Have a daemon beside the program."""
        assert self.program.process is not None
        self.client = Client.open(self.project)
        # `load` says what happens and when: the watcher would see each file a second time
        self.client.attach(self.program.process.pid, watch=[str(self.project.folder / "*.o")])

    def daemon(self) -> Client:
        assert self.client is not None
        return self.client

    def end(self) -> None:
        """End daemon and program."""
        with suppress(RemoteError, DaemonGoneError, OSError):
            self.daemon().stop()
        self.daemon().close()
        status = self.program.stop()
        if status:
            self.no(f"the program ended with {status}")

    def edit(self) -> None:
        """Save one or more valid versions, and see them run."""
        self.edit_some(self.random.sample(range(PARTS), self.random.randint(1, PARTS)))

    def edit_some(self, picked: Sequence[int]) -> None:
        """Save versions of some objects, and see them run."""
        self.version += 1
        paths = [str(self.program.edit(which, self.version)) for which in picked]
        self.load(paths, {"live", "unchanged"})
        for which in picked:
            self.runs(which, self.version)

    def load(self, paths: list[str], outcomes: set[str]) -> None:
        """Load, and require an outcome."""
        answer = self.daemon().load(paths)
        if answer["outcome"] not in outcomes:
            self.no(f"{paths} {answer['outcome']}: {answer['error']}")

    def runs(self, which: int, version: int) -> None:
        """Require that a version runs."""
        found = self.program.live(which)
        if found != version:
            self.no(f"part{which} runs version {found}, not {version}")

    def bad_object(self) -> None:
        """Load what must be refused: nothing may change."""
        which = self.random.randrange(PARTS)
        before = [self.program.live(row) for row in range(PARTS)]
        good = part(which, 99, self.random)
        texts = {
            "larger": good.replace(f"word calls{which};", f"word calls{which}[2];").replace(
                f"calls{which}++", f"calls{which}[0]++"
            ),
            "undefined": good + "\nextern int nowhere(int);\nint (*lost)(int) = nowhere;\n",
            "cut": good,
            "empty": good,
        }
        kind = self.random.choice(list(texts))
        home = Path(self.program.compile(**{f"bad{which}": texts[kind]})[0])
        data = home.read_bytes()
        home.unlink()
        place = self.project.folder / f"part{which}.o"
        kept = place.read_bytes()
        data = {"cut": data[: len(data) * 2 // 3], "empty": b""}.get(kind, data)
        self.put(place, data)
        answer = self.daemon().load([str(place)])
        if answer["outcome"] != "refused" or "Nothing was changed" not in (
            answer["error"] or ""
        ):
            self.no(f"{kind} object: {answer['outcome']}: {answer['error']}")
        self.put(place, kept)
        self.daemon().load([str(place)])
        for row, version in enumerate(before):
            self.runs(row, version)

    def put(self, place: Path, data: bytes) -> None:
        """Put bytes in a file's place."""
        fresh = place.with_suffix(".fresh")
        fresh.write_bytes(data)
        fresh.rename(place)

    def mutated_object(self) -> None:
        """Load a new object with some bytes of its tables changed, and take it out again."""
        row = self.random.randrange(4)
        text = _HARMLESS % (row, row)
        path = self.program.compile(**{f"guest{row}": text})[0]
        data = bytearray(path.read_bytes())
        path.unlink()
        mutate(data, self.random)
        place = self.project.folder / f"guest{row}.bin"
        place.write_bytes(data)
        answer = self.daemon().load([str(place)])
        self.report.done[f"mutated object {answer['outcome']}"] += 1
        if answer["outcome"] == "live":
            self.daemon().unload(str(place))
        elif answer["outcome"] == "failed":
            self.no(f"mutated object: {answer['error']}")

    def roll_back(self) -> None:
        """Go back, then forth by edits."""
        with suppress(RemoteError):  # there may be nothing before it
            self.daemon().rollback()
        self.look()
        self.edit_some(range(PARTS))  # the files are what is live again

    def ask(self) -> None:
        """Ask what costs nothing to answer."""
        client = self.daemon()
        client.memory()
        client.history()
        client.objects()
        client.owner("part0")
        client.why("part0.o")

    def kill_daemon(self) -> None:
        """Kill it at some instant of a reload."""
        info = self.project.daemon()
        assert info is not None
        self.version += 1
        paths = [str(self.program.edit(which, self.version)) for which in range(PARTS)]
        self.daemon().channel.send(Request("load", {"paths": paths, "reinit": []}))
        time.sleep(self.random.uniform(0, 0.05))
        gone = os.pidfd_open(info.pid)
        os.kill(info.pid, signal.SIGKILL)
        select.select([gone], [], [])
        os.close(gone)
        self.daemon().channel.close()
        self.attach()
        self.look()
        self.load(paths, {"live", "unchanged"})
        for which in range(PARTS):
            self.runs(which, self.version)

    def kill_program(self) -> None:
        """Kill it under a reload; the next run gets what was live."""
        process = self.program.process
        assert process is not None
        self.edit()
        process.kill()
        self.program.stop()
        client = self.daemon()
        until(lambda: not client.status()["targets"], "the daemon has seen the end")
        self.program.start()
        client.attach(
            self.program.process.pid if self.program.process else 0,
            watch=[str(self.project.folder / "*.o")],
        )
        for which in range(PARTS):
            self.runs(which, self.program.versions[which])
        self.look()

    def look(self) -> None:
        """Compare process and books."""
        assert self.program.process is not None
        if self.daemon().history():  # without an attempt `wait` waits for the first one
            self.daemon().wait(timeout=_PATIENCE_S)
        found = set(check(self.program.process.pid, self.project.folder))
        for _ in range(_LOOKS):
            if not found:
                return
            time.sleep(0.1)
            found &= set(check(self.program.process.pid, self.project.folder))
        for text in sorted(found):
            self.no(text)


def mutate(data: bytearray, chance: random.Random) -> None:
    """Change some bytes of an object's headers and tables; what runs at once stays as it is."""
    table = int.from_bytes(data[0x28:0x30], "little")
    rows = int.from_bytes(data[0x3C:0x3E], "little")
    places = [*range(0x10, 0x40)]
    for row in range(rows):
        header = table + row * 64
        kind = int.from_bytes(data[header + 4 : header + 8], "little")
        # a section's type stays: a changed one may be a list of constructors, which are run
        places += [*range(header, header + 4), *range(header + 8, header + 64)]
        if kind in {2, 4}:  # symbols, relocations
            start = int.from_bytes(data[header + 24 : header + 32], "little")
            places += range(
                start, start + int.from_bytes(data[header + 32 : header + 40], "little")
            )
    for _ in range(chance.randint(1, 6)):
        at = chance.choice(places)
        if at < len(data):
            data[at] = chance.choice([0, 1, 0x7F, 0x80, 0xFF, chance.randrange(256)])
