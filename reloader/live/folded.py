"""Functions of the executable that have one address for several names.

Aliases have, and what a linker folds (`--icf`). A jump at such an entry sends the callers of
all of them to one place: that is right only as long as all mean the same code.
"""

from collections.abc import Iterator, Sequence

import numpy as np

from reloader.elf.object import UNDEFINED, ObjectFile
from reloader.errors.redirect import NotRedirectableError, Refusal
from reloader.live.plan import Flips
from reloader.live.program import Program
from reloader.live.switch import in_code
from reloader.live.symbols import STB_LOCAL
from stubs.table import SlotKey


def refuse_folded(program: Program, objects: Sequence[ObjectFile], flips: Flips) -> None:
    """Refuse to change a function whose code is another one's as well.

    Args:
        program: What is live.
        objects: The transaction's, whole.
        flips: What is to change.

    Raises:
        NotRedirectableError: Names such functions, and whose code theirs is.
    """
    original = program.table.originals(flips.slot)
    rows = in_code(program.image, original).nonzero()[0]
    if not len(rows):
        return
    known = program.baseline.functions().addr
    first = np.searchsorted(known, original[rows])
    last = np.searchsorted(known, original[rows], side="right")
    shared = rows[last - first > 1]
    if not len(shared):
        return
    files = {file.key: file for file in objects}
    leads_to = dict(zip(flips.slot.tolist(), flips.new.tolist(), strict=True))
    refusals: list[Refusal] = []
    for row in shared.tolist():
        slot, addr = int(flips.slot[row]), int(original[row])
        for key in sorted(set(names_at(program, addr, files))):
            other = program.table.slot_of(key)
            if other != slot and leads_to.get(-1 if other is None else other) != leads_to[slot]:
                name = program.slot_owners()[slot]
                refusals.append(Refusal(name, addr, reason(key)))
    if refusals:
        raise NotRedirectableError(refusals, remedy="Restart the program from the new build.")


def names_at(
    program: Program, addr: int, files: dict[tuple[str, str], ObjectFile]
) -> Iterator[SlotKey]:
    """Yield the functions at an address, without those that a new version does not have."""
    functions = program.baseline.functions()
    first = np.searchsorted(functions.addr, np.uint64(addr))
    last = np.searchsorted(functions.addr, np.uint64(addr), side="right")
    for row in range(int(first), int(last)):
        file = program.baseline.placements[int(functions.object[row])].file
        symbol = int(functions.symbol[row])
        name, after = file.symbol_names[symbol], files.get(file.key)
        if after is not None and not defines(after, name):
            continue
        local = int(file.bindings()[symbol]) == STB_LOCAL
        yield SlotKey(*file.key, name) if local else SlotKey("", "", name)


def defines(file: ObjectFile, name: bytes) -> bool:
    """Return whether an object defines a name."""
    return any(
        known == name and section != UNDEFINED
        for known, section in zip(file.symbol_names, file.symbol_sections.tolist(), strict=True)
    )


def reason(key: SlotKey) -> str:
    """Return why a function cannot change while another one does not."""
    other = key.name.decode("utf-8", "replace")
    where = f" of {key.path}" if key.path else ""
    return (
        f"it is one with {other}{where} in the program (an alias, or folded by the linker's"
        " --icf), and its new code is not the same"
    )
