"""is_complete on files caught in the middle of being written."""

import subprocess
from pathlib import Path

from reloader.elf.complete import is_complete
from tests.support.elf import compiled, replaced


def archive_of(folder: Path, *flags: str) -> bytes:
    """Return an archive of two objects."""
    for name in ("a", "b"):
        compiled(folder, f"int {name}(void) {{ return 1; }}")
        (folder / "unit.o").rename(folder / f"{name}.o")
    (folder / "lib.a").unlink(missing_ok=True)
    command = ["ar", f"rcs{''.join(flags)}", "lib.a", "a.o", "b.o"]
    subprocess.run(command, cwd=folder, check=True, capture_output=True)
    return (folder / "lib.a").read_bytes()


def test_every_cut_of_an_object_is_incomplete(tmp_path: Path) -> None:
    data = compiled(tmp_path, "int f(int x) { return x; }")
    assert is_complete(data)
    assert not any(is_complete(data[:size]) for size in range(len(data)))


def test_a_hole_where_the_header_will_be_is_incomplete(tmp_path: Path) -> None:
    data = compiled(tmp_path, "int x;")
    assert not is_complete(bytes(64) + data[64:])
    assert not is_complete(replaced(data, 0x28, 0, 8))


def test_every_cut_of_an_archive_inside_a_member_is_incomplete(tmp_path: Path) -> None:
    data = archive_of(tmp_path)
    assert is_complete(data)
    last = data.rindex(b"b.o/")
    assert not any(is_complete(data[:size]) for size in range(last + 1, len(data) - 1))
    assert not any(is_complete(data[:size]) for size in range(4))


def test_a_thin_archive_needs_no_member_bytes(tmp_path: Path) -> None:
    data = archive_of(tmp_path, "T")
    assert data.startswith(b"!<thin>\n")
    assert is_complete(data)
    assert not is_complete(data[:-30])


def test_what_is_finished_but_wrong_is_complete(tmp_path: Path) -> None:
    data = compiled(tmp_path, "int x;")
    assert is_complete(b"this is a text file")
    assert is_complete(replaced(data, 5, 2, 1))
    assert is_complete(replaced(data, 4, 1, 1))
    assert is_complete(archive_of(tmp_path).replace(b"`\n", b"??"))


def test_an_object_of_very_many_sections_is_checked_by_the_count_in_section_zero(
    tmp_path: Path,
) -> None:
    text = "\n".join(f'.section .t{i},"a"\n.byte 0' for i in range(0x10000))
    data = compiled(tmp_path, text, suffix=".s")
    assert int.from_bytes(data[0x3C:0x3E], "little") == 0
    assert is_complete(data)
    assert not is_complete(data[:-1])
