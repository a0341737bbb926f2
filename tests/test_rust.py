"""Programs in Rust as cargo builds them, reloaded while they run."""

import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from reloader.client import Client
from reloader.session.session import Session
from reloader.wire.answers import ReloadAnswer
from reloader.wire.project import Project
from tests.support.cargo import DEBIANS, Crate, toolchains

ROOT = Path(__file__).resolve().parent.parent
RELOADER = [sys.executable, "-m", "reloader"]


@pytest.fixture(params=toolchains())
def crate(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Crate]:
    made = Crate(tmp_path, str(request.param))
    yield made
    made.stop()


@pytest.fixture
def debians(tmp_path: Path) -> Iterator[Crate]:
    made = Crate(tmp_path, DEBIANS)
    yield made
    made.stop()


def settled(client: Client, generation: int) -> ReloadAnswer:
    answer = client.wait(generation=generation, timeout=60.0)
    assert answer["outcome"] == "live", answer["error"]
    return answer


def attach(crate: Crate, watch: Path) -> Session:
    return Session.attach(crate.start(), root=crate.folder, watch=[str(watch)])


def names(answer: ReloadAnswer) -> str:
    return " ".join(answer["functions"])


def test_a_saved_source_is_live_after_cargo_build_and_state_goes_on(crate: Crate) -> None:
    crate.env["PYTHONPATH"] = str(ROOT)
    build = " ".join(crate.command)
    options = ["--build", build, "--source", "**/*.rs"]
    crate.start(*RELOADER, "run", *options, "--")
    with Client.open(Project(crate.folder)) as client:
        assert crate.ask(3) == 90_000 + 9_900 + 1 + 1
        crate.edit(
            "src/work.rs", 'if n == 3 { panic!("three"); }', 'if n == 4 { panic!("4"); }'
        )
        assert "4work5risky" in names(settled(client, 1))
        assert [crate.ask(3), crate.ask(4)] == [90_304, 99_906]
        crate.edit("src/work.rs", "item > best", "item < best")
        assert "4work7largest" in names(settled(client, 2))
        assert crate.ask(3) == 10_000 + 300 + 4 + 4
        crate.edit("shapes/src/lib.rs", "self.side * self.side", "self.side - 3")
        assert "4area" in names(settled(client, 3))
        assert crate.ask(3) == 0 + 300 + 5 + 5
        crate.edit("src/work.rs", "risk * 100", "risk * 1000 + extra(n)")
        crate.edit("src/work.rs", "fn risky", "fn extra(n: i64) -> i64 { n * 20 }\nfn risky")
        settled(client, 4)
        assert crate.ask(3) == 0 + 3_000 + 60 + 6 + 6
        assert client.owner("work::risky")[0]["generation"] == 4
        client.stop()


def test_members_of_a_library_are_the_same_from_build_to_build(crate: Crate) -> None:
    [library] = (crate.folder / "target/debug/deps").glob("libshapes-*.rlib")
    with closing(attach(crate, library)) as session:
        for number, text in enumerate(["self.side + 4", "self.side + 5"]):
            crate.edit(
                "shapes/src/lib.rs", ["self.side * self.side", "self.side + 4"][number], text
            )
            crate.build()
            outcome = session.reload_files([str(library)])
            assert outcome.state == "live", outcome.error
            assert crate.ask(0) == (7 + number) * 10_000 + 2 * (number + 1)


def test_what_was_made_before_a_change_of_its_type_keeps_its_code(debians: Crate) -> None:
    objects = debians.folder / "target/debug/incremental"
    with closing(attach(debians, objects)) as session:
        debians.edit("shapes/src/lib.rs", "{ side: i64 }", "{ more: [i64; 9], side: i64 }")
        debians.edit("shapes/src/lib.rs", "{ side: 3 }", "{ more: [7; 9], side: 3 }")
        debians.edit("shapes/src/lib.rs", "self.side * self.side", "self.side * self.more[8]")
        debians.build()
        files = [str(path) for path in objects.rglob("*.o")]
        outcome = session.reload_files(files)
        assert outcome.state == "live", outcome.error
        assert debians.ask(0) == 90_002
