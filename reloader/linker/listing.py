"""A linked result as text and as JSON."""

from typing import Any, Final

import numpy as np

from reloader.ids import NO_ADDR, NO_ROW, REGION_NAMES, Region
from reloader.link.dump import dump
from reloader.link.graph import ORIGIN_NAMES
from reloader.linker.request import Result

STT_SECTION, STT_FILE = 3, 4
_MADE: Final = "(made)"  # a section that the linker made


def graph(result: Result) -> str:
    """Return the whole graph as text."""
    return dump(result.graph, result.facts.arch)


def sections(result: Result) -> list[dict[str, Any]]:
    """Return every placed section, by address."""
    linked, rows = result.graph, list[dict[str, Any]]()
    blocks = linked.blocks
    placed = blocks.live & (blocks.addr != np.uint64(NO_ADDR)) & (blocks.region <= Region.DATA)
    for block in np.flatnonzero(placed).tolist():
        owner, section = int(blocks.object[block]), int(blocks.section[block])
        file = None if owner == NO_ROW else linked.objects[owner]
        rows.append(
            {
                "address": int(blocks.addr[block]),
                "size": int(blocks.size[block]),
                "file": file.name if file else "",
                "section": _MADE
                if file is None or section == NO_ROW
                else file.section_names[section].decode(),
                "region": REGION_NAMES[int(blocks.region[block])],
            }
        )
    return sorted(rows, key=lambda row: row["address"])


def symbols(result: Result) -> list[dict[str, Any]]:
    """Return every named symbol that has an address, with its stub, by address."""
    table, rows = result.graph.symbols, list[dict[str, Any]]()
    seen: set[tuple[bytes, int]] = set()
    shown = (table.addr != np.uint64(NO_ADDR)) & (table.type != STT_SECTION)
    for row in np.flatnonzero(shown & (table.type != STT_FILE)).tolist():
        key = (table.name[row], int(table.addr[row]))
        if not key[0] or key in seen:
            continue
        seen.add(key)
        entry = int(table.entry[row])
        rows.append(
            {
                "address": key[1],
                "size": int(table.size[row]),
                "name": key[0].decode("utf-8", "replace"),
                "origin": ORIGIN_NAMES[int(table.origin[row])],
                "stub": entry if table.slot[row] != NO_ROW and entry != NO_ADDR else None,
            }
        )
    return sorted(rows, key=lambda row: row["address"])


def addresses(result: Result) -> str:
    """Return sections and symbols as text."""
    lines = ["sections"]
    lines += [
        f"  {row['address']:#018x} {row['size']:#10x} {row['region']:6} {row['section']} "
        f"{row['file']}"
        for row in sections(result)
    ]
    lines.append("symbols")
    for row in symbols(result):
        stub = f"  stub {row['stub']:#x}" if row["stub"] is not None else ""
        outside = "" if row["origin"] == "block" else f"  ({row['origin']})"
        lines.append(
            f"  {row['address']:#018x} {row['size']:#10x} {row['name']}{stub}{outside}"
        )
    return "\n".join(lines)


def as_json(result: Result, checks: dict[str, int]) -> dict[str, Any]:
    """Return everything that can be said of a result."""
    return {
        "objects": [file.name for file in result.objects],
        "sections": sections(result),
        "symbols": symbols(result),
        "checks": checks,
        "milliseconds": result.times.steps,
    }
