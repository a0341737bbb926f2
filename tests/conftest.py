"""What every test may rely on: the agent is compiled, and messages are in English."""

import os

import pytest

from stubs.build import build


@pytest.fixture(scope="session", autouse=True)
def _agent_is_built() -> None:
    """Compile the agent where its sources changed, as `make test` does."""
    build()


@pytest.fixture(scope="session", autouse=True)
def _english() -> None:
    """Let compilers and tools answer in one language: some tests read them."""
    os.environ["LC_ALL"] = "C.UTF-8"
    os.environ.pop("LANGUAGE", None)
