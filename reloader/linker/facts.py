"""What checks and listings ask of a linked graph, in our own memory or in a process."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import numpy as np

from reloader.arch.base import Architecture
from reloader.errors.base import ReloaderError
from reloader.errors.linker import ExpressionError
from reloader.ids import NO_ADDR, NO_ROW, U8
from reloader.link.graph import LinkGraph
from reloader.link.layout import image
from reloader.link.pipeline import Linked
from reloader.linker.alone import definitions, find_block, find_object, symbol_addr
from reloader.linker.operands import LONGEST, Instruction, decode

Read = Callable[[int, int], U8 | bytes]
STUB_KINDS: Final = ("", "plt")
# where sections that are never loaded can be read: inside a load only, no pointer leads there
_UNLOADED: Final = 1 << 62


class Memory:
    """Linked bytes in our own memory, found by their address."""

    def __init__(self, parts: Sequence[tuple[int, U8]]) -> None:
        """Take (address, bytes) of everything that was placed."""
        self.parts = sorted(parts, key=lambda part: part[0])
        self._starts = np.array([addr for addr, _ in self.parts], np.uint64)

    def read(self, addr: int, size: int) -> U8:
        """Return a copy of up to `size` bytes.

        Raises:
            ExpressionError: There is nothing at the address.
        """
        row = int(np.searchsorted(self._starts, np.uint64(addr), side="right")) - 1
        if row >= 0:
            start, data = self.parts[row]
            if addr < start + len(data):
                return data[addr - start : addr - start + size].copy()
        message = f"nothing is linked at {addr:#x}"
        raise ExpressionError(message)


def placed_parts(linked: Linked, arch: Architecture) -> list[tuple[int, U8]]:
    """Return (address, bytes) of every block, pinned ones too; gaps belong to their block."""
    graph, blocks = linked.graph, linked.graph.blocks
    parts = [(int(item.allocation.addr), image(graph, item, arch)) for item in linked.placed]
    parts.sort(key=lambda part: part[0])
    starts = np.array([0, *(addr for addr, _ in parts)], np.uint64)
    ends = np.array([0, *(addr + len(data) for addr, data in parts)], np.uint64)
    known = np.flatnonzero(blocks.live & (blocks.addr != np.uint64(NO_ADDR)))
    row = np.searchsorted(starts, blocks.addr[known], side="right") - 1
    for block in known[blocks.addr[known] >= ends[row]].tolist():
        addr = int(blocks.addr[block])
        data = graph.block_bytes(block)
        parts.append((addr, data if len(data) else np.zeros(int(blocks.size[block]), np.uint8)))
    return parts


class LinkedFacts:
    """Implements `expressions.Facts`."""

    def __init__(
        self,
        graph: LinkGraph,
        read: Read,
        stub_addr: Callable[[int], int],
        slot_addr: Callable[[int], int],
        arch: Architecture,
    ) -> None:
        """Look into a graph whose every symbol has its address.

        Args:
            graph: Linked.
            read: (address, size) -> bytes of the linked memory.
            stub_addr: Slot -> address of its stub.
            slot_addr: Slot -> address of the pointer its stub jumps through.
            arch: Knows the instructions.
        """
        self.graph = graph
        self.arch = arch
        self._read, self._stub_addr, self._slot_addr = read, stub_addr, slot_addr
        self._rows = self._known_rows()
        self._unloaded: dict[int, U8] = {}

    def _known_rows(self) -> dict[str, int]:
        """Return the row of each name; what the objects define first."""
        graph = self.graph
        known = definitions(graph, local=True).items()
        rows = {name.decode("utf-8", "replace"): row for name, row in known if name}
        for row in np.flatnonzero(graph.symbols.addr != np.uint64(NO_ADDR)).tolist():
            rows.setdefault(graph.symbols.name[row].decode("utf-8", "replace"), row)
        return rows

    def symbol(self, name: str, *, inside: bool) -> int | None:
        """Return a symbol's address, None for an unknown one."""
        del inside  # the linker's copy is found by the same address
        row = self._rows.get(name)
        return None if row is None else symbol_addr(self.graph, row)

    def operand(self, name: str, offset: int, index: int) -> int:
        """Return an immediate operand of the instruction at symbol + offset."""
        found = self._decode(name, offset)
        if index >= len(found.operands):
            message = (
                f"Invalid operand index '{index}' for instruction '{name}'. Instruction has "
                f"only {len(found.operands)} operands.\nInstruction is:\n  {found.text}"
            )
            raise ExpressionError(message)
        value = found.operands[index]
        if value is None:
            message = (
                f"Operand '{index}' of instruction '{name}' is not an immediate.\n"
                f"Instruction is:\n  {found.text}"
            )
            raise ExpressionError(message)
        return value

    def instruction_size(self, name: str) -> int:
        """Return the bytes of the instruction at a symbol."""
        return self._decode(name, 0).size

    def _decode(self, name: str, offset: int) -> Instruction:
        addr = (self.symbol(name, inside=True) or 0) + offset
        found = decode(self._bytes(addr, LONGEST), self.arch)
        if found is None:
            message = f"Couldn't decode instruction at '{name}'"
            raise ExpressionError(message)
        return found

    def stub(self, file: str, name: str, kind: str, *, inside: bool) -> int:
        """Return the address of a symbol's stub."""
        del inside
        slot = self._slot(file, name)
        if kind not in STUB_KINDS:
            message = f"stub_addr: no stub of kind '{kind}'; here all are 'plt'"
            raise ExpressionError(message)
        if slot == NO_ROW:
            message = f"stub_addr: {file} has no stub for '{name}', it is called directly"
            raise ExpressionError(message)
        return self._stub_addr(slot)

    def got(self, file: str, name: str, *, inside: bool) -> int:
        """Return the address of a symbol's GOT entry, or of the pointer behind its stub."""
        del inside
        graph, wanted = self.graph, name.encode()
        row = self._object(file)
        start = graph.got_symbol[row] if len(graph.got_symbol) else NO_ROW
        if start != NO_ROW:
            block = int(graph.symbols.block[start])
            edges = graph.edges_of(block)
            for edge in range(edges.start, edges.stop):
                if graph.symbols.name[int(graph.edges.symbol[edge])] == wanted:
                    return int(graph.blocks.addr[block]) + int(graph.edges.offset[edge])
        slot = self._slot(file, name)
        if slot == NO_ROW:
            message = f"got_addr: {file} has no GOT entry for '{name}'"
            raise ExpressionError(message)
        return self._slot_addr(slot)

    def section(self, file: str, name: str, *, inside: bool) -> int:
        """Return the address of a section; of one that is not loaded, 0 outside of a load."""
        row = self._object(file)
        block = find_block(self.graph, file, name)
        if block == NO_ROW:
            message = f"section_addr: {file} has no section '{name}'"
            raise ExpressionError(message)
        addr = int(self.graph.blocks.addr[block])
        if addr != NO_ADDR:
            return addr
        if not inside:
            return 0
        addr = _UNLOADED + (block << 32)
        place = int(self.graph.blocks.section[block])
        self._unloaded[addr] = self.graph.objects[row].section_bytes(place)
        return addr

    def load(self, addr: int, size: int) -> int:
        """Return a number in memory."""
        data = self._bytes(addr, size)
        if len(data) < size:
            message = f"{size} bytes at {addr:#x} reach past what is linked there"
            raise ExpressionError(message)
        return int.from_bytes(data, "little")

    def _bytes(self, addr: int, size: int) -> bytes:
        start = addr >> 32 << 32
        if start in self._unloaded:
            return self._unloaded[start][addr - start :][:size].tobytes()
        try:
            return bytes(self._read(addr, size))
        except ExpressionError:
            raise
        except ReloaderError as error:
            raise ExpressionError(str(error)) from error

    def _object(self, file: str) -> int:
        row = find_object(self.graph, file)
        if row == NO_ROW:
            known = ", ".join(Path(other.path).name for other in self.graph.objects)
            message = f"No such file '{file}'; linked are: {known}"
            raise ExpressionError(message)
        return row

    def _slot(self, file: str, name: str) -> int:
        """Return the slot of a name, or NO_ROW."""
        self._object(file)
        symbols, wanted = self.graph.symbols, name.encode()
        for row in np.flatnonzero(symbols.slot >= 0).tolist():
            if symbols.name[row] == wanted:
                return int(symbols.slot[row])
        return NO_ROW
