"""The types of an object, and what is made of them: variables, functions, fields.

What two versions of an object have to agree on stands in their debug information; `type_reader`
takes it from there.
"""

from dataclasses import dataclass, field
from enum import IntEnum


class Kind(IntEnum):
    """What a type is."""

    BASE = 0
    POINTER = 1
    REFERENCE = 2
    RECORD = 3  # struct or class
    UNION = 4
    ENUM = 5
    ARRAY = 6
    FUNCTION = 7
    MEMBER_POINTER = 8
    ALIAS = 9  # typedef, const and the like
    OTHER = 10


@dataclass(frozen=True, slots=True)
class Item:
    """A member, base class, enumerator or parameter."""

    name: str
    type: int  # offset of the type's record, 0: none
    place: int  # bit offset of a member or base, value of an enumerator
    bits: int = 0  # of a bit-field
    base: bool = False  # a base class
    virtual: bool = False


@dataclass(slots=True, eq=False)
class Record:
    """One type, or one function."""

    kind: Kind
    name: str
    word: str = ""  # `struct`, `const`, ...
    size: int = -1  # bytes, -1: not said
    type: int = 0  # what it points to, holds, returns or stands for; 0: void
    encoding: int = 0  # DW_ATE_* of a base type
    declared: bool = False  # only declared: its layout is not known here
    items: list[Item] = field(default_factory=list[Item])
    counts: list[int] = field(default_factory=list[int])  # of an array; 0: open
    slots: dict[int, str] = field(default_factory=dict[int, str])  # of a class's own vtable
    variadic: bool = False
    file: int = 0  # DW_AT_decl_file: in which file of its unit it is declared


@dataclass(slots=True, eq=False)
class TypeTable:
    """What one object says about types; types are known by the offset of their record."""

    known: bool = False  # whether the object has debug information that can be read
    complete: bool = False  # and all of it: no types in type units or in another file
    types: dict[int, Record] = field(default_factory=dict[int, Record])
    # type by the place of a variable, as in the object
    variables: dict[tuple[int, int], int] = field(default_factory=dict[tuple[int, int], int])
    # by linkage name; outer ones are defined elsewhere
    outer_variables: dict[str, int] = field(default_factory=dict[str, int])
    outer_functions: dict[str, Record] = field(default_factory=dict[str, Record])
    functions: dict[str, Record] = field(default_factory=dict[str, Record])
    # complete types by (kind, qualified name); a nameless record by its typedef's name
    named: dict[tuple[Kind, str], int] = field(default_factory=dict[tuple[Kind, str], int])
    derived: dict[int, list[int]] = field(default_factory=dict[int, list[int]])
    units: list[tuple[int, str]] = field(default_factory=list[tuple[int, str]])  # end, source
