"""Versions that share their tables: read, built and compared as if they were read anew."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from reloader.elf.alike import alike, of_equal_tables, of_tables
from reloader.elf.object import ObjectFile
from reloader.elf.read import read_object
from reloader.link.cache import Cache, copied
from reloader.link.graph import LinkGraph
from reloader.link.pipeline import built, read_graph
from reloader.link.renew import renewed
from tests.support.link import ARCH, compile_object

TEXT = """
#include <stdio.h>
static const int table[4] = {1, 2, 3, 4};
static int count = 7;
double half(double x) { return x * 0.5; }
int used(int n) { count += n; return table[n & 3] * 1000; }
int shown(int n) { switch (n) { case 0: return used(1); case 1: return 17; case 2: return 3;
    case 3: puts("three"); return 5; case 4: return count; } return (int)half(n); }
"""
HIDDEN = (
    TEXT
    + "static int inner(int n) { return n + 77; }\nint (*given(void))(int) { return inner; }"
)
ALIKE = {
    "a number": ("* 1000", "* 1001"),
    "a constant": ("3, 4}", "3, 5}"),
    "an initial value": ("count = 7", "count = 8"),
    "a letter of a text": ('"three"', '"throe"'),
    "a floating-point constant": ("0.5", "0.7"),
}
OTHERS = {
    "a longer function": ("* 1000", "* n * 1000 + n"),
    "another symbol": ("puts(", "perror("),
    "a longer text": ('"three"', '"three of them"'),
    "a moved line": ("double half", "\n\ndouble half"),
}
FLAGS = [("-O2",), ("-O0", "-g"), ("-O2", "-ffunction-sections"), ("-O2", "-fno-pie")]


def versions(
    folder: Path, edit: tuple[str, str], *flags: str, text: str = TEXT
) -> tuple[ObjectFile, ObjectFile]:
    old, new = (
        compile_object(folder, "part.c", version, *flags)
        for version in (text, text.replace(*edit))
    )
    assert old.digest != new.digest
    return old, new


def columns(table: object) -> dict[str, np.ndarray[tuple[int, ...], np.dtype[np.generic]]]:
    names = getattr(table, "__dataclass_fields__", {})
    found = {name: getattr(table, name) for name in names}
    return {name: value for name, value in found.items() if isinstance(value, np.ndarray)}


def assert_equal(one: LinkGraph, other: LinkGraph) -> None:
    assert one.symbols.name == other.symbols.name
    assert (one.content == other.content).all()
    for left, right in zip(
        (one.blocks, one.symbols, one.edges), (other.blocks, other.symbols, other.edges),
        strict=True,
    ):  # fmt: skip
        for name, column in columns(left).items():
            assert np.array_equal(column, columns(right)[name]), name


@pytest.mark.parametrize("flags", FLAGS, ids=" ".join)
@pytest.mark.parametrize("edit", ALIKE.values(), ids=ALIKE)
def test_a_version_with_other_bytes_in_loaded_sections_is_what_reading_it_gives(
    tmp_path: Path, edit: tuple[str, str], flags: tuple[str, ...]
) -> None:
    old, new = versions(tmp_path, edit, *flags)
    found = alike(old, new.data)
    assert found is not None
    assert found.tables is old.tables is not new.tables
    assert (found.key, found.digest, found.section_names) == (
        new.key, new.digest, new.section_names,
    )  # fmt: skip
    assert (found.symbol_names, found.group_signatures) == (
        new.symbol_names, new.group_signatures,
    )  # fmt: skip
    for name, column in columns(new).items():
        assert np.array_equal(getattr(found, name), column), name
    graph = renewed(built([old], ARCH), found, ARCH)
    assert graph is not None
    assert graph.objects == [found]
    assert_equal(graph, built([new], ARCH))


@pytest.mark.parametrize("edit", OTHERS.values(), ids=OTHERS)
def test_a_version_whose_tables_or_debug_information_differ_is_not_alike(
    tmp_path: Path, edit: tuple[str, str]
) -> None:
    old, new = versions(tmp_path, edit, "-O2", "-g")
    assert alike(old, new.data) is None


def test_code_that_takes_a_function_without_a_relocation_is_marked_anew(
    tmp_path: Path,
) -> None:
    old, new = versions(tmp_path, ("* 1000", "* 1001"), "-O2", text=HIDDEN)
    found = alike(old, new.data)
    assert found is not None
    assert renewed(built([old], ARCH), found, ARCH) is None
    cache = Cache()
    read_graph([old], [None], ARCH, cache)
    assert_equal(read_graph([found], [None], ARCH, cache), built([new], ARCH))


def test_any_changed_byte_of_code_gives_the_graph_of_reading_it_anew_or_none(
    tmp_path: Path,
) -> None:
    old = compile_object(tmp_path, "part.c", HIDDEN.replace("inner; }", "used; }"), "-O2")
    section = old.section_names.index(b".text")
    start, size = (int(old.sections[section][name]) for name in ("sh_offset", "sh_size"))
    graph, kept = built([old], ARCH), 0
    chosen = np.random.default_rng(7)
    for at in range(start, start + size):
        data = old.data.copy()
        data[at] = chosen.choice([0x8D, 0x05, 0xE8, 0xE9, 0x0F, 0x48, int(data[at]) ^ 1])
        data.flags.writeable = False
        found = alike(old, data)
        assert found is not None
        again = renewed(copied(graph), found, ARCH)
        if again is not None:
            kept += 1
            assert_equal(again, built([read_object(old.path, data)], ARCH))
    assert kept > size / 2


def test_an_object_in_which_a_table_lies_in_a_loaded_section_has_no_alike_version(
    tmp_path: Path,
) -> None:
    old = compile_object(tmp_path, "part.c", TEXT, "-O2")
    data = old.data.copy()
    text, symtab = (old.section_names.index(name) for name in (b".text", b".symtab"))
    start = int(old.sections[symtab]["sh_offset"])
    headers = int(data[40:48].view("<u8")[0])
    data[headers + 64 * text + 24 :][:8] = np.array([start], "<u8").view(np.uint8)
    data.flags.writeable = False
    odd = read_object(old.path, data)
    changed = data.copy()
    changed[start + 16] ^= 1
    changed.flags.writeable = False
    assert alike(odd, changed) is None


def test_the_cache_makes_the_graph_of_an_alike_version_and_stays_small(tmp_path: Path) -> None:
    cache, count = Cache(), 0

    def build(files: Sequence[ObjectFile]) -> LinkGraph:
        nonlocal count
        count += 1
        return built(files, ARCH)

    last = compile_object(tmp_path, "part.c", TEXT, "-O2")
    cache.graph([last], ARCH, build, partial(renewed, arch=ARCH))
    for number in range(20):
        text = TEXT.replace("* 1000", f"* {2000 + number}")
        new = compile_object(tmp_path, "part.c", text, "-O2")
        found = alike(last, new.data)
        assert found is not None
        graph = cache.graph([found], ARCH, build, partial(renewed, arch=ARCH))
        assert_equal(graph, built([new], ARCH))
        last = found
    assert count == 1
    assert len(cache.kept) <= cache.most_versions
    assert cache.size == sum(entry.size for entry in cache.kept.values())


def test_what_is_kept_with_tables_is_worked_out_once_for_all_alike_versions(
    tmp_path: Path,
) -> None:
    old, new = versions(tmp_path, ("* 1000", "* 1001"), "-O2")
    twin = alike(old, new.data)
    assert twin is not None
    asked: list[ObjectFile] = []

    @of_tables
    def count(file: ObjectFile, more: int) -> int:
        asked.append(file)
        return len(file.symbols) + more

    assert count(old, 1) == count(twin, 1) == count(new, 1)
    assert asked == [old, new]

    class Version:
        def __init__(self, file: ObjectFile) -> None:
            self.file = file

    pairs: list[tuple[ObjectFile, ObjectFile]] = []

    @of_equal_tables
    def pair(one: Version, other: Version) -> int:
        pairs.append((one.file, other.file))
        return len(pairs)

    assert pair(Version(old), Version(twin)) == pair(Version(twin), Version(old)) == 1
    assert pair(Version(old), Version(new)) == 2
    assert pair(Version(old), Version(new)) == 3
