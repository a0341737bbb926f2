"""Names for data addresses: which variable of the program is at an address."""

import numpy as np

from reloader.ids import NO_ADDR
from reloader.live.program import Program

STT_OBJECT, STT_COMMON = 1, 5


def name_of_address(program: Program, addr: int) -> str:
    """Return `variable` or `variable+8` of an object or the executable, "" for neither."""
    for live in program.objects.values():
        kinds = live.file.types()
        rows = np.flatnonzero(
            ((kinds == STT_OBJECT) | (kinds == STT_COMMON))
            & (live.symbol_addr != np.uint64(NO_ADDR))
            & (live.symbol_addr <= np.uint64(addr))
        )
        for row in rows.tolist():
            offset = addr - int(live.symbol_addr[row])
            if offset < int(live.file.symbols["st_size"][row]):
                name = live.file.symbol_names[row].decode("utf-8", "replace")
                return f"{name}+{offset:#x}" if offset else name
    return name_in_image(program, addr)


def name_in_image(program: Program, addr: int) -> str:
    """Return the executable's own variable at an address."""
    for table in (program.image.symtab, program.image.dynsym):
        inside = (table.addr <= np.uint64(addr)) & (np.uint64(addr) < table.addr + table.size)
        rows = np.flatnonzero(inside & (table.type == STT_OBJECT) & (table.section != 0))
        if len(rows):
            row = int(rows[0])
            offset = addr - int(table.addr[row])
            name = table.name[row].decode("utf-8", "replace")
            return f"{name}+{offset:#x}" if offset else name
    return ""
