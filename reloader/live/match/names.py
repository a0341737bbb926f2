"""Names: the first places, from the executable's symbol tables and from what fields name."""

import numpy as np

from reloader.elf.image import Image
from reloader.elf.image_symbols import STT_TLS
from reloader.live.match.evidence import NOWHERE, Reader, image_end
from reloader.live.match.place import STT_GNU_IFUNC, Candidates, Placing, unique
from reloader.live.match.tables import SHT_NOBITS, Tables


def begin(tables: Tables, image: Image) -> Placing:
    """Return the state before the first placement, with the names the executable tells."""
    section_count, name_count = len(tables.size), len(tables.names)
    placing = Placing(
        tables=tables,
        image=image,
        reader=Reader(tables, image, image_end(image)),
        base=np.full(section_count, NOWHERE, np.int64),
        shared=np.zeros(section_count, np.bool_),
        name_addr=np.full(name_count, NOWHERE, np.int64),
        in_image=np.zeros(name_count, np.bool_),
        seen=np.full(len(tables.value), NOWHERE, np.int64),
        placed_count=np.zeros(len(tables.objects), np.int64),
    )
    for symbols in (image.dynsym, image.symtab):
        defined = (symbols.section != 0) & (symbols.section < 0xFF00) & (symbols.binding != 0)
        addr = symbols.addr.view(np.int64)
        if image.tls is not None:
            shift = image.tls.addr - image.tls.tpoff(0)
            addr = np.where(symbols.type == STT_TLS, addr + shift, addr)
        defined &= symbols.type != STT_GNU_IFUNC
        for row in np.flatnonzero(defined).tolist():
            name = tables.name_row.get(symbols.name[row], NOWHERE)
            if name >= 0:
                placing.name_addr[name] = addr[row]
                placing.in_image[name] = True
    return placing


def place_by_names(placing: Placing) -> None:
    """Place what the executable's symbols name, and all that follows from it.

    An object's largest section goes first: the tiny functions of an archive member that was not
    linked look like many others.
    """
    known = np.flatnonzero(placing.name_addr != NOWHERE)
    found = placing.definitions(known, placing.name_addr[known])
    if not len(found.section):
        return
    tables = placing.tables
    owner = tables.object[found.section]
    largest = np.zeros(len(tables.objects), np.int64)
    wanted = np.flatnonzero(tables.wanted & (tables.type != SHT_NOBITS))
    np.maximum.at(largest, tables.object[wanted], tables.size[wanted])
    is_largest = tables.size[found.section] == largest[owner]
    placing.spread(placing.accept(found.take(is_largest)))
    begun = (placing.placed_count > 0)[owner]
    placing.spread(placing.accept(found.take(begun)))
    placing.waiting.append(found.take(~begun))
    place_waiting(placing)


def place_waiting(placing: Placing) -> None:
    """Place by names sections of objects that have no other section placed."""
    while placing.waiting:
        parts, placing.waiting = placing.waiting, []
        found = Candidates(
            np.concatenate([part.section for part in parts]),
            np.concatenate([part.base for part in parts]),
            np.concatenate([part.symbol for part in parts]),
        )
        placing.spread(placing.accept(unique(found)))
