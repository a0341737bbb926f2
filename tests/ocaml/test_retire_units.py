"""Units that were superseded: what holds one is named, and what nothing holds is forgotten."""

from collections.abc import Generator, Sequence
from pathlib import Path

import pytest

from reloader.hosts.caml.runtime import HOLDERS
from tests.support.caml_runtime import Live, Loaded, entered, version
from tests.support.ocaml import Build, Compiler, build, compiler_of

pytestmark = pytest.mark.live

FIELDS = (0, 1, 2)  # name, f, hold
HELD = (0, 1)  # number, hold


@pytest.fixture(scope="module")
def host(compiler: Compiler, tmp_path_factory: pytest.TempPathFactory) -> Build:
    return build(compiler, tmp_path_factory.mktemp("host"), "holders", packages=["unix"])


@pytest.fixture
def live(host: Build) -> Generator[Live]:
    with entered(host) as found:
        yield found


@pytest.fixture(scope="module")
def versions(host: Build) -> list[Path]:
    return [numbered(host, number) for number in (1, 2)]


def numbered(program: Build, number: int, more: str = "") -> Path:
    return version(program, "part", "number = 0", f"number = {number}", more)


def swap(live: Live, path: Path, fields: Sequence[int] = FIELDS) -> Loaded:
    return live.swap(path, fields)[0]


def holder(live: Live, unit: Loaded) -> str:
    return HOLDERS[live.runtime.retire([unit.place.code_begin])[0].kind]


def test_the_live_version_is_held_by_the_module_that_others_know(
    live: Live, versions: list[Path]
) -> None:
    first = swap(live, versions[0])
    done = live.runtime.retire([first.place.code_begin])[0]
    assert HOLDERS[done.kind] == "a module"
    assert live.block("Part") <= done.holder < live.block("Part") + 16
    assert first.place.data_begin <= done.word < first.place.data_end
    assert live.build.ask("f") == "1"


def test_a_superseded_version_is_forgotten_and_its_memory_used_again(
    live: Live, versions: list[Path]
) -> None:
    first = swap(live, versions[0])
    swap(live, versions[1])
    assert holder(live, first) == "nothing"
    live.drop(first)
    third = swap(live, versions[0])
    assert third.place.block == first.place.block
    assert live.build.ask("f") == "1"
    assert holder(live, first) == "a module"  # the same address is another unit now


@pytest.mark.parametrize(
    ("way", "kind"),
    [
        ("capture", "a block of the heap"),
        ("trace", "a backtrace"),
        ("weak", "a block of the heap"),
    ],
)
def test_what_holds_a_superseded_version_is_named(
    live: Live, versions: list[Path], way: str, kind: str
) -> None:
    first = swap(live, versions[0])
    assert live.build.ask(way) == "done"
    swap(live, versions[1])
    assert holder(live, first) == kind
    assert live.build.ask("release") == "done"
    assert holder(live, first) == "nothing"


def test_a_backtrace_that_nobody_asked_for_yet_loses_the_lines_of_a_forgotten_version(
    live: Live, versions: list[Path]
) -> None:
    first = swap(live, versions[0])
    assert live.build.ask("raise") == "done"
    swap(live, versions[1])
    assert holder(live, first) == "nothing"
    live.drop(first)
    lines = live.build.ask("lines")
    assert "main.ml" in lines
    assert "part.ml" not in lines
    assert live.build.ask("raise") == "done"
    assert "part.ml" in live.build.ask("lines")


def test_unknown_units_are_told(live: Live) -> None:
    assert [row.kind for row in live.runtime.retire([4096, 8192])] == [6, 6]


def test_versions_that_hold_each_other_are_forgotten_together(live: Live) -> None:
    loop = "let loop = ref [ f ]\nlet () = loop := [ (fun n -> f n + List.length !loop) ]\n"
    paths = [numbered(live.build, number, loop) for number in range(4)]
    units = [swap(live, path) for path in paths]
    done = live.runtime.retire([unit.place.code_begin for unit in units])
    assert [row.gone for row in done] == [True, True, True, False]


