"""Units linked into a live OCaml program by hand, and scripts over them."""

import os
import socket
import subprocess
from collections.abc import Generator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from reloader.elf.read import read_object
from reloader.hosts.caml.runtime import Place, RunResult, Runtime, Script
from reloader.hosts.caml.unit_object import UnitPlace, place_of, read_unit
from reloader.link.layout import image, one_by_one
from reloader.link.pipeline import Setting
from reloader.linker.alone import Wishes, link_alone
from reloader.linker.host import host_program
from reloader.linker.names import Names
from reloader.live.commit import assign_slots
from reloader.live.inject import adopt, attach
from reloader.live.process import Process
from reloader.live.program import Program
from reloader.live.target import Allocation
from reloader.wire.spawn import agent_environment, socket_pair
from tests.support.ocaml import Build


@dataclass
class Loaded:
    """A unit in the program's memory."""

    name: str
    place: UnitPlace
    memory: list[Allocation]


@dataclass
class Live:
    """A running OCaml program that was entered."""

    build: Build
    process: Process
    program: Program
    runtime: Runtime
    blocks: dict[str, int] = field(default_factory=dict[str, int])

    def block(self, unit: str) -> int:
        """Return the module block that the executable's code knows a unit by."""
        if unit not in self.blocks:
            self.blocks[unit] = int(self.program.index.find([f"caml{unit}".encode()]).addr[0])
        return self.blocks[unit]

    def load(self, path: Path) -> Loaded:
        """Link an object of a unit into memory; nothing of it is known to the runtime yet."""
        file = read_object(str(path), path.read_bytes())
        unit = read_unit(file)
        assert unit is not None
        memory: list[Allocation] = []
        arena = self.process.arena

        def allocate(region: int, size: int) -> Allocation:
            memory.append(arena.allocate(region, size))
            return memory[-1]

        names = Names(process=self.program.index)
        setting = Setting(
            arch=self.program.arch,
            live=[None],
            source=names,
            arena=arena.span(),
            assign_slots=partial(assign_slots, program=self.program),
            allocate=one_by_one(allocate),
        )
        linked = link_alone([file], setting, names, Wishes())
        for item in linked.placed:
            data = image(linked.graph, item, self.program.arch)
            arena.view(item.allocation.addr, len(data))[:] = data
        place = place_of(linked.graph, 0, unit)
        return Loaded(unit.symbol.removeprefix(b"caml").decode(), place, memory)

    def drop(self, unit: Loaded) -> None:
        """Give a unit's memory back."""
        self.process.discard(unit.memory)
        for allocation in unit.memory:
            self.process.arena.free(allocation)

    def script(
        self,
        unit: Loaded,
        fields: Sequence[int] = (),
        keep: Sequence[tuple[int, int]] = (),
        old: int = 0,
    ) -> Script:
        """Return a script that registers and initialises a unit, keeps and swaps fields."""
        block, new = old or self.block(unit.name), unit.place.block
        script = Script()
        script.register(unit.name, unit.place)
        script.initialise(unit.name, unit.place.entry)
        if keep:
            moves = [(Place(block, (a,)), Place(new, (b,))) for a, b in keep]
            script.keep(unit.name, moves)
        moves = [(Place(block, (row,)), Place(new, (row,))) for row in fields]
        script.pair(unit.name, moves)
        script.swap(unit.name, moves)
        return script

    def swap(
        self, path: Path, fields: Sequence[int], keep: Sequence[tuple[int, int]] = ()
    ) -> tuple[Loaded, RunResult]:
        """Load a unit and make its fields those that the program knows."""
        unit = self.load(path)
        return unit, self.runtime.run(self.script(unit, fields, keep))


@contextmanager
def entered(build: Build, *arguments: str) -> Generator[Live]:
    """Start a program with the agent in it; both end with the block."""
    near, far = socket_pair()
    build.process = subprocess.Popen(
        [build.executable, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=build.folder,
        env=agent_environment(os.environ, near, os.getpid(), None),
        pass_fds=[near],
    )
    os.close(near)
    try:
        adopted = adopt(build.process.pid, socket.socket(fileno=far))
        runtime = Runtime.attach(adopted.process)
        adopted.release()
        assert build.line() == "ready"
        with closing(adopted.process) as process:
            yield Live(build, process, host_program(process), runtime)
    finally:
        kill(build)


@contextmanager
def entered_late(build: Build, *arguments: str) -> Generator[Live]:
    """Start a program, enter it while it runs; both end with the block."""
    pid = build.start(*arguments)
    try:
        with closing(attach(pid)) as process:
            yield Live(build, process, host_program(process), Runtime.attach(process))
    finally:
        kill(build)


def version(build: Build, unit: str, old: str = "", new: str = "", more: str = "") -> Path:
    """Compile a next version of a unit; return its object, which later ones leave alone.

    Args:
        build: The program.
        unit: Its source's stem.
        old: What is replaced in the source that the program was built from.
        new: By what.
        more: Added at its end.
    """
    source = build.folder / f"{unit}.ml"
    first = source.with_suffix(".first")
    if not first.exists():
        first.write_text(source.read_text())
    text = first.read_text()
    assert old in text
    source.write_text(text.replace(old, new) + more if old else text + more)
    made = build.compile(source.name)
    count = len(list(build.folder.glob(f"{unit}-*.o")))
    return made.rename(build.folder / f"{unit}-{count}.o")


def kill(build: Build) -> None:
    """End a program that may wait for anything."""
    child = build.process
    assert child is not None
    child.kill()
    child.wait()
    build.stop()
