"""Sending the callers of original functions to new code, by changing the original code once.

A function's entry becomes a jump to its stub, after a leading endbr64. Where five bytes may not
be replaced, two bytes jump into the padding between functions, which holds the long jump; where
neither is possible, every call of the function is given the stub's address, if nobody can hold
the function's own.

Replaced bytes must never be entered but at their first: no branch lands behind it (an OCaml
function that loops back to entry+4 under a live activation would run half a jump), no call ends
behind it (a return address would lie there), and no program counter stands there at the moment
of the write (`patching.py`). Targets of jump tables are not looked for: none was found in the
first bytes of a function in any measured program, since a compiler's loop back to there is a
direct branch. Planning is pure: it reads text and changes nothing.
"""

from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

import numpy as np

from reloader.errors.redirect import NotRedirectableError, Refusal
from reloader.ids import I32, I64, NO_ADDR, U8, U64, Addr, Bool
from reloader.live import decode

Read = Callable[[Addr, int], U8]
WIDEST: Final = 8  # bytes of a row: a GOT entry


class Way(IntEnum):
    """How a row of a plan sends callers to new code."""

    ENTRY = 0  # jmp rel32 at the entry
    SHORT = 1  # jmp rel8 at the entry, into a hole
    HOLE = 2  # jmp rel32 in the padding
    CALL = 3  # the rel32 field of a call or jump
    GOT = 4  # an entry of a global offset table


@dataclass(frozen=True, slots=True, eq=False)
class OriginalFunctions:
    """(f,) columns, in any order.

    A row whose stub_addr is NO_ADDR is context: its branches count and the padding behind it
    may be used, but its entry stays. `.cold` pieces are always context.
    """

    addr: U64
    size: U64
    name: list[bytes]
    stub_addr: U64
    next_addr: U64  # where the next symbol begins or the section ends
    address_taken: Bool  # somebody may hold the function's address: call sites are not enough


@dataclass(frozen=True, slots=True, eq=False)
class Places:
    """(p,) columns: fields that hold or lead to a function's address."""

    addr: U64  # of the rel32 field of a call, or of a GOT entry
    function: I32  # row of OriginalFunctions


@dataclass(frozen=True, slots=True, eq=False)
class RedirectPlan:
    """(w,) columns, sorted by address: the writes that redirect some functions."""

    addr: U64
    size: U8  # bytes that are used of `old` and `new`
    old: U8  # (w, WIDEST) what is there now
    new: U8  # (w, WIDEST)
    way: U8  # Way
    function: I32  # row of `names`
    names: list[bytes]

    def __len__(self) -> int:
        """Return the number of writes."""
        return len(self.addr)

    def reversed(self) -> "RedirectPlan":
        """Return the plan that undoes this one."""
        return RedirectPlan(
            self.addr, self.size, self.new, self.old, self.way, self.function, self.names
        )

    def only(self, named: Bool) -> "RedirectPlan":
        """Return the writes for some of the functions.

        Args:
            named: (names) which.
        """
        keep = named[self.function]
        return RedirectPlan(
            self.addr[keep], self.size[keep], self.old[keep], self.new[keep], self.way[keep],
            self.function[keep], self.names,
        )  # fmt: skip

    def write(self, row: int) -> tuple[int, bytes, bytes]:
        """Return a write as address, bytes before and bytes after."""
        size = int(self.size[row])
        old, new = self.old[row, :size].tobytes(), self.new[row, :size].tobytes()
        return int(self.addr[row]), old, new

    def name_of(self, row: int) -> str:
        """Return the name of the function that a write is for."""
        return self.names[int(self.function[row])].decode("utf-8", "replace")


@dataclass(slots=True)
class _Write:
    addr: int
    old: bytes
    new: bytes
    way: Way
    function: int


def plan_redirects(
    functions: OriginalFunctions, read: Read, call_sites: Places | None = None
) -> RedirectPlan:
    """Plan how to send all callers of original functions to their stubs.

    Args:
        functions: Those to redirect, and their surroundings as context.
        read: Returns bytes of the live image.
        call_sites: All direct calls of functions, for those whose entry cannot be changed.

    Raises:
        NotRedirectableError: Some functions cannot be redirected; carries all of them.
    """
    plan, refusals = survey(functions, read, call_sites)
    if refusals:
        raise NotRedirectableError(refusals)
    return plan


