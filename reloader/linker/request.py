"""What is to be linked and what came of it; linking at addresses where nothing is executed."""

import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Final

import numpy as np

from reloader.arch.x86_64 import X86_64
from reloader.elf.object import ObjectFile
from reloader.elf.sources import source_line
from reloader.ids import NO_ADDR, NO_ROW, U8
from reloader.link.graph import LinkGraph
from reloader.link.layout import one_by_one
from reloader.link.pipeline import Linked, Setting
from reloader.linker.alone import Wishes, link_alone
from reloader.linker.facts import LinkedFacts, Memory, placed_parts
from reloader.linker.inputs import Inputs, read_inputs
from reloader.linker.local import LocalArena, room_for
from reloader.linker.names import Names, exported_names

DEFAULT_BASE: Final = 0x1000_0000  # below 2 GiB: code that is not PIC fits as well


@dataclass(frozen=True, slots=True)
class Request:
    """The words of the command line, understood."""

    files: Sequence[str]
    libraries: Sequence[str] = ()  # of -l
    folders: Sequence[str] = ()  # of -L
    preload: Sequence[str] = ()
    harness: Sequence[str] = ()
    entry: str = "main"
    absolutes: Mapping[bytes, int] = field(default_factory=dict[bytes, int])
    aliases: Mapping[bytes, bytes] = field(default_factory=dict[bytes, bytes])
    sections: Mapping[tuple[str, str], int] = field(default_factory=dict[tuple[str, str], int])
    phony: bool = False
    base: int | None = None

    def read(self) -> Inputs:
        """Read all inputs.

        Raises:
            ReloaderError: One cannot be read, or is none that a linker takes.
        """
        found = read_inputs([*self.harness, *self.files], self.libraries, self.folders)
        found.libraries[:0] = self.preload
        return found

    def wishes(self) -> Wishes:
        """Return what the linker is to do otherwise than the objects say."""
        harness = frozenset(str(Path(path).absolute()) for path in self.harness)
        return Wishes(self.aliases, self.sections, harness)


@dataclass(slots=True)
class Times:
    """Milliseconds of each step, in order."""

    steps: dict[str, float] = field(default_factory=dict[str, float])

    @contextmanager
    def step(self, name: str) -> Generator[None]:
        """Time a step."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self.steps[name] = (time.perf_counter() - began) * 1e3


@dataclass(slots=True)
class Result:
    """Linked objects."""

    linked: Linked
    facts: LinkedFacts
    objects: list[ObjectFile]
    times: Times

    @property
    def graph(self) -> LinkGraph:
        """What was linked."""
        return self.linked.graph


def link_unexecuted(request: Request, times: Times) -> Result:
    """Link into our own memory, at addresses where nothing will run.

    Raises:
        ReloaderError: Says what cannot be linked.
    """
    arch = X86_64()
    with times.step("read"):
        inputs = request.read()
        objects = inputs.all_objects()
    names = Names(
        {**exported_names(inputs.libraries), **request.absolutes},
        request.aliases,
        phony=request.phony,
    )
    base = DEFAULT_BASE if request.base is None else request.base
    arena = LocalArena(base, base + room_for(objects), arch)
    with times.step("link"):
        setting = Setting(
            arch=arch,
            live=[None] * len(objects),
            source=names,
            arena=arena.span(),
            assign_slots=arena.assign_slots,
            allocate=one_by_one(arena.allocate),
            lines=source_line,
            take_thread_room=arena.take_thread_room,
        )
        linked = link_alone(objects, setting, names, request.wishes())

    @cache
    def memory() -> Memory:
        return Memory([*placed_parts(linked, arch), *arena.pages(linked.graph)])

    def read(addr: int, size: int) -> U8:
        return memory().read(addr, size)

    facts = LinkedFacts(linked.graph, read, arena.stub_addr, arena.slot_addr, arch)
    return Result(linked, facts, objects, times)


def arrays(graph: LinkGraph, prefix: bytes) -> list[int]:
    """Return the functions of the arrays of a name (`.init_array`), lowest priority first."""
    blocks = graph.blocks
    found: list[tuple[int, int]] = []
    for block in np.flatnonzero(blocks.live & (blocks.section != NO_ROW)).tolist():
        file = graph.objects[int(blocks.object[block])]
        name = file.section_names[int(blocks.section[block])]
        if name != prefix and not name.startswith(prefix + b"."):
            continue
        number = name[len(prefix) + 1 :]
        priority = int(number) if number.isdigit() else 1 << 16
        pointers: list[int] = graph.block_bytes(block).view("<u8").tolist()
        found += [(priority, pointer) for pointer in pointers if pointer not in {0, NO_ADDR}]
    found.sort(key=lambda row: row[0])
    return [pointer for _, pointer in found]
