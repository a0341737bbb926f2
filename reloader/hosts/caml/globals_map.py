"""The units of a program: `caml_globals_map`, which the compiler links into every executable.

It is a string that holds a marshalled list of (name, interface checksum, implementation
checksum, symbols), here read without any OCaml. Its format is that of runtime/caml/intext.h.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from reloader.errors.ocaml import NoUnitsError

if TYPE_CHECKING:
    from reloader.elf.image import Image, ImageSymbols

SYMBOL: Final = b"caml_globals_map"
STRING_TAG: Final = 252
WORD: Final = 8
MAGIC_SMALL, MAGIC_BIG = 0x8495A6BE, 0x8495A6BF
HEADER_SMALL, HEADER_BIG = 20, 32
# codes of values
INT_SIZES: Final = {0x00: 1, 0x01: 2, 0x02: 4, 0x03: 8}
SHARED_SIZES: Final = {0x04: 1, 0x05: 2, 0x06: 4}
STRING_SIZES: Final = {0x09: 1, 0x0A: 4}
BLOCK32, SMALL_STRING, SMALL_INT, SMALL_BLOCK = 0x08, 0x20, 0x40, 0x80

Value = int | bytes | list["Value"]


@dataclass(frozen=True, slots=True)
class ProgramUnit:
    """A unit that the program was linked from."""

    name: str
    interface_crc: str | None
    implementation_crc: str | None  # None: only its interface was used
    symbols: tuple[str, ...]  # the unit's own, or those of a pack's members

    @property
    def is_linked(self) -> bool:
        """Whether the unit is in the program."""
        return self.implementation_crc is not None


def read_program_units(image: Image) -> dict[str, ProgramUnit]:
    """Return the units of an executable by name, in the order they were linked in.

    Raises:
        NoUnitsError: It is no OCaml program, or its symbols are gone.
    """
    addr = symbol_addr(image.symtab) or symbol_addr(image.dynsym)
    if not addr:
        raise NoUnitsError(image.path, f"it has no symbol {SYMBOL.decode()}")
    header = int.from_bytes(image.bytes_at(addr - WORD, WORD).tobytes(), "little")
    data = image.bytes_at(addr, (header >> 10) * WORD).tobytes()
    if header & 0xFF != STRING_TAG:
        raise NoUnitsError(image.path, f"{SYMBOL.decode()} has tag {header & 0xFF}")
    try:
        units = [_unit(row) for row in _items(Unmarshaller(data).read())]
    except (IndexError, TypeError, ValueError) as error:
        raise NoUnitsError(image.path, f"{SYMBOL.decode()} cannot be read: {error}") from error
    return {unit.name: unit for unit in units}


def symbol_addr(symbols: ImageSymbols) -> int:
    """Return the address of the table's symbol, 0 if it is not there."""
    try:
        return int(symbols.addr[symbols.name.index(SYMBOL)])
    except ValueError:
        return 0


class Unmarshaller:
    """Reads one value; blocks become lists, strings bytes."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        magic = int.from_bytes(data[:4], "big")
        if magic not in {MAGIC_SMALL, MAGIC_BIG}:
            problem = f"it starts with {magic:#x}"
            raise ValueError(problem)
        self.at = HEADER_SMALL if magic == MAGIC_SMALL else HEADER_BIG
        self.objects: list[Value] = []  # in the order in which they can be shared

    def read(self) -> Value:
        """Return the value."""
        top: list[Value] = [0]
        waiting: list[tuple[list[Value], int]] = [(top, 0)]
        while waiting:
            block, place = waiting.pop()
            value, size = self._one()
            block[place] = value
            if isinstance(value, list) and size:
                waiting += [(value, row) for row in reversed(range(size))]
        return top[0]

    def _number(self, size: int, *, signed: bool = False) -> int:
        data = self.data[self.at : self.at + size]
        if len(data) < size:
            raise IndexError(self.at)
        self.at += size
        return int.from_bytes(data, "big", signed=signed)

    def _one(self) -> tuple[Value, int]:
        """Return a value, and how many fields of it follow."""
        code = self._number(1)
        if code >= SMALL_BLOCK:
            return self._block((code >> 4) & 7)
        if code >= SMALL_INT:
            return code & 0x3F, 0
        if code >= SMALL_STRING:
            return self._string(code & 0x1F), 0
        if code == BLOCK32:
            return self._block(self._number(4) >> 10)
        return self._long(code), 0

    def _long(self, code: int) -> Value:
        """Return a value without fields whose size or number follows its code."""
        if code in INT_SIZES:
            return self._number(INT_SIZES[code], signed=True)
        if code in SHARED_SIZES:
            return self.objects[-self._number(SHARED_SIZES[code])]
        if code in STRING_SIZES:
            return self._string(self._number(STRING_SIZES[code]))
        problem = f"code {code:#x} at byte {self.at - 1}"
        raise ValueError(problem)

    def _block(self, size: int) -> tuple[Value, int]:
        block: list[Value] = [0] * size
        if size:  # one without fields is an atom, which is never shared
            self.objects.append(block)
        return block, size

    def _string(self, size: int) -> bytes:
        text = self.data[self.at : self.at + size]
        if len(text) < size:
            raise IndexError(self.at)
        self.at += size
        self.objects.append(text)
        return text


def _items(value: Value) -> list[Value]:
    """Return the items of an OCaml list."""
    items: list[Value] = []
    while isinstance(value, list):
        head, value = value
        items.append(head)
    return items


def _unit(row: Value) -> ProgramUnit:
    if not isinstance(row, list):
        raise TypeError(row)
    name, interface, implementation, symbols = row
    return ProgramUnit(
        _text(name),
        _digest(interface),
        _digest(implementation),
        tuple(_text(symbol) for symbol in _items(symbols)),
    )


def _text(value: Value) -> str:
    if not isinstance(value, bytes):
        raise TypeError(value)
    return value.decode()


def _digest(value: Value) -> str | None:
    """Return an optional digest as hex."""
    match value:
        case [bytes(digest)]:
            return digest.hex()
        case _:
            return None