def survey(
    functions: OriginalFunctions, read: Read, call_sites: Places | None = None
) -> tuple[RedirectPlan, list[Refusal]]:
    """Plan what can be redirected and say why the rest cannot."""
    planner = _Planner(functions, read, call_sites)
    return pack(planner.run(), functions.name), planner.refusals


def got_writes(entries: Places, functions: OriginalFunctions, read: Read) -> RedirectPlan:
    """Plan the change of GOT entries to the stubs of the functions they lead to.

    An entry that the dynamic loader has not resolved yet holds the address of its PLT code; it
    is replaced as well, and a thread inside the resolver may then store over it: see
    `patching.overwritten`.
    """
    rows = zip(entries.addr.tolist(), entries.function.tolist(), strict=True)
    writes = [
        _Write(
            addr,
            read(Addr(addr), WIDEST).tobytes(),
            int(functions.stub_addr[function]).to_bytes(WIDEST, "little"),
            Way.GOT,
            function,
        )
        for addr, function in rows
    ]
    return pack(writes, functions.name)


def joined(plans: list[RedirectPlan]) -> RedirectPlan:
    """Return one plan with the writes of all, for one stop."""
    first = np.cumsum([0, *(len(plan.names) for plan in plans)])
    addr = np.concatenate([plan.addr for plan in plans])
    order = np.argsort(addr, kind="stable")
    return RedirectPlan(
        addr[order],
        np.concatenate([plan.size for plan in plans])[order],
        np.concatenate([plan.old for plan in plans])[order],
        np.concatenate([plan.new for plan in plans])[order],
        np.concatenate([plan.way for plan in plans])[order],
        np.concatenate(
            [plan.function + np.int32(base) for plan, base in zip(plans, first, strict=False)]
        )[order].astype(np.int32),
        [name for plan in plans for name in plan.names],
    )


def pack(writes: list[_Write], names: list[bytes]) -> RedirectPlan:
    """Return writes as columns."""
    writes = sorted(writes, key=lambda write: write.addr)
    old = b"".join(write.old.ljust(WIDEST, b"\0") for write in writes)
    new = b"".join(write.new.ljust(WIDEST, b"\0") for write in writes)
    return RedirectPlan(
        np.array([write.addr for write in writes], np.uint64),
        np.array([len(write.new) for write in writes], np.uint8),
        np.frombuffer(old, np.uint8).reshape(-1, WIDEST),
        np.frombuffer(new, np.uint8).reshape(-1, WIDEST),
        np.array([write.way for write in writes], np.uint8),
        np.array([write.function for write in writes], np.int32),
        names,
    )


