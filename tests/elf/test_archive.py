"""Archives as GNU ar writes them, by hand as BSD's does, and broken ones."""

import struct
import subprocess
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from reloader.elf.archive import Archive, read_archive
from reloader.errors.base import ReloaderError
from reloader.errors.objects import ObjectError
from tests.support.elf import compiled, replaced

TAIL = " Nothing was changed. "
AGAIN = "Make the archive again (`ar rcs`)."
RANLIB = "Make the index again (`ranlib`)."
LONG = "a_member_with_a_rather_long_name.o"


def objects(folder: Path, *names: str) -> list[str]:
    """Compile one object a name, each with a function `f_NAME` and an undefined `g`."""
    made: list[str] = []
    for name in names:
        symbol = name.removesuffix(".o").rpartition("/")[2]
        compiled(folder, f"int g(void); int f_{symbol}(void) {{ return g(); }}")
        target = folder / name
        target.parent.mkdir(exist_ok=True)
        (folder / "unit.o").rename(target)
        made.append(name)
    return made


def archived(folder: Path, options: str, *names: str) -> Archive:
    """Make an archive of objects with GNU ar and read it."""
    path = folder / "lib.a"
    path.unlink(missing_ok=True)
    command = ["ar", options, "lib.a", *names]
    subprocess.run(command, cwd=folder, check=True, capture_output=True)
    return read_archive(str(path), path.read_bytes())


def header(name: bytes, size: int) -> bytes:
    """Return a member header."""
    fields = (name, b"0", b"0", b"0", b"644", b"%d" % size)
    widths = (16, 12, 6, 6, 8, 10)
    return b"".join(f.ljust(w) for f, w in zip(fields, widths, strict=True)) + b"`\n"


def text_of(data: bytes) -> str:
    """Return the whole text of the refusal."""
    with pytest.raises(ObjectError) as caught:
        read_archive("/p/lib.a", data)
    return str(caught.value)


def test_members_and_index_agree_with_ar_and_nm(tmp_path: Path) -> None:
    names = objects(tmp_path, "a.o", LONG, "b.o")
    found = archived(tmp_path, "rcs", *names)
    assert [member.name for member in found.members] == names
    by_symbol = {name: found.members[row].name for name, row in found.symbols.items()}
    assert by_symbol == {
        b"f_a": "a.o",
        b"f_b": "b.o",
        b"f_a_member_with_a_rather_long_name": LONG,
    }
    assert found.row_of_name[LONG] == 1
    for row, name in enumerate(names):
        assert found.content(row).tobytes() == (tmp_path / name).read_bytes()


def test_a_member_is_an_object_with_its_own_identity(tmp_path: Path) -> None:
    found = archived(tmp_path, "rcs", *objects(tmp_path, "a.o", "b.o"))
    member = found.object(1)
    assert member.key == (str(tmp_path / "lib.a"), "b.o")
    assert b"f_b" in member.symbol_names


def test_two_members_of_one_name_are_told_apart(tmp_path: Path) -> None:
    names = objects(tmp_path, "x/util.o", "y/util.o")
    found = archived(tmp_path, "qcs", *names)
    assert [member.name for member in found.members] == ["util.o", "util.o:2"]
    assert found.object(1).name.endswith("lib.a(util.o:2)")
    assert found.content(1).tobytes() == (tmp_path / "y/util.o").read_bytes()


def test_a_thin_archive_reads_its_members_beside_it(tmp_path: Path) -> None:
    names = objects(tmp_path, "a.o", "sub/inner.o")
    found = archived(tmp_path, "rcsT", *names)
    assert found.data[:8].tobytes() == b"!<thin>\n"
    assert [member.name for member in found.members] == names
    assert b"f_inner" in found.object(1).symbol_names
    assert found.members[found.symbols[b"f_inner"]].name == "sub/inner.o"


def test_a_thin_archive_of_an_archive_reaches_the_inner_members(tmp_path: Path) -> None:
    names = objects(tmp_path, "a.o", "b.o")
    archived(tmp_path, "rcs", *names)
    (tmp_path / "lib.a").rename(tmp_path / "inner.a")
    found = archived(tmp_path, "rcsT", "inner.a")
    symbols = {name for row in range(2) for name in found.object(row).symbol_names}
    assert len(found.members) == 2
    assert {b"f_a", b"f_b"} <= symbols


