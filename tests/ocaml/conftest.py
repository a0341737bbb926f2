"""Every test of OCaml programs that asks for `compiler` runs on both versions."""

import pytest

from tests.support.ocaml import VERSIONS, Compiler, compiler_of


@pytest.fixture(scope="session", params=VERSIONS)
def compiler(request: pytest.FixtureRequest) -> Compiler:
    """One installed OCaml, 4.13 and then 5.3."""
    return compiler_of(request.param)