class _Planner:
    """One survey: the text, the branches in it, and the padding that is taken already."""

    def __init__(
        self, functions: OriginalFunctions, read: Read, call_sites: Places | None
    ) -> None:
        self.functions, self.read, self.call_sites = functions, read, call_sites
        self.text = decode.Text(functions.addr, functions.size, functions.next_addr, read)
        self.refusals: list[Refusal] = []
        self.taken: dict[int, int] = {}  # start of padding -> its first byte that is still free

    def run(self) -> list[_Write]:
        """Return the writes; what cannot be done is left in `refusals`.

        Long jumps are settled before short ones: their own padding belongs to them.
        """
        writes: list[_Write] = []
        later: list[tuple[int, str]] = []
        for row in np.flatnonzero(self._wanted()).tolist():
            outcome = self._at_entry(row)
            if isinstance(outcome, str):
                later.append((row, outcome))
            else:
                writes.append(outcome)
        for row, reason in later:
            found = self._through_hole(row) or self._through_calls(row)
            if found is None:
                self._refuse(row, reason)
            else:
                writes += found
        return writes

    def _wanted(self) -> Bool:
        cold = np.array([b".cold" in name for name in self.functions.name], np.bool_)
        return (self.functions.stub_addr != np.uint64(NO_ADDR)) & ~cold

    def _refuse(self, row: int, reason: str) -> None:
        functions = self.functions
        name = functions.name[row].decode("utf-8", "replace")
        if self.call_sites is None or not np.any(self.call_sites.function == row):
            reason += "; no call of it is known"
        elif functions.address_taken[row]:
            reason += (
                "; its calls alone are not enough, since its address may be held elsewhere"
            )
        self.refusals.append(Refusal(name, int(functions.addr[row]), reason))

    def _entry(self, row: int) -> int:
        addr = int(self.functions.addr[row])
        marked = self.text.bytes(addr, 4) == decode.ENDBR64
        return addr + len(decode.ENDBR64) if marked else addr

    def _padding(self, row: int) -> tuple[int, int]:
        """Return where the filler behind a function begins and ends."""
        start = int(self.functions.addr[row] + self.functions.size[row])
        end = min(int(self.functions.next_addr[row]), start + decode.SHORT_REACH)
        code = self.text.bytes(start, max(end - start, 0))
        return start, start + decode.padding_size(code)

    def _at_entry(self, row: int) -> _Write | str:
        """Return the long jump at a function's entry, or why it is not possible."""
        entry, stub = self._entry(row), int(self.functions.stub_addr[row])
        end = int(self.functions.addr[row] + self.functions.size[row])
        size = decode.JUMP_SIZE
        new = decode.jump(entry, stub)
        if new is None:
            away = abs(stub - entry) / 2**30
            return f"its stub at {stub:#x} is {away:.1f} GiB away, a jump reaches 2 GiB"
        padding, padded = self._padding(row)
        if entry + size > max(end, padded):
            return f"its {max(end, padded) - entry} bytes are too short for a jump of {size}"
        landing = self.text.landing(entry, size)
        if landing is not None:
            after, to = landing
            where = f"lands at {to:#x}, inside the jump of {size} bytes"
            return f"the branch before {after:#x} {where}"
        head = self.text.bytes(entry, size + decode.LONGEST)
        call = decode.call_end_inside(head, 0, size)
        if call is not None:
            return f"a call returns to {entry + call:#x}, inside the jump of {size} bytes"
        if entry + size > end:
            self.taken[padding] = entry + size
        return _Write(entry, head[:size], new, Way.ENTRY, row)

    def _through_hole(self, row: int) -> list[_Write] | None:
        """Return a short jump at the entry and the long one in padding near by."""
        entry, size = self._entry(row), decode.SHORT_JUMP_SIZE
        end = int(self.functions.addr[row] + self.functions.size[row])
        if entry + size > max(end, self._padding(row)[1]) or self.text.landing(entry, size):
            return None
        if entry + size > end:
            self.taken[end] = max(self.taken.get(end, 0), entry + size)
        for other in self._neighbours(entry):
            start, last = self._padding(other)
            hole = self.taken.get(start, start)
            near = decode.short_jump(entry, hole)
            far = decode.jump(hole, int(self.functions.stub_addr[row]))
            if near is None or far is None or hole + decode.JUMP_SIZE > last:
                continue
            # a branch to the hole itself counts as well, real or not: there is other padding
            if self.text.landing(hole - 1, decode.JUMP_SIZE + 1, exact=False):
                continue
            self.taken[start] = hole + decode.JUMP_SIZE
            return [
                _Write(hole, self.text.bytes(hole, len(far)), far, Way.HOLE, row),
                _Write(entry, self.text.bytes(entry, size), near, Way.SHORT, row),
            ]
        return None

    def _neighbours(self, entry: int) -> list[int]:
        """Return the functions whose end is near enough for a short jump to what follows."""
        ends = (self.functions.addr + self.functions.size).astype(np.int64)
        near: I64 = np.flatnonzero(np.abs(ends - entry) <= 2 * decode.SHORT_REACH)
        return near[np.argsort(np.abs(ends[near] - entry), kind="stable")].tolist()

    def _through_calls(self, row: int) -> list[_Write] | None:
        """Return the writes that send each known call of a function to its stub.

        There may be none: nobody calls it any more, or only bytes that a jump replaces.
        """
        sites = self.call_sites
        if sites is None or self.functions.address_taken[row]:
            return None
        fields = sites.addr[sites.function == row].tolist()
        writes: list[_Write] = []
        for field in fields:
            old = self.read(Addr(field), 4).tobytes()
            leads_to = field + 4 + int.from_bytes(old, "little", signed=True)
            new = decode.jump(field - 1, int(self.functions.stub_addr[row]))
            if new is None or leads_to != int(self.functions.addr[row]):
                return None
            writes.append(_Write(field, old, new[1:], Way.CALL, row))
        return writes
