"""Names that no source has any more: known while their memory is there, and no longer."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from reloader.session.session import Session
from tests.support.road import MAIN, Program, attached, reload

BEFORE = "int answer(int n) { return n + 1; }\n"
WITH = """
int more = 5;
__thread int each = 6;
__attribute__((noinline)) int helper(int n) { return n + more + each; }
int answer(int n) { return helper(n) + more; }
"""
OTHER = "int other(int n) { return n; }\n"
WANTS = """
extern int more;
extern __thread int each;
int helper(int);
int other(int n) { return helper(n) + more + each; }
"""


@pytest.fixture
def program(tmp_path: Path) -> Iterator[Program]:
    made = Program(tmp_path)
    made.compile(main=MAIN, part=BEFORE, other=OTHER)
    made.link()
    made.start()
    yield made
    made.stop()


def give_back(session: Session) -> None:
    """Free all that can be freed."""
    for _ in range(4):
        session.retiring.retirer._last = 0.0  # pyright: ignore[reportPrivateUsage]
        session.retiring.attempt()
        session.retiring.collect()


def test_what_was_given_back_is_found_by_no_name(program: Program) -> None:
    with attached(program) as session:
        assert reload(session, *program.compile(part=WITH)).state == "live"
        assert program.ask() == 16
        assert reload(session, *program.compile(part=BEFORE)).state == "live"
        give_back(session)
        outcome = reload(session, *program.compile(other=WANTS))
        assert (outcome.state, outcome.code) == ("refused", "undefined-symbols")
        for name in ("more", "each", "helper"):
            assert f"{name} is not defined anywhere" in outcome.error
        assert reload(session, *program.compile(part=WITH, other=WANTS)).state == "live"
        assert program.ask() == 16


def test_what_somebody_uses_keeps_its_name(program: Program) -> None:
    with attached(program) as session:
        assert reload(session, *program.compile(part=WITH)).state == "live"
        assert reload(session, *program.compile(other=WANTS)).state == "live"
        assert reload(session, *program.compile(part=BEFORE)).state == "live"
        give_back(session)
        edited = WANTS.replace("return", "return 100 +")
        assert reload(session, *program.compile(other=edited)).state == "live"
        part = "int other(int); int answer(int n) { return other(n); }"
        assert reload(session, *program.compile(part=part)).state == "live"
        assert program.ask() == 122


def test_a_return_to_before_a_variable_was_there_takes_its_name(program: Program) -> None:
    with attached(program) as session:
        session.program.past.keep = 1
        assert reload(session, *program.compile(part=WITH)).state == "live"
        assert session.rollback(0).state == "live"
        assert program.ask() == 1
        session.program.past.moments.clear()
        session.program.ledger.supersede(session.program.roots())
        session.retiring.collect()
        give_back(session)
        assert reload(session, *program.compile(other=WANTS)).code == "undefined-symbols"
