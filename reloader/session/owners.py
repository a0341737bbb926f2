"""What `owner` tells beyond the state: source lines, and names of executable and libraries."""

import numpy as np

from reloader.elf.object import ObjectFile
from reloader.elf.sources import source_line
from reloader.live.symbols import Known
from reloader.live.target import Mapping
from reloader.session.session import Session
from state.query import parse_address
from state.rows import Owner

_KINDS = {1: "variable", 2: "function", 5: "variable", 6: "variable", 10: "function"}


def owner_line(session: Session, row: Owner) -> str:
    """Return `hud.c:41` of an owned symbol or of the byte asked for, "" if unknown."""
    live = session.program.objects.get((row.path or "", row.member or ""))
    if live is None or row.offset is None or not row.live:
        return ""
    section = section_index(live.file, row.section)
    return "" if section is None else source_line(live.file, section, row.offset + row.distance)


def section_index(file: ObjectFile, name: str) -> int | None:
    """Return the first section of a name."""
    wanted = name.encode()
    return next((row for row, known in enumerate(file.section_names) if known == wanted), None)


def image_owner(session: Session, what: str) -> Owner | None:
    """Return whom a name or address of executable and libraries belongs to, or None."""
    addr = parse_address(what)
    mappings = session.process.maps()
    if addr is None:
        name = what.encode()
        session.program.index.find([name])
        known = session.program.index.rows.get(name)
        return None if known is None else named_owner(session, what, known, mappings)
    return mapped_owner(session, addr, mappings)


def named_owner(session: Session, what: str, known: Known, mappings: list[Mapping]) -> Owner:
    """Return the owner of a global name of the executable or a library."""
    where = mapping_at(mappings, known.addr)
    name = where.name if where else session.program.image.path
    return external(what, _KINDS.get(known.type, "other"), name, known.addr, known.size, 0)


def mapped_owner(session: Session, addr: int, mappings: list[Mapping]) -> Owner | None:
    """Return the nearest symbol of the executable below an address, or just the mapping."""
    where = mapping_at(mappings, addr)
    if where is None:
        return None
    table = session.program.image.symtab
    inside = (table.addr <= np.uint64(addr)) & (np.uint64(addr) < table.addr + table.size)
    rows = np.flatnonzero(inside & (table.section != 0))
    if not len(rows):
        return external(
            where.name or "anonymous memory",
            "memory",
            where.name,
            where.start,
            where.end - where.start,
            addr - where.start,
        )
    row = int(rows[0])
    name = table.name[row].decode("utf-8", "replace")
    at = int(table.addr[row])
    return external(
        name,
        _KINDS.get(int(table.type[row]), "other"),
        where.name,
        at,
        int(table.size[row]),
        addr - at,
    )


def mapping_at(mappings: list[Mapping], addr: int) -> Mapping | None:
    """Return the mapping that holds an address."""
    return next((row for row in mappings if row.start <= addr < row.end), None)


def external(name: str, kind: str, path: str, addr: int, size: int, distance: int) -> Owner:  # noqa: PLR0913, PLR0917 - one argument a column
    """Return an owner that is no watched object."""
    return Owner(
        name=name, kind=kind, object=path or None, path=path or None, member=None, source=None,
        section="", offset=None, addr=addr, size=size, generation=0, slot=None, stub_addr=None,
        live=True, distance=distance,
    )  # fmt: skip
