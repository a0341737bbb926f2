"""The arena's books: what is taken, what goes back, what a freed page shows."""

import os
from itertools import pairwise

import numpy as np
import pytest

from reloader.arch.x86_64 import X86_64
from reloader.errors.live import ArenaFullError, ArenaRangeError
from reloader.ids import Region, SlotId
from reloader.live.arena import TRAP, TRAPPED_PAGES, MappedArena, map_file
from reloader.live.fake import fake_windows
from stubs import layout


@pytest.fixture
def arena() -> MappedArena:
    windows = fake_windows()
    size = max(window.file_offset + window.size for window in windows)
    fd = os.memfd_create("reloader-test")
    os.ftruncate(fd, size)
    return MappedArena(map_file(fd, size), windows, fd)


def blocks(arena: MappedArena) -> int:
    return os.fstat(arena.fd).st_blocks * 512


def test_fresh_code_is_traps_and_fresh_data_is_zero(arena: MappedArena) -> None:
    code, data = arena.allocate(Region.CODE, 5000), arena.allocate(Region.DATA, 10)
    assert (code.size, data.size) == (8192, 4096)
    assert (arena.view(code.addr, code.size) == TRAP).all()
    assert not arena.view(data.addr, data.size).any()


def test_first_fit_reuses_freed_pages(arena: MappedArena) -> None:
    first, second, _ = (arena.allocate(Region.DATA, 4096) for _ in range(3))
    arena.view(second.addr, 8)[:] = 7
    arena.free(second)
    assert arena.allocate(Region.DATA, 8192).addr > second.addr
    again = arena.allocate(Region.DATA, 4096)
    assert again.addr == second.addr
    assert not arena.view(again.addr, again.size).any()
    assert again.addr == first.addr + 4096


def test_freed_code_shows_traps_and_its_memory_goes_back(arena: MappedArena) -> None:
    before = blocks(arena)
    pieces = [arena.allocate(Region.CODE, 64 * 4096) for _ in range(8)]
    assert blocks(arena) - before == 8 * 64 * 4096
    arena.view(pieces[0].addr, 16)[:] = 0x90
    arena.free(pieces[0])
    assert (arena.view(pieces[0].addr, 4096) == TRAP).all()
    for piece in pieces[1:]:
        arena.free(piece)
    assert blocks(arena) - before <= TRAPPED_PAGES * 4096
    assert arena.used(Region.CODE) == 0


def test_many_allocations_are_neighbours_each_freed_by_itself(arena: MappedArena) -> None:
    wanted = [(Region.CODE if n % 2 else Region.DATA, 100 + n * 1000) for n in range(20)]
    held = arena.allocate_all(wanted)
    assert [(item.region, item.size) for item in held] == [
        (region, -(-size // 4096) * 4096) for region, size in wanted
    ]
    for region in (Region.CODE, Region.DATA):
        own = [item for item in held if item.region == region]
        assert all(a.addr + a.size == b.addr for a, b in pairwise(own))
    for item in held:
        filled = TRAP if item.region == Region.CODE else 0
        assert (arena.view(item.addr, item.size) == filled).all()
        arena.free(item)
    assert arena.used(Region.CODE) == arena.used(Region.DATA) == 0


@pytest.mark.parametrize("count", [3, 30])
def test_of_allocations_that_do_not_all_fit_none_is_taken(
    arena: MappedArena, count: int
) -> None:
    wanted = [(Region.DATA, 4096)] * count + [(Region.DATA, 4 << 20)]
    with pytest.raises(ArenaFullError):
        arena.allocate_all([(Region.CODE, 4096), *wanted])
    assert arena.used(Region.CODE) == arena.used(Region.DATA) == 0


def test_a_thousand_allocations_and_frees_leave_nothing(arena: MappedArena) -> None:
    before = blocks(arena)
    for _ in range(1000):
        held = [arena.allocate(region, 9000) for region in (Region.CODE, Region.DATA)]
        for allocation in held:
            arena.free(allocation)
    assert blocks(arena) - before <= (TRAPPED_PAGES + 8) * 4096


def test_a_full_region_is_refused_with_the_numbers(arena: MappedArena) -> None:
    arena.allocate(Region.DATA, 1 << 20)
    with pytest.raises(ArenaFullError) as refused:
        arena.allocate(Region.DATA, 4 << 20)
    assert str(refused.value) == (
        "the arena's data region has no 4194304 bytes in one piece: the largest hole is"
        " 3145728, 3145728 of 4194304 bytes are free. Nothing was changed. Unload objects that"
        " are no longer needed, or restart the program."
    )


def test_a_later_daemon_rebuilds_the_books_with_reserve(arena: MappedArena) -> None:
    held = [arena.allocate(Region.CODE, 4096), arena.allocate(Region.DATA, 12288)]
    later = MappedArena(arena.content, arena.windows, arena.fd)
    for allocation in held:
        later.reserve(allocation)
    for allocation in held:
        fresh = later.allocate(allocation.region, 4096)
        assert fresh.addr == allocation.addr + allocation.size


def test_freeing_twice_or_elsewhere_is_refused(arena: MappedArena) -> None:
    held = arena.allocate(Region.RODATA, 1)
    arena.free(held)
    with pytest.raises(ArenaRangeError):
        arena.free(held)
    with pytest.raises(ArenaRangeError):
        arena.view(held.addr - (1 << 40), 8)


def test_stubs_jump_through_their_slots_and_unused_ones_trap(arena: MappedArena) -> None:
    arena.write_stubs(X86_64(), 16, 18)
    arena.write_stubs(X86_64(), 18, 19)
    for slot in (16, 17, 18):
        stub = arena.view(arena.stub_addr(SlotId(slot)), 16).tobytes()
        assert stub.startswith(bytes.fromhex("f30f1efaff25"))
        reach = int.from_bytes(stub[6:10], "little", signed=True)
        assert arena.stub_addr(SlotId(slot)) + 10 + reach == arena.slot_addr(SlotId(slot))
    page = arena.view(arena.stub_addr(SlotId(0)), layout.PAGE)
    assert (page[: 16 * 16] == TRAP).all()
    assert (page[19 * 16 :] == TRAP).all()


def test_a_slot_is_one_aligned_word_of_the_file(arena: MappedArena) -> None:
    arena.slots[20] = np.uint64(0x1122334455667788)
    offset = arena.windows[layout.SLOTS].file_offset + 160
    assert os.pread(arena.fd, 8, offset) == bytes.fromhex("8877665544332211")
    assert (arena.slots.ctypes.data + 160) % 8 == 0
