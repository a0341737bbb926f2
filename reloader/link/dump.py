"""A LinkGraph as text for people: one line a block, then its symbols and edges."""

from collections.abc import Iterator

import numpy as np

from reloader.arch.base import Architecture
from reloader.ids import NO_ADDR, NO_ROW, REGION_NAMES
from reloader.link.graph import ORIGIN_NAMES, LinkGraph, Origin


def dump(graph: LinkGraph, arch: Architecture) -> str:
    """Return the whole graph as text."""
    lines: list[str] = []
    for block in range(len(graph.blocks.object)):
        lines.append(_block_line(graph, block))
        lines += _symbol_lines(graph, np.flatnonzero(_in_block(graph, block)).tolist())
        lines += _edge_lines(graph, arch, block)
    outside = np.flatnonzero(graph.symbols.origin != Origin.BLOCK).tolist()
    lines.append("outside")
    lines += _symbol_lines(graph, [row for row in outside if graph.symbols.name[row]])
    return "\n".join(lines) + "\n"


def _in_block(graph: LinkGraph, block: int) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    symbols = graph.symbols
    return (symbols.origin == Origin.BLOCK) & (symbols.block == block)


def _addr(value: int) -> str:
    return "-" if value == NO_ADDR else f"{value:#x}"


def _block_line(graph: LinkGraph, block: int) -> str:
    blocks = graph.blocks
    row, section = int(blocks.object[block]), int(blocks.section[block])
    owner = "(transaction)" if row == NO_ROW else graph.objects[row].name
    name = "(made)" if section == NO_ROW else graph.objects[row].section_names[section].decode()
    flags = ("live" if blocks.live[block] else "dead") + (" same" if blocks.same[block] else "")
    region = REGION_NAMES[int(blocks.region[block])]
    size, align = int(blocks.size[block]), int(blocks.align[block])
    return (
        f"block {block} {owner} {name} {region} size {size:#x} align {align} "
        f"at {_addr(int(blocks.addr[block]))} {flags}"
    )


def _symbol_lines(graph: LinkGraph, rows: list[int]) -> Iterator[str]:
    symbols = graph.symbols
    for row in rows:
        origin = ORIGIN_NAMES[int(symbols.origin[row])]
        marks = " reloadable" * bool(symbols.reloadable[row])
        marks += " changed" * bool(symbols.changed[row])
        slot = f" slot {int(symbols.slot[row])}" if symbols.slot[row] != NO_ROW else ""
        name = symbols.name[row].decode("utf-8", "replace") or "(no name)"
        yield (
            f"  symbol {row} {name} {origin}+{int(symbols.offset[row]):#x} "
            f"addr {_addr(int(symbols.addr[row]))} entry {_addr(int(symbols.entry[row]))}"
            f"{slot}{marks}"
        )


def _edge_lines(graph: LinkGraph, arch: Architecture, block: int) -> Iterator[str]:
    edges = graph.edges
    own = graph.edges_of(block)
    for row in range(own.start, own.stop):
        kind = str(arch.kinds["name"][edges.kind[row]])
        symbol = int(edges.symbol[row])
        name = graph.symbols.name[symbol].decode("utf-8", "replace") or f"symbol {symbol}"
        dead = "" if edges.live[row] else " dead"
        yield f"  +{int(edges.offset[row]):#x} {kind} {name} {int(edges.addend[row]):+#x}{dead}"
