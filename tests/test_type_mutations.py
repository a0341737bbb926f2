"""Generated edits: every dangerous one is refused, no harmless one is."""

from pathlib import Path

import pytest

from tests.support.mutations import mutations


@pytest.mark.parametrize("seed", [0, 3])
def test_seeded_edits_are_told_apart(tmp_path: Path, seed: int) -> None:
    verdicts = list(mutations(tmp_path, seed, dangerous=18, harmless=11))
    assert len(verdicts) == 18 + 11
    assert [verdict for verdict in verdicts if not verdict.right] == []
