"""SymbolIndex: what a name means to code that is linked into the process now.

The order is that of design: live generations, then the executable's `.symtab`, then `.dynsym`,
then the shared libraries in link-map order, for which the agent asks `dlsym` in the process
itself: only that knows about symbol versions, IFUNCs and copy relocations.
"""

import difflib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from reloader.elf.image import Image
from reloader.elf.object import UNDEFINED, ObjectFile
from reloader.ids import NO_ADDR, NO_ROW, U64, Addr
from reloader.link.passes.resolve import Definitions
from reloader.live.objects import LiveObject

STB_LOCAL, STB_GLOBAL, STB_WEAK = 0, 1, 2
STT_FUNC, STT_TLS, STT_GNU_IFUNC = 2, 6, 10


@dataclass(slots=True)
class Known:
    """What is known of one global name."""

    addr: int  # canonical address; for a TLS variable its offset from the thread pointer
    slot: int  # SlotId, or NO_ROW
    type: int  # STT_*, 0 for what `dlsym` gave
    size: int  # bytes, 0: unknown
    owner: tuple[str, str] = ("", "")  # key of the watched object that defines it
    strong: bool = False  # a weak definition in another object gives way to it


@dataclass(slots=True)
class SymbolIndex:
    """All global names that new code may refer to."""

    resolve: Callable[[Sequence[bytes]], U64]  # Target.resolve
    thread_offsets: Callable[[Sequence[bytes]], U64]  # Target.thread_offsets
    call: Callable[[Addr], int]  # Target.call
    rows: dict[bytes, Known] = field(default_factory=dict[bytes, Known])
    # names that no live object defines any more, while the memory may still be there
    left: set[bytes] = field(default_factory=set[bytes])

    def add_image(self, image: Image) -> None:
        """Take in the executable's own symbols; names that are known already stay."""
        for table in (image.symtab, image.dynsym):
            defined = (table.section != 0) & (table.binding != STB_LOCAL)
            for row in np.flatnonzero(defined):
                known = Known(
                    int(table.addr[row]), NO_ROW, int(table.type[row]), int(table.size[row]),
                    strong=int(table.binding[row]) == STB_GLOBAL,
                )  # fmt: skip
                self.rows.setdefault(table.name[row], known)

    def add_live(self, live: LiveObject) -> None:
        """Take in the global symbols of a live object.

        They win over what was known, but a weak one over no strong one of another object.
        """
        file, bindings = live.file, live.file.bindings()
        defined = (bindings != STB_LOCAL) & (live.symbol_addr != np.uint64(NO_ADDR))
        sizes, types = file.symbols["st_size"], file.types()
        for row in np.flatnonzero(defined):
            name, strong = file.symbol_names[row], int(bindings[row]) == STB_GLOBAL
            before = self.rows.get(name)
            weaker = int(bindings[row]) == STB_WEAK and before is not None and before.strong
            if weaker and before is not None and before.owner != file.key:
                continue
            addr, slot = int(live.symbol_addr[row]), int(live.symbol_slot[row])
            known = Known(addr, slot, int(types[row]), int(sizes[row]), file.key, strong)
            self.rows[name] = known
        if self.left:
            self.left.difference_update(file.symbol_names)

    def leave(self, before: ObjectFile, after: ObjectFile) -> None:
        """Take note of the names that an object's next version does not define."""
        if before.symbol_names == after.symbol_names:
            return
        gone = _defined(before) - _defined(after)
        known = {name: self.rows[name] for name in gone if name in self.rows}
        self.left |= {name for name, row in known.items() if row.owner == before.key}

    def forget(self, is_gone: Callable[[Known], bool]) -> None:
        """Forget names that nobody defines and whose memory is given back."""
        for name in [name for name in self.left if is_gone(self.rows[name])]:
            self.left.discard(name)
            del self.rows[name]

    def remove_owner(self, owner: tuple[str, str]) -> None:
        """Forget the names that an object defined: it was unloaded."""
        for name in [name for name, known in self.rows.items() if known.owner == owner]:
            self.left.discard(name)
            del self.rows[name]

    def find(self, names: Sequence[bytes]) -> Definitions:
        """Return what each name means; asks the process for names that nothing here defines."""
        foreign = [name for name in names if name not in self.rows]
        self.ask(foreign)
        for name in names:
            known = self.rows.get(name)
            if known is not None and known.type == STT_GNU_IFUNC and known.slot == NO_ROW:
                self.choose(name, known)
        rows = [self.rows.get(name) for name in names]
        return Definitions(
            found=np.array([row is not None for row in rows], np.bool_),
            addr=np.array([NO_ADDR if row is None else row.addr for row in rows], np.uint64),
            slot=np.array([NO_ROW if row is None else row.slot for row in rows], np.int32),
            type=np.array([0 if row is None else row.type for row in rows], np.uint8),
            size=np.array([0 if row is None else row.size for row in rows], np.uint64),
        )

    def ask(self, names: Sequence[bytes]) -> None:
        """Ask the process for names; a thread-local one is known by its offset."""
        addrs: list[int] = self.resolve(names).tolist() if names else []
        found = [(n, addr) for n, addr in zip(names, addrs, strict=True) if addr]
        offsets: list[int] = self.thread_offsets([n for n, _ in found]).tolist()
        for (name, addr), offset in zip(found, offsets, strict=True):
            known = Known(addr, NO_ROW, 0, 0)
            if offset > 1:
                known = Known(offset, NO_ROW, STT_TLS, 0)
            self.rows[name] = known

    def choose(self, name: bytes, known: Known) -> None:
        """Replace what chooses a function of the executable by what it chooses.

        An exported one is asked of the dynamic linker, which has its canonical address.
        """
        addr = int(self.resolve([name])[0]) or self.call(Addr(known.addr))
        self.rows[name] = Known(addr, NO_ROW, STT_FUNC, 0, known.owner)

    def nearest(self, name: bytes) -> list[bytes]:
        """Return up to three known names that look like this one."""
        words = [known.decode("utf-8", "replace") for known in self.rows]
        close = difflib.get_close_matches(name.decode("utf-8", "replace"), words, 3, 0.75)
        return [word.encode() for word in close]

    def addr_of(self, name: bytes) -> Addr | None:
        """Return the canonical address of a name, or None."""
        known = self.rows.get(name)
        return None if known is None else Addr(known.addr)


def _defined(file: ObjectFile) -> set[bytes]:
    rows = np.flatnonzero((file.bindings() != STB_LOCAL) & (file.symbol_sections != UNDEFINED))
    return {file.symbol_names[row] for row in rows.tolist()}