def test_a_lost_member_of_a_thin_archive_is_named(tmp_path: Path) -> None:
    found = archived(tmp_path, "rcsT", *objects(tmp_path, "a.o"))
    (tmp_path / "a.o").unlink()
    with pytest.raises(ObjectError) as caught:
        found.object(0)
    member = f"the thin archive's member {tmp_path / 'a.o'}"
    lost = f"{member} cannot be read: No such file or directory"
    assert str(caught.value) == f"{tmp_path / 'lib.a'}: {lost}.{TAIL}{AGAIN}"


def test_an_archive_without_an_index_gets_one_from_its_members(tmp_path: Path) -> None:
    names = objects(tmp_path, "a.o", "b.o")
    (tmp_path / "notes.txt").write_text("no object")
    found = archived(tmp_path, "rcS", "notes.txt", *names)
    assert [member.name for member in found.members] == ["notes.txt", *names]
    assert found.symbols == {b"f_a": 1, b"f_b": 2}


def test_an_empty_archive_has_no_members() -> None:
    assert read_archive("/p/lib.a", b"!<arch>\n").members == []


def test_the_first_member_that_defines_a_name_counts() -> None:
    members = header(b"a.o/", 2) + b"AA" + header(b"b.o/", 2) + b"BB"
    names = b"same\0same\0"
    body = struct.pack(">III", 2, 90, 90 + 62) + names
    data = b"!<arch>\n" + header(b"/", len(body)) + body + members
    assert 8 + 60 + len(body) == 90
    assert read_archive("/p/lib.a", data).symbols == {b"same": 0}


def test_the_64_bit_index_is_read() -> None:
    body = struct.pack(">QQ", 1, 8 + 60 + 18) + b"f\0"
    data = b"!<arch>\n" + header(b"/SYM64/", len(body)) + body + header(b"a.o/", 1) + b"A\n"
    found = read_archive("/p/lib.a", data)
    assert found.symbols == {b"f": 0}
    assert found.content(0).tobytes() == b"A"


def test_bsd_names_and_index_are_read() -> None:
    index_name, member_name = (
        b"__.SYMDEF SORTED".ljust(20, b"\0"),
        b"member with spaces.o".ljust(24, b"\0"),
    )
    at = 8 + 60 + len(index_name) + 4 + 8 + 4 + 4
    body = index_name + struct.pack("<IIII", 8, 0, at, 4) + b"_f\0\0"
    member = member_name + b"DATA"
    data = (
        b"!<arch>\n"
        + header(b"#1/20", len(body))
        + body
        + header(b"#1/24", len(member))
        + member
    )
    found = read_archive("/p/lib.a", data)
    assert [one.name for one in found.members] == ["member with spaces.o"]
    assert found.symbols == {b"_f": 0}
    assert found.content(0).tobytes() == b"DATA"


def test_a_thousand_members_are_found_by_their_symbols(tmp_path: Path) -> None:
    (first,) = objects(tmp_path, "a.o")
    data = (tmp_path / first).read_bytes()
    for row in range(1000):
        (tmp_path / f"m{row}.o").write_bytes(data.replace(b"f_a\0", b"%03d\0" % row))
    found = archived(tmp_path, "rcs", *(f"m{row}.o" for row in range(1000)))
    assert len(found.members) == len(found.symbols) == 1000
    assert found.members[found.symbols[b"777"]].name == "m777.o"


def test_what_is_no_archive_is_named() -> None:
    assert text_of(b"").startswith("/p/lib.a: the file is empty.")
    assert text_of(b"\x7fELF1234").startswith("/p/lib.a: the file begins with 7f 45 4c 46,")


def test_a_member_past_the_end_names_both_ends() -> None:
    data = b"!<arch>\n" + header(b"a.o/", 500) + b"short"
    expected = "the member at 0x8 ends at byte 0x238, but the file ends at 0x49."
    hint = "It was cut short or is still being written: build it again."
    assert text_of(data) == f"/p/lib.a: {expected}{TAIL}{hint}"


def test_a_cut_header_is_truncated() -> None:
    data = b"!<arch>\n" + header(b"a.o/", 0)[:30]
    assert "a member header ends at byte 0x44, but the file ends at 0x26." in text_of(data)


