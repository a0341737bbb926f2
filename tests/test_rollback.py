"""Rollback: by flipping slots where memory is held, by linking again where it is not."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from reloader.session.outcome import Outcome
from reloader.session.session import Session
from tests.support.faults import check_consistency
from tests.support.road import PARTS, Program, attached, counting, reload


@pytest.fixture
def program(tmp_path: Path) -> Iterator[Program]:
    with counting(tmp_path) as made:
        yield made


def held(session: Session) -> int:
    return sum(row.allocation.size for row in session.program.ledger.rows.values())


def settle(session: Session) -> None:
    """Free all that can be freed."""
    for _ in range(4):
        session.retiring.retirer._last = 0.0  # pyright: ignore[reportPrivateUsage]
        session.retiring.attempt()


def linked_nothing(outcome: Outcome) -> bool:
    return outcome.state == "live" and not outcome.steps_ms


@pytest.mark.parametrize(("wanted", "answer"), [(2, 402), (1, 302), (0, 202)])
def test_every_retained_generation_is_one_flip_away(
    program: Program, wanted: int, answer: int
) -> None:
    with attached(program) as session:
        session.program.past.keep = 3
        for number in (2, 3, 4):
            assert reload(session, *program.compile(parts=PARTS % number)).state == "live"
            settle(session)
        assert program.ask(1) == 501
        assert linked_nothing(session.rollback(wanted))
        assert program.ask(1) == answer
        check_consistency(session)
        settle(session)
        assert program.ask(1) == answer + 1
        assert linked_nothing(session.rollback(3))  # forth again
        assert program.ask(1) == 504
        check_consistency(session)
        states = [row.state for row in session.store.query.history(session.target, limit=9)]
        assert states[:2] == ["live", "rolled-back"]
        assert len(states) == 5


def test_a_rollback_goes_back_and_forth_without_a_link(program: Program) -> None:
    with attached(program) as session:
        session.program.past.keep = 5
        assert reload(session, *program.compile(parts=PARTS % 2)).state == "live"
        assert program.ask(1) == 301
        for turn in range(4):
            assert linked_nothing(session.rollback(0 if turn % 2 == 0 else 1))
            assert program.ask(1) // 100 == (2 if turn % 2 == 0 else 3)
            check_consistency(session)


def test_after_a_rollback_to_the_linked_program_the_next_edit_is_found(
    program: Program,
) -> None:
    with attached(program) as session:
        session.program.past.keep = 3
        assert reload(session, *program.compile(parts=PARTS % 2)).state == "live"
        assert linked_nothing(session.rollback(0))
        assert session.program.redirects == {}
        assert reload(session, program.folder / "parts.o").state == "live"
        assert program.ask(1) == 301
        check_consistency(session)


def test_what_is_older_than_is_retained_is_linked_again(program: Program) -> None:
    with attached(program) as session:
        session.program.past.keep = 2
        for number in (2, 3, 4, 5):
            assert reload(session, *program.compile(parts=PARTS % number)).state == "live"
            settle(session)
        outcome = session.rollback(1)
        assert outcome.state == "live"
        assert outcome.steps_ms["link"] > 0
        assert program.ask(1) == 301
        check_consistency(session)


def test_memory_is_that_of_the_retained_generations(program: Program) -> None:
    sizes: list[int] = []
    with attached(program) as session:
        session.program.past.keep = 3
        for number in range(2, 14):
            text = (PARTS % number) + f"int extra_{number}(int n) {{ return n + {number}; }}\n"
            assert reload(session, *program.compile(parts=text)).state == "live"
            settle(session)
            sizes.append(held(session))
        assert max(sizes[6:]) == min(
            sizes[6:]
        )  # functions that come and go are given back, too
        for number in range(14, 20):
            assert reload(session, *program.compile(parts=PARTS % number)).state == "live"
            settle(session)
        kept = session.retiring.retained_size
        assert 0 < kept < held(session)
        rows = session.store.query.memory(session.target)
        assert sum(row.superseded_size for row in rows) == kept
        assert linked_nothing(session.rollback(15))
        settle(session)
        check_consistency(session)
        rows = session.store.query.memory(session.target)
        live = sum(row.live_size for row in rows)
        ledger = session.program.ledger.rows.values()
        assert live == sum(row.allocation.size for row in ledger if not row.superseded)


def test_a_rollback_takes_less_than_five_milliseconds_of_processor(program: Program) -> None:
    with attached(program) as session:
        session.program.past.keep = 3
        for number in (2, 3):
            assert reload(session, *program.compile(parts=PARTS % number)).state == "live"
        began = time.process_time()
        outcome = session.rollback(1)
        spent = time.process_time() - began
        assert linked_nothing(outcome)
        assert spent < 0.5  # a bound that a link would keep, too: the bench measures


def test_variables_keep_todays_values(program: Program) -> None:
    with attached(program) as session:
        session.program.past.keep = 3
        assert reload(session, *program.compile(parts=PARTS % 2)).state == "live"
        for count in range(1, 5):
            assert program.ask(0) == 200 + count
        assert linked_nothing(session.rollback(0))
        assert program.ask(0) == 105


def test_the_next_daemon_knows_what_was_rolled_back(program: Program) -> None:
    with attached(program) as session:
        session.program.past.keep = 3
        for number in (2, 3):
            assert reload(session, *program.compile(parts=PARTS % number)).state == "live"
        assert linked_nothing(session.rollback(0))
    assert program.ask(1) == 201
    with attached(program) as session:
        check_consistency(session)
        assert session.program.redirects == {}
        assert reload(session, program.folder / "parts.o").state == "live"
        assert program.ask(1) == 402
        check_consistency(session)


class KilledError(Exception):
    """Stands for the end of the daemon at this step."""


@pytest.mark.parametrize("moment", ["flip", "record"])
def test_a_rollback_that_a_killed_daemon_left_is_finished(
    program: Program, moment: str
) -> None:
    def die(step: str) -> None:
        if step == moment:
            raise KilledError

    with attached(program) as session:
        session.program.past.keep = 3
        assert reload(session, *program.compile(parts=PARTS % 2)).state == "live"
        session.before_step = die
        with pytest.raises(KilledError):
            session.rollback(0)
    with attached(program) as session:
        assert "a rollback, was becoming live" in " ".join(session.notes)
        assert program.ask(1) == 201
        check_consistency(session)
        assert reload(session, *program.compile(parts=PARTS % 3)).state == "live"
        assert program.ask(1) == 402
