"""From a process with the agent in it to a Program: what it was linked from, and where.

Either the process is new to us, and the baseline tells (generation 0), or an earlier daemon has
worked on it and the state tells.
"""

from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from reloader.arch.x86_64 import X86_64
from reloader.elf.image import Image, read_image
from reloader.elf.object import ObjectFile
from reloader.errors.base import ReloaderError
from reloader.live.baseline import Baseline, State, match_baseline
from reloader.live.inputs import Shelf, read_files
from reloader.live.process import Process
from reloader.live.program import Key, Program
from reloader.live.symbols import SymbolIndex
from reloader.live.target import Mapping
from stubs import layout
from stubs.table import SlotTable

Contents = Sequence[tuple[str, bytes]]  # (path, content) of finished files


@dataclass(slots=True)
class Opened:
    """A program and what was found out on the way."""

    program: Program
    shelf: Shelf
    refused: dict[Key, str] = field(
        default_factory=dict[Key, str]
    )  # not what runs, with the reason
    notes: list[str] = field(default_factory=list[str])


def open_new(process: Process, files: Contents, known: Sequence[ObjectFile] = ()) -> Opened:
    """Match watched files with the executable that runs.

    Args:
        process: The agent is in it; nothing of ours runs there yet.
        files: (path, content) of every watched object and archive.
        known: What an earlier run of the same executable was linked from; the files there may
            be newer.
    """
    image = running_image(process.pid, process.maps())
    shelf, notes = Shelf(), list[str]()
    had = {file.key for file in known}
    objects = [*known, *(file for file in readable(files, shelf, notes) if file.key not in had)]
    arch = X86_64()
    baseline = match_baseline(objects, image, arch.kinds)
    opened = Opened(empty_program(process, image, baseline), shelf, {}, notes)
    sort_placements(opened)
    index_symbols(opened.program)
    return opened


def sort_placements(opened: Opened, skip: Container[Key] = ()) -> None:
    """Say of each matched file whether it is live, refused, or none of the program's.

    Args:
        opened: Gets the answer; its program has the baseline.
        skip: Objects of which more is known than the baseline tells.
    """
    baseline, program = opened.program.baseline, opened.program
    for row, placement in enumerate(baseline.placements):
        file = placement.file
        if file.key in skip:
            continue
        if placement.state in {State.MATCHED, State.PARTIAL}:
            program.objects[file.key] = baseline.live_object(row)
        elif placement.state is State.DIFFERENT:
            opened.refused[file.key] = placement.reason
            opened.notes.append(
                f"{file.name}: the running program was not built from this file"
            )
        elif not file.member:
            opened.shelf.put(file)


def empty_program(process: Process, image: Image, baseline: Baseline) -> Program:
    """Return a program without any object."""
    return Program(
        target=process,
        arch=X86_64(),
        image=image,
        baseline=baseline,
        table=SlotTable(layout.SLOT_COUNT),
        index=SymbolIndex(process.resolve, process.thread_offsets, process.call),
    )


def index_symbols(program: Program) -> None:
    """Fill the index: what live objects define wins over the executable's own symbols."""
    program.index.add_image(program.image)
    for live in program.objects.values():
        program.index.add_live(live)


def readable(
    files: Iterable[tuple[str, bytes]], shelf: Shelf, notes: list[str]
) -> Iterable[ObjectFile]:
    """Yield the objects of files that can be read, archives opened; note why others cannot."""
    for path, data in files:
        try:
            objects, archives = read_files([(path, data)])
            for archive in archives:
                shelf.archives[archive.path] = archive
                objects += archive.objects()
        except ReloaderError as error:
            notes.append(str(error))
        else:
            yield from objects


def running_image(pid: int, maps: Sequence[Mapping]) -> Image:
    """Read the executable that runs, which need not be the file at its path any more."""
    path = Path(f"/proc/{pid}/exe")
    data = np.frombuffer(path.read_bytes(), np.uint8)
    inode = path.stat().st_ino
    start = min(row.start for row in maps if row.inode == inode and row.file_offset == 0)
    image = read_image(data, 0, str(path.readlink()))
    first = image.low & ~0xFFF
    return image if start == first else read_image(data, start - first, str(path.readlink()))
