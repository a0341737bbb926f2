"""The baseline of real programs, every placement checked against ld's map."""

from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest

from reloader.arch.x86_64 import KINDS
from reloader.ids import NO_ADDR
from reloader.live.baseline import Baseline, State, match_baseline
from tests.support.baseline import compare_with_map, load, open_image, symbols
from tests.support.linkmap import read_link_map
from tests.support.programs import (
    BuiltProgram,
    build_lua,
    build_memcached,
    build_nginx,
    build_sqlite,
    link_again,
)

# the first run builds the programs
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

PROGRAMS: dict[str, Callable[[], BuiltProgram]] = {
    "lua": build_lua,
    "lua-nopie": lambda: build_lua("nopie"),
    "lua-sections": lambda: build_lua("sections"),
    "memcached": build_memcached,
    "memcached-nopie": lambda: build_memcached("nopie"),
    "memcached-sections": lambda: build_memcached("sections"),
    "nginx": build_nginx,
    # objects for a PIE in an executable at a fixed address: GOT loads become immediates
    "nginx-nopie": lambda: link_again(build_nginx(), "nginx-nopie", "-no-pie"),
    "sqlite": build_sqlite,
}
# stripped, nothing refers to these constants and they are too few bytes to be searched for
UNREACHED = {("memcached-tls.o", ".rodata"), ("ngx_proxy_protocol.o", ".rodata")}


def baseline_of(program: BuiltProgram, *, stripped: bool) -> Baseline:
    path = program.stripped() if stripped else program.executable
    return match_baseline([load(path) for path in program.objects], open_image(path), KINDS)


@pytest.mark.parametrize("stripped", [False, True], ids=["symbols", "stripped"])
@pytest.mark.parametrize("build", PROGRAMS.values(), ids=PROGRAMS)
def test_every_section_is_where_the_map_says(
    build: Callable[[], BuiltProgram], *, stripped: bool
) -> None:
    program = build()
    baseline = baseline_of(program, stripped=stripped)
    score = compare_with_map(baseline, read_link_map(program.map_file))
    assert score.wrong == []
    assert set(score.missed) <= (UNREACHED if stripped else set())
    states = Counter(placement.state for placement in baseline.placements)
    assert states == {State.MATCHED: len(program.objects)}


@pytest.mark.parametrize("stripped", [False, True], ids=["symbols", "stripped"])
def test_of_all_programs_99_percent_are_placed(*, stripped: bool) -> None:
    placed = missed = 0
    for build in PROGRAMS.values():
        program = build()
        baseline = baseline_of(program, stripped=stripped)
        score = compare_with_map(baseline, read_link_map(program.map_file))
        placed, missed = placed + score.placed, missed + len(score.missed)
    assert placed / (placed + missed) >= 0.99


@pytest.mark.parametrize("stripped", [False, True], ids=["symbols", "stripped"])
def test_every_function_of_nginx_is_where_its_symbol_table_says(*, stripped: bool) -> None:
    program = build_nginx()
    baseline = baseline_of(program, stripped=stripped)
    truth = set(symbols(program.executable).items())
    functions = baseline.functions()
    for row, symbol, addr in zip(
        functions.object.tolist(),
        functions.symbol.tolist(),
        functions.addr.tolist(),
        strict=True,
    ):
        file = baseline.placements[int(row)].file
        name = file.symbol_names[int(symbol)].decode()
        is_local = int(file.bindings()[symbol]) == 0
        assert is_local or (name, addr) in truth
    assert (functions.next_addr > functions.addr).all()
    assert (functions.next_addr >= functions.addr + functions.size).all()


def test_statics_of_lua_are_found_in_a_stripped_copy() -> None:
    program = build_lua()
    full = baseline_of(program, stripped=False)
    bare = baseline_of(program, stripped=True)
    for one, other in zip(full.placements, bare.placements, strict=True):
        known = one.symbol_addr != np.uint64(NO_ADDR)
        assert known.any()
        assert (one.symbol_addr[known] == other.symbol_addr[known]).all()
