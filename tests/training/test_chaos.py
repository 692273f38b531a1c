"""Runs that are killed at random moments: thirty of the kills of ``python -m tests.chaos``."""

from pathlib import Path

import pytest

from tests.chaos import VARIANTS, rampage


@pytest.mark.slow
@pytest.mark.parametrize("name", VARIANTS)
def test_a_run_that_was_killed_twice_ends_as_one_that_was_not(name: str, tmp_path: Path) -> None:
    rows = list(rampage(2, seed=list(VARIANTS).index(name), work=tmp_path, names=[name]))
    assert sum(row["kills"] for row in rows) >= 2
    assert not [row for row in rows if row["differs"]]
