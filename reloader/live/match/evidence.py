"""Evidence: what the relocated fields of placed sections say about addresses.

In a placed section every relocated field holds the linker's answer for its symbol. Solving the
field's formula for the symbol gives the place of the section it is defined in, also of static
functions and data that no symbol table names any more.
"""

from dataclasses import dataclass

import numpy as np

from reloader.arch.x86_64_linked import Places, read_fields
from reloader.elf.image import Image
from reloader.ids import I64, Bool
from reloader.live.match.tables import Tables

NOWHERE = -1  # an internal address column's "not known"; addresses are int64 in this package


@dataclass(slots=True)
class Evidence:
    """(r,) columns: relocations whose field tells where their symbol is."""

    relocation: I64  # row of Tables.relocation_*
    target: I64  # address of the symbol; a thread-local one's in the PT_TLS template
    field: I64  # address of the field as linked


@dataclass(slots=True)
class Reader:
    """Reads evidence out of one image."""

    tables: Tables
    image: Image
    high: int  # the first address behind the image's segments, .bss included

    def read(self, sections: I64, bases: I64) -> Evidence:
        """Decode the fields of sections at given addresses."""
        tables, image = self.tables, self.image
        rows = tables.relocations_of(sections)
        base = np.repeat(
            bases, tables.first_relocation[sections + 1] - tables.first_relocation[sections]
        )
        start = tables.start[tables.relocation_section[rows]]
        offset = tables.relocation_offset[rows]
        usable = (start >= 0) & (tables.relocation_kind[rows] >= 0)
        rows, base, start, offset = rows[usable], base[usable], start[usable], offset[usable]
        places = Places(
            memory=image.memory,
            low=image.low,
            content=tables.content,
            kind=tables.relocation_kind[rows],
            at=base + offset - image.low,
            original=start + offset,
            addend=tables.relocation_addend[rows],
        )
        fields = read_fields(places, tables.kinds)
        known = fields.known & ~self._dynamic(base + offset)
        target = self._through_got(fields.target, fields.got & known)
        if image.tls is not None:  # from the thread pointer to the template
            shift = image.tls.addr - image.tls.tpoff(0)
            target = np.where(fields.tls, target + shift, target)
        else:
            known &= ~fields.tls
        known &= (target >= image.low) & (target <= self.high)
        return Evidence(rows[known], target[known], fields.field[known] + image.low)

    def _dynamic(self, addrs: I64) -> Bool:
        """Return which words the dynamic loader fills in."""
        fields = self.image.dynamic_fields
        if not len(fields):
            return np.zeros(len(addrs), np.bool_)
        spots = addrs.astype(np.uint64)
        found = np.searchsorted(fields, spots)
        return fields[np.minimum(found, len(fields) - 1)] == spots

    def _through_got(self, target: I64, got: Bool) -> I64:
        """Replace the address of a GOT entry by what the entry holds."""
        memory, low = self.image.memory, self.image.low
        inside = got & (target >= low) & (target + 8 <= low + len(memory))
        inside &= ~self._dynamic(target)
        target = target.copy()
        rows = np.flatnonzero(inside)
        words = memory[(target[rows] - low)[:, None] + np.arange(8)].reshape(-1)
        target[got & ~inside] = NOWHERE
        target[rows] = words.view(np.int64)
        return target


def image_end(image: Image) -> int:
    """Return the first address behind the image's segments."""
    loads = image.segments[image.segments["p_type"] == 1]  # PT_LOAD
    ends = loads["p_vaddr"].astype(np.uint64) + loads["p_memsz"].astype(np.uint64)
    return int(ends.max()) + image.load_bias
