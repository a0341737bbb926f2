"""What is wrong with an object file or an archive, each with the two numbers that disagree."""

from dataclasses import dataclass
from typing import ClassVar

from reloader.errors.base import UNTOUCHED, Place, RefusedError


@dataclass(eq=False)
class ObjectError(RefusedError):
    """A file that cannot be read as a relocatable object or as an archive of them."""

    place: Place

    code = "bad-object"
    remedy: ClassVar[str] = "Build the object again."

    def what(self) -> str:
        """Return the fact, without the place and the remedy."""
        return "the object is not valid"

    def __str__(self) -> str:
        """Return the whole text for people."""
        return f"{self.place}: {self.what()}. {UNTOUCHED} {self.remedy}"


@dataclass(eq=False)
class EmptyFileError(ObjectError):
    """A file of no bytes."""

    code = "empty-file"
    remedy = "Wait until the compiler has written it, or build it again."

    def what(self) -> str:
        """Return the fact."""
        return "the file is empty"


@dataclass(eq=False)
class TruncatedError(ObjectError):
    """Something the file announces lies past its last byte."""

    thing: str  # `the section header table`
    end: int  # where it would end
    size: int  # bytes there are

    code = "truncated"
    remedy = "It was cut short or is still being written: build it again."

    def what(self) -> str:
        """Return the fact."""
        return f"{self.thing} ends at byte {self.end:#x}, but the file ends at {self.size:#x}"


@dataclass(eq=False)
class NotElfError(ObjectError):
    """A file of another format."""

    found: bytes  # its first bytes

    code = "not-elf"
    remedy = "Only ELF objects (.o) and archives of them (.a) can be loaded."

    def what(self) -> str:
        """Return the fact."""
        return f"the file begins with {self.found.hex(' ')}, an ELF object with 7f 45 4c 46"


@dataclass(eq=False)
class ForeignObjectError(ObjectError):
    """An ELF file for another kind of computer."""

    attribute: str  # `byte order`
    found: str
    wanted: str

    code = "foreign-object"
    remedy = "Build it with the compiler that built the running program."

    def what(self) -> str:
        """Return the fact."""
        return f"its {self.attribute} is {self.found}, the program's is {self.wanted}"


@dataclass(eq=False)
class NotRelocatableError(ObjectError):
    """An ELF file that was already linked."""

    found: str  # `a shared object`

    code = "not-relocatable"
    remedy = "Give the .o files it was linked from (made with `-c`)."

    def what(self) -> str:
        """Return the fact."""
        return f"this is {self.found}, not a relocatable object"


@dataclass(eq=False)
class SlimLtoError(ObjectError):
    """An object that holds the compiler's intermediate code and no machine code."""

    found: str  # `gcc's intermediate code (.gnu.lto_)`

    code = "slim-lto"
    remedy = "Build the program without -flto."

    def what(self) -> str:
        """Return the fact."""
        return f"it holds only {self.found}, no machine code"


@dataclass(eq=False)
class EntrySizeError(ObjectError):
    """A table whose entry size or total size is not that of its type."""

    table: str
    found: int
    wanted: int

    code = "bad-entry-size"

    def what(self) -> str:
        """Return the fact."""
        return f"{self.table} has {self.found} bytes where entries of {self.wanted} are due"


@dataclass(eq=False)
class AlignmentError(ObjectError):
    """A section whose alignment is not a power of two."""

    found: int

    code = "bad-alignment"

    def what(self) -> str:
        """Return the fact."""
        return f"its alignment is {self.found}, not a power of two"


@dataclass(eq=False)
class StringTableError(ObjectError):
    """A string table that is missing, or whose last byte is not zero."""

    table: str
    problem: str  # `is missing` or `does not end with a zero byte`

    code = "bad-string-table"

    def what(self) -> str:
        """Return the fact."""
        return f"{self.table} {self.problem}"


@dataclass(eq=False)
class NameOffsetError(ObjectError):
    """A name that would begin past the end of its string table."""

    owner: str  # `symbol 7`
    offset: int
    size: int

    code = "bad-name"

    def what(self) -> str:
        """Return the fact."""
        return (
            f"the name of {self.owner} is at {self.offset:#x} in a string table"
            f" of {self.size:#x} bytes"
        )


@dataclass(eq=False)
class IndexRangeError(ObjectError):
    """An index of a symbol or section that does not exist."""

    owner: str  # `a relocation`, `symbol 7`
    thing: str  # `symbol` or `section`
    index: int
    count: int

    code = "bad-index"

    def what(self) -> str:
        """Return the fact."""
        return f"{self.owner} refers to {self.thing} {self.index}, but there are {self.count}"


@dataclass(eq=False)
class RelocationOffsetError(ObjectError):
    """A relocation of bytes past the end of its section; `place` holds its offset."""

    size: int  # of the section

    code = "bad-relocation"

    def what(self) -> str:
        """Return the fact."""
        return f"a relocation lies past the section's end at {self.size:#x}"


@dataclass(eq=False)
class SymbolRangeError(ObjectError):
    """A symbol of bytes that its section does not have."""

    row: int
    end: int  # of the symbol
    size: int  # of the section

    code = "bad-symbol"

    def what(self) -> str:
        """Return the fact."""
        past = f"past its section's end at {self.size:#x}"
        return f"symbol {self.row} ends at {self.end:#x}, {past}"


@dataclass(eq=False)
class RelocationFormatError(ObjectError):
    """Relocations in a form that this processor's ABI does not use."""

    found: str  # `SHT_REL`

    code = "bad-relocation-format"
    remedy = "Build it without unusual relocation options (such as -Wa,--crel)."

    def what(self) -> str:
        """Return the fact."""
        return f"its relocations are {self.found}, this processor's objects use SHT_RELA"


@dataclass(eq=False)
class OverlapError(ObjectError):
    """Tables that share bytes, so that together they claim more than the file holds."""

    tables: str
    total: int
    limit: int

    code = "overlap"

    def what(self) -> str:
        """Return the fact."""
        return f"{self.tables} claim {self.total} bytes together, at most {self.limit} can be"


@dataclass(eq=False)
class SymbolTableError(ObjectError):
    """More than one symbol table, or relocations for another table than the object's own."""

    problem: str

    code = "bad-symbol-table"

    def what(self) -> str:
        """Return the fact."""
        return self.problem


@dataclass(eq=False)
class ArchiveError(ObjectError):
    """An archive whose headers, names or members cannot be read."""

    problem: str

    code = "bad-archive"
    remedy = "Make the archive again (`ar rcs`)."

    def what(self) -> str:
        """Return the fact."""
        return self.problem


@dataclass(eq=False)
class ArchiveIndexError(ArchiveError):
    """An archive whose symbol index disagrees with its members."""

    code = "bad-archive-index"
    remedy = "Make the index again (`ranlib`)."
