"""Versions that come back: found by their bytes, equal to what reading them anew gives."""

import re
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import fields, is_dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from numpy.typing import NDArray

from reloader.elf.object import ObjectFile
from reloader.elf.read import read_object
from reloader.link.cache import Cache, bytes_of, copied
from reloader.link.graph import LinkGraph
from reloader.link.pipeline import built, link_graph, mark_first_load
from reloader.live.inputs import members, read_files
from reloader.session.outcome import Outcome
from reloader.session.session import Session
from tests.support.link import ARCH, FakeArena, Names, compile_object, link_setting
from tests.support.road import MAIN, Program, attached, reload

COUNTER = """
#include <stdio.h>
int outside(int);
static const char *const names[2] = {"zero", "one"};
static int count = 40;
int shared;
__attribute__((noinline)) static int step(int n) { return n + 1; }
static int (*registered)(int) = step;
int answer(int n)
{
    static int calls;
    calls++;
    shared += n;
    count += registered == step ? step(n) : 0;
    switch (n & 7) {
    case 1: return count; case 2: return names[1][0]; case 3: return n * 77; case 4: return 9;
    case 5: return outside(n); default: return count * 10 + calls;
    }
}
"""
OUTSIDE = "int outside(int n) { return n * 3; }"
VERSIONS = (
    COUNTER,
    COUNTER.replace("count * 10", "count * 100"),
    COUNTER.replace("return 9;", "return names[0][1] + shared;").replace("n + 1", "n + 2"),
    COUNTER.replace("int shared;", "int shared; static int added = 5;").replace(
        "return 9;", "return ++added;"
    ),
)


def run(*command: str | Path) -> None:
    subprocess.run(command, check=True, capture_output=True)


def columns_of(table: Any) -> Iterator[Any]:  # noqa: ANN401 - any table
    """Yield every array and list of a table, and what else it holds, in order."""
    if isinstance(table, list):
        yield cast("list[Any]", table)
        yield from (c for c in cast("list[Any]", table) if isinstance(c, np.ndarray))
    elif is_dataclass(table) and not isinstance(table, ObjectFile):
        for field in fields(table):
            if field.name != "named":  # filled as it is asked, from columns that are compared
                yield from columns_of(getattr(table, field.name))
    else:
        yield table


def equal(one: LinkGraph, other: LinkGraph) -> bool:
    """Return whether two graphs agree in every column."""
    mine, theirs = list(columns_of(one)), list(columns_of(other))
    return len(mine) == len(theirs) and all(map(same, mine, theirs))


def same(one: Any, other: Any) -> bool:  # noqa: ANN401 - an array, or a list of anything
    if isinstance(one, np.ndarray):
        return bool(np.array_equal(cast("Any", one), other))
    if isinstance(one, list) and cast("list[Any]", one) and isinstance(one[0], np.ndarray):
        return True  # its arrays come by themselves
    return one == other


def arrays_of(table: object) -> list[NDArray[Any]]:
    found: list[Any] = [c for c in columns_of(table) if isinstance(c, np.ndarray)]
    return found


def test_the_same_bytes_are_the_same_object(tmp_path: Path) -> None:
    file = compile_object(tmp_path, "counter.c", COUNTER, "-O2")
    data = file.data.tobytes()
    cache = Cache()
    cache.keep(file)
    assert cache.read(file.path, data) is file
    assert cache.read(file.path, data, "member.o") is not file
    assert cache.read("other.o", data) is not file
    other = compile_object(tmp_path, "counter.c", VERSIONS[1], "-O2")
    assert cache.read(file.path, other.data.tobytes()).digest == other.digest


@pytest.mark.parametrize("flags", [("-O2",), ("-O0", "-g"), ("-O2", "-ffunction-sections")])
def test_a_graph_that_comes_back_equals_one_that_is_built(
    tmp_path: Path, flags: Sequence[str]
) -> None:
    cache, build = Cache(), partial(built, arch=ARCH)
    for text in VERSIONS:
        file = compile_object(tmp_path, "counter.c", text, *flags)
        fresh = build([file])
        for _ in range(3):  # the first is built, the others are copies; each is linked
            graph = cache.graph([file], ARCH, build)
            assert equal(graph, fresh)
            mark_first_load(graph)
            names = Names({b"outside": 0x1000_0000})
            link_graph(graph, link_setting(FakeArena(), [None], names))
            assert not equal(graph, fresh)


def test_a_copy_shares_no_column(tmp_path: Path) -> None:
    file = compile_object(tmp_path, "counter.c", COUNTER, "-O2")
    graph = built([file], ARCH)
    twin = copied(graph)
    assert equal(twin, graph)
    assert twin.objects[0] is file
    pairs = list(zip(arrays_of(graph), arrays_of(twin), strict=True))
    assert len(pairs) > 30
    assert not any(np.shares_memory(one, other) for one, other in pairs)
    assert twin.symbols.name is not graph.symbols.name
    assert twin.block_of_section is not graph.block_of_section


