"""Types as people read them: names, and layouts line by line."""

import re
from math import prod

from reloader.elf.types import Kind, Record, TypeTable
from reloader.errors.data import Member
from reloader.errors.types import TypeShape
from reloader.link.types.compare import bare

_DEEPEST = 20  # types in types in one name


def type_name(table: TypeTable, at: int, depth: int = 0) -> str:
    """Return `struct body *`, `int[4]`, `void`."""
    record = table.types.get(at)
    if record is None or depth > _DEEPEST:
        return "void" if at == 0 else "?"
    if record.kind in {Kind.BASE, Kind.OTHER} or record.word == "typedef":
        return record.name or "?"
    if record.kind in {Kind.RECORD, Kind.UNION, Kind.ENUM}:
        return f"{record.word} {record.name or '{...}'}"
    below = type_name(table, record.type, depth + 1)
    if record.kind is Kind.ARRAY:
        return below + "".join(f"[{count or ''}]" for count in record.counts)
    if record.kind is Kind.ALIAS:
        return f"{record.word} {below}".strip()
    return _pointer_name(table, record, below, depth)


def _pointer_name(table: TypeTable, record: Record, below: str, depth: int) -> str:
    """Return the name of a pointer; of a function type its own."""
    if record.kind is Kind.FUNCTION:
        return function_name(table, record, "", depth + 1)
    sign = record.word or "*"
    target = table.types.get(record.type)
    if target is not None and target.kind is Kind.FUNCTION:
        return function_name(table, target, f"({sign})", depth + 1)
    return f"{below} {sign}".replace("* *", "**")


def function_name(table: TypeTable, record: Record, name: str, depth: int = 0) -> str:
    """Return `int step(struct body *, int)`."""
    inside = [type_name(table, item.type, depth) for item in record.items]
    inside += ["..."] if record.variadic else []
    result = type_name(table, record.type, depth)
    return f"{result} {name}({', '.join(inside) or 'void'})"


def size_of(table: TypeTable, at: int, depth: int = 0) -> int:
    """Return the bytes of a type, 0 if nothing tells."""
    found = bare(table, at)
    if found is None or depth > _DEEPEST:
        return 0
    record = found[1]
    if record.size >= 0 or record.kind is not Kind.ARRAY:
        return max(record.size, 0)
    return prod(record.counts) * size_of(table, record.type, depth + 1)


def shape_of(table: TypeTable, at: int) -> TypeShape:
    """Return a type with a line for each member, value or virtual function."""
    found = bare(table, at)
    if found is None:
        return TypeShape(type_name(table, at))
    at, record = found
    size = size_of(table, at)
    title = type_name(table, at) + (f", {size} byte{'' if size == 1 else 's'}" if size else "")
    if record.kind is Kind.ENUM:
        return TypeShape(title, tuple(f"{item.place:<5} {item.name}" for item in record.items))
    lines = [
        str(
            Member(
                item.place // 8, size_of(table, item.type), type_name(table, item.type), name
            )
        )
        for item in record.items
        for name in [_member(item.name, item.place, item.bits)]
        if record.kind in {Kind.RECORD, Kind.UNION}
    ]
    slots = sorted(record.slots.items())
    lines += [f"virtual {index:<3} {method(symbol)}" for index, symbol in slots]
    return TypeShape(title, tuple(lines))


def method(symbol: str) -> str:
    """Return `Shape::area` for the symbol of a function in a class, else the symbol."""
    rest, parts = re.sub(r"^_ZN[VK]*", "", symbol), list[str]()
    while length := re.match(r"[1-9][0-9]*", rest):
        end = length.end() + int(length[0])
        parts.append(rest[length.end() : end])
        rest = rest[end:]
    if parts and rest.startswith("D"):
        parts.append(f"~{parts[-1]}")
    return "::".join(parts) if symbol.startswith("_ZN") and len(parts) > 1 else symbol


def _member(name: str, place: int, bits: int) -> str:
    return f"{name}:{bits} (bit {place % 8})" if bits else name


def shown_name(table: TypeTable, at: int) -> str:
    """Return what a type is called in a sentence: by its typedef if it has no name itself."""
    found = bare(table, at)
    if found is not None and not found[1].name:
        for (_, name), other in table.named.items():
            if other == found[0]:
                return name
    return type_name(table, found[0] if found else at)
