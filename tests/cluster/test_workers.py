"""Workers on several machines, which join and die at any time, run each job of a sweep once."""

import random
from pathlib import Path

import pytest

from tests import chaos_workers, light_job
from tests.chaos_workers import LOCKS, rampage, why_not


@pytest.mark.parametrize("locks", LOCKS)
def test_a_worker_that_is_killed_leaves_its_job_to_one_that_is_there(
    locks: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if reason := why_not():
        pytest.skip(reason)
    monkeypatch.setenv(light_job.SHORT, "1")  # of what a beat is allowed
    monkeypatch.setattr(chaos_workers, "STALE", light_job.STALE)
    monkeypatch.setattr(chaos_workers, "VICTIMS", ("worker", "machine", "pause machine"))
    monkeypatch.setattr(random.Random, "uniform", lambda self, least, most: least)
    (row,) = rampage(1, jobs=6, strikes=2, seed=0, work=tmp_path, locks=[locks], light=True)
    assert row["worker"] + row["machine"] + row["pause machine"] == 2
    assert not row["wrong"]