def test_the_oldest_versions_go_first(tmp_path: Path) -> None:
    cache, build = Cache(most_versions=2), partial(built, arch=ARCH)
    files = [compile_object(tmp_path, "counter.c", text, "-O2") for text in VERSIONS[:3]]
    other = compile_object(tmp_path, "outside.c", OUTSIDE, "-O2")
    for file in (*files[:2], other, files[0], files[2]):
        cache.graph([file], ARCH, build)
    kept = [file.digest for file in (files[0], files[2], other)]
    found = [cache.find(file.key, file.data) for file in (*files, other)]
    assert [file.digest for file in found if file] == kept
    assert cache.size == sum(entry.size for entry in cache.kept.values())
    cache.most_bytes = max(entry.size for entry in cache.kept.values())
    cache.keep(files[1])
    assert cache.size <= cache.most_bytes
    assert cache.find(files[1].key, files[1].data) is files[1]


def test_a_cache_of_no_bytes_keeps_nothing(tmp_path: Path) -> None:
    cache = Cache(most_bytes=0)
    file = compile_object(tmp_path, "counter.c", COUNTER, "-O2")
    assert equal(cache.graph([file], ARCH, partial(built, arch=ARCH)), built([file], ARCH))
    cache.keep(file)
    assert (len(cache.kept), cache.size) == (0, 0)


def test_a_size_counts_each_column_once(tmp_path: Path) -> None:
    file = compile_object(tmp_path, "counter.c", COUNTER, "-O2")
    graph = built([file], ARCH)
    assert len(file.data) < bytes_of(file) < 4 * len(file.data)
    owned = sum(array.nbytes for array in arrays_of(graph) if array.base is None)
    assert bytes_of(graph) >= owned


def test_an_unchanged_archive_member_is_the_live_one(tmp_path: Path) -> None:
    program = Program(tmp_path)
    objects = program.compile(main=MAIN, counter=COUNTER, outside=OUTSIDE)
    archive = tmp_path / "libparts.a"
    run("ar", "rc", archive, *objects[1:])
    program.link("main.o", "libparts.a")
    program.start()
    try:
        with attached(program, "*.a") as session:
            live = session.program.objects
            edited = program.compile(counter=VERSIONS[1])
            run("ar", "r", archive, *edited)
            _, archives = read_files([(str(archive), archive.read_bytes())], session.program)
            found = {file.member: file for file in members(session.program, archives[0])}
            assert found["outside.o"] is live[str(archive), "outside.o"].file
            assert found["counter.o"] is not live[str(archive), "counter.o"].file
            assert reload(session, archive).functions == ["answer"]
            assert program.ask(0) == 4101
    finally:
        program.stop()


def told(outcome: Outcome) -> tuple[object, ...]:
    """Return what a user is told, without addresses, times and folders."""
    notes = [re.sub(r"/\S*/", "", note) for note in outcome.notes]
    return (
        outcome.state, outcome.functions, outcome.new_variables, notes, outcome.error,
        outcome.bytes_loaded,
    )  # fmt: skip


def held(session: Session, path: str) -> list[tuple[int, int]]:
    """Return region and bytes of each allocation that an object has."""
    rows = [row for row in session.program.ledger.rows.values() if row.object == (path, "")]
    used = [row.allocation for row in rows if not row.superseded]
    return sorted((part.region, part.size) for part in used)


@pytest.mark.parametrize(
    "flags", [("-O2",), ("-O1", "-g", "-ffunction-sections")], ids=" ".join
)
def test_undo_with_and_without_the_cache_is_the_same(
    tmp_path: Path, flags: tuple[str, ...]
) -> None:
    turns = (1, 0, 1, 2, 3, 2, 0, 3, 1, 0)
    seen: list[list[object]] = []
    for name, size in (("with", Cache().most_bytes), ("without", 0)):
        (tmp_path / name).mkdir()
        program = Program(tmp_path / name, flags)
        program.compile(main=MAIN, counter=COUNTER, outside=OUTSIDE)
        program.link()
        program.start()
        log: list[object] = []
        try:
            with attached(program) as session:
                session.program.cache.most_bytes = size
                path = str(program.folder / "counter.o")
                for turn in turns:
                    outcome = reload(session, *program.compile(counter=VERSIONS[turn]))
                    log.append(told(outcome))
                    log.append([program.ask(n) for n in range(8)])
                    log.append(held(session, path))
                assert bool(session.program.cache.kept) == bool(size)
                outcome = session.rollback(2)
                log += [told(outcome), [program.ask(n) for n in range(8)]]
        finally:
            program.stop()
        seen.append(log)
    assert seen[0] == seen[1]
    assert len({str(item) for item in seen[0]}) > len(turns)


def test_a_version_is_read_once_however_often_it_comes_back(tmp_path: Path) -> None:
    program = Program(tmp_path)
    program.compile(main=MAIN, counter=COUNTER, outside=OUTSIDE)
    program.link()
    program.start()
    try:
        with attached(program) as session:
            key = (str(tmp_path / "counter.o"), "")
            first = session.program.objects[key].file
            assert reload(session, *program.compile(counter=VERSIONS[1])).state == "live"
            second = session.program.objects[key].file
            for text, file in ((COUNTER, first), (VERSIONS[1], second)) * 2:
                assert reload(session, *program.compile(counter=text)).state == "live"
                assert session.program.objects[key].file is file
            assert read_object(key[0], first.data).digest == first.digest
    finally:
        program.stop()
