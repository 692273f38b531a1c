"""A run whose machine loses power resumes from what the disk has kept; ``python -m tests.power`` has more."""

import shutil
from pathlib import Path

import pytest

from tests import power


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace, which records what a run writes")
def test_whatever_a_disk_keeps_of_a_run_that_lost_power_is_whole_and_resumes(tmp_path: Path) -> None:
    options = [*power.OPTIONS, "trainer.max_epochs=2"]
    table, wrong = power.survey(tmp_path, states=7, seed=0, read=100, options=options)
    assert not wrong
    assert sum(found.resumed for found in table.values()) >= 5  # of each kind one, if it is among these