def test_two_hundred_swaps_under_compaction_leave_memory_flat(
    live: Live, versions: list[Path]
) -> None:
    assert live.build.ask("spin") == "spinning"
    superseded: list[Loaded] = []
    newest = swap(live, versions[0])
    sizes: list[int] = []
    for number in range(200):
        superseded.append(newest)
        newest = swap(live, versions[number % 2])
        forget(live, superseded)
        if number % 50 == 49:
            sizes.append(resident(live))
    assert max(sizes) - min(sizes) < 512 << 10
    assert live.build.ask("stop") == "done"
    forget(live, superseded)
    assert superseded == []


def forget(live: Live, superseded: list[Loaded]) -> None:
    """Forget all that can be; the program may stand in one that was live a moment ago."""
    done = live.runtime.retire([unit.place.code_begin for unit in superseded])
    for unit, row in zip(list(superseded), done, strict=True):
        if row.gone:
            live.drop(unit)
            superseded.remove(unit)
        else:
            assert HOLDERS[row.kind] == "a stack"


def test_a_suspended_fiber_holds_the_version_that_it_runs(tmp_path: Path) -> None:
    program = build(compiler_of("5.3"), tmp_path, "effects")
    kept = [(0, 0)]  # the effect's constructor
    with entered(program) as live:
        first, _ = live.swap(version(program, "task", '"old"', '"new"'), [1, 2], kept)
        assert program.ask("start a") == "1"
        live.swap(version(program, "task", '"old"', '"newer"'), [1, 2], kept)
        assert holder(live, first) != "nothing"
        asked = [program.ask(word) for word in ("compact", "step", "step", "step")]
        assert asked == ["compacted", "", "", "new a 6"]
        assert program.ask("compact") == "compacted"
        assert holder(live, first) == "nothing"
        live.drop(first)
        assert program.ask("start b") == "1"
        assert [program.ask("step") for _ in range(3)][-1] == "newer b 6"


def test_a_function_that_is_under_way_holds_its_version(
    live: Live, versions: list[Path]
) -> None:
    first = swap(live, versions[0])
    assert live.build.ask("within") == "within"
    swap(live, versions[1])
    assert holder(live, first) == "a stack"
    assert live.build.ask("leave") == "left 6"
    assert holder(live, first) == "nothing"


def test_a_thread_holds_the_version_that_it_runs_but_not_by_its_backtrace(
    compiler: Compiler, tmp_path: Path
) -> None:
    program = build(compiler, tmp_path, "held_threads", packages=["threads.posix"])
    with entered(program) as live:
        first = swap(live, numbered(program, 1), HELD)
        assert program.ask("start") == "started"
        second = swap(live, numbered(program, 2), HELD)
        assert holder(live, first) == "a stack"
        assert program.ask("raise") == "raised"
        assert holder(live, first) == "nothing"
        live.drop(first)
        lines = program.ask("end")
        assert "main.ml" in lines
        assert "part.ml" not in lines
        assert holder(live, second) == "a module"


def test_a_domain_holds_the_version_that_it_runs(tmp_path: Path) -> None:
    program = build(compiler_of("5.3"), tmp_path, "held_domains")
    with entered(program) as live:
        first = swap(live, numbered(program, 1), HELD)
        assert program.ask("start") == "started"
        swap(live, numbered(program, 2), HELD)
        assert holder(live, first) == "a stack"
        assert program.ask("end") == "ended"
        assert holder(live, first) == "nothing"


def test_a_mark_that_takes_too_long_is_given_up(live: Live, versions: list[Path]) -> None:
    assert live.build.ask("fill") == "done"
    first = swap(live, versions[0])
    swap(live, versions[1])
    done = live.runtime.retire([first.place.code_begin], budget_us=1)[0]
    assert HOLDERS[done.kind] == "a heap too large for the time given"
    assert holder(live, first) == "nothing"


def resident(live: Live) -> int:
    """Return bytes of private memory that the program has in RAM."""
    text = Path(f"/proc/{live.process.pid}/smaps_rollup").read_text()
    rows = [line.split() for line in text.splitlines()]
    return sum(int(row[1]) << 10 for row in rows if row[0].startswith("Private"))
