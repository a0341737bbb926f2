"""Linking without reloading: every call is direct, no function has a stub that needs none."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from reloader.elf.object import ObjectFile
from reloader.errors.linker import AliasError, NoSuchSectionError
from reloader.ids import NO_ADDR, NO_ROW, Region
from reloader.link.build import build_graph
from reloader.link.graph import LinkGraph, Origin
from reloader.link.grow import append_symbols
from reloader.link.pipeline import Linked, Setting, link_graph
from reloader.linker.names import Names

STB_LOCAL, STB_GLOBAL, STB_WEAK = 0, 1, 2


@dataclass(frozen=True, slots=True)
class Wishes:
    """What the user wants to be otherwise than the objects say."""

    aliases: Mapping[bytes, bytes] = field(default_factory=dict[bytes, bytes])
    # (file name, section) -> address
    sections: Mapping[tuple[str, str], int] = field(default_factory=dict[tuple[str, str], int])
    harness: frozenset[str] = frozenset()  # paths of the objects that test the others


def link_alone(
    objects: Sequence[ObjectFile], setting: Setting, names: Names, wishes: Wishes
) -> Linked:
    """Link objects as they are.

    Args:
        objects: All of them, archive members included.
        setting: Where things go; its `assign_slots` is called after the pinned sections have
            their address.
        names: The setting's source.
        wishes: Aliases, pinned sections and the harness.

    Raises:
        ReloaderError: One pass refused; carries all that this pass found.
    """
    graph = build_graph(objects, setting.arch)
    names.defined = definitions(graph).keys()
    apply_harness(graph, wishes.harness)
    apply_aliases(graph, wishes.aliases, names)
    assign = setting.assign_slots

    def pin_then_assign(finished: LinkGraph) -> None:
        pin_sections(finished, wishes.sections)
        assign(finished)

    setting.assign_slots = pin_then_assign
    return link_graph(graph, setting)


def definitions(graph: LinkGraph, *, local: bool = False) -> dict[bytes, int]:
    """Return the row of each defined name, strong before weak, the first of equals."""
    symbols = graph.symbols
    defined = (symbols.origin == Origin.BLOCK) | (symbols.origin == Origin.ABSOLUTE)
    if not local:
        defined &= symbols.binding != STB_LOCAL
    rows = np.flatnonzero(defined)
    rank = np.select(
        [symbols.binding[rows] == STB_LOCAL, symbols.binding[rows] == STB_WEAK], [2, 1], 0
    )
    found: dict[bytes, int] = {}
    order: list[int] = rows[np.argsort(rank, kind="stable")].tolist()
    for row in order:
        found.setdefault(symbols.name[row], row)
    return found


def apply_aliases(graph: LinkGraph, aliases: Mapping[bytes, bytes], names: Names) -> None:
    """Define each alias where its target is defined; others are left to the names' source.

    Raises:
        AliasError: A target is defined nowhere.
    """
    if not aliases:
        return
    symbols, known = graph.symbols, definitions(graph)
    for alias, target in aliases.items():
        row = known.get(target)
        if row is None:
            if not names.find([target]).found[0]:
                raise AliasError(alias.decode(), target.decode())
            continue
        columns = {
            name: getattr(symbols, name)[row].item()
            for name in ("origin", "block", "offset", "size", "type", "visibility")
        }
        added = int(append_symbols(graph, [alias], binding=STB_GLOBAL, **columns)[0])
        same = np.array([name == alias for name in symbols.name], np.bool_)
        wanting = np.flatnonzero(same & (symbols.origin == Origin.UNDEFINED))
        graph.edges.symbol[np.isin(graph.edges.symbol, wanting)] = added


def apply_harness(graph: LinkGraph, paths: frozenset[str]) -> None:
    """Let harness objects see and replace what the others define, statics included.

    A name that the harness defines is the harness's everywhere. A local name that it refers to
    becomes global.
    """
    if not paths:
        return
    symbols = graph.symbols
    harness = [row for row, file in enumerate(graph.objects) if file.path in paths]
    ours = np.isin(symbols.object, harness)
    named = np.array([bool(name) for name in symbols.name], np.bool_)
    outside = ours & (symbols.origin == Origin.UNDEFINED) & named
    inside = ours & (symbols.origin == Origin.BLOCK) & (symbols.binding != STB_LOCAL)
    wanted = {symbols.name[row] for row in np.flatnonzero(outside).tolist()}
    replaced = {symbols.name[row] for row in np.flatnonzero(inside).tolist()}
    theirs = ~ours & (symbols.origin == Origin.BLOCK) & named
    for row in np.flatnonzero(theirs).tolist():
        name = symbols.name[row]
        if name in replaced:
            symbols.origin[row], symbols.block[row] = Origin.UNDEFINED, NO_ROW
            symbols.binding[row], symbols.offset[row] = STB_GLOBAL, 0
        elif name in wanted and symbols.binding[row] == STB_LOCAL:
            symbols.binding[row] = STB_GLOBAL


def pin_sections(graph: LinkGraph, sections: Mapping[tuple[str, str], int]) -> None:
    """Give named sections their address; `.got` is the table that the linker made.

    Raises:
        NoSuchSectionError: One is not linked.
    """
    for (file, section), addr in sections.items():
        block = find_block(graph, file, section)
        if block == NO_ROW or graph.blocks.region[block] == Region.NONE:
            raise NoSuchSectionError(file, section, known_sections(graph, file))
        graph.blocks.addr[block] = np.uint64(addr)


def find_object(graph: LinkGraph, name: str) -> int:
    """Return the row of an object by its path, file name or `archive(member)`; else NO_ROW."""
    for row, file in enumerate(graph.objects):
        short = Path(file.path).name
        if name in {file.name, file.path, file.member, f"{short}({file.member})"}:
            return row
        if not file.member and name == short:
            return row
    return NO_ROW


def find_block(graph: LinkGraph, file: str, section: str) -> int:
    """Return the block of a section of an object, or NO_ROW."""
    row = find_object(graph, file)
    if row == NO_ROW:
        return NO_ROW
    names = graph.objects[row].section_names
    wanted = section.encode()
    if wanted in names:
        return int(graph.block_of_section[row][names.index(wanted)])
    if section == ".got" and len(graph.got_symbol) and graph.got_symbol[row] != NO_ROW:
        return int(graph.symbols.block[graph.got_symbol[row]])
    return NO_ROW


def known_sections(graph: LinkGraph, file: str) -> list[str]:
    """Return the loaded sections of an object, for an error's text."""
    row = find_object(graph, file)
    if row == NO_ROW:
        return [Path(other.path).name for other in graph.objects]
    blocks = np.flatnonzero(
        (graph.blocks.object == row)
        & (graph.blocks.region <= Region.DATA)
        & (graph.blocks.section != NO_ROW)
    )
    names = graph.objects[row].section_names
    return [names[int(graph.blocks.section[block])].decode() for block in blocks.tolist()]


def symbol_addr(graph: LinkGraph, row: int) -> int | None:
    """Return a symbol's address, None for one that nothing placed."""
    addr = int(graph.symbols.addr[row])
    return None if addr == NO_ADDR else addr
