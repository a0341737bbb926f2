"""What GNU ld made of objects, and a child that runs what we made of them."""

import struct
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np

from reloader.elf.dtypes import EHDR, SHDR, SYM
from reloader.ids import NO_ADDR, NO_ROW, U8, Region
from reloader.link.graph import LinkGraph
from reloader.link.layout import Placed, body_addr, image
from reloader.link.pipeline import Linked
from tests.support.link import ARCH, PAGE, FakeArena, Names, symbol_row

SOURCE: Final = Path(__file__).parents[1] / "oracle" / "host.c"


def ld_sections(path: Path) -> dict[int, bytes]:
    """Return address -> bytes of every loaded section of a linked file."""
    data = np.frombuffer(path.read_bytes(), np.uint8)
    header = data[: EHDR.itemsize].view(EHDR)[0]
    first, count = int(header["e_shoff"]), int(header["e_shnum"])
    rows = data[first : first + count * SHDR.itemsize].view(SHDR)
    loaded = rows[((rows["sh_flags"] & 2) != 0) & (rows["sh_type"] != 8)]
    return {
        int(row["sh_addr"]): data[
            int(row["sh_offset"]) : int(row["sh_offset"]) + int(row["sh_size"])
        ].tobytes()
        for row in loaded
    }


def ld_symbols(path: Path) -> dict[bytes, int]:
    """Return the value of every named symbol of a linked file."""
    data = np.frombuffer(path.read_bytes(), np.uint8)
    header = data[: EHDR.itemsize].view(EHDR)[0]
    first, count = int(header["e_shoff"]), int(header["e_shnum"])
    rows = data[first : first + count * SHDR.itemsize].view(SHDR)
    table = rows[rows["sh_type"] == 2][0]
    names = rows[int(table["sh_link"])]
    strings = data[int(names["sh_offset"]) :][: int(names["sh_size"])].tobytes()
    start = int(table["sh_offset"])
    symbols = data[start : start + int(table["sh_size"])].view(SYM)
    return {
        strings[int(s["st_name"]) :].split(b"\0", 1)[0]: int(s["st_value"]) for s in symbols
    }


def build_host(folder: Path) -> Path:
    """Compile the program that maps linked memory at its addresses and calls into it."""
    target = folder / "host"
    flags = ["-O1", "-no-pie", "-fno-pie", "-Wall", "-Wextra", "-Werror"]
    command = ["gcc", *flags, str(SOURCE), "-o", str(target)]
    subprocess.run(command, check=True)
    return target


def host_names(host: Path) -> Names:
    """Return the host's functions and variables; thread-local ones as offsets."""
    values = ld_symbols(host)
    wanted = (b"host_add", b"host_calls", b"host_walk")
    names = Names({name: values[name] for name in wanted})
    names.types = {b"host_add": 2, b"host_walk": 2, b"host_calls": 1}
    command = ["readelf", "-lW", str(host)]
    listing = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    row = next(line for line in listing.splitlines() if line.split()[:1] == ["TLS"]).split()
    size, align = int(row[5], 16), int(row[-1], 16)
    for name in (b"host_thread", b"host_other"):
        names.addrs[name] = values[name] - -(-size // align) * align
        names.types[name] = 6
    return names


def run_linked(  # noqa: PLR0913  one argument a fact
    host: Path,
    linked: Linked,
    arena: FakeArena,
    entry: bytes,
    argument: int,
    *,
    beside: Linked | None = None,
) -> int:
    """Map everything in a child, call a function by its canonical address, return its answer.

    Args:
        host: The program of `build_host`.
        linked: What is flipped to.
        arena: Its stubs and slots.
        entry: The function to call.
        argument: What it gets.
        beside: An older generation that is mapped as well.
    """
    graph = linked.graph
    parts = [
        _part(item.allocation.addr, image(graph, item, ARCH), _protection(item))
        for item in linked.placed
    ]
    older = beside.placed if beside else []
    parts += [
        _part(item.allocation.addr, image(beside.graph, item, ARCH), _protection(item))
        for item in older
        if beside
    ]
    generations = [beside.graph, graph] if beside else [graph]
    parts += _stub_parts(generations, arena)
    code = [item.allocation for item in linked.placed if item.region == Region.CODE]
    header = linked.unwind.header
    head = struct.pack(
        "<6q",
        len(parts),
        int(graph.symbols.addr[symbol_row(graph, entry)]),
        min(item.addr for item in code),
        max(item.addr + item.size for item in code),
        0 if header == NO_ROW else int(graph.blocks.addr[header]),
        argument,
    )
    script = host.with_suffix(".image")
    script.write_bytes(head + b"".join(parts))
    done = subprocess.run([str(host), str(script)], check=True, capture_output=True, timeout=60)
    return int(done.stdout)


def _protection(item: Placed) -> int:
    return {Region.CODE: 5, Region.RODATA: 1}.get(item.region, 3)


def _part(addr: int, data: U8, protection: int) -> bytes:
    return struct.pack("<3q", addr, len(data), protection) + data.tobytes()


def _stub_parts(generations: Sequence[LinkGraph], arena: FakeArena) -> list[bytes]:
    """Return the stub and slot pages as they are after the flip."""
    count = len(arena.slots)
    if not count:
        return []
    slots = np.array(arena.slots, np.uint64)
    for graph in generations:
        body = body_addr(graph)
        rows = np.flatnonzero((graph.symbols.slot >= 0) & (body != np.uint64(NO_ADDR)))
        slots[graph.symbols.slot[rows]] = body[rows]
    numbers = np.arange(count, dtype=np.uint64)
    stubs = np.full((PAGE * 4 // 16, 16), 0xCC, np.uint8)
    ARCH.write_stubs(
        stubs[:count],
        np.uint64(arena.stub_addr(0)) + numbers * np.uint64(16),
        np.uint64(arena.slot_addr(0)) + numbers * np.uint64(8),
    )
    words = np.zeros(PAGE // 8, np.uint64)
    words[:count] = slots
    return [
        _part(arena.stub_addr(0), stubs.reshape(-1), 5),
        _part(arena.slot_addr(0), words.view(np.uint8), 1),
    ]
