"""Two functions of equal length whose bytes differ: are they the same but for distances?

Assemblers resolve branches and `lea` inside a section themselves. When some other function
grows, those fields change although nothing about this function did. So both are decoded side
by side, and such a field counts as equal if it leads to the same function at the same
distance in both versions. Only the functions that differ are decoded: it takes about a
microsecond an instruction.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import capstone

# `call 0x40`, `notrack jmp 0x40`, `jne 0x40`, `loop 0x40`, but not `push 0x40`
BRANCH: Final = re.compile(r"(?:^|\s)(?:j\w+|call\w*|loop\w*|xbegin)$")
TARGET: Final = re.compile(r"0x[0-9a-f]+|\d+")
RELATIVE: Final = re.compile(r"\brip(?: ([+-]) (0x[0-9a-f]+|\d+))?\]")


@dataclass(frozen=True, slots=True)
class Code:
    """One function's bytes, relocated fields zero."""

    body: bytes  # as long as the other version's
    start: int  # offset in its section
    fields: frozenset[int]  # offsets of relocated fields, from the function's start


@dataclass(frozen=True, slots=True)
class Reference:
    """What an instruction refers to without a relocation, in both versions."""

    old: int  # offset in the section
    new: int


Decoder = Callable[[bytes, int], Iterator[tuple[int, int, str, str]]]


@lru_cache
def x86_64_decoder() -> Decoder:
    """Return a function that decodes bytes at an address."""
    return capstone.Cs(capstone.CS_ARCH_X86, capstone.CS_MODE_64).disasm_lite


def hidden_references(decode: Decoder, old: Code, new: Code) -> list[Reference] | None:
    """Return the references without relocation of both versions, or None if the code differs.

    References to the function itself, at the same distance in both, are left out.

    Args:
        decode: See x86_64_decoder.
        old: The function as it was; of equal length.
        new: The function as it is.
    """
    before, after = (list(decode(code.body, code.start)) for code in (old, new))
    if len(before) != len(after) or not is_whole(before, old) or not is_whole(after, new):
        return None
    found: list[Reference] = []
    for left, right in zip(before, after, strict=True):
        at, size = right[0] - new.start, right[1]
        same = old.body[at : at + size] == new.body[at : at + size]
        if left[0] - old.start != at or left[1] != size:
            return None
        if not new.fields.isdisjoint(range(at, at + size)):
            if not same:
                return None
            continue
        old_target, old_text = without_target(left)
        new_target, new_text = without_target(right)
        if old_text != new_text or (new_target is None and not same):
            return None
        if old_target is None or new_target is None:
            continue
        distance = new_target - new.start
        if old_target - old.start == distance and 0 <= distance < len(new.body):
            continue
        found.append(Reference(old_target, new_target))
    return found


def is_whole(instructions: list[tuple[int, int, str, str]], code: Code) -> bool:
    """Return whether decoding reached the function's end."""
    if not instructions:
        return not code.body
    at, size, _, _ = instructions[-1]
    return at + size == code.start + len(code.body)


def without_target(instruction: tuple[int, int, str, str]) -> tuple[int | None, str]:
    """Return the place an instruction refers to, and its text without that."""
    at, size, mnemonic, operands = instruction
    if BRANCH.search(mnemonic) and TARGET.fullmatch(operands):
        return int(operands, 0), mnemonic
    match = RELATIVE.search(operands)
    if match is None:
        return None, f"{mnemonic} {operands}"
    distance = int(match[2] or "0", 0) * (-1 if match[1] == "-" else 1)
    text = RELATIVE.sub("rip]", operands)
    return at + size + distance, f"{mnemonic} {text}"
