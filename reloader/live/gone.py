"""Functions that are gone: they have a slot, and no live object defines them any more.

A function that came with a reload exists only behind its stub. Once its object's new version
lacks it, it can still be called through a pointer somebody keeps; when nobody does, it goes.
Functions of the executable and of libraries stay: code that we do not manage may call them.
"""

from reloader.elf.object import UNDEFINED
from reloader.live.program import Program
from stubs.table import RESERVED


def gone_slots(program: Program) -> set[int]:
    """Return the slots of functions that no live object defines or names."""
    defined = program.host.slots()
    for live in program.objects.values():
        defined.update(live.symbol_slot[live.symbol_slot >= RESERVED].tolist())
    suspects = {
        slot: key
        for slot, key, original in program.table.functions()
        if not original and slot not in defined and slot not in program.retained
    }
    if not suspects:
        return set()
    wanted = wanted_by_name(program)
    return {slot for slot, key in suspects.items() if key.path or key.name not in wanted}


def wanted_by_name(program: Program) -> set[bytes]:
    """Return the names that live objects leave to others."""
    return {
        name
        for live in program.objects.values()
        for name, section in zip(
            live.file.symbol_names, live.file.symbol_sections.tolist(), strict=True
        )
        if section == UNDEFINED
    }
