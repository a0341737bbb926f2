"""An independent check: do the books of a project describe the process that runs?

It reads the database, the kept objects and /proc, and shares nothing with what writes them but
the layout of the agent's header. To be called while no reload is under way; the daemon may
live or not.

    python -m tests.support.checker PID PROJECT     prints what does not agree
"""

import json
import os
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import numpy as np
from elftools.elf.elffile import ELFFile

from stubs import layout
from tests.support.checked_units import Units
from tests.support.kept import Kept, same_code
from tests.support.outside import REGIONS, Outside, extents, start_time

_PAGE: Final = layout.PAGE
_HISTORY: Final = 900  # attempts that are all there, however many there were
_STUBS_SIZE: Final = layout.SLOT_COUNT * layout.STUB_SIZE
_STUB: Final = bytes.fromhex("f30f1efa ff25")  # endbr64; jmp *slot(%rip)
_PF_X: Final = 1


class Checker(Outside):
    """One process against the state in one project folder; what disagrees is in `problems`."""

    def __init__(self, pid: int, project: Path) -> None:
        super().__init__(pid, project)
        self.problems: list[str] = []
        self.checked = {"slots": 0, "functions": 0, "allocations": 0, "patches": 0, "unwind": 0}

    def run(self) -> list[str]:
        """Check everything; return what does not agree."""
        try:
            self.check_database()
            if self.find_target() and self.control is not None:
                self.check_journal()
                self.check_allocations()
                self.check_free_memory()
                self.check_slots()
                self.check_functions()
                self.check_variables()
                self.check_patches()
                self.check_unwind()
                self.check_units()
        finally:
            self.close()
        return self.problems

    def no(self, text: str) -> None:
        """Note that something does not agree."""
        self.problems.append(text)

    def check_database(self) -> None:
        """The file is whole, and every row that is named is there."""
        for row in self.rows("PRAGMA integrity_check"):
            if row["integrity_check"] != "ok":
                self.no(f"database: {row['integrity_check']}")
        for row in self.rows("PRAGMA foreign_key_check"):
            self.no(f"database: a row of {row['table']} names none of {row['parent']}")

    def find_target(self) -> bool:
        """One row, and only one, is the process."""
        found = self.rows(
            "SELECT id FROM targets WHERE pid=? AND start_time=? AND ended IS NULL",
            self.pid, start_time(self.pid),
        )  # fmt: skip
        if len(found) > 1 or (not found and self.control is not None and self.slots.any()):
            self.no(f"process {self.pid}: {len(found)} rows say that they are it")
        self.target = found[0]["id"] if found else 0
        return len(found) == 1

    def check_journal(self) -> None:
        """Nothing is half done, and numbers are given once, in order."""
        rows = self.rows(
            "SELECT generation, state FROM generations WHERE target=? ORDER BY generation",
            self.target,
        )
        for row in rows:
            if row["state"] == "prepared":
                self.no(f"generation {row['generation']} is half done")
        newest = max((row["generation"] for row in rows), default=0)
        for one, other in pairwise(row["generation"] for row in rows):
            if other != one + 1 and one > newest - _HISTORY:
                self.no(f"generation {other} follows {one}")
        for row in self.rows(
            "SELECT l.path, l.digest AS live, o.digest AS ledger FROM live_objects l"
            " LEFT JOIN objects o USING (target, path, member) WHERE l.target=?",
            self.target,
        ):
            if row["live"] != row["ledger"]:
                self.no(
                    f"{row['path']}: {row['live']} to resume, {row['ledger']} in the ledger"
                )

    def check_allocations(self) -> None:
        """All memory is held once, on pages of its region."""
        self.checked["allocations"] = len(self.held)
        for (_, end, _), (start, _, _) in pairwise(self.held):
            if start < end:
                self.no(f"memory at {start:#x} is held twice, to {end:#x}")
        for start, end, region in self.held:
            low, size, _ = self.region(REGIONS.index(region))
            low += _STUBS_SIZE if region == "code" else 0
            outside = start < low or end > self.region(REGIONS.index(region))[0] + size
            if outside or start % _PAGE or end % _PAGE:
                self.no(f"{region} at {start:#x}..{end:#x} is not of its region")

    def check_free_memory(self) -> None:
        """What nobody holds has nothing in it: zeros, or traps where code may be."""
        file = self.open_file()
        try:
            for row, name in enumerate(REGIONS):
                addr, size, offset = self.region(row)
                skip = _STUBS_SIZE if name == "code" else 0
                harmless = b"\0\xcc" if name == "code" else b"\0"
                for start, end in extents(file, offset + skip, offset + size):
                    for page in range(start, end, _PAGE):
                        at = addr + page - offset
                        if self.holder_of(at):
                            continue
                        if os.pread(file, _PAGE, page).strip(harmless):
                            self.no(f"{name} at {at:#x} is nobody's, and not empty")
        finally:
            os.close(file)

    def check_slots(self) -> None:
        """Every slot has an owner, a stub, and leads where the ledger says."""
        owners = {
            row["slot"]: row
            for row in self.rows("SELECT * FROM slot_keys WHERE target=?", self.target)
        }
        ledger = {
            row["slot"]: row["code_addr"]
            for row in self.rows("SELECT * FROM slots WHERE target=?", self.target)
        }
        live = {
            row["slot"]
            for row in self.rows(
                "SELECT slot FROM symbols WHERE target=? AND live=1 AND slot>0", self.target
            )
        }
        code, _, _ = self.region(layout.CODE)
        table, _, _ = self.region(layout.SLOTS)
        for slot in range(layout.SLOT_FIRST, max([len(self.slots), *(s + 1 for s in owners)])):
            value = int(self.slots[slot]) if slot < len(self.slots) else 0
            if slot not in owners or not value:
                self.no(f"slot {slot}: {value:#x}, owner {owners.get(slot)}")
                continue
            self.checked["slots"] += 1
            name = owners[slot]["name"].decode()
            stub = self.read(code + slot * layout.STUB_SIZE, layout.STUB_SIZE)
            to = (
                code
                + slot * layout.STUB_SIZE
                + 10
                + int.from_bytes(stub[6:10], "little", signed=True)
            )
            if not stub.startswith(_STUB) or to != table + slot * 8:
                self.no(f"slot {slot} ({name}): its stub is {stub.hex()}")
            if slot in ledger and ledger[slot] != value:
                self.no(f"slot {slot} ({name}): {value:#x}, the ledger says {ledger[slot]:#x}")
            if self.in_arena(value) and not self.holder_of(value) and slot in live:
                self.no(f"slot {slot} ({name}) leads to {value:#x}, which nobody holds")

    def kept(self, digest: str) -> Kept | None:
        """Return a version of an object."""
        rows = self.rows("SELECT path, data FROM snapshots WHERE digest=?", digest)
        if not rows:
            return None
        data = rows[0]["data"] or (self.folder / rows[0]["path"]).read_bytes()
        return Kept.read(data)

    def check_functions(self) -> None:
        """The code that is called is that of the version that is live."""
        patched = {
            row["addr"] + at: row["old"][at]
            for row in self.rows("SELECT * FROM redirects WHERE target=?", self.target)
            for at in range(len(row["old"]))
        }
        versions = self.rows("SELECT id, path, digest FROM objects WHERE target=?", self.target)
        for version in versions:
            kept = self.kept(version["digest"]) if version["digest"] else None
            if version["digest"] and kept is None:
                self.no(f"{version['path']}: version {version['digest']} is not kept")
            if kept is None:
                continue
            for row in self.rows(
                "SELECT * FROM symbols"
                " WHERE object=? AND live=1 AND kind='function' AND size>0",
                version["id"],
            ):
                self.check_function(version["path"], kept, row, patched)

    def check_function(
        self, path: str, kept: Kept, row: dict[str, Any], patched: dict[int, int]
    ) -> None:
        """One function's slot leads to its bytes."""
        slot, addr, size = row["slot"] or 0, row["addr"], row["size"]
        if addr is None:
            return
        self.checked["functions"] += 1
        where = f"{path}: {row['name']}"
        if slot and int(self.slots[slot]) != addr:
            self.no(f"{where}: slot {slot} leads to {int(self.slots[slot]):#x}, not {addr:#x}")
        if self.in_arena(addr) and not self.holder_of(addr):
            self.no(f"{where} is at {addr:#x}, which nobody holds")
            return
        live = bytes(patched.get(addr + at, b) for at, b in enumerate(self.read(addr, size)))
        found = kept.function(row["name"], size)
        if not any(same_code(data, may, live) for data, may in found):
            self.no(f"{where} at {addr:#x} is not the code of the version that is live")

    def check_variables(self) -> None:
        """Variables of ours are in memory that is held."""
        for row in self.rows(
            "SELECT name, addr FROM symbols WHERE target=? AND live=1 AND kind='variable'",
            self.target,
        ):
            addr = row["addr"]
            if addr and self.in_arena(addr) and not self.holder_of(addr):
                self.no(f"variable {row['name']} is at {addr:#x}, which nobody holds")

    def check_patches(self) -> None:
        """The executable's code is its file's, but for the jumps in the books."""
        allowed: dict[int, int] = {}
        code, _, _ = self.region(layout.CODE)
        for row in self.rows("SELECT * FROM redirects WHERE target=?", self.target):
            self.checked["patches"] += 1
            addr, new = row["addr"], row["new"]
            allowed |= {addr + at: byte for at, byte in enumerate(new)}
            if self.read(addr, len(new)) != new:
                self.no(f"{addr:#x} has {self.read(addr, len(new)).hex()}, not {new.hex()}")
            if new[0] == 0xE9:
                to = addr + 5 + int.from_bytes(new[1:5], "little", signed=True)
                if to != code + row["slot"] * layout.STUB_SIZE:
                    self.no(f"the jump at {addr:#x} leads to {to:#x}, no stub of its slot")
        for addr, original in self.executable_code():
            live = np.frombuffer(self.read(addr, len(original)), np.uint8)
            different = np.flatnonzero(live != np.frombuffer(original, np.uint8))
            for at in different.tolist():
                if allowed.get(addr + at) != int(live[at]):
                    self.no(f"{addr + at:#x} in the executable is changed, and in no book")

    def executable_code(self) -> Iterator[tuple[int, bytes]]:
        """Yield address and file content of what the executable has as code."""
        image = self.rows(
            "SELECT path, base_addr FROM images WHERE target=? AND kind='executable'",
            self.target,
        )[0]
        with Path(image["path"]).open("rb") as file:
            for segment in ELFFile(file).iter_segments():
                if segment["p_type"] == "PT_LOAD" and segment["p_flags"] & _PF_X:
                    yield image["base_addr"] + segment["p_vaddr"], segment.data()

    def check_unwind(self) -> None:
        """The directory is held, sorted, and describes what has unwind tables."""
        at = int(self.slots[layout.SLOT_UNWIND]) if len(self.slots) else 0
        wanted = self.planned_unwind()
        if not at:
            if self.planned_unwind("live", "rolled-back"):
                self.no("there is code with unwind tables, and no unwind directory")
            return
        if not self.holder_of(at):
            self.no(f"the unwind directory at {at:#x} is nobody's")
            return
        count = int.from_bytes(self.read(at, 8), "little")
        data = self.read(at + 8, count * layout.UNWIND_ENTRY.itemsize)
        entries = np.frombuffer(data, layout.UNWIND_ENTRY)
        self.checked["unwind"] = count
        found = {int(row["start"]): int(row["eh_frame_hdr_addr"]) for row in entries}
        for start in self.planned_unwind("live", "rolled-back").keys() - found.keys():
            self.no(f"unwind directory: the code at {start:#x} is missing")
        # code that was freed since it was published may still be in it: nobody runs there
        found = {start: hdr for start, hdr in found.items() if self.holder_of(start)}
        for start in found.keys() - wanted.keys():
            self.no(f"unwind directory: the code at {start:#x} has no table in the books")
        for one, other in pairwise(entries):
            if int(one["end"]) > int(other["start"]):
                self.no(f"unwind directory: {int(other['start']):#x} overlaps")
        for hdr in found.values():
            if not self.holder_of(hdr):
                self.no(f"unwind table at {hdr:#x} is in memory that nobody holds")

    def check_units(self) -> None:
        """OCaml units are what the books say of them."""
        found = Units(self)
        self.checked["units"] = len(found.units)
        self.problems += found.problems()

    def planned_unwind(self, *states: str) -> dict[int, int]:
        """Return start of code -> its unwind table, for held code of some generations.

        That of an attempt that was undone has never run, and may be in no directory.
        """
        wanted: dict[int, int] = {}
        for row in self.rows(
            "SELECT DISTINCT g.generation, g.plan, g.state"
            " FROM generations g JOIN allocations a"
            " ON a.target = g.target AND a.generation = g.generation"
            " WHERE g.target=? AND a.freed IS NULL",
            self.target,
        ):
            if states and row["state"] not in states:
                continue
            held = {
                held["addr"]
                for held in self.rows(
                    "SELECT addr FROM allocations"
                    " WHERE target=? AND generation=? AND freed IS NULL",
                    self.target, row["generation"],
                )
            }  # fmt: skip
            memory = json.loads(row["plan"]).get("memory", [])
            wanted |= {addr: hdr for _, addr, *_, hdr, _ in memory if addr in held and hdr}
        return wanted


def check(pid: int, project: Path) -> list[str]:
    """Return what does not agree between a process and its books."""
    return Checker(pid, project).run()


def main() -> None:
    """Check and tell."""
    checker = Checker(int(sys.argv[1]), Path(sys.argv[2]))
    problems = checker.run()
    sys.stdout.write("".join(f"{text}\n" for text in problems))
    sys.stdout.write(", ".join(f"{n} {what}" for what, n in checker.checked.items()) + "\n")
    sys.exit(bool(problems))


if __name__ == "__main__":
    main()