def test_a_header_without_its_end_mark_is_refused() -> None:
    data = b"!<arch>\n" + header(b"a.o/", 0)[:-2] + b"??"
    expected = "/p/lib.a at byte 0x8: a member header ends with 3f 3f instead of 60 0a."
    assert text_of(data) == f"{expected}{TAIL}{AGAIN}"


def test_a_size_that_is_no_number_is_refused() -> None:
    data = b"!<arch>\n" + header(b"a.o/", 0).replace(b"0         `\n", b"-5        `\n")
    expected = "/p/lib.a at byte 0x8: a member's size is b'-5', not a number."
    assert text_of(data) == f"{expected}{TAIL}{AGAIN}"


def test_a_long_name_outside_the_name_table_is_refused() -> None:
    data = b"!<arch>\n" + header(b"//", 4) + b"x.o/" + header(b"/90", 0)
    expected = "the member name b'/90' is not in a name table of 4 bytes."
    assert text_of(data) == f"/p/lib.a at byte 0x48: {expected}{TAIL}{AGAIN}"


def test_a_bsd_name_longer_than_its_member_is_refused() -> None:
    data = b"!<arch>\n" + header(b"#1/40", 4) + b"abcd"
    expected = "a member's name takes 40 bytes of its 4."
    assert text_of(data) == f"/p/lib.a at byte 0x8: {expected}{TAIL}{AGAIN}"


def test_an_index_that_points_at_no_member_is_refused() -> None:
    body = struct.pack(">II", 1, 1234) + b"f\0"
    data = b"!<arch>\n" + header(b"/", len(body)) + body
    expected = "/p/lib.a: its symbol index points at byte 0x4d2, where no member begins."
    assert text_of(data) == f"{expected}{TAIL}{RANLIB}"


def test_an_index_with_too_great_a_count_is_refused() -> None:
    body = struct.pack(">II", 1000, 1234) + b"f\0"
    data = b"!<arch>\n" + header(b"/", len(body)) + body
    expected = "its symbol index has 10 bytes where 1000 entries need 4004."
    assert text_of(data) == f"/p/lib.a: {expected}{TAIL}{RANLIB}"


def test_an_index_with_too_few_names_is_refused() -> None:
    body = struct.pack(">III", 2, 8, 8) + b"f\0"
    data = b"!<arch>\n" + header(b"/", len(body)) + body
    expected = "/p/lib.a: its symbol index has 1 names for 2 entries."
    assert text_of(data) == f"{expected}{TAIL}{RANLIB}"


def test_broken_bsd_indices_are_refused() -> None:
    def indexed(body: bytes) -> bytes:
        return b"!<arch>\n" + header(b"__.SYMDEF", len(body)) + body

    expected = "/p/lib.a: its symbol index has 8 bytes and announces a table of 800."
    assert text_of(indexed(struct.pack("<II", 800, 0))) == f"{expected}{TAIL}{RANLIB}"
    endless = indexed(struct.pack("<IIII", 8, 0, 0, 4) + b"abcd")
    assert "a name of its symbol index has no end." in text_of(endless)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    folder = tmp_path_factory.mktemp("archive")
    found = archived(folder, "rcs", *objects(folder, "a.o", LONG))
    return found.data.tobytes()


@settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    edits=st.lists(
        st.tuples(st.integers(0, 2**16), st.integers(0, 255)), min_size=1, max_size=8
    ),
    first=st.integers(0, 200),
    cut=st.integers(0, 2**16),
)
def test_changed_bytes_never_raise_anything_but_our_own_errors(
    data: bytes, edits: list[tuple[int, int]], first: int, cut: int
) -> None:
    changed = replaced(data, 8 + first % 200, edits[0][1], 1)
    for at, value in edits:
        changed = replaced(changed, at % len(data), value, 1)
    for bad in (changed, changed[: cut % len(data)]):
        assert is_read_or_refused(bad)


def is_read_or_refused(data: bytes) -> bool:
    """Return whether all members are read, or refused with a whole text."""
    try:
        found = read_archive("/p/lib.a", data)
        for row in range(len(found.members)):
            found.object(row)
    except ReloaderError as error:
        return "Nothing was changed." in str(error)
    return True
