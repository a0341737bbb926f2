"""The same sentences hold for the real process and for the fake."""

from collections.abc import Generator
from dataclasses import dataclass

import numpy as np
import pytest

from reloader.errors.live import ArenaFullError, TargetGoneError, TargetMemoryError
from reloader.ids import Addr, Region, SlotId
from reloader.live.fake import FakeTarget
from reloader.live.inject import attach
from reloader.live.process import Process
from tests.support.live import compile_program, hear, running

pytestmark = pytest.mark.live


@dataclass
class Case:
    target: Process | FakeTarget
    variable: int  # a writable long that holds 41
    code: int  # four bytes that may only be written while stopped
    function: int  # labs
    name: bytes


def absolute(number: int) -> int:
    return abs(number)


def fake_case() -> Case:
    target = FakeTarget()
    target.add_memory(0x600000, (41).to_bytes(8, "little"))
    target.add_memory(0x400000, b"\x90\x90\x90\x90", "r-xp")
    target.names[b"labs"] = 0x700000
    target.functions[0x700000] = absolute
    return Case(target, 0x600000, 0x400000, 0x700000, b"labs")


@pytest.fixture(params=["real", "fake"])
def case(request: pytest.FixtureRequest) -> Generator[Case]:
    if request.param == "fake":
        yield fake_case()
        return
    with running([compile_program("worker")]) as child:
        words = hear(child).split()
        process = attach(child.pid)
        function = int(process.resolve([b"labs"])[0])
        yield Case(process, int(words[1], 16), int(words[2], 16), function, b"labs")
        process.close()


def test_memory_is_read_and_data_written(case: Case) -> None:
    assert case.target.read(case.variable, 8).tobytes() == (41).to_bytes(8, "little")
    case.target.write_data(case.variable, (43).to_bytes(8, "little"))
    assert case.target.read(case.variable, 8).view(np.uint64)[0] == 43


def test_unmapped_memory_is_an_error_with_address_and_size(case: Case) -> None:
    with pytest.raises(TargetMemoryError, match="cannot read 16 bytes at 0x20"):
        case.target.read(0x20, 16)
    with pytest.raises(TargetMemoryError, match="cannot write 1 bytes"):
        case.target.write_data(case.code, b"\x90")


def test_code_is_written_only_while_all_threads_stand_still(case: Case) -> None:
    with case.target.stop() as stop:
        assert len(stop.tids) == len(stop.registers) >= 1
        assert stop.registers.shape[1] == 27
        assert len(stop.program_counters()) >= len(stop.tids)
        stop.write(Addr(case.code), b"\xf3\x0f\x1e\xfa")
    assert case.target.read(case.code, 4).tobytes() == b"\xf3\x0f\x1e\xfa"
    assert case.target.last_stop_us > 0


def test_names_resolve_and_functions_are_called(case: Case) -> None:
    found = case.target.resolve([case.name, b"no_such_name"])
    assert found.tolist() == [case.function, 0]
    assert case.target.call(case.function, -7) == 7
    case.target.synchronise()


def test_arena_bytes_are_seen_by_the_target(case: Case) -> None:
    arena = case.target.arena
    held = arena.allocate(Region.RODATA, 100)
    arena.view(held.addr, 3)[:] = (1, 2, 3)
    assert case.target.read(held.addr, 3).tolist() == [1, 2, 3]
    case.target.discard([held])
    arena.free(held)
    assert arena.allocate(Region.RODATA, 100).addr == held.addr
    with pytest.raises(ArenaFullError):
        arena.allocate(Region.DATA, 1 << 40)
    assert arena.slot_addr(SlotId(3)) - arena.slot_addr(SlotId(0)) == 24


def test_mappings_are_in_address_order(case: Case) -> None:
    rows = case.target.maps()
    assert rows == sorted(rows, key=lambda row: row.start)
    assert any(row.start <= case.variable < row.end for row in rows)


def test_a_fake_fails_from_the_chosen_operation_on() -> None:
    case = fake_case()
    case.target.read(case.variable, 8)
    assert isinstance(case.target, FakeTarget)
    case.target.fail_at = 2
    with pytest.raises(TargetGoneError):
        case.target.maps()
    with pytest.raises(TargetGoneError):
        case.target.read(case.variable, 8)
    assert case.target.operations == ["read", "maps", "read"]
