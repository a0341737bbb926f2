"""Archive members that are read together are what each is when it is read alone."""

import subprocess
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from reloader.elf import batch
from reloader.elf.archive import Archive, read_archive
from reloader.elf.object import ObjectFile
from reloader.errors.objects import ObjectError
from reloader.ids import U8

PLAIN = """
int other{next}(int); static int twice(int n) {{ return 2 * n; }} int shared{n} = {n}, zero{n};
const char *name{n} = "member {n}"; __thread int mine{n};
int other{n}(int n) {{ return n ? other{next}(n - 1) + twice(shared{n}) : zero{n}; }}
"""
CPP = "template <int N> struct Box { static int get(int n) { return n * N; } };\n"


def compiled(folder: Path, name: str, text: str, *flags: str) -> Path:
    source, target = folder / name, (folder / name).with_suffix(".o")
    source.write_text(text)
    command = ["gcc", "-c", *flags, str(source), "-o", str(target)]
    subprocess.run(command, check=True)
    return target


def archived(folder: Path, objects: Sequence[Path]) -> Archive:
    path = folder / "libtest.a"
    command = ["ar", "rc", str(path), *map(str, objects)]
    subprocess.run(command, check=True)
    return read_archive(str(path), path.read_bytes())


def plain(folder: Path, count: int) -> list[Path]:
    """Return objects of which some have sections of their own, some debug information."""
    flags = (("-O2",), ("-O1", "-ffunction-sections", "-fdata-sections"), ("-g",))
    return [
        compiled(folder, f"m{n}.c", PLAIN.format(n=n, next=(n + 1) % count), *flags[n % 3])
        for n in range(count)
    ]


def assert_same(one: ObjectFile, other: ObjectFile) -> None:
    for field in fields(one):
        mine: Any = getattr(one, field.name)
        theirs: Any = getattr(other, field.name)
        if isinstance(mine, np.ndarray):
            assert np.array_equal(cast("Any", mine), theirs), field.name
        elif field.name not in {"fingerprint", "tables"}:
            assert mine == theirs, field.name
    assert one.digest == other.digest


def test_members_read_together_are_the_same_in_every_column(tmp_path: Path) -> None:
    objects = plain(tmp_path, 6)
    for n in range(3):  # COMDAT groups
        text = CPP + f"int use{n}(int n) {{ return Box<{n}>::get(n) + Box<7>::get(n); }}\n"
        objects.append(compiled(tmp_path, f"c{n}.cc", text, "-O0", "-g"))
    found = archived(tmp_path, objects)
    together = found.objects()
    assert [file.member for file in together] == [path.name for path in objects]
    assert any(file.group_signatures for file in together)
    for row, file in enumerate(together):
        assert_same(file, found.object(row))


def test_a_member_of_another_form_does_not_keep_the_others_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    objects = plain(tmp_path, 8)
    packed = PLAIN.format(n=9, next=0)
    objects.insert(3, compiled(tmp_path, "packed.c", packed, "-g", "-gz"))
    found = archived(tmp_path, objects)
    alone: list[str] = []
    read = batch.read_object

    def counted(path: str, data: U8, member: str, *, machine: int) -> ObjectFile:
        alone.append(member)
        return read(path, data, member, machine=machine)

    monkeypatch.setattr(batch, "read_object", counted)
    together = found.objects()
    assert "packed.o" in alone
    assert len(alone) < len(objects) / 2
    for row, file in enumerate(together):
        assert_same(file, found.object(row))


@pytest.mark.parametrize("at", [0, 5, 18, 40, 58, 60, 62])
def test_a_damaged_member_is_refused_as_if_it_were_alone(tmp_path: Path, at: int) -> None:
    found = archived(tmp_path, plain(tmp_path, 5))
    data = bytearray(found.data.tobytes())
    data[found.members[2].offset + at] ^= 0x7F
    damaged = read_archive(found.path, bytes(data))
    with pytest.raises(ObjectError) as alone:
        damaged.object(2)
    with pytest.raises(ObjectError) as together:
        damaged.objects()
    assert str(together.value) == str(alone.value)


def test_any_damaged_byte_of_the_tables_gives_what_single_reading_gives(
    tmp_path: Path,
) -> None:
    found = archived(tmp_path, plain(tmp_path, 4))
    member = found.members[1]
    header = int(found.data[member.offset + 40 : member.offset + 48].view("<u8")[0])
    places = range(member.offset + header, member.offset + member.size, 7)
    for place in places:
        data = bytearray(found.data.tobytes())
        data[place] ^= 0x95
        damaged = read_archive(found.path, bytes(data))
        one, other = (outcome(damaged, read) for read in (_alone, _together))
        if isinstance(one, str) or isinstance(other, str):
            assert one == other
        else:
            assert_same(one, other)


def _alone(archive: Archive) -> ObjectFile:
    return archive.object(1)


def _together(archive: Archive) -> ObjectFile:
    return archive.objects()[1]


def outcome(archive: Archive, read: Callable[[Archive], ObjectFile]) -> ObjectFile | str:
    """Return what was read, or why it was refused."""
    try:
        return read(archive)
    except ObjectError as error:
        return str(error)
