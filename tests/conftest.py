"""What every test may rely on: the agent is compiled, messages are in English, sockets fit."""

import os
import tempfile
from collections.abc import Generator
from pathlib import Path

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


@pytest.fixture
def own_sockets(monkeypatch: pytest.MonkeyPatch) -> Generator[Path]:
    """A folder of its own for daemons' sockets; its path is short, as theirs have to be."""
    with tempfile.TemporaryDirectory(prefix="reloader-run-") as folder:
        monkeypatch.setenv("XDG_RUNTIME_DIR", folder)
        yield Path(folder)
