"""How much of a real program can be redirected, and whether the quick look is right."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from elftools.elf.elffile import ELFFile

from reloader.ids import U8, Addr
from reloader.live import decode
from reloader.live.redirect import OriginalFunctions, Places, Way, survey
from tests.support.programs import build_lua
from tests.support.redirect import functions

Read = Callable[[Addr, int], U8]


def file_reader(program: Path) -> Read:
    """Read the segments of a program file at their addresses, without a process."""
    with program.open("rb") as stream:
        parts = [
            (int(part["p_vaddr"]), np.frombuffer(part.data(), np.uint8))
            for part in ELFFile(stream).iter_segments("PT_LOAD")
        ]

    def read(addr: Addr, size: int) -> U8:
        base, data = next(row for row in parts if row[0] <= addr < row[0] + len(row[1]))
        return data[addr - base : addr - base + size].copy()

    return read


@pytest.fixture(scope="module", params=["pie", "nopie"])
def lua(request: pytest.FixtureRequest) -> tuple[OriginalFunctions, Read]:
    program = build_lua(request.param).executable
    table = functions(program, {})
    where = table.addr.min() + np.uint64(1 << 28)
    stubs = where + np.arange(len(table.addr), dtype=np.uint64) * np.uint64(16)
    return (
        OriginalFunctions(
            table.addr, table.size, table.name, stubs, table.next_addr, table.address_taken
        ),
        file_reader(program),
    )


def test_every_entry_of_lua_but_a_looping_one_takes_a_jump(
    lua: tuple[OriginalFunctions, Read],
) -> None:
    table, read = lua
    plan, refusals = survey(table, read)
    assert len(table.name) > 600
    assert (plan.way == Way.ENTRY).sum() > 0.98 * len(table.name)
    # it begins with a loop, and there is no padding within reach of a short jump
    assert {refusal.name for refusal in refusals} <= {"reallymarkobject"}
    ends = plan.addr + plan.size
    assert (plan.addr[1:] >= ends[:-1]).all()


def test_a_looping_entry_is_replaced_at_its_calls(lua: tuple[OriginalFunctions, Read]) -> None:
    table, read = lua
    row = table.name.index(b"reallymarkobject")
    fields = calls_of(table, read, int(table.addr[row]))
    assert len(fields) > 10
    sites = Places(np.array(fields, np.uint64), np.full(len(fields), row, np.int32))
    private = replace(table, address_taken=np.zeros(len(table.addr), np.bool_))
    plan, refusals = survey(private, read, sites)
    assert refusals == []
    ways = set(plan.way[plan.function == row].tolist())
    if Way.CALL in ways:
        assert plan.addr[plan.way == Way.CALL].tolist() == sorted(fields)
    else:
        assert ways == {Way.SHORT, Way.HOLE}


def calls_of(table: OriginalFunctions, read: Read, to: int) -> list[int]:
    """Return the fields of all branches to a function from other functions."""
    fields: list[int] = []
    for addr, size in zip(table.addr.tolist(), table.size.tolist(), strict=True):
        found, _ = decode.branches(read(Addr(addr), size).tobytes(), addr)
        fields += [end - 4 for end, target in found if target == to]
    return fields


def test_the_quick_look_finds_every_branch_that_decoding_finds(
    lua: tuple[OriginalFunctions, Read],
) -> None:
    table, read = lua
    decoded = 0
    for addr, size in zip(table.addr.tolist(), table.size.tolist(), strict=True):
        code = read(Addr(addr), size)
        found, end = decode.branches(code.tobytes(), addr)
        assert end == addr + size
        ends, targets = decode.raw_branches(code, addr)
        assert found <= set(zip(ends.tolist(), targets.tolist(), strict=True))
        decoded += len(found)
    assert decoded > 5_000
