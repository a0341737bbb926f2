"""The slot table's books: one slot a function, whatever its home."""

import pytest

from stubs.table import RESERVED, SlotKey, SlotTable, SlotTableFullError

HOME, OTHER = ("/a.o", ""), ("/lib.a", "b.o")


def test_a_name_has_a_slot_in_each_home_and_keeps_it() -> None:
    table = SlotTable(100)
    first = table.take_names(HOME, [b"f", b"g", b"f"], [1, 2, 3])
    assert first.tolist() == [RESERVED, RESERVED + 1, RESERVED]
    assert table.original[RESERVED:] == [1, 2]
    assert table.take_names(OTHER, [b"g"], [0]).tolist() == [RESERVED + 2]
    again = table.take_names(HOME, [b"h", b"g"], [7, 8])
    assert again.tolist() == [RESERVED + 3, RESERVED + 1]
    assert table.original[RESERVED:] == [1, 2, 0, 7]
    assert table.slot_of(SlotKey(*OTHER, b"g")) == RESERVED + 2
    assert list(table.functions(RESERVED + 2)) == [
        (RESERVED + 2, SlotKey(*OTHER, b"g"), 0),
        (RESERVED + 3, SlotKey(*HOME, b"h"), 7),
    ]


def test_a_table_without_room_for_all_names_stays_as_it_was() -> None:
    table = SlotTable(RESERVED + 2)
    with pytest.raises(SlotTableFullError, match="19 functions need a stub"):
        table.take_names(HOME, [b"f", b"g", b"h"], [0, 0, 0])
    assert len(table) == RESERVED
    assert not table.rows
    assert table.take_names(HOME, [b"f", b"g"], [0, 0]).tolist() == [RESERVED, RESERVED + 1]


def test_slots_of_a_reload_that_failed_are_forgotten() -> None:
    table = SlotTable(100)
    table.take_names(HOME, [b"f"], [0])
    table.take([SlotKey(*HOME, b"g"), SlotKey("", "", b"g")], [5, 6])
    table.truncate(RESERVED + 1)
    assert table.slot_of(SlotKey(*HOME, b"g")) is None
    assert table.take_names(HOME, [b"g", b"f"], [0, 0]).tolist() == [RESERVED + 1, RESERVED]
